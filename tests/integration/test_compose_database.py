"""The database of the compose file, made by `deploy/create-role.sh`: its role is enough."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.server.postgres import EmbeddedPostgres
from app.server.programs import bin_dir
from app.settings import Settings
from app.store import schema
from tests.api.conftest import RemoteIndex, serve

SCRIPT = Path(__file__).parents[2] / "deploy" / "create-role.sh"
PASSWORD = 'it\'s a "secret" \\ $HOME'


@pytest.fixture
def superuser_dsn(open_path: Path) -> Iterator[str]:
    """A server without our database, as the image has made it when it runs the script."""
    with EmbeddedPostgres(open_path / "data", overrides={"shared_buffers": "128MB"}) as server:
        dsn = server.dsn.replace("/sealdex?", "/postgres?")
        with psycopg.connect(dsn, autocommit=True) as database:
            database.execute("DROP DATABASE sealdex")
            database.execute("ALTER ROLE postgres PASSWORD 'known'")
        yield dsn


@pytest.fixture
def role_dsn(superuser_dsn: str) -> str:
    """The address that the service of the compose file gets."""
    with psycopg.connect(superuser_dsn) as database:
        host = database.info.host
    environment = {
        "PATH": f"{bin_dir()}:{os.environ['PATH']}",
        "PGHOST": host,
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": PASSWORD,
    }
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return superuser_dsn.replace("//postgres@/postgres?", "//sealdex@/sealdex?")


def test_the_role_is_no_superuser_and_nobody_logs_in_as_one(
    role_dsn: str, superuser_dsn: str
) -> None:
    with psycopg.connect(superuser_dsn) as database:
        roles = database.execute(
            "SELECT rolname, rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls,"
            " rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY rolname"
        ).fetchall()
    assert roles == [
        ("postgres", True, None),
        ("sealdex", False, True),
        ("sealdex_auditor", False, None),
    ]
    with psycopg.connect(role_dsn) as database, pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.execute("COPY (SELECT 1) TO PROGRAM 'true'")


async def test_the_service_works_with_the_role(role_dsn: str) -> None:
    await schema.upgrade(role_dsn)
    async with serve(Settings(database_url=role_dsn, workers=1)) as client:
        index = RemoteIndex(client)
        assert (await index.post("indexes/create", dimension=2)).status_code == 200
        items = [{"id": str(n), "vector": [1, n], "metadata": {"n": n}} for n in range(50)]
        for _ in range(2):
            assert (await index.post("vectors/upsert", items=items)).status_code == 200
        assert (await index.post("indexes/train")).json()["status"] == "success"
        answer = await index.post("vectors/query", query_vectors=[1, 7], filters={"n": 7})
        assert [one["id"] for one in answer.json()["results"]] == ["7"]
        assert (await index.post("indexes/delete")).status_code == 200
    with psycopg.connect(role_dsn) as database:
        row = database.execute(
            "SELECT has_schema_privilege('sealdex_auditor', 'sealdex_views', 'USAGE'),"
            " has_table_privilege('sealdex_auditor', 'sealdex_views.indexes', 'SELECT')"
        ).fetchone()
    assert row == (True, True)
