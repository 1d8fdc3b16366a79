"""The sealed header of an index: what SQL changes in its row is an error, not an answer."""

import os
from collections.abc import AsyncIterator
from unittest.mock import Mock
from uuid import UUID

import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app import store
from app.crypto import keys
from app.settings import Settings
from tests.api.conftest import KEY, ROOT_KEY, RemoteIndex, serve
from tests.api.test_tampering import ITEMS, execute

CHANGES = {
    "name": "name = name || '-other'",
    "kind": "kind = 'sealed'",
    "metric": "metric = 'squared_euclidean'",
    "dimension": "dimension = 2",
    "storage_precision": "storage_precision = 'float16'",
    "sketch_bits": "sketch_bits = 16384",
    "sketch_noise": "sketch_noise = 0",
    "encoder_version": "encoder_version = 1",
    "embedding_model": "embedding_model = 'another/model'",
    "embedding_weights": "embedding_weights = 'aa'",
    "sealed_header": "sealed_header = NULL",
}


@pytest.fixture
def settings_here(database_dsn: str) -> Settings:
    return Settings(database_url=database_dsn, workers=1, pool_size=2, root_key=ROOT_KEY)


@pytest.fixture
async def index(settings_here: Settings) -> AsyncIterator[RemoteIndex]:
    async with serve(settings_here) as client:
        client.headers["X-API-Key"] = ROOT_KEY
        index = RemoteIndex(client)
        assert (await index.post("indexes/create")).status_code == 200
        assert (await index.post("vectors/upsert", items=ITEMS)).status_code == 200
        yield index


async def query(index: RemoteIndex, **headers: str) -> tuple[int, str]:
    body = {"index_name": index.name, "index_key": index.key, "query_vectors": [0, 1, 0]}
    answer = await index.client.post("/v1/vectors/query", json=body, headers=headers)
    return answer.status_code, answer.text


async def token_of(index: RemoteIndex, *permissions: str) -> str:
    body = {"index_key": index.key, "permissions": permissions}
    answer = await index.client.post(f"/v1/indexes/{index.name}/users", json=body)
    token: str = answer.json()["api_key"]
    return token


def change(dsn: str, change: str) -> None:
    assert execute(dsn, f"UPDATE indexes SET revision = revision + 1, {change}") > 0


@pytest.mark.parametrize("changed", CHANGES)
async def test_a_fact_that_was_changed_with_sql_is_an_error(
    index: RemoteIndex, database_dsn: str, changed: str
) -> None:
    token = await token_of(index, "read")
    assert (await query(index))[0] == 200
    change(database_dsn, CHANGES[changed])
    other = RemoteIndex(
        index.client, name=f"{index.name}-other" if changed == "name" else index.name
    )
    for headers in ({}, {"X-API-Key": token}):
        status, text = await query(other, **headers)
        assert status == 500
        assert "header" in text or changed in text
        assert KEY not in text


async def test_names_that_were_exchanged_open_nothing(
    index: RemoteIndex, database_dsn: str
) -> None:
    lunch = RemoteIndex(index.client)
    assert (await lunch.post("indexes/create")).status_code == 200
    assert (await lunch.post("vectors/upsert", items=ITEMS[:1])).status_code == 200
    names = f"name = CASE name WHEN '{lunch.name}' THEN '{index.name}' ELSE '{lunch.name}' END"
    # The name is unique at every moment.
    execute(database_dsn, "UPDATE indexes SET name = name || '?'")
    change(database_dsn, names.replace("'END", "").replace("CASE name", "CASE rtrim(name, '?')"))
    for one in (index, lunch):
        body = {"index_key": one.key, "permissions": ["read"]}
        answer = await one.client.post(f"/v1/indexes/{one.name}/users", json=body)
        assert answer.status_code == 500
        assert (await query(one))[0] == 500


async def test_a_header_of_before_is_an_error(index: RemoteIndex, database_dsn: str) -> None:
    with psycopg.connect(database_dsn, autocommit=True) as database:
        fresh = RemoteIndex(index.client)
        assert (await fresh.post("indexes/create")).status_code == 200
        row = "SELECT sealed_header FROM indexes WHERE name = %s"
        before = database.execute(row, (fresh.name,)).fetchone()
        assert (await fresh.post("vectors/upsert", items=ITEMS)).status_code == 200
        assert before is not None
        database.execute(
            "UPDATE indexes SET revision = revision + 1, sealed_header = %s WHERE name = %s",
            (before[0], fresh.name),
        )
    status, text = await query(fresh)
    assert status == 500
    assert "dimension" in text


