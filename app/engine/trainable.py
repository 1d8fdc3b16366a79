"""What a training asks of a kind of index, so that every kind is trained by the same machine.

The machine (`app.training`) claims the index, keeps the claim alive, finds exact neighbours,
measures recall, and moves searches to what was built. A kind knows what that is and where it is
kept. `target` is the row of the index as it will be once searches have moved; `index` is the row as
it is.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import Index, Matrix
from app.engine.keyed import KeyedIndex


@dataclass(frozen=True, slots=True)
class Work:
    """What a kind of index prepares itself with: the keys, a database, and who is to be told.

    `hold` raises unless the training still has its claim, and keeps the claim from being lost until
    the transaction ends. `is_quiet` tells whether no search is under way. `enter` is told of each
    phase, `advance` which share of the phase is done.
    """

    opened: KeyedIndex
    engine: AsyncEngine
    hold: Callable[[AsyncConnection], Awaitable[None]]
    is_quiet: Callable[[], bool]
    enter: Callable[[str], None]
    advance: Callable[[float], None]


class Trainable(Protocol):
    """A kind of index. Connections come first; what builds or drops takes one of its own."""

    max_lists: int

    def automatic_n_lists(self, n_items: int) -> int:
        """Return how many lists are good for a number of items."""
        ...

    def build_memory_mb(self, index: Index, n_items: int, n_lists: int) -> int:
        """Return how much memory of the database it takes to build so many lists."""
        ...

    async def prepare(self, work: Work) -> None:
        """Do what must be done before the build by somebody who has the keys."""
        ...

    def target(self, index: Index, generation: int, n_lists: int, *, is_prepared: bool) -> Index:
        """Return the row as it will be after the swap; `is_prepared` if `prepare` has run."""
        ...

    async def build(self, connection: AsyncConnection, target: Index, n_items: int) -> None:
        """Build beside what is in use. Raises `TrainingFailed` with a reason for the caller."""
        ...

    async def built_share(self, connection: AsyncConnection, target: Index) -> float:
        """Return which share of the build is done."""
        ...

    def questions(self, opened: KeyedIndex, vectors: Matrix) -> Sequence[bytes]:
        """Return what `candidates` is asked to search for queries (n, d), after the swap."""
        ...

    async def candidates(
        self,
        connection: AsyncConnection,
        target: Index,
        questions: Sequence[bytes],
        *,
        pool: int,
        n_probes: int,
    ) -> Sequence[bytes]:
        """Return the item keys of the candidates of each question, best first, joined to one."""
        ...

    async def list_sizes(
        self, connection: AsyncConnection, index: Index, n_samples: int
    ) -> Sequence[int]:
        """Return the size of the list that each of some items is in. Needs no key."""
        ...

    async def swap(self, connection: AsyncConnection, index: Index, target: Index) -> bool:
        """Move searches to what was built; false when the row has changed meanwhile."""
        ...

    async def leftovers(
        self, connection: AsyncConnection, *, claimed: UUID | None = None
    ) -> Sequence[str]:
        """Name what no search uses and no live training builds.

        The index `claimed` is the caller's own: what its earlier trainings have left is named too.
        """
        ...

    async def drop(self, connection: AsyncConnection, name: str) -> None:
        """Drop a leftover without holding up searches."""
        ...

    async def tidy(self, connection: AsyncConnection, index: Index) -> None:
        """Do what is good for searches once all is over."""
        ...
