"""What a kind of index does in its own way. All the rest of the engine is the same for every kind.

A kind says where candidates come from: items that are likely to be near. Opening them, comparing
their exact vectors, checking filters and answering are not its business.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from app.domain import Candidates, Matrix
from app.engine.costs import Ask
from app.engine.keyed import KeyedIndex, Shape
from app.filters.nodes import Node
from app.store.pg.pool import Pool


class Row(NamedTuple):
    """An item that may match a filter."""

    item_key: bytes
    sealed_metadata: bytes | None


class Wanted(NamedTuple):
    """A search as a kind of index sees it: with which queries (n, d), and what is asked for."""

    keyed: KeyedIndex
    shape: Shape
    queries: Matrix
    ask: Ask


class Scan(Protocol):
    """The way to the candidates of one search. It remembers how far each query has looked."""

    async def look(self, positions: Sequence[int]) -> list[Candidates]:
        """Return for each of the queries at `positions` candidates that it has not seen before.

        The first look brings those that are the likeliest, a later one those that
        `is_enough` has found to be missing. Raises `StaleIndex`.
        """
        ...

    def n_wanted(self, position: int) -> int:
        """Return about how many candidates the next look of a query brings."""
        ...

    async def is_enough(self, position: int, winners: Matrix, worst: float) -> bool:
        """Whether hardly any item that was not seen is nearer than the winners (k, d) of a query.

        `worst` is the distance of the last of them. If it is not enough, the next look goes as
        far as it should take.
        """
        ...


class FilteredScan(Scan, Protocol):
    """The way to the candidates that match a filter, as far as the kind can tell."""

    @property
    def decides(self) -> bool:
        """Whether what it finds matches, but for rare exceptions; else all metadata is opened."""
        ...

    async def share(self) -> float:
        """Return about which share of the items may match."""
        ...

    async def peek(self, positions: Sequence[int], n_items: int) -> list[list[Row]] | None:
        """Return for each query the nearest `n_items` that may match, or all; nearest first.

        None when it is cheaper to look at all that may match. Raises `StaleIndex`.
        """
        ...

    def everything(self) -> AsyncGenerator[list[Row], None]:
        """Yield all items that may match, some thousands at a time, as of one moment."""
        ...

    async def among(
        self, positions: Sequence[int], item_keys: Sequence[bytes], n_items: int
    ) -> list[list[bytes]]:
        """Return for each query which of `item_keys` are the nearest `n_items`."""
        ...

    async def read(self, item_keys: Sequence[bytes]) -> Candidates:
        """Return the items with these keys that are still there, with their metadata."""
        ...


class Kind(Protocol):
    """A kind of index, with what a worker remembers of all indexes of that kind."""

    def scan(self, wanted: Wanted, connections: Pool) -> Scan:
        """Return the way to the candidates of a search without a filter."""
        ...

    def filtered(self, wanted: Wanted, where: Node, connections: Pool) -> FilteredScan:
        """Return the way to the candidates that match `where`."""
        ...
