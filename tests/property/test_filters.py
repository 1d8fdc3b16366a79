"""Filters against a naive matcher over plain dictionaries."""

from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.errors import InvalidInput
from app.filters import grammar, matching, terms
from tests import naive_filters
from tests.filter_strategies import N_EXAMPLES, filters, metadata

_some_metadata = st.lists(metadata, min_size=1, max_size=8)


@given(wanted=filters, several=_some_metadata)
@settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_filter_matches_what_the_naive_matcher_says(
    wanted: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    is_match = matching.matcher(grammar.parse(wanted))
    for one in several:
        assert is_match(one) is naive_filters.matches(wanted, one)


@given(
    wanted=filters, several=_some_metadata, unfilterable=st.sets(st.sampled_from(["a", "b", "a.b"]))
)
@settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_matches_has_a_term_of_every_clause(
    wanted: dict[str, Any], several: list[dict[str, Any]], unfilterable: set[str]
) -> None:
    clauses = terms.clauses(grammar.parse(wanted), unfilterable)
    for one in several:
        if naive_filters.matches(wanted, one):
            found = terms.of_item(one, unfilterable)
            assert all(clause & found for clause in clauses)


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["$and", "$or", "$not", "$in", "$gt", "$regex"]),
            inner,
        )
    ),
    max_leaves=10,
)


@given(
    wanted=st.dictionaries(
        st.text(max_size=4) | st.sampled_from(["$and", "$nor", "$not", "a"]), _anything
    )
)
@example(wanted={"a": {"$regex": "\\C"}})
@example(wanted={"a": {"$regex": "a\x00b"}})
@settings(max_examples=N_EXAMPLES, deadline=None)
def test_whatever_is_sent_is_a_filter_or_refused(wanted: dict[str, Any]) -> None:
    try:
        tree = grammar.parse(wanted)
    except InvalidInput:
        return
    matching.matches(tree, {"a": "x"})
    terms.clauses(tree)
