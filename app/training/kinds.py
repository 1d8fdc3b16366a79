"""Which kind an index is of, as far as trainings are concerned: the one place that tells."""

from app.domain import Index
from app.engine.sketches.ivf import IvfSketches
from app.engine.trainable import Trainable

_IVF_SKETCHES = IvfSketches()

# All there are, for whoever looks after what trainings have left.
KINDS: tuple[Trainable, ...] = (_IVF_SKETCHES,)


def kind_of(_index: Index) -> Trainable:
    """Return the kind of an index."""
    return _IVF_SKETCHES
