import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app import errors
from app.domain import Matrix
from app.embeddings.batching import Batcher, Places


class Lengths:
    """Makes a vector of each text's length, remembers the rounds, and can be held up."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, texts: Sequence[str]) -> Matrix:
        self.rounds.append(list(texts))
        self.has_begun.set()
        self.may_go_on.wait(10)
        if "bad" in texts:
            raise ValueError("bad")
        return np.array([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
def encode() -> Iterator[Lengths]:
    encode = Lengths()
    yield encode
    encode.may_go_on.set()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def batcher(encode: Lengths, executor: ThreadPoolExecutor, n_places: int = 1000) -> Batcher:
    return Batcher(encode, executor, Places(n_places), max_characters=1024)


async def started(encode: Lengths) -> None:
    assert await asyncio.to_thread(encode.has_begun.wait, 10)


async def test_vectors_come_back_in_the_order_of_the_texts(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    texts = ["x" * ((37 * number) % 500) for number in range(300)]
    vectors = await batcher(encode, executor).embed(texts)
    assert vectors[:, 0].tolist() == [len(text) for text in texts]
    assert all(len(one) <= 64 for one in encode.rounds)
    assert all(len(one) * max(map(len, one)) <= 16_384 for one in encode.rounds)


async def test_texts_of_concurrent_requests_share_a_round(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    encode.may_go_on.clear()
    queue = batcher(encode, executor)
    requests = [asyncio.create_task(queue.embed([str(number)])) for number in range(20)]
    await started(encode)
    encode.may_go_on.set()
    await asyncio.gather(*requests)
    assert [len(one) for one in encode.rounds] == [20]


async def test_a_query_overtakes_thousands_of_documents(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    encode.may_go_on.clear()
    queue = batcher(encode, executor, n_places=10_000)
    bulk = asyncio.create_task(queue.embed(["document"] * 5000))
    await started(encode)
    query = asyncio.create_task(queue.embed(["query"]))
    await asyncio.sleep(0)
    encode.may_go_on.set()
    await query
    assert len(encode.rounds) <= 4
    assert len(await bulk) == 5000


async def test_documents_are_not_kept_waiting_by_queries(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    queue = batcher(encode, executor)
    bulk = asyncio.create_task(queue.embed(["d" * 2000] * 50))

    async def ask() -> None:
        while not bulk.done():
            await queue.embed(["q" * 700])

    clients = [asyncio.create_task(ask()) for _ in range(30)]
    await asyncio.wait_for(bulk, 10)
    await asyncio.gather(*clients)
    with_documents = [number for number, one in enumerate(encode.rounds) if one[0][0] == "d"]
    assert with_documents[-1] <= 3 * len(with_documents)


async def test_a_text_longer_than_any_round_gets_one_of_its_own(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    queue = Batcher(encode, executor, Places(10), max_characters=100_000)
    assert (await queue.embed(["x" * 50_000, "y" * 60_000]))[:, 0].tolist() == [50_000, 60_000]
    assert len(encode.rounds) == 2


async def test_a_full_queue_refuses_and_recovers(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    encode.may_go_on.clear()
    queue = batcher(encode, executor, n_places=3)
    first = asyncio.create_task(queue.embed(["a", "b"]))
    await started(encode)
    with pytest.raises(errors.Overloaded):
        await queue.embed(["c", "d"])
    third = asyncio.create_task(queue.embed(["e"]))
    await asyncio.sleep(0)
    encode.may_go_on.set()
    assert (len(await first), len(await third)) == (2, 1)
    # More texts than places: they take turns, once the queue is empty.
    assert len(await queue.embed(["x"] * 1000)) == 1000


async def test_a_failure_is_for_those_in_the_round_alone(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    encode.may_go_on.clear()
    queue = batcher(encode, executor)
    bad = asyncio.create_task(queue.embed(["bad"]))
    await started(encode)
    good = asyncio.create_task(queue.embed(["good"]))
    await asyncio.sleep(0)
    encode.may_go_on.set()
    with pytest.raises(ValueError, match="bad"):
        await bad
    assert (await good)[:, 0].tolist() == [4]


async def test_texts_of_a_cancelled_request_are_not_embedded(
    encode: Lengths, executor: ThreadPoolExecutor
) -> None:
    encode.may_go_on.clear()
    queue = batcher(encode, executor, n_places=256)
    bulk = asyncio.create_task(queue.embed(["document"] * 5000))
    await started(encode)
    bulk.cancel()
    await asyncio.gather(bulk, return_exceptions=True)
    encode.may_go_on.set()
    # The places are free again, and one round was already on its way.
    assert len(await queue.embed(["x"] * 256)) == 256
    assert len(encode.rounds) <= 1 + 256 // 64 + 1
