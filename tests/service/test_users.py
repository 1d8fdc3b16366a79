"""User tokens on the running service, with two workers, through the vendor's Python SDK."""

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyborgdb import Client, EncryptedIndex

from tests.service.conftest import Service, new_service

ROOT_KEY = "a root key of the tests"


@pytest.fixture(scope="module")
def guarded_service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(Path(directory), SEALDEX_WORKERS="2", SEALDEX_ROOT_KEY=ROOT_KEY)
        service.start()
        yield service
        service.stop()


def as_user(service: Service, token: str, name: str) -> EncryptedIndex:
    return Client(service.url, token).load_index(name)


@pytest.mark.parametrize("name", ["docs", "team/docs", "ключ 🔒"])
def test_the_sdk_makes_uses_and_revokes_users(guarded_service: Service, name: str) -> None:
    index = Client(guarded_service.url, ROOT_KEY).create_index(name, secrets.token_bytes(32))
    index.upsert([{"id": "a", "vector": [1.0, 2.0, 3.0], "contents": "text", "metadata": {"n": 1}}])
    reader, writer = index.create_user(["read"]), index.create_user(["write"])
    assert [user["permissions"] for user in index.list_users()] == [["read"], ["write"]]

    reading = as_user(guarded_service, reader["api_key"], name)
    writing = as_user(guarded_service, writer["api_key"], name)
    writing.upsert([{"id": "b", "vector": [3.0, 2.0, 1.0]}])
    assert [match["id"] for match in reading.query([3.0, 2.0, 1.0], top_k=2)] == ["b", "a"]
    with pytest.raises(ValueError, match="permission denied"):
        reading.upsert([{"id": "c", "vector": [0.0, 0.0, 0.0]}])
    with pytest.raises(ValueError, match="permission denied"):
        writing.query([0.0, 0.0, 0.0])

    index.delete_user(reader["user_id"])
    # Enough times that both workers are asked; each has answered this user before.
    for _ in range(20):
        with pytest.raises(ValueError, match="permission denied"):
            as_user(guarded_service, reader["api_key"], name).query([3.0, 2.0, 1.0])
    index.delete_index()
