"""The vendor's Python SDK, unmodified, against the running service."""

import base64
import secrets

import pytest
from cyborgdb import Client

from tests.service.conftest import Service

N_ITEMS = 50


@pytest.fixture
def client(service: Service) -> Client:
    return Client(service.url, "")


def test_the_sdk_stores_searches_and_deletes(client: Client) -> None:
    name, key = f"sdk-{secrets.token_hex(4)}", secrets.token_bytes(32)
    index = client.create_index(name, key, metric="euclidean")
    assert name in client.list_indexes()

    index.upsert(
        [
            {
                "id": f"item-{n}",
                "vector": [float(n), 1.0, 0.0],
                "contents": f"text {n}",
                "metadata": {"n": n},
            }
            for n in range(N_ITEMS)
        ]
    )
    index.upsert([{"id": "bytes", "vector": [100.0, 1.0, 0.0], "contents": b"\x00\xff\xfe"}])

    nearest = index.query([3.1, 1.0, 0.0], top_k=2, include=["distance", "metadata"])
    assert [match["id"] for match in nearest] == ["item-3", "item-4"]
    assert nearest[0]["distance"] == pytest.approx(0.1, abs=1e-6)
    assert nearest[0]["metadata"] == {"n": 3}

    both = index.query([[0.0, 1.0, 0.0], [9.0, 1.0, 0.0]], top_k=1)
    assert [[match["id"] for match in matches] for matches in both] == [["item-0"], ["item-9"]]

    stored = {item["id"]: item for item in index.get(["item-7", "bytes", "unknown"])}
    assert set(stored) == {"item-7", "bytes"}
    assert list(stored["item-7"]["vector"]) == [7.0, 1.0, 0.0]
    assert stored["item-7"]["contents"] == "text 7"
    assert stored["item-7"]["metadata"] == {"n": 7}
    # This SDK sends bytes as base64 text and does not decode it on the way back.
    assert base64.b64decode(stored["bytes"]["contents"]) == b"\x00\xff\xfe"

    index.delete(["item-0", "item-1"])
    assert sorted(index.list_ids()) == sorted([f"item-{n}" for n in range(2, N_ITEMS)] + ["bytes"])
    assert index.index_name == name
    assert not index.is_trained()

    loaded = client.load_index(name, key)
    assert [match["id"] for match in loaded.query([0.0, 1.0, 0.0], top_k=1)] == ["item-2"]
    loaded.delete_index()
    assert name not in client.list_indexes()


def test_the_sdk_is_refused_with_a_wrong_key(client: Client) -> None:
    name = f"sdk-{secrets.token_hex(4)}"
    client.create_index(name, secrets.token_bytes(32), dimension=2)
    with pytest.raises(ValueError, match="Wrong index_key"):
        client.load_index(name, secrets.token_bytes(32))
