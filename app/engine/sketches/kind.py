"""The kind of index that PostgreSQL searches: `ivfflat`, on keyed sketches."""

from app.engine.kind import Wanted
from app.engine.sketches.estimates import Estimates
from app.engine.sketches.scan import FilteredSketchScan, SketchScan
from app.engine.sketches.token_sets import TokenSets
from app.filters.nodes import Node
from app.store.pg.pool import Pool


class Sketches:
    """Indexes of sketches, and what is remembered of the filters that were asked for lately."""

    def __init__(self) -> None:
        self._estimates = Estimates()
        self._sets = TokenSets()

    def scan(self, wanted: Wanted, connections: Pool) -> SketchScan:
        """Return the way to the candidates of a search without a filter."""
        return SketchScan(wanted, connections, self._estimates)

    def filtered(self, wanted: Wanted, where: Node, connections: Pool) -> FilteredSketchScan:
        """Return the way to the candidates that match `where`."""
        return FilteredSketchScan(wanted, where, connections, self._estimates, self._sets)
