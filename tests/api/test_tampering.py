"""Someone who may write to the database moves values: the service says so, and never lies."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from app.settings import Settings
from tests.api.conftest import RemoteIndex, serve

ITEMS = [
    {
        "id": name,
        "vector": [float(number), 1.0, 0.0],
        "contents": f"contents {name}",
        "metadata": {"n": number},
    }
    for number, name in enumerate("ab")
]
SEALED = ("sealed_vector", "sealed_contents", "sealed_metadata")


@pytest.fixture
def dsn(database_dsn: str) -> str:
    return database_dsn


@pytest.fixture
async def pair(dsn: str) -> AsyncIterator[tuple[RemoteIndex, RemoteIndex]]:
    """Two indexes with the same items and the same key."""
    async with serve(Settings(database_url=dsn, workers=1, pool_size=2)) as client:
        indexes = RemoteIndex(client), RemoteIndex(client)
        for index in indexes:
            assert (await index.post("indexes/create", dimension=3)).status_code == 200
            assert (await index.post("vectors/upsert", items=ITEMS)).status_code == 200
        yield indexes


def execute(dsn: str, statement: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as database:
        return database.execute(statement.encode()).rowcount


async def check_refused(index: RemoteIndex) -> None:
    answer = await index.post("vectors/get", ids=["a", "b"])
    assert answer.status_code == 500
    assert "contents" not in answer.json()
    assert set(answer.json()) == {"detail"}


@pytest.mark.parametrize("column", SEALED)
async def test_a_value_of_another_row_is_refused(
    pair: tuple[RemoteIndex, RemoteIndex], dsn: str, column: str
) -> None:
    n_moved = execute(
        dsn,
        f"UPDATE items SET {column} = other.{column} FROM items AS other "
        "WHERE other.index_id = items.index_id AND other.item_key <> items.item_key",
    )
    assert n_moved == 4
    await check_refused(pair[0])
    await check_refused(pair[1])


@pytest.mark.parametrize("column", SEALED)
async def test_a_value_of_another_column_is_refused(
    pair: tuple[RemoteIndex, RemoteIndex], dsn: str, column: str
) -> None:
    other = SEALED[SEALED.index(column) - 1]
    assert execute(dsn, f"UPDATE items SET {column} = {other}") == 4
    await check_refused(pair[0])


@pytest.mark.parametrize("column", [*SEALED, "sealed_id"])
async def test_a_value_of_another_index_is_refused(
    pair: tuple[RemoteIndex, RemoteIndex], dsn: str, column: str
) -> None:
    n_moved = execute(
        dsn,
        f"UPDATE items SET {column} = (SELECT {column} FROM items AS other "
        "WHERE other.index_id <> items.index_id LIMIT 1)",
    )
    assert n_moved == 4
    if column == "sealed_id":
        assert (await pair[0].post("vectors/list_ids")).status_code == 500
    else:
        await check_refused(pair[0])


async def test_the_data_key_of_another_index_is_refused(
    pair: tuple[RemoteIndex, RemoteIndex], dsn: str
) -> None:
    """Even under the same index key: keys that a worker remembers belong to the old wrap."""
    statement = (
        "UPDATE indexes SET revision = revision + 1,"
        " wrapped_dek = (SELECT wrapped_dek FROM indexes AS other"
    )
    assert execute(dsn, f"{statement} WHERE other.id <> indexes.id)") == 2
    for index in pair:
        assert (await index.post("vectors/get", ids=["a"])).status_code == 401
