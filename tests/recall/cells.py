"""What is crossed with what: data, the life of the index, metric, precision and filter.

All of it would be some thousand cells. `CELLS` has every kind of data in every stage of an index's
life, and of all other values each pair at least once: what breaks a search is seldom more than two
things that meet.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from itertools import combinations, product

from app.domain import Metric, Precision


class Stage(StrEnum):
    """Where an index is in its life when it is searched."""

    UNTRAINED_50 = "untrained-50"
    UNTRAINED_300 = "untrained-300"
    UNTRAINED_3000 = "untrained-3000"
    UNTRAINED_9999 = "untrained-9999"
    TRAINED = "trained"
    # Trained, then every vector replaced by one of other data, then trained again.
    TRAINED_AGAIN = "trained-again"

    @property
    def is_trained(self) -> bool:
        """Whether the index has lists."""
        return self in {Stage.TRAINED, Stage.TRAINED_AGAIN}

    @property
    def n_items(self) -> int:
        """How many items the index has."""
        return N_TRAINED if self.is_trained else int(self.rpartition("-")[2])


class Filter(StrEnum):
    """What a search is restricted by: nothing, what tokens answer, or what they cannot answer."""

    NONE = "all"
    TOKENS = "tokens"
    RANGE = "range"


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement; `data` is a name in `datasets.FAMILY`."""

    data: str
    stage: Stage
    metric: Metric
    precision: Precision
    filter: Filter

    def __str__(self) -> str:
        return "/".join(map(str, astuple(self)))


N_TRAINED = 6_000
# Data of one kind take turns from stage to stage.
KINDS: Mapping[str, Sequence[str]] = {
    "text-like": ["text-like"],
    "far-clusters": ["far-clusters"],
    "cone": ["cone-90", "cone-97", "cone-99"],
    "line": ["line"],
    "places": ["places"],
    "uniform": ["uniform-64", "uniform-384", "uniform-768"],
    "normal": ["normal-768", "normal-64", "normal-384"],
    "copies": ["copies"],
    "mixed-norms": ["mixed-norms"],
    "zeros-among-others": ["zeros-among-others"],
    "unlike-units": ["sensors", "columns"],
    "heavy-tails": ["heavy-tails"],
    "sparse": ["sparse"],
    "integers": ["integers", "histograms"],
    "other-scale-first": ["other-scale-first"],
    "odd-item-first": ["odd-item-first"],
    "drifting": ["drifting"],
    "constant": ["constant"],
    "extremes": ["extremes"],
}
# Their numbers are larger than float16 can hold, and are refused.
FLOAT32_ONLY = {"sensors", "columns", "extremes"}


def crossed() -> Iterator[Cell]:
    """Yield the cells, each with those remaining values that make the most pairs which are new.

    Of several, those that were taken least often so far.
    """
    known: set[object] = set()
    taken: Counter[object] = Counter()
    stages = list(Stage)
    for number, names in enumerate(KINDS.values()):
        # Each kind begins with another stage: the first ones are those that make new pairs.
        for place in (*range(number % len(stages), len(stages)), *range(number % len(stages))):
            stage, data = stages[place], names[place % len(names)]
            best = _newest(data, stage, known, taken)
            known |= pairs(best)
            taken.update((stage, value) for value in astuple(best)[2:])
            yield best


def _newest(data: str, stage: Stage, known: set[object], taken: Counter[object]) -> Cell:
    possible = [
        Cell(data, stage, *others)
        for others in product(Metric, Precision, Filter)
        if Precision.FLOAT16 not in others or data not in FLOAT32_ONLY
    ]
    return max(possible, key=lambda cell: (len(pairs(cell) - known), -_uses(cell, taken)))


def _uses(cell: Cell, taken: Counter[object]) -> float:
    """Return how often a stage had the values of a cell; no filter counts less: it is the rule."""
    weights: dict[StrEnum, float] = {Filter.NONE: 0.3}
    return sum(
        taken[cell.stage, value] * weights.get(value, 1)
        for value in (cell.metric, cell.precision, cell.filter)
    )


def pairs(cell: Cell) -> set[object]:
    """Return the pairs of values that meet in a cell."""
    kind = next(kind for kind, names in KINDS.items() if cell.data in names)
    return set(combinations((kind, *astuple(cell)[1:]), 2))


CELLS: Sequence[Cell] = list(crossed())
