"""What a search asks for: what its query says, and for the rest what the profile has measured."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.crypto import keys
from app.domain import Index, Metric, Precision, Query
from app.engine import plan
from app.engine.costs import Ask
from app.engine.keyed import KeyedIndex, profile_of

POINTS = {"10": [[20, 300, 0.96, 0.955]], "100": [[40, 900, 0.96, 0.955]]}
FACTS: dict[str, Any] = dict.fromkeys(Index.__dataclass_fields__)
TRAINED = Index(
    **{
        **FACTS,
        "id": UUID(int=1),
        "metric": Metric.COSINE,
        "storage_precision": Precision.FLOAT32,
        "n_lists": 64,
        "trained_at": datetime.now(UTC),
        "profile": {"points": POINTS},
    }
)


def asked(index: Index = TRAINED, **query: Any) -> Ask:
    keyed = KeyedIndex(index, keys.IndexKeys.derive(bytes(32), index.id), None)
    keyed = replace(keyed, profile=profile_of(index))
    wanted = Query(vectors=None, **{"top_k": 10, **query})
    return plan.ask(keyed, wanted, wanted.top_k, 0.95)


def test_a_search_reads_the_lists_and_opens_the_candidates_that_were_measured() -> None:
    ask = asked()
    assert (ask.n_probes, ask.pool, ask.target_recall) == (20, 300, 0.95)


def test_a_search_with_a_filter_reads_a_third_more_lists() -> None:
    assert asked(filters={"a": 1}).n_probes == 27
    assert asked(filters={"a": 1}, target_recall=1.0).n_probes == 64


def test_what_a_query_says_itself_is_taken() -> None:
    ask = asked(filters={"a": 1}, n_probes=3, rerank_mult=50)
    assert (ask.n_probes, ask.pool, ask.is_n_probes_given) == (3, 500, True)


def test_a_search_opens_no_fewer_candidates_than_were_measured() -> None:
    assert asked(rerank_mult=1).pool == 300
    assert asked(rerank_mult=50).pool == 500


def test_a_search_with_a_filter_opens_200_candidates_at_least() -> None:
    few = replace(TRAINED, profile={"points": {"10": [[20, 40, 0.96, 0.955]]}})
    assert asked(few).pool == 40
    assert asked(few, filters={"a": 1}).pool == 200
