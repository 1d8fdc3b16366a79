"""What a search asks for, what it costs, and every measured constant that shapes it."""

from dataclasses import dataclass, replace
from typing import Self

# ---------------------------------------------------------------- candidates

# Candidates for a target recall where nothing was measured: an untrained index scans all sketches,
# and what it misses it misses by the noise of the sketches.
UNMEASURED_POOLS = ((0.97, 200), (0.99, 500), (1.0, 2_000))
UNMEASURED_POOL_MULT = 10
# The nearest that match a filter are farther from the query than the nearest of all, and so in more
# lists.
FILTERED_PROBES_MULT = 1.35
# With a filter, at least this many candidates are opened: what a training has found to be enough
# without a filter may be less.
MIN_FILTERED_POOL = 200
# How many candidates that tokens have found are remembered for a second look, for each that is
# opened at first.
KNOWN_MULT = 5

# An untrained index of so many items, and vectors of so many bytes, is always ranked exactly.
SMALL_INDEX_ITEMS = 2_000
SMALL_INDEX_BYTES = 16 * 1024 * 1024
# An index that had twice as many is not counted again for so long.
LARGE_INDEX_TTL_S = 5
MAX_LARGE_INDEXES = 10_000
# A search whose next looks would hold more numbers than this reads every item once instead, in
# slices: 64 MB.
MAX_NUMBERS_OPENED = 16_000_000
# Exact searches that a worker makes at a time: each takes a connection and a core for long.
EXACT_AT_A_TIME = 2

# ---------------------------------------------------------------- filters that tokens cannot decide

# Items of one kind, far from the query, are all about as far: where few are left, more of them are
# opened (docs/decisions/0024 has the measurements).
FEW_SHARE = 0.25
FEW_MULT = 3
MANY_MULT = 1.5
# How many times the candidates to look at first.
FIRST_LOOK_MULT = 4
# How much further to look when too few have matched, and what to add to what should be enough.
FURTHER_LOOK_MULT = 4
LOOK_MARGIN = 1.3
# How many times the IVF lists: reading lists takes a fraction of the time of opening metadata.
LOOK_PROBES_MULT = 2
# Looking at this many times more items costs the same in the order of the table as in the order of
# the sketches.
ALL_AT_ONCE_MULT = 4
# To rank this many items exactly costs little more than to choose among them by sketch.
MAX_EXACT = 1_000

# ---------------------------------------------------------------- sets of items in memory

# Where more items have the tokens, the ivfflat index leads to enough of them soon enough.
MAX_SET_ITEMS = 20_000
MAX_SETS_BYTES = 64 * 1024 * 1024
MAX_SET_BYTES = MAX_SETS_BYTES // 8
SET_TTL_S = 60
MAX_FILTERS_ASKED = 10_000
# Where items change all the time, a set is made in vain; so the next one is made this much later.
SET_REST_S = 5
# How long an estimate is good for: it decides on the way only, never on the answer.
ESTIMATE_TTL_S = 30
MAX_ESTIMATES = 10_000
# A small index may soon be a large one, so that its estimates are not kept.
MIN_ESTIMATED_ITEMS = 10_000
# Some hundred rows: enough to tell one in ten from one in a hundred, and read in less than a
# millisecond.
SAMPLE_PAGES = 100
# Every row of the sample is compared with every token: with more than these, there are fewer rows.
SAMPLE_TOKENS = 1_000

# ---------------------------------------------------------------- portions

# The queries of a batch go to the database in parts, so that the vectors of their candidates have
# at most these numbers: 16 MB.
NUMBERS_AT_A_TIME = 4_000_000
# Metadata that is read and checked in one go.
ROWS_AT_A_TIME = 10_000
# Items that are sealed in one go.
SEALED_AT_A_TIME = 1_000
# Vectors that a training reads at a time, and opens without a break.
READ_BYTES = 4 * 1024 * 1024
MAX_READ_ITEMS = 2_000
OPENED_BYTES = 400 * 1024

# ---------------------------------------------------------------- time, in microseconds on one core

# Reading a sketch of 768 bits in an ivfflat list.
_SKETCH_US_PER_BIT = 0.16 / 768
# Finding an item by its tokens, and sorting it by its sketch.
_TOKEN_US = 1.33
# Fetching the row of an item from an ivfflat list, to compare its tokens; with this many tokens
# asked for, the comparison costs as much again.
_FETCH_US = 2.13
_TOKENS_A_FETCH = 50
# Fetching, opening and comparing a candidate of 384 numbers.
_CANDIDATE_US = 4.0
_CANDIDATE_US_PER_NUMBER = 3.0 / 384
# Opening and decoding the metadata of an item.
METADATA_US = 4.0
# What takes longer goes to a thread: the event loop stands still meanwhile. Handing less than this
# to a thread costs more than it saves (docs/decisions/0076).
LOOP_US = 4_000.0


def opening_us(n_items: int, dimension: int) -> float:
    """Return how long it takes to open and to compare the vectors of `n_items`."""
    return n_items * dimension * _CANDIDATE_US_PER_NUMBER


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a search asks of an index: results, candidates to open at first, IVF lists to read."""

    top_k: int
    pool: int
    n_probes: int
    target_recall: float
    # Whether the query has said itself how many lists.
    is_n_probes_given: bool = False
    # Whether every item is to be compared.
    is_exact: bool = False

    def filtered(self) -> Self:
        """Return the same for a search with a filter."""
        return replace(self, pool=max(MIN_FILTERED_POOL, self.pool))


@dataclass(frozen=True, slots=True)
class Workload:
    """What decides the cost of a search in an ivfflat index of sketches."""

    n_items: int
    n_lists: int
    dimension: int
    sketch_bits: int

    def cost_us(self, n_probes: int, pool: int) -> float:
        """Return roughly how many microseconds a search takes."""
        per_candidate = _CANDIDATE_US + _CANDIDATE_US_PER_NUMBER * self.dimension
        return self._scan_us(n_probes) + pool * per_candidate

    def are_tokens_cheaper(self, n_tokens: int, share: float, n_probes: int, n_wanted: int) -> bool:
        """Whether it is cheaper to find all items that have tokens than to scan for `n_wanted`.

        The tokens are `n_tokens`, and a `share` of the items has them.
        """
        fetch_us = _FETCH_US * (1 + n_tokens / _TOKENS_A_FETCH)
        scan_us = self._scan_us(n_probes) + fetch_us * n_wanted / max(share, 1e-6)
        return self.n_items * share * _TOKEN_US < scan_us

    def _scan_us(self, n_probes: int) -> float:
        n_scanned = self.n_items * min(1.0, n_probes / self.n_lists)
        return n_scanned * _SKETCH_US_PER_BIT * self.sketch_bits
