"""One model, many requests: their texts are encoded together, in rounds, on one thread.

A round is one pass through the model. The first text starts one at once; what arrives meanwhile
makes the next. The work of a round is bounded, so that a query waits for a short time even while
thousands of documents are embedded: requests with the fewest texts left go first, and every other
round belongs to the one that waits longest.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from app import errors
from app.domain import Matrix

_MAX_ROUND_TEXTS = 64
# A pass costs as much as if all its texts were as long as the longest.
_MAX_ROUND_CHARACTERS = 16_384
# A request takes at most so many places in the queue: its texts take turns with those of others.
_MAX_PLACES = 256


class Places:
    """The places in the queue of a process, shared by its models."""

    def __init__(self, n_places: int) -> None:
        self._n_free = self._n_places = n_places

    def take(self, n_texts: int) -> int:
        """Take places for `n_texts`, and return how many. Raises `Overloaded` without enough."""
        n_taken = min(n_texts, _MAX_PLACES, self._n_places)
        if n_taken > self._n_free:
            raise errors.Overloaded("Too many texts wait to be embedded; try again later")
        self._n_free -= n_taken
        return n_taken

    def give_back(self, n_taken: int) -> None:
        """Return what `take` has returned."""
        self._n_free += n_taken


@dataclass(eq=False, slots=True)
class _Job:
    """The texts of one request; `waiting` are their positions, the next ones last."""

    texts: Sequence[str]
    waiting: list[int]
    answer: asyncio.Future[Matrix]
    vectors: list[Matrix] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def next_length(self, most: int) -> int:
        """Return how many characters the next text has, `most` for a longer one."""
        return min(len(self.texts[self.waiting[-1]]), most)

    def take(self, vectors: Matrix, positions: Sequence[int]) -> None:
        """Keep the vectors of some texts; with the last, answer in the order of the texts."""
        self.vectors.append(vectors)
        self.positions += positions
        if not self.waiting and not self.answer.done():
            self.answer.set_result(np.concatenate(self.vectors)[np.argsort(self.positions)])

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless the request is over."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """Encodes the texts of concurrent requests together. It belongs to one event loop."""

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Matrix],
        executor: Executor,
        places: Places,
        max_characters: int,
    ) -> None:
        self._encode = encode
        self._executor = executor
        self._places = places
        # Beyond that a text is cut off, and costs no more.
        self._max_characters = max_characters
        self._jobs: list[_Job] = []
        self._rounds: asyncio.Task[None] | None = None
        self._is_turn_of_oldest = False

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Return the vectors of `texts`, (n, d), for at least one text. Raises `Overloaded`."""
        n_places = self._places.take(len(texts))
        # Texts of like length side by side: a round is padded to its longest.
        waiting = sorted(range(len(texts)), key=lambda position: len(texts[position]))
        job = _Job(texts, waiting, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._run())
        try:
            return await job.answer
        finally:
            self._places.give_back(n_places)

    async def _run(self) -> None:
        try:
            while chosen := self._choose():
                await self._round(chosen)
        finally:
            self._rounds = None

    async def _round(self, chosen: list[tuple[_Job, list[int]]]) -> None:
        """Encode the chosen texts, and hand each job its vectors, or what went wrong."""
        texts = [job.texts[position] for job, positions in chosen for position in positions]
        loop = asyncio.get_running_loop()
        try:
            vectors = await loop.run_in_executor(self._executor, self._encode, texts)
        except Exception as error:  # noqa: BLE001  # goes to those who wait for these texts
            for job, _ in chosen:
                job.fail(error)
            return
        start = 0
        for job, positions in chosen:
            end = start + len(positions)
            job.take(vectors[start:end], positions)
            start = end

    def _choose(self) -> list[tuple[_Job, list[int]]]:
        """Take the texts of the next round out of the jobs; there are none when no job is left."""
        chosen: dict[_Job, list[int]] = {}
        n_texts = longest = 0
        for job in self._in_turn():
            while job.waiting and n_texts < _MAX_ROUND_TEXTS:
                length = max(longest, job.next_length(self._max_characters))
                if n_texts and length * (n_texts + 1) > _MAX_ROUND_CHARACTERS:
                    break
                chosen.setdefault(job, []).append(job.waiting.pop())
                longest, n_texts = length, n_texts + 1
        return list(chosen.items())

    def _in_turn(self) -> list[_Job]:
        """Return the jobs with texts left: the shortest first, in every other round the oldest."""
        # A job is done before its time when its request was cancelled or a round of it has failed.
        self._jobs = [job for job in self._jobs if job.waiting and not job.answer.done()]
        order = sorted(self._jobs, key=lambda job: len(job.waiting))
        if self._is_turn_of_oldest:
            order = self._jobs[:1] + order
        self._is_turn_of_oldest = not self._is_turn_of_oldest
        return order
