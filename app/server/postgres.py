"""The PostgreSQL that comes along when no DATABASE_URL is set.

The server is the one of the extra `embedded`: PostgreSQL 18 with pgvector. It listens on a Unix
socket that only its own user (and root) can reach. In its directory, PGDATA, are

    sealdex.conf        the settings, written anew at each start
    log/                the server's log, seven days of it

A service that was killed leaves its server running. The next start stops that server and starts it
again, so that the settings are always those of this version.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

import psutil
import psycopg

from app.errors import ConfigurationError
from app.server import data_directory, programs
from app.server.accounts import Account
from app.server.data_directory import lines_of
from app.server.postgres_settings import PORT, memory_bytes, server_settings

DATABASE = "sealdex"
_SUPERUSER = "postgres"
_SETTINGS_FILE = "sealdex.conf"
_SETTINGS_HEAD = "# Written by Sealdex at each start; ALTER SYSTEM SET … overrides these settings."
# Crash recovery replays up to `max_wal_size` of WAL before the server answers.
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 30
# sun_path of a Unix socket has 108 bytes on Linux and 104 on macOS, with the closing zero.
_MAX_SOCKET_PATH = 103
_SOCKET_PREFIX = "sealdex-socket-"
_SOCKET_NAME = f".s.PGSQL.{PORT}"
# Lines of postmaster.pid: pid, data directory, start, port, socket directory, …, status.
_PID_LINE, _PORT_LINE, _SOCKET_LINE = 0, 3, 4
_PID_FILE_LINES = 5


class EmbeddedPostgres:
    """A PostgreSQL server of our own, in a directory of our own; a context manager runs it."""

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
        self._account = Account(os.geteuid(), os.getegid(), is_lent=False)
        self._bin_dir = Path()

    @property
    def dsn(self) -> str:
        """The URL of the database, for libpq and SQLAlchemy."""
        return self._dsn(DATABASE)

    @property
    def account(self) -> Account:
        """The user that the server runs as."""
        return self._account

    def start(self) -> None:
        """Start the server, making its directory and database when there is none.

        Raises `ConfigurationError` when another service uses the directory, or the server does not
        start.
        """
        programs.bin_dir()
        self._account = data_directory.prepare(self.data_dir)
        self._acquire_lock()
        try:
            data_directory.make_pgdata(self.pgdata, self._account)
            self._bin_dir = programs.bin_dir_for(self._account)
            self._initialize()
            self._stop_orphan()
            self._choose_socket_dir()
            self._write_settings()
            self._start_server()
            self._create_database()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, cutting off its clients; committed data is safe. May be called again."""
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
        return _dsn(database, str(self._socket_dir), str(PORT))

    @property
    def _socket_dir(self) -> Path:
        return self._private_socket_dir or self.pgdata

    def _acquire_lock(self) -> None:
        self._lock = data_directory.lock(self.data_dir)
        # A worker process must not keep the lock when the service itself is gone.
        os.register_at_fork(after_in_child=self._lock.close)

    def _initialize(self) -> None:
        if (self.pgdata / "PG_VERSION").exists():
            self._check_version()
            return
        self._run(
            "initdb",
            *("-D", str(self.pgdata), "-U", _SUPERUSER, "--encoding=UTF8", "--no-instructions"),
            # Sorts the same on every machine: no index breaks when the system's locales change.
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            # Whoever may open the socket may log in; there is no other way in.
            *("--auth-local=trust", "--auth-host=reject"),
        )
        include = f"\ninclude_if_exists = '{_SETTINGS_FILE}'\n"
        self._account.append(self.pgdata, "postgresql.conf", include)

    def _check_version(self) -> None:
        found = "".join(lines_of(self.pgdata / "PG_VERSION"))
        if found == str(programs.MAJOR):
            return
        # The file may hold anything, so only a number is shown.
        named = f"PostgreSQL {found}" if found.isdigit() else "another PostgreSQL"
        raise ConfigurationError(
            f"The data in {self.data_dir} is of {named}, this version brings {programs.MAJOR}: "
            "dump it with the version that wrote it, then restore"
        )

    def _stop_orphan(self) -> None:
        """Stop the server that a killed service has left; remove what a killed server has left."""
        lines = lines_of(self.pgdata / "postmaster.pid")
        if lines and lines[_PID_LINE].isdigit() and _is_postmaster(int(lines[0]), self.pgdata):
            self._stop_server()
        # The numbers in both files may belong to some other process by now, or to a dead one that
        # nobody has reaped yet: PostgreSQL would take that process for a server. A base backup
        # brings the lock of the socket along.
        (self.pgdata / "postmaster.pid").unlink(missing_ok=True)
        (self.pgdata / f"{_SOCKET_NAME}.lock").unlink(missing_ok=True)
        if len(lines) >= _PID_FILE_LINES:
            _remove_socket_dir(Path(lines[_SOCKET_LINE]), self._account)

    def _choose_socket_dir(self) -> None:
        """Make a private directory for the socket when PGDATA has no good name for one."""
        if _is_good_socket_dir(self.pgdata):
            return
        self._private_socket_dir = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX))
        if self._account.is_lent:
            os.chown(self._private_socket_dir, self._account.uid, self._account.gid)
        is_reachable = self._account.can_use(self._private_socket_dir)
        if not _is_good_socket_dir(self._private_socket_dir) or not is_reachable:
            raise ConfigurationError(
                "TMPDIR is too long for a Unix socket, or closed to the user that PostgreSQL runs "
                "as: choose another one"
            )

    def _write_settings(self) -> None:
        settings = {**self._settings, "unix_socket_directories": str(self._socket_dir)}
        lines = [f"{name} = '{_quoted(value)}'" for name, value in settings.items()]
        text = "\n".join([_SETTINGS_HEAD, *lines, ""])
        self._account.write(self.pgdata, _SETTINGS_FILE, text)

    def _start_server(self) -> None:
        self._pg_ctl("start", "-t", str(_START_TIMEOUT_S), "-l", str(self.pgdata / "start.log"))

    def _stop_server(self) -> None:
        """Stop the server in good order, or at once when that takes too long.

        The next start recovers. A server that was crashing when it was asked to stop has been seen
        to wait for itself for ever.
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

    def _run(self, *command: str) -> None:
        try:
            programs.run(self._bin_dir, self._account, command, cwd=self.pgdata)
        except subprocess.CalledProcessError as error:
            raise ConfigurationError(
                f"The embedded PostgreSQL failed ({command[0]} {command[1]}: {error.stderr}): see "
                f"{self.pgdata / 'start.log'} and {self.pgdata / 'log'}"
            ) from error


def running_dsn(data_dir: Path) -> str | None:
    """Return the address of the server that a service runs on `data_dir`, or None without one."""
    pgdata = data_dir.expanduser().resolve() / "postgres"
    lines = lines_of(pgdata / "postmaster.pid")
    if (
        len(lines) < _PID_FILE_LINES
        or not lines[_PID_LINE].isdigit()
        or not _is_postmaster(int(lines[_PID_LINE]), pgdata)
    ):
        return None
    return _dsn(DATABASE, lines[_SOCKET_LINE], lines[_PORT_LINE])


def _dsn(database: str, socket_dir: str, port: str) -> str:
    return f"postgresql://{_SUPERUSER}@/{database}?host={quote(socket_dir, safe='')}&port={port}"


def _quoted(value: str) -> str:
    return value.replace("'", "''")


def _is_good_socket_dir(directory: Path) -> bool:
    """Whether PostgreSQL can listen there; the setting is a list, so a comma splits a name."""
    path = str(directory / _SOCKET_NAME)
    return len(os.fsencode(path)) <= _MAX_SOCKET_PATH and not set(path) & set(",\"'\n")


def _remove_socket_dir(directory: Path, account: Account) -> None:
    """Remove the private socket directory of a service that was killed, and nothing else."""
    if not directory.name.startswith(_SOCKET_PREFIX):
        return
    try:
        found = directory.lstat()
    except OSError:
        return
    if stat.S_ISDIR(found.st_mode) and found.st_uid == account.uid:
        shutil.rmtree(directory, ignore_errors=True)


def _is_postmaster(pid: int, pgdata: Path) -> bool:
    """Whether process `pid` is a server on `pgdata`, the directory that a server works in."""
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and Path(process.cwd()) == pgdata
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # The process is gone, or of another user: ours is of the user that owns `pgdata`.
        return False
