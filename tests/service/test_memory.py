"""What the memory of a worker holds once the keys have left the cache.

Python frees memory without wiping it. Here the C library does it, so what is found is held by
somebody.
"""

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import psycopg
import pytest

from app.crypto import aead, hkdf, keys
from tests.service.conftest import Service, workers_of

WIPING = {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "85"}
INDEX_KEY = secrets.token_hex(32)
INDEX = {"index_name": "memory", "index_key": INDEX_KEY}
_COLUMNS = ("contents", "metadata", "vector", "id-seal", "encoder")
_LIFETIME_S = 10
# Keys whose time is over are looked for every five seconds.
_PATIENCE_S = 60


def all_keys(index_id: UUID, wrapped_dek: bytes) -> dict[str, bytes]:
    """The keys of the index that a worker has in memory, of the sub-keys every eighth."""
    kek = bytes.fromhex(INDEX_KEY)
    dek = keys.unwrap_dek(kek, wrapped_dek, index_id)
    index_keys = keys.IndexKeys.derive(dek, index_id)
    read_key = index_keys.read_key()
    found = {
        "index key": kek,
        "data key": dek,
        "read key": read_key,
        "private key": index_keys._sessions.private_key,
    }
    found |= {
        "blind key": index_keys.blind_key,
        "token key": index_keys.token_key,
        "sketch key": index_keys.sketch_key,
    }
    for column in _COLUMNS:
        material = hkdf.expand(read_key, column, aead.KEY_MATERIAL_BYTES)
        for start in range(0, len(material), 8 * keys.KEY_BYTES):
            found[f"{column}, sub-key {start // keys.KEY_BYTES}"] = material[
                start : start + keys.KEY_BYTES
            ]
    return found


def memory_of(process: psutil.Process) -> Iterator[bytes]:
    """Everything that the process can write to, region by region."""
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            place, rights = line.split()[:2]
            if rights.startswith("rw"):
                start, end = (int(number, 16) for number in place.split("-"))
                memory.seek(start)
                yield memory.read(end - start)


def keys_in(service: Service, wanted: dict[str, bytes]) -> set[str]:
    """Names of the keys that are in the memory of a worker or the supervisor."""
    assert service.process is not None
    supervisor = psutil.Process(service.process.pid)
    found = set()
    for process in (supervisor, *workers_of(supervisor.pid)):
        for data in memory_of(process):
            found |= {name for name, key in wanted.items() if key in data}
    return found


def use(service: Service) -> None:
    items = [
        {"id": str(row), "vector": [1.0, 2.0, float(row)], "contents": "x", "metadata": {"n": row}}
        for row in range(64)
    ]
    query = {**INDEX, "query_vectors": [1.0, 2.0, 3.0], "filters": {"n": 5}}
    for path, body in (
        ("indexes/create", {**INDEX, "dimension": 3}),
        ("vectors/upsert", {**INDEX, "items": items}),
        ("vectors/query", query),
        ("vectors/get", {**INDEX, "ids": ["1"]}),
    ):
        assert service.post(path, body).status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and wipes by glibc")
def test_no_key_is_held_once_its_time_is_over(own_service: Service) -> None:
    own_service.environment = {
        **WIPING,
        "SEALDEX_WORKERS": "1",
        "INDEX_KEK_CACHE_TTL_SECONDS": str(_LIFETIME_S),
    }
    own_service.start()
    use(own_service)
    with psycopg.connect(own_service.dsn) as database:
        row = database.execute("SELECT id, wrapped_dek FROM indexes").fetchone()
    assert row is not None
    wanted = all_keys(*row)
    # The scan finds what is there.
    assert keys_in(own_service, wanted)
    deadline = time.monotonic() + _PATIENCE_S
    while (found := keys_in(own_service, wanted)) and time.monotonic() < deadline:
        time.sleep(1)
    assert found == set()
