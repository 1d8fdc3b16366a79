"""The files in `requirements/` pin everything that an installation needs, with hashes."""

import re
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
HASHED = ("embedded", "otel", "parquet", "report", "dev")
# A pin with its marker and its hashes, over several lines.
PIN = re.compile(
    r"^([a-z0-9._-]+)==([^ ;\\\n]+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$",
    re.MULTILINE,
)


@cache
def pins(name: str) -> dict[str, tuple[Version, bool]]:
    """The version that a file pins of each package, and whether it has hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = PIN.findall(text)
    assert not PIN.sub("", text).strip()
    return {package: (Version(version), bool(hashes)) for package, version, hashes in found}


def needed(roots: Iterable[str]) -> dict[str, list[Requirement]]:
    """What the requirements of packages that are installed here lead to, by name."""
    found: dict[str, list[Requirement]] = {}
    new = [(Requirement(root), "") for root in roots]
    while new:
        requirement, extra = new.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if str(requirement) in map(str, found.setdefault(name, [])):
            continue
        found[name].append(requirement)
        try:
            below = [Requirement(text) for text in requires(requirement.name) or ()]
        except PackageNotFoundError:
            # What leads to nothing further here, as it is not installed: its own name is enough.
            continue
        new += [(one, wanted) for one in below for wanted in ("", *requirement.extras)]
    return found


@pytest.mark.parametrize("extra", [None, *HASHED])
def test_everything_that_is_needed_is_pinned_with_hashes(extra: str | None) -> None:
    project = PROJECT["project"]["dependencies"]
    pinned = {**pins("service"), **(pins(extra) if extra else {})}
    for name, requirements in needed([*project, *(EXTRAS[extra] if extra else ())]).items():
        assert name in pinned, f"{name} is not pinned"
        version, has_hash = pinned[name]
        assert has_hash, f"{name} has no hash"
        assert all(one.specifier.contains(version, prereleases=True) for one in requirements), name


def test_what_builds_the_service_is_pinned_with_hashes() -> None:
    names = {Requirement(text).name for text in PROJECT["build-system"]["requires"]}
    assert names <= set(pins("build"))
    assert all(has_hash for _, has_hash in pins("build").values())


def test_the_extra_with_torch_has_the_same_pins_as_the_others() -> None:
    everything = {**pins("service"), **pins("dev"), **pins("report")}
    pinned = pins("embeddings")
    assert {name: pinned[name][0] for name in everything} == {
        name: version for name, (version, _) in everything.items()
    }
    roots = [*EXTRAS["embeddings"], *EXTRAS["dev-embeddings"]]
    assert {canonicalize_name(Requirement(text).name) for text in roots} <= set(pinned)


def test_every_extra_has_its_file() -> None:
    assert set(EXTRAS) - {"embeddings", "dev-embeddings"} == set(HASHED)


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda p: p.name)
def test_no_place_of_download_is_named(path: Path) -> None:
    assert not re.search(r"https?://|index-url|find-links|\.org|\.com", path.read_text())
