"""The kinds of index, and the one place that chooses among them."""

from app.domain import Index
from app.engine.kind import Kind
from app.engine.sketches.ivf import IvfSketches
from app.engine.sketches.kind import Sketches
from app.engine.trainable import Trainable

_IVF_SKETCHES = IvfSketches()

# All kinds as trainings see them, for whoever looks after what trainings have left.
TRAINABLE: tuple[Trainable, ...] = (_IVF_SKETCHES,)


class Kinds:
    """The kinds of index that a worker can search, with what it remembers of each."""

    def __init__(self) -> None:
        self._sketches = Sketches()

    def of(self, index: Index) -> Kind:
        """Return the kind of `index`."""
        del index
        return self._sketches


def trainable(index: Index) -> Trainable:
    """Return the kind of `index` as a training sees it."""
    del index
    return _IVF_SKETCHES
