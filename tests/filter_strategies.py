"""Random metadata and filters that have something to do with each other: few names, few values, all
operators.
"""

import os
from typing import Any

from hypothesis import strategies as st

# HYPOTHESIS_PROFILE=nightly looks longer.
N_EXAMPLES = 5_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 300

NAMES = ["a", "b", "c", "a.b", ""]
PATHS = ["a", "b", "c", "a.b", "b.a", "a.b.c", "", "a.", "missing"]
PATTERNS = ["x", "^x", "y$", "[xy]", "x.y", "", "é"]

_BIG = 2**53
scalars = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        1.0,
        -1,
        2,
        0.5,
        _BIG,
        _BIG + 1,
        float(_BIG),
        1e300,
        "",
        "x",
        "y",
        "xy",
        "é",
        "1",
        "true",
    ]
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
    ),
    max_leaves=5,
)
metadata = st.dictionaries(st.sampled_from(NAMES), values, max_size=4)

numbers = st.sampled_from([0, 1, 1.0, -1, 0.5, 2, _BIG, _BIG + 1, 1e300])
_members = st.lists(values, max_size=3)


def _operator(name: str, operands: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: operands})


_operators = st.one_of(
    *(_operator(name, values) for name in ("$eq", "$ne")),
    *(_operator(name, numbers) for name in ("$gt", "$gte", "$lt", "$lte")),
    *(
        _operator(name, _members | scalars.filter(lambda value: value is not None))
        for name in ("$in", "$nin")
    ),
    _operator("$exists", st.booleans()),
    _operator("$type", st.sampled_from(["string", "number", "boolean", "array", "object"])),
    _operator("$regex", st.sampled_from(PATTERNS)),
    _operator("$contains", st.sampled_from(["", "x", "xy", "é"])),
)
# Some operators together, and a complement now and then.
_several = st.lists(_operators, min_size=1, max_size=2).map(
    lambda several: {k: v for o in several for k, v in o.items()}
)
_conditions: st.SearchStrategy[Any] = (
    _several | _operator("$not", _several) | scalars | values.filter(bool)
)

_entries = st.dictionaries(st.sampled_from(PATHS), _conditions, min_size=1, max_size=2)
filters = st.recursive(
    _entries,
    lambda inner: st.one_of(
        *(_operator(name, st.lists(inner, max_size=3)) for name in ("$and", "$or", "$nor")),
        _operator("$not", inner),
        st.builds(lambda one, other: {**one, **other}, inner, inner),
    ),
    max_leaves=6,
)
