"""The restore drill: after each way to restore, the same queries give the same answers with the
same key.

Dump and restore into an empty server · base backup and WAL to a point in time · one index, moved to
another server.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from app.server.postgres import EmbeddedPostgres
from app.server.programs import bin_dir
from tests.service.conftest import Service, new_service

KEY = secrets.token_hex(32)
N_ITEMS = 400
VECTORS = np.random.default_rng(3).standard_normal((N_ITEMS, 16), dtype=np.float32)
CANARY = "canary of the drill 51f0"


def access(name: str) -> dict[str, Any]:
    return {"index_name": name, "index_key": KEY}


def fill(service: Service, name: str, rows: range) -> None:
    items = [
        {
            "id": f"id-{row}",
            "vector": VECTORS[row].tolist(),
            "contents": f"{CANARY} {row}",
            "metadata": {"n": row},
        }
        for row in rows
    ]
    answer = service.post("vectors/upsert", {**access(name), "items": items})
    assert answer.status_code == 200, answer.text


def answers(service: Service, name: str) -> dict[str, Any]:
    """What the index says: nearest items of ten queries, contents of some, count, description."""
    query = {
        "query_vectors": VECTORS[:10].tolist(),
        "top_k": 5,
        "include": ["distance", "metadata"],
    }
    return {
        "query": service.post("vectors/query", {**access(name), **query}).json(),
        "get": service.post("vectors/get", {**access(name), "ids": ["id-1", "id-250"]}).json(),
        "count": service.post("vectors/num_vectors", access(name)).json(),
        "describe": service.post("indexes/describe", access(name)).json(),
    }


def assert_indexed(dsn: str, n_indexes: int) -> None:
    """Every partition has its valid ivfflat index, and the audit log is whole."""
    with psycopg.connect(dsn, autocommit=True) as database:
        found = database.execute(
            "SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am "
            "ON pg_am.oid = relam"
            " WHERE amname = 'ivfflat' AND indisvalid AND indrelid IN"
            " (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'items'::regclass)"
        ).fetchone()
        assert found == (n_indexes,)
        assert database.execute("SELECT * FROM sealdex_views.audit_problems").fetchall() == []


def tool(name: str, *arguments: str, cwd: Path | None = None) -> bytes:
    done = subprocess.run([bin_dir() / name, *arguments], capture_output=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@contextmanager
def serving(directory: Path, **environment: str) -> Iterator[Service]:
    directory.mkdir(exist_ok=True)
    service = new_service(directory, SEALDEX_WORKERS="1", **environment)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that PostgreSQL's own user may pass, as which the server runs when the tests run
    as root.
    """
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def source() -> Iterator[Service]:
    """A service with two indexes, on a server that archives its WAL."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        with _source(root) as service:
            yield service


@contextmanager
def _source(root: Path) -> Iterator[Service]:
    archive = root / "archive"
    archive.mkdir()
    archive.chmod(0o777)
    with serving(root / "source") as service:
        with psycopg.connect(service.dsn, autocommit=True) as database:
            for statement in (
                "ALTER SYSTEM SET archive_mode = on",
                f"ALTER SYSTEM SET archive_command = 'cp %p {archive}/%f'",
            ):
                database.execute(statement)
        service.stop()
        service.start()
        for name in ("books", "films"):
            body = {**access(name), "dimension": 16, "metric": "cosine"}
            assert service.post("indexes/create", body).status_code == 200
            fill(service, name, range(300))
        yield service


def test_a_dump_restored_into_an_empty_server_gives_the_same_answers(
    source: Service, place: Path
) -> None:
    expected = {name: answers(source, name) for name in ("books", "films")}
    dump = place / "sealdex.dump"
    tool("pg_dump", "--format=custom", f"--file={dump}", source.dsn)
    canaries = place / "canaries.txt"
    canaries.write_text(f"{CANARY}\n{KEY}\nid-250\n{VECTORS[250].tolist()}\n")
    command = ["backup-check", str(dump), "--canaries", str(canaries)]
    checked = subprocess.run(
        [sys.executable, "-m", "app", *command], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with EmbeddedPostgres(place / "server") as server:
        tool("psql", "--command=CREATE ROLE sealdex_auditor NOLOGIN", server.dsn)
        tool("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={server.dsn}", str(dump))
        assert_indexed(server.dsn, 2)
        with serving(place / "restored", DATABASE_URL=server.dsn) as restored:
            assert {name: answers(restored, name) for name in expected} == expected
            fill(restored, "books", range(300, 310))
            assert_indexed(server.dsn, 2)


def test_a_base_backup_and_its_wal_restore_a_point_in_time(source: Service, place: Path) -> None:
    archive = source.data_dir.parent / "archive"
    base = place / "restored" / "postgres"
    base.parent.mkdir()
    tool(
        "pg_basebackup",
        f"--dbname={source.dsn}",
        f"--pgdata={base}",
        "--checkpoint=fast",
        "--wal-method=none",
    )
    fill(source, "books", range(300, 350))
    expected = answers(source, "books")
    with psycopg.connect(source.dsn, autocommit=True) as database:
        (moment,) = database.execute("SELECT now()::text").fetchone() or ("",)
        # What must not come back: written after the moment.
        time.sleep(0.1)
        fill(source, "books", range(350, N_ITEMS))
        assert source.post("indexes/delete", access("films")).status_code == 200
        (last,) = database.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone() or (
            "",
        )
        database.execute("SELECT pg_switch_wal()")
    wait_for(archive / last)
    (base / "postgresql.auto.conf").write_text(
        f"restore_command = 'cp {archive}/%f %p'\nrecovery_target_time = '{moment}'\n"
        "recovery_target_action = 'promote'\n"
    )
    (base / "recovery.signal").touch()
    (base / "log").mkdir(exist_ok=True)
    if os.geteuid() == 0:
        owner = (source.data_dir / "postgres").stat()
        for path in (base, *base.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
    base.chmod(0o700)
    with serving(place / "restored") as restored:
        assert answers(restored, "books") == expected
        assert answers(restored, "films")["count"] == {"result": 300}
        assert_indexed(restored.dsn, 2)


def test_one_index_moves_to_another_server_alone(source: Service, place: Path) -> None:
    name = "alone"
    assert source.post("indexes/create", {**access(name), "dimension": 16}).status_code == 200
    fill(source, name, range(100))
    expected = answers(source, name)
    root = Path(__file__).parents[2]
    with serving(place / "other") as other:
        fill_other = {**access("already-there"), "dimension": 16}
        assert other.post("indexes/create", fill_other).status_code == 200
        environment = {**os.environ, "PATH": f"{bin_dir()}:{os.environ['PATH']}"}
        script = [
            "sh",
            str(root / "docs" / "scripts" / "copy-index.sh"),
            source.dsn,
            other.dsn,
            name,
        ]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert answers(other, name) == expected
        fill(other, name, range(100, 110))
        assert other.post("vectors/num_vectors", access(name)).json() == {"result": 110}
        assert other.post("vectors/num_vectors", access("already-there")).json() == {"result": 0}
        assert_indexed(other.dsn, 1)
        again = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
        assert again.returncode != 0
        assert "already" in again.stderr


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not archived"
        time.sleep(0.1)
