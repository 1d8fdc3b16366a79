"""The directory of the embedded PostgreSQL: where it is, who may use it, and the lock in it.

.lock               held while a service uses the directory
postgres/           PGDATA, which belongs to the server's user; everything else is the service's
"""

import fcntl
import hashlib
import os
import stat
from pathlib import Path
from typing import IO

from app.errors import ConfigurationError
from app.server import programs
from app.server.accounts import Account, account_for, closed_directories
from app.settings import Settings

_DEFAULT = Settings().data_dir
_MAX_PID_FILE_BYTES = 4096


def data_dir_of(settings: Settings) -> Path:
    """Return the data directory of a service: what was set, else one below the working directory.

    Root may work below a directory that is closed to the server's user, such as /root. Then the
    default is a directory below /var/lib that is named for the working directory; nothing is opened
    (docs/decisions/0111).
    """
    chosen = settings.data_dir.expanduser().absolute()
    if settings.data_dir != _DEFAULT or os.geteuid() != 0 or chosen.exists():
        return chosen
    if all(place.stat().st_mode & stat.S_IXOTH for place in chosen.parents):
        return chosen
    name = hashlib.sha256(os.fsencode(chosen.parent)).hexdigest()[:8]
    return programs.ROOT_DIRECTORY / f"{chosen.parent.name[:32]}-{name}"


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it: for this user alone, root's to be passed by all."""
    if path.is_dir():
        return
    if path.parent == programs.ROOT_DIRECTORY:
        programs.make_root_directory()
    make_directory(path.parent)
    mode = 0o711 if os.geteuid() == 0 else 0o700
    path.mkdir(exist_ok=True)
    # The mask of the process takes bits away from the mode that mkdir is given.
    path.chmod(mode)


def lock(data_dir: Path) -> IO[str]:
    """Return the lock of the directory, held until the file is closed.

    Raises `ConfigurationError` when another service holds the lock, or the directory cannot be
    used.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(data_dir / ".lock", flags, 0o600), "r+", encoding="ascii")
    except OSError as error:
        raise _cannot_be_used(data_dir, error) from error
    try:
        _close_to_others(file.fileno())
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigurationError(
            f"Another service is using the data directory {data_dir}: stop it, "
            "or choose another directory with SEALDEX_DATA_DIR"
        ) from error
    return file


def _close_to_others(descriptor: int) -> None:
    """Take the lock's file from other users: who can open it can hold it, and so stop the service.

    A file with a second name may be anybody's, and stays as it is.
    """
    if os.fstat(descriptor).st_nlink == 1:
        os.fchmod(descriptor, 0o600)


def _cannot_be_used(data_dir: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"The data directory {data_dir} cannot be used: {error.strerror}")


def prepare(data_dir: Path) -> Account:
    """Make the directory when there is none, and return who runs the server in it.

    Raises `ConfigurationError` when the server's user cannot get there, or others may write there.
    """
    try:
        make_directory(data_dir)
    except OSError as error:
        raise _cannot_be_used(data_dir, error) from error
    account = account_for(data_dir / "postgres")
    check_trusted(data_dir, account)
    check_reachable(data_dir, account)
    return account


def check_trusted(data_dir: Path, account: Account) -> None:
    """Raise `ConfigurationError` when root cannot work in `data_dir` without trusting others."""
    found = data_dir.stat()
    if account.is_lent and (found.st_uid not in {0, account.uid} or found.st_mode & 0o022):
        raise ConfigurationError(
            f"The data directory {data_dir} belongs to another user, or others may write to it: "
            "give it to root with mode 0711, or choose another one with SEALDEX_DATA_DIR"
        )


def check_reachable(data_dir: Path, account: Account) -> None:
    """Raise `ConfigurationError` when the server's user cannot get to `data_dir`."""
    closed = next(closed_directories(data_dir, account), None)
    if closed is not None:
        raise ConfigurationError(
            f"The data directory {data_dir} cannot be reached by the user that PostgreSQL runs as, "
            f"which is not root but number {account.uid}, since {closed} is closed: choose another "
            f"one with SEALDEX_DATA_DIR, for instance {programs.ROOT_DIRECTORY}/data, "
            "or start Sealdex as an ordinary user"
        )


def make_pgdata(pgdata: Path, account: Account) -> None:
    """Make the server's own directory, and give it to the server's user while it is empty."""
    pgdata.mkdir(mode=0o700, exist_ok=True)
    directory = os.open(pgdata, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if account.is_lent and os.fstat(directory).st_uid == 0:
            if next(pgdata.iterdir(), None) is not None:
                raise ConfigurationError(
                    f"{pgdata} belongs to root, as whom PostgreSQL does not run: give the "
                    "directory and all in it to another user"
                )
            os.fchown(directory, account.uid, account.gid)
    finally:
        os.close(directory)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a short file of the server, or none. Follows no link and never blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        return os.read(descriptor, _MAX_PID_FILE_BYTES).decode(errors="replace").splitlines()
    finally:
        os.close(descriptor)
