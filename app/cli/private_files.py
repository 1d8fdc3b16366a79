"""Files that a command writes: for its own user alone, and through no link.

What is written has a name that nobody can foresee until it is complete; then it takes its place. In
a directory that others may write to, a file or link of theirs is never opened.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.errors import ConfigurationError

_MAX_OWN_BYTES = 1024 * 1024


@contextmanager
def new_file(path: Path, option: str) -> Iterator[IO[bytes]]:
    """Provide a file that becomes `path` at the end of the block, or goes when the block raises.

    Raises `ConfigurationError`, naming the `option` of the command, when that cannot be.
    """
    try:
        _check_place(path)
        # Made by O_CREAT, O_EXCL and O_NOFOLLOW, with mode 0600.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: cannot be written: {error.strerror}") from error
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def own_bytes(path: Path) -> bytes | None:
    """Return the content of a small file, or None unless the file is there and this user's own."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        return stream.read(_MAX_OWN_BYTES) if is_own else None


def _check_place(path: Path) -> None:
    """Raise `OSError` when something that is no file has the name already, as /dev/null has."""
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_file:
        raise OSError(0, "it is there and no regular file")
