"""What was acknowledged is there after the service is killed, and the service starts again."""

import secrets
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.service.conftest import Service

KEY = secrets.token_hex(32)
INDEX = {"index_name": "durable", "index_key": KEY}
N_BATCHES = 30
BATCH = 40


def batch(number: int) -> list[dict[str, object]]:
    return [
        {
            "id": f"{number}-{row}",
            "vector": [float(number), float(row), 1.0],
            "contents": f"{number}:{row}",
        }
        for row in range(BATCH)
    ]


def test_a_killed_service_keeps_what_it_acknowledged(own_service: Service) -> None:
    own_service.start()
    assert own_service.post("indexes/create", {**INDEX, "dimension": 3}).status_code == 200
    acknowledged = []

    def upsert(number: int) -> None:
        try:
            answer = own_service.post("vectors/upsert", {**INDEX, "items": batch(number)})
        except httpx.TransportError:
            return
        if answer.status_code == httpx.codes.OK:
            acknowledged.append(number)

    with ThreadPoolExecutor(4) as pool:
        for number in range(N_BATCHES):
            pool.submit(upsert, number)
            if number == N_BATCHES // 2:
                own_service.kill()
    assert own_service.process is not None
    own_service.start()
    ids = set(own_service.post("vectors/list_ids", INDEX).json()["ids"])
    stored = {number for number in range(N_BATCHES) if f"{number}-0" in ids}
    assert set(acknowledged) <= stored
    # A batch is there as a whole or not at all, and the count says the same.
    assert ids == {f"{number}-{row}" for number in stored for row in range(BATCH)}
    assert own_service.post("vectors/num_vectors", INDEX).json() == {"result": len(ids)}
    assert (
        own_service.post("vectors/upsert", {**INDEX, "items": batch(N_BATCHES)}).status_code == 200
    )


def test_a_second_service_on_the_same_data_is_refused(own_service: Service) -> None:
    own_service.start()
    second = Service(own_service.data_dir, own_service.port + 1)
    with pytest.raises(AssertionError, match="Another service is using the data directory"):
        second.start()