async def test_who_may_only_write_fixes_the_dimension_and_a_reader_finds_it(
    settings_here: Settings,
) -> None:
    async with serve(settings_here) as client, serve(settings_here) as other:
        client.headers["X-API-Key"] = ROOT_KEY
        index = RemoteIndex(client)
        assert (await index.post("indexes/create")).status_code == 200
        token = await token_of(index, "write")
        answer = await client.post(
            "/v1/vectors/upsert",
            json={"index_name": index.name, "items": ITEMS},
            headers={"X-API-Key": token},
        )
        assert answer.status_code == 200
        other.headers["X-API-Key"] = ROOT_KEY
        for one in (client, other):
            assert (await query(RemoteIndex(one, name=index.name)))[0] == 200


async def test_a_training_renews_the_header(index: RemoteIndex) -> None:
    many = [{"id": str(n), "vector": [n % 7, n, -n]} for n in range(1_200)]
    assert (await index.post("vectors/upsert", items=many)).status_code == 200
    trained = await index.post("indexes/train", n_lists=4)
    assert trained.json()["status"] == "success"
    assert (await query(index))[0] == 200
    described = await index.post("indexes/describe")
    assert described.json()["is_trained"] is True


def take_header(dsn: str) -> None:
    """Make the index one of before headers, as somebody with its key could."""
    with psycopg.connect(dsn, autocommit=True) as database:
        found = database.execute("SELECT id, wrapped_dek FROM indexes").fetchone()
        assert found is not None
        index_id, wrapped = UUID(str(found[0])), bytes(found[1])
        kek, nonce = bytes.fromhex(KEY), os.urandom(12)
        dek = keys.unwrap_dek(kek, wrapped, index_id)
        sealed = AESGCM(kek).encrypt(nonce, dek, b"sealdex/v1/dek" + index_id.bytes)
        database.execute(
            "UPDATE indexes SET revision = revision + 1, sealed_header = NULL, wrapped_dek = %s",
            (b"\x01" + nonce + sealed,),
        )


def header_of(dsn: str) -> tuple[bytes | None, int]:
    with psycopg.connect(dsn, autocommit=True) as database:
        found = database.execute("SELECT sealed_header, wrapped_dek FROM indexes").fetchone()
        assert found is not None
        return found[0], found[1][0]


async def test_an_index_of_before_headers_gets_one_at_its_first_request(
    index: RemoteIndex, database_dsn: str
) -> None:
    take_header(database_dsn)
    assert (await query(index))[0] == 200
    sealed, version = header_of(database_dsn)
    assert sealed is not None
    assert version == 2
    change(database_dsn, "sketch_noise = 0")
    assert (await query(index))[0] == 500


async def test_a_wrapped_key_of_before_headers_can_be_refused(
    index: RemoteIndex, settings_here: Settings, database_dsn: str
) -> None:
    take_header(database_dsn)
    strict = Settings(
        database_url=database_dsn,
        workers=1,
        pool_size=2,
        root_key=ROOT_KEY,
        require_headers=True,
    )
    async with serve(strict) as client:
        client.headers["X-API-Key"] = ROOT_KEY
        status, text = await query(RemoteIndex(client, name=index.name))
    assert status == 500
    assert "header" in text


async def test_an_index_of_before_headers_is_read_where_the_database_takes_no_changes(
    index: RemoteIndex,
    settings_here: Settings,
    database_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_header(database_dsn)
    execute(
        database_dsn,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',"
        " current_database()); END $$",
    )
    tried = Mock(wraps=store.indexes.add_header)
    monkeypatch.setattr(store.indexes, "add_header", tried)
    async with serve(settings_here) as client:
        client.headers["X-API-Key"] = ROOT_KEY
        for _ in range(3):
            assert (await query(RemoteIndex(client, name=index.name)))[0] == 200
    assert header_of(database_dsn) == (None, 1)
    assert tried.call_count == 1
