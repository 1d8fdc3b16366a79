"""The figures of all cells as a page in Markdown."""

from collections.abc import Sequence

from tests.recall.cells import CELLS
from tests.recall.measure import N_QUERIES, TOP_K, Measured

_HEAD = """# Recall on hard data

Written by `make recall` (`tests/recall`); do not edit. {n_queries} queries a cell, recall@{top_k}
against exact distances, ties counted as found. What each data set is, `tests/recall/datasets.py`
says. The time of a query is its share of a batch of all queries, on two cores shared with other
work.

{n_kept} of {n_all} cells keep their floor. Every cell took {minutes:.0f} minutes.

"""


def page(results: Sequence[Measured]) -> str:
    """Return the page; what does not keep its floor is in bold."""
    n_kept = sum(one.is_kept for one in results)
    head = _HEAD.format(
        n_queries=N_QUERIES,
        top_k=TOP_K,
        n_kept=n_kept,
        n_all=len(CELLS),
        minutes=sum(one.seconds for one in results) / 60,
    )
    return head + table(results)


def table(results: Sequence[Measured]) -> str:
    """Return the figures, a row a cell."""
    head = "| data | index | metric | precision | filter | recall | floor | ms a query |\n"
    rows = [
        f"| {one.cell.data} | {one.cell.stage} | {one.cell.metric} | {one.cell.precision} |"
        f" {one.cell.filter} | {_recall(one)} | {one.floor:g} | {one.query_ms:.1f} |\n"
        for one in results
    ]
    return head + "| --- " * 8 + "|\n" + "".join(rows)


def _recall(one: Measured) -> str:
    return f"{one.recall:.3f}" if one.is_kept else f"**{one.recall:.3f}**"
