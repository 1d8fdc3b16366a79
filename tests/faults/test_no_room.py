"""The database has no room left: writes are refused as a whole, and reads go on."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from app.store import schema
from app.store.pg.dsn import database_url
from tests.api.conftest import RemoteIndex, serve
from tests.conftest import new_database
from tests.faults.conftest import settings_on
from tests.faults.postgres import Postgres

_UMOUNT = ["umount", "--lazy"]
_DISK_BYTES = 16 * 1024 * 1024
FEW = [{"id": f"few {number}", "vector": [number, 1]} for number in range(20)]
# More than a page of everything, and more than fits into the least memory for sorting.
MANY = [
    {"id": f"many {number}", "vector": [number, 2], "contents": "c" * 1_500}
    for number in range(1_500)
]


@pytest.fixture
def own_dsn(postgres: Postgres) -> Iterator[str]:
    """A migrated database of this test's own, on a server whose disk it may fill."""
    with new_database(postgres.dsn, "template0") as dsn:
        asyncio.run(schema.upgrade(dsn))
        yield dsn


@pytest.fixture
def small_disk(postgres: Postgres) -> Iterator[Path]:
    """A disk of a few megabytes, with a tablespace."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        Path(directory).chmod(0o755)
        disk = Path(directory) / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)]
        if (
            os.geteuid() != 0
            or subprocess.run(mount, check=False, capture_output=True).returncode != 0
        ):
            pytest.skip("needs a user who may mount; the other test of this file needs none")
        try:
            tablespace = disk / "tablespace"
            tablespace.mkdir(mode=0o700)
            shutil.chown(tablespace, postgres.account.uid)
            _run(postgres.dsn, f"CREATE TABLESPACE small LOCATION '{tablespace}'")
            yield disk
            _run(postgres.dsn, "DROP TABLESPACE small")
        finally:
            subprocess.run([*_UMOUNT, str(disk)], check=True)


def _run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Take all the room there is."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))
    yield
    filler.unlink()


async def assert_refused_and_unharmed(index: RemoteIndex, detail: str) -> None:
    """Assert that a batch is refused as a whole, and that all the rest works."""
    answer = await index.post("vectors/upsert", items=[*MANY, {"id": "few 1", "vector": [-1, -1]}])
    assert (answer.status_code, answer.json(), answer.headers["Retry-After"]) == (
        503,
        {"detail": detail},
        "1",
    )
    assert set((await index.post("vectors/list_ids")).json()["ids"]) == {item["id"] for item in FEW}
    assert (await index.post("vectors/num_vectors")).json() == {"result": len(FEW)}
    assert (await index.post("vectors/get", ids=["few 1"])).json()["results"][0]["vector"] == [1, 1]
    found = await index.post("vectors/query", query_vectors=[3, 1], top_k=1)
    assert found.json() == {"results": [{"id": "few 3"}]}
    assert (await index.post("vectors/delete", ids=["nothing"])).status_code == 200


async def stored(index: RemoteIndex) -> RemoteIndex:
    assert (await index.post("indexes/create", dimension=2)).status_code == 200
    assert (await index.post("vectors/upsert", items=FEW)).status_code == 200
    return index


async def assert_accepted(index: RemoteIndex) -> None:
    assert (await index.post("vectors/upsert", items=MANY)).status_code == 200
    assert (await index.post("vectors/num_vectors")).json() == {"result": len(FEW) + len(MANY)}


async def test_a_full_disk_refuses_writes_and_nothing_else(small_disk: Path, own_dsn: str) -> None:
    name = database_url(own_dsn).database
    _run(own_dsn, f'ALTER DATABASE "{name}" SET default_tablespace = small')
    async with serve(settings_on(own_dsn)) as client:
        index = await stored(RemoteIndex(client))
        with filled(small_disk):
            await assert_refused_and_unharmed(index, "The database has no room left")
            other = await RemoteIndex(client).post("indexes/create", dimension=2)
            assert (other.status_code, other.json()) == (
                503,
                {"detail": "The database has no room left"},
            )
            assert (await client.get("/v1/indexes/list")).json() == {"indexes": [index.name]}
        await assert_accepted(index)
        assert (await index.post("indexes/delete")).status_code == 200


async def test_a_limit_for_temporary_files_refuses_writes_and_nothing_else(own_dsn: str) -> None:
    name = database_url(own_dsn).database
    _run(
        own_dsn,
        f'ALTER DATABASE "{name}" SET temp_file_limit = 0',
        f"ALTER DATABASE \"{name}\" SET work_mem = '64kB'",
    )
    async with serve(settings_on(own_dsn)) as client:
        await assert_refused_and_unharmed(
            await stored(RemoteIndex(client)), "The database is short of resources"
        )
    _run(own_dsn, f'ALTER DATABASE "{name}" RESET ALL')
    async with serve(settings_on(own_dsn)) as client:
        await assert_accepted(await stored(RemoteIndex(client)))
