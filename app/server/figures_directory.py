"""The directory in which the workers of a service share their figures."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.errors import ConfigurationError

_PREFIX = "sealdex-figures-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def figures_directory(chosen: Path | None) -> Iterator[str]:
    """Provide the directory: `chosen`, emptied of old figures, or a temporary one.

    A service that was killed leaves its temporary directory behind. A lock on the directory tells
    whether its service lives; what has no lock is removed at the next start.
    """
    if chosen is not None:
        yield _emptied(chosen)
        return
    _sweep(Path(tempfile.gettempdir()))
    descriptor, directory = _make()
    try:
        yield str(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _emptied(directory: Path) -> str:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob("*.figures"):
            path.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"SEALDEX_METRICS_DIR={str(directory)!r}: must be a directory to write to"
        ) from error
    return str(directory)


def _make() -> tuple[int, Path]:
    """Return the lock on a new temporary directory, and the directory."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Another service that starts may sweep the directory away before it is locked.
        with contextlib.suppress(FileNotFoundError):
            if (descriptor := _lock(directory)) is not None:
                return descriptor, directory


def _lock(directory: Path) -> int | None:
    """Return the descriptor that locks `directory`, or None when somebody else holds the lock.

    Raises `OSError` when the directory is gone, or is a link.
    """
    descriptor = os.open(directory, _DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What was locked must still be there under its name.
        if os.path.samestat(os.fstat(descriptor), directory.lstat()):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sweep(place: Path) -> None:
    """Remove what services of this user that were killed have left in `place`."""
    for directory in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            # A link or a directory of another user is none of ours.
            if directory.lstat().st_uid != os.geteuid():
                continue
            if (descriptor := _lock(directory)) is not None:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(descriptor)
