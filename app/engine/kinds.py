"""The kinds of index, and the one place that chooses among them."""

from app.domain import Index
from app.engine.kind import Kind
from app.engine.sketches.kind import Sketches


class Kinds:
    """The kinds of index that a worker can search, with what it remembers of each."""

    def __init__(self) -> None:
        self._sketches = Sketches()

    def of(self, index: Index) -> Kind:
        """Return the kind of `index`."""
        del index
        return self._sketches
