"""What an index is, as plainly as can be: a dictionary. The service must agree with it."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

Item = dict[str, Any]


@dataclass
class ModelIndex:
    """An index with its key, its items by id, and the length of vectors that the first ones fixed."""

    key: str
    metric: str
    dimension: int = 0
    items: dict[str, Item] = field(default_factory=dict)

    def accepts(self, items: list[Item]) -> bool:
        """Whether vectors of `items` have the length of the index, or of each other where it has none yet."""
        lengths = {len(item["vector"]) for item in items}
        return bool(items) and lengths == {self.dimension or len(items[0]["vector"])}

    def upsert(self, items: list[Item]) -> None:
        """Replace items as a whole; of several with one id the last counts."""
        self.dimension = len(items[0]["vector"])
        self.items |= {item["id"]: copy.deepcopy(item) for item in items}

    def get(self, ids: list[str]) -> list[Item]:
        """What `get` answers, in the order asked for; what an item lacks is empty."""
        return [{"contents": "", "metadata": {}, **self.items[name]} for name in ids if name in self.items]

    def distances(self, query: list[float]) -> dict[str, float]:
        """Exact distance of every item to `query`."""
        return {name: self._distance(query, item["vector"]) for name, item in self.items.items()}

    def _distance(self, one: list[float], other: list[float]) -> float:
        if self.metric == "cosine":
            norms = math.hypot(*one) * math.hypot(*other)
            product = sum(a * b for a, b in zip(one, other, strict=True))
            return 1 - product / norms if norms else 1.0
        squared = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        return squared if self.metric == "squared_euclidean" else math.sqrt(squared)
