"""Runs the scenarios with releases of the vendor's SDKs against a running service, and prints the
matrix.

    python -m tests.compat.releases http://127.0.0.1:8000 ROOT_KEY [--write]

Each release gets a virtual environment of its own under `.cache/compat`, made when it is first
needed. `--write` puts the matrix into docs/compatibility.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PYTHON_RELEASES = ["0.11.0", "0.12.0", "0.13.0", "0.14.0", "0.15.0", "0.16.0", "0.17.0", "0.18.0"]
# 0.11 has no LangChain store.
LANGCHAIN_RELEASES = PYTHON_RELEASES[1:]
JS_RELEASE = "0.14.0"

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_CACHE = _ROOT / ".cache" / "compat"
_DOCUMENT = _ROOT / "docs" / "compatibility.md"
_BEGIN, _END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"

Outcome = dict[str, str]


def python_environment(release: str) -> Path:
    """Return the interpreter of a virtual environment with a release of the Python SDK.

    What the SDK depends on is that of the environment this runs in: installing it anew for each
    would take minutes.
    """
    directory = _CACHE / f"python-{release}-{sys.version_info.major}.{sys.version_info.minor}"
    python = directory / "bin" / "python"
    stamp = directory / "installed"
    if not stamp.exists():
        venv.create(directory, clear=True, symlinks=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
        # Directories named in a .pth file come after the environment's own.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        _pip(python, "--no-deps", "--ignore-installed", f"cyborgdb=={release}")
        stamp.touch()
    return python


def langchain_environment() -> Path:
    """Return the interpreter of a virtual environment with LangChain's test suite, and no SDK."""
    directory = _CACHE / f"langchain-{sys.version_info.major}.{sys.version_info.minor}"
    python = directory / "bin" / "python"
    stamp = directory / "installed"
    if not stamp.exists():
        venv.create(directory, clear=True, symlinks=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        _pip(python, "langchain-tests")
        stamp.touch()
    return python


def js_environment(release: str) -> Path:
    """Return a directory whose node_modules has a release of the JavaScript SDK."""
    directory = _CACHE / f"js-{release}"
    stamp = directory / "installed"
    if not stamp.exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text('{"private": true}')
        # The SDK loads LangChain's classes at its start, and leaves it to its users to install
        # them.
        install = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            f"cyborgdb@{release}",
            "@langchain/core",
        ]
        subprocess.run(install, check=True, capture_output=True, text=True, cwd=directory)
        stamp.touch()
    return directory


def run_python(release: str, url: str, api_key: str) -> Outcome:
    """Run the scenario with a release of the Python SDK."""
    return _outcome(
        [str(python_environment(release)), str(_HERE / "scenario.py"), url, api_key], _HERE
    )


def run_langchain(release: str, url: str, api_key: str, *more: str) -> Outcome:
    """Run LangChain's suite on the store in a release of the Python SDK; `more` are arguments of
    pytest.
    """
    sdk = sysconfig.get_path("purelib", vars={"base": str(python_environment(release).parents[1])})
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_HERE / "stand_ins"), sdk]),
        "COMPAT_URL": url,
        "COMPAT_API_KEY": api_key,
    }
    pytest = [
        str(langchain_environment()),
        "-m",
        "pytest",
        "--quiet",
        "--noconftest",
        "--rootdir",
        ".",
        "-c",
        os.devnull,
    ]
    command = [
        *pytest,
        "-p",
        "no:cacheprovider",
        "--asyncio-mode=auto",
        *more,
        "langchain_suite.py",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=_HERE,
        env=environment,
    )
    last = done.stdout.splitlines()[-1] if done.stdout else done.stderr[-2000:]
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR l"))]
    return {"suite": f"fail: {last} {failed}" if done.returncode else f"pass: {last}"}


def run_js(release: str, url: str, api_key: str) -> Outcome:
    """Run the scenario with a release of the JavaScript SDK."""
    return _outcome(["node", str(_HERE / "scenario.mjs"), url, api_key], js_environment(release))


def has_node() -> bool:
    """Whether Node and npm are here."""
    return all(shutil.which(program) for program in ("node", "npm"))


def _pip(python: Path, *packages: str) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, *packages], check=True, capture_output=True, text=True)


def _outcome(command: list[str], directory: Path) -> Outcome:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=directory
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"start": f"fail: {done.stderr[-2000:]}"}
    outcome: Outcome = json.loads(lines[-1])
    return outcome


def matrix(outcomes: dict[str, Outcome]) -> str:
    """Return the outcomes as a Markdown table: a row for each step, a column for each release."""
    steps = list(dict.fromkeys(step for outcome in outcomes.values() for step in outcome))
    lines = [f"| step | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 1) + "|"]
    for step in steps:
        results = [
            outcome.get(step, "no").partition(":")[0].replace("no", " ")
            for outcome in outcomes.values()
        ]
        lines.append(f"| {step.replace('_', ' ')} | {' | '.join(results)} |")
    return "\n".join(lines) + "\n"


def write(table: str, document: Path = _DOCUMENT) -> None:
    """Put `table` between the marks in `document`."""
    text = document.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    document.write_text(before + _BEGIN + table + _END + after, encoding="utf-8")


def run_all(url: str, api_key: str) -> dict[str, Outcome]:
    """Run all scenarios; the outcome of LangChain's suite is one more step of a release."""
    outcomes = {
        f"Python {release}": run_python(release, url, api_key) for release in PYTHON_RELEASES
    }
    for release in LANGCHAIN_RELEASES:
        outcomes[f"Python {release}"]["LangChain"] = run_langchain(release, url, api_key)["suite"]
    if has_node():
        outcomes[f"JavaScript {JS_RELEASE}"] = run_js(JS_RELEASE, url, api_key)
    return outcomes


def main() -> int:
    """Run all scenarios; return how many steps failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("api_key")
    parser.add_argument(
        "--write", action="store_true", help="put the matrix into docs/compatibility.md"
    )
    arguments = parser.parse_args()
    outcomes = run_all(arguments.url, arguments.api_key)
    table = matrix(outcomes)
    failed = [
        f"{release}, {step}: {result}\n"
        for release, outcome in outcomes.items()
        for step, result in outcome.items()
        if result.startswith("fail")
    ]
    sys.stdout.writelines([table, *failed])
    if arguments.write:
        write(table)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
