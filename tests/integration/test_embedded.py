import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from app.errors import ConfigurationError
from app.server.postgres import EmbeddedPostgres

QUICK = {"shared_buffers": "128MB"}

_SERVICE_THAT_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from app.server.postgres import EmbeddedPostgres
import psycopg

server = EmbeddedPostgres(Path(sys.argv[1]), overrides={"shared_buffers": "128MB"})
server.start()
with psycopg.connect(server.dsn) as connection:
    connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def data_dir(open_path: Path) -> Path:
    return open_path / "data"


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(data_dir, overrides=QUICK) as server:
        yield server


def _ask(server: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute(statement).fetchone()
        return row and row[0]


def test_data_survives_a_restart(data_dir: Path) -> None:
    for n_tables in (0, 1):
        with (
            EmbeddedPostgres(data_dir, overrides=QUICK) as server,
            psycopg.connect(server.dsn) as connection,
        ):
            found = connection.execute(
                "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'"
            ).fetchone()
            assert found == (n_tables,)
            connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_a_second_service_on_the_same_data_is_refused(
    server: EmbeddedPostgres, data_dir: Path
) -> None:
    with pytest.raises(ConfigurationError, match="Another service"), EmbeddedPostgres(data_dir):
        pass
    assert _ask(server, "SELECT 1") == 1


def test_a_killed_service_is_followed_by_another_though_its_workers_live_on(data_dir: Path) -> None:
    command = [sys.executable, "-c", _SERVICE_THAT_IS_KILLED, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        worker = int(service.stdout.readline())
        assert service.wait(timeout=60) == -signal.SIGKILL
    try:
        orphan = int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        with EmbeddedPostgres(data_dir, overrides=QUICK) as server:
            assert _ask(server, "SELECT n FROM kept") == 1
            # A zombie, where nobody waits for orphans.
            assert (
                not psutil.pid_exists(orphan)
                or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE
            )
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_pid_file_that_names_another_process_is_stale(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, overrides=QUICK):
        pid_file = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    # As in a container, where the same few numbers come again: this process is no PostgreSQL.
    (data_dir / "postgres" / "postmaster.pid").write_text(
        "\n".join([str(os.getppid()), *pid_file[1:]]) + "\n"
    )
    with EmbeddedPostgres(data_dir, overrides=QUICK) as server:
        assert _ask(server, "SELECT 1") == 1


def test_a_socket_lock_that_names_a_living_process_is_stale(data_dir: Path) -> None:
    """As a killed server leaves it, whose number another process has by now, or which nobody has
    reaped yet.
    """
    with EmbeddedPostgres(data_dir, overrides=QUICK) as server:
        lock = data_dir / "postgres" / ".s.PGSQL.5432.lock"
        left = lock.read_text().splitlines()
        options = server.account.options()
    with subprocess.Popen(["/bin/sleep", "60"], **options) as other:
        lock.write_text("\n".join([str(other.pid), *left[1:]]) + "\n")
        (data_dir / "postgres" / "postmaster.pid").write_text(lock.read_text())
        with EmbeddedPostgres(data_dir, overrides=QUICK) as server:
            assert _ask(server, "SELECT 1") == 1
        other.kill()


@pytest.mark.parametrize(
    "name", ["a" * 120, "a, b and 'c'"], ids=["too long", "quotes and a comma"]
)
def test_a_path_that_no_socket_can_have_gets_a_private_directory(
    open_path: Path, name: str
) -> None:
    with EmbeddedPostgres(open_path / name, overrides=QUICK) as server:
        socket_dir = Path(str(_ask(server, "SHOW unix_socket_directories")))
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
        assert socket_dir.parent != open_path
    assert not socket_dir.exists()


def test_only_its_own_user_can_reach_the_server(server: EmbeddedPostgres, data_dir: Path) -> None:
    assert _ask(server, "SHOW listen_addresses") == ""
    assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "postgres" / ".s.PGSQL.5432").stat().st_mode) == 0o700


def test_no_value_of_a_failed_statement_reaches_the_log(
    server: EmbeddedPostgres, data_dir: Path
) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE secrets (value text PRIMARY KEY, n int)")
        for _ in range(2):
            with suppress(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO secrets VALUES (%s, 1)", ["plaintext-1"])
        with (
            suppress(psycopg.errors.InvalidTextRepresentation),
            connection.cursor().copy("COPY secrets FROM STDIN") as copy,
        ):
            copy.write(b"plaintext-2\tplaintext-3\n")
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("SELECT 'plaintext-4' FROM FROM")
    # A process of its own collects the log: it may be a moment behind.
    deadline = time.monotonic() + 10
    log = ""
    while "syntax error at" not in log and time.monotonic() < deadline:
        log = "".join(path.read_text() for path in (data_dir / "postgres" / "log").iterdir())
    assert "duplicate key" in log
    assert "invalid input syntax" in log
    assert "syntax error at" in log
    for secret in ("plaintext-1", "plaintext-2", "plaintext-4"):
        assert secret not in log


def test_the_server_does_not_inherit_the_keys_of_the_service(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALDEX_ROOT_KEY", "5ea1" * 16)
    monkeypatch.setenv("PGPORT", "6543")
    with EmbeddedPostgres(data_dir, overrides=QUICK):
        pid = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0]
        assert b"5ea1" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_data_of_another_major_version_is_refused(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, overrides=QUICK):
        pass
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 16"), EmbeddedPostgres(data_dir):
        pass


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with (
        pytest.raises(ConfigurationError, match="cannot be used"),
        EmbeddedPostgres(tmp_path / "data"),
    ):
        pass
