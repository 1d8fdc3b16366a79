"""The results of the benchmarks as a page of Markdown."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Results: TypeAlias = dict[str, Any]

_HEAD = """# Benchmarks

Written by `make bench` (`tests/benchmarks/plot.py`) from the results in `docs/benchmarks/`; do not
edit.

Measured on a virtual machine with two cores, which the service, its PostgreSQL and the clients
share, over HTTP on the same machine; other work ran on it at times, so read the ratios rather than
the milliseconds. Python was a distribution's, built with optimisations. The database is the
embedded one, with its settings as they come: every acknowledged write is on disk. `recall` is the
mean share of the true nearest neighbours, found by brute force over the same vectors, that an
answer has.

To repeat it: `make bench`. `SEALDEX_BENCH_DATA` names a directory with real embeddings
(`tests/benchmarks/data.py` says in which form), else 60,000 vectors are generated;
`SEALDEX_BENCH_LARGEST=60000` keeps the growth from taking a quarter of an hour;
`SEALDEX_BENCH_RESULTS` puts the results elsewhere.
"""
_PICTURE = """
![recall, latency, throughput, growth and ingest]({picture})
"""


_MOST_OF_PLAIN = {10: 1.0, 100: 1.3}
_N_CLIENTS, _QUERIES_PER_S = 8, 400
_TRAINING_S, _TRAINING_MB = 10, 1_500
# Filters that tokens answer.
_TOKENISED = {
    "50 %",
    "10 %",
    "1 %",
    "0.1 %",
    "1 item",
    "none",
    "two filters",
    "two filters, one rare",
}


class Goal(NamedTuple):
    """What was aimed at and what came of it."""

    name: str
    wanted: str
    measured: str
    is_met: bool


def page(results: Results, picture: Path | None) -> str:
    """Return the page; sections without results are left out."""
    parts = [
        _HEAD,
        _PICTURE.format(picture=picture) if picture else "",
        _goals(list(goals(results))),
    ]
    parts += [section(results[name]) for name, section in SECTIONS.items() if name in results]
    parts.append(_ingest([one for name, one in results.items() if name.startswith("ingest_")]))
    return "\n".join(part for part in parts if part)


def goals(results: Results) -> Iterator[Goal]:
    """Yield every goal for which there are results, met or missed."""
    for row in results.get("latency", {}).get("rows", []):
        ratio = row["p50_ratio"]
        name = (
            f"p50 of the top {row['top_k']}, {row['n_lists']} lists, "
            "over that of plaintext pgvector at the same recall"
        )
        wanted = _MOST_OF_PLAIN[row["top_k"]]
        yield Goal(name, f"at most {wanted}", f"{ratio:.2f}", ratio <= wanted)
    for row in results.get("throughput", {}).get("rows", []):
        if row["n_clients"] == _N_CLIENTS:
            per_second, times = row["per_second"], row["p99_ms"] / row["p50_ms"]
            name, wanted = f"{_N_CLIENTS} clients, {row['n_lists']} lists", _QUERIES_PER_S
            yield Goal(
                f"{name}: queries a second",
                f"at least {wanted}",
                f"{per_second:.0f}",
                per_second >= wanted,
            )
            yield Goal(f"{name}: p99 over p50", "at most 8", f"{times:.1f}", times <= 8)
    for row in results.get("training", {}).get("rows", []):
        if row["p99_ms_during"] is None:
            name = f"{row['training']}: training of {results['training']['n_items']:,} vectors"
            yield Goal(
                name, "at most 10 s", f"{row['seconds']:.1f} s", row["seconds"] <= _TRAINING_S
            )
        else:
            times = row["p99_ms_during"] / row["p99_ms_before"]
            yield Goal(
                "p99 of queries during a training, over that before",
                "at most 3",
                f"{times:.2f}",
                times <= 3,
            )
        memory = row["peak_mb"]
        name = f"memory of service and database in the training ({row['training']})"
        yield Goal(name, "at most 1,500 MB", f"{memory:,.0f} MB", memory <= _TRAINING_MB)
    for row in results.get("filters_trained", {}).get("rows", []):
        if row["filter"] in _TOKENISED:
            name = f"p50 with a filter ({row['filter']}), over that without"
            yield Goal(name, "at most 1.5", f"{row['ratio']:.2f}", row["ratio"] <= 1.5)
    yield from _ingest_goals(results)
    yield from _growth_goals(results.get("growth", {}).get("rows", []))


def _ingest_goals(results: Results) -> Iterator[Goal]:
    for kind, wanted in (("binary", 18_000), ("json", 6_000)):
        if (one := results.get(f"ingest_384_{kind}")) is not None:
            untrained, trained = (one[state]["per_second"] for state in ("untrained", "trained"))
            name = f"{one['format']} ingest, 384 dimensions"
            yield Goal(
                f"{name}: vectors a second",
                f"at least {wanted:,}",
                f"{untrained:,.0f}",
                untrained >= wanted,
            )
            share = trained / untrained
            yield Goal(f"{name}: trained, of that", "at least 60 %", f"{share:.0%}", share >= 0.6)


def _growth_goals(rows: Sequence[dict[str, Any]]) -> Iterator[Goal]:
    p50_ms = {row["n_items"]: row["p50_ms"] for row in rows}
    if 60_000 in p50_ms and 1_000_000 in p50_ms:
        ratio = p50_ms[1_000_000] / p50_ms[60_000]
        yield Goal(
            "p50 at 1,000,000 items, over that at 60,000", "at most 4", f"{ratio:.1f}", ratio <= 4
        )
    if rows:
        worker_mb = max(row["worker_mb"] for row in rows)
        yield Goal("memory of a worker, at most", "500 MB", f"{worker_mb:.0f} MB", worker_mb <= 500)
        recall = min(row["recall"] for row in rows)
        yield Goal("recall@10 at every size", "at least 0.95", f"{recall:.3f}", recall >= 0.95)


def _goals(found: Sequence[Goal]) -> str:
    rows = [
        (goal.name, goal.wanted, goal.measured, "met" if goal.is_met else "**missed**")
        for goal in found
    ]
    return _section("Goals", "", ("goal", "wanted", "measured", ""), rows) if rows else ""


def _latency(result: Results) -> str:
    rows = [
        (
            row["top_k"],
            row["n_lists"],
            *(f"{row[name][key]:.{digits}f}" for name in _SIDES for key, digits in _FIGURES),
            f"{row['p50_ratio']:.2f}",
        )
        for row in result["rows"]
    ]
    text = (
        f"{result['data']}, {result['n_items']:,} items. Sealdex over HTTP, opening and "
        "reranking included; plaintext"
        " pgvector through psycopg, in the same PostgreSQL, with as many lists and the fewest "
        "probes that reach that"
        " recall. An index trains itself at 10,001 items; trained again at the end, it has the "
        "lists for all, or as"
        " many as it is asked for. The ratio is not the same in every run: scanning floats "
        "suffers more from a"
        " neighbour who is busy with the memory."
    )
    head = (
        "top_k",
        "lists",
        *(f"{name} {key}" for name in _SIDES for key in ("recall", "p50 ms", "p99 ms")),
        "p50 ratio",
    )
    return _section("Latency beside plaintext pgvector", text, head, rows)


_SIDES = ("sealdex", "pgvector")
_FIGURES = (("recall", 3), ("p50_ms", 1), ("p99_ms", 1))


def _targets(result: Results) -> str:
    rows = [
        (
            row["target_recall"],
            f"{row['recall']:.3f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        )
        for row in result["rows"]
    ]
    return _section(
        "Recall asked for", "", ("target_recall", "recall@10", "p50 ms", "p99 ms"), rows
    )


def _throughput(result: Results) -> str:
    rows = [
        (
            row["n_lists"],
            f"{row['recall']:.3f}",
            row["n_clients"],
            f"{row['per_second']:.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        )
        for row in result["rows"]
    ]
    text = (
        f"{result['data']}, top 10, with the automatic number of lists and with more, as `train` "
        "was asked for. The"
        " clients take their share of the two cores."
    )
    return _section(
        "Throughput", text, ("lists", "recall@10", "clients", "queries/s", "p50 ms", "p99 ms"), rows
    )


def _training(result: Results) -> str:
    rows = [
        (
            row["training"],
            f"{row['seconds']:.1f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['p99_ms_before']:.1f}",
            "" if row["p99_ms_during"] is None else f"{row['p99_ms_during']:.1f}",
        )
        for row in result["rows"]
    ]
    recalls = ", ".join(
        f"recall@{top_k} {recall:.3f}" for top_k, recall in result["recall"].items()
    )
    text = (
        f"{result['data']}, {result['n_items']:,} items; afterwards {recalls}. While searches go "
        "on, a training leaves"
        " them a processor and takes longer. Memory is the most that service and database had "
        "together."
    )
    return _section(
        "Training",
        text,
        ("training", "s", "memory MB", "p99 before, ms", "p99 meanwhile, ms"),
        rows,
    )


def _growth(result: Results) -> str:
    rows = [
        (
            f"{row['n_items']:,}",
            row["n_lists"],
            f"{row['training_s']:.0f}",
            f"{row['recall']:.3f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['worker_mb']:.0f}",
            f"{row['database_mb']:,.0f}",
            f"{row['ivfflat_mb']:,.0f}",
            f"{row['total_mb']:,.0f}",
        )
        for row in result["rows"]
    ]
    text = (
        f"{result['data']} dimensions; one index that grows and is trained at each size, with "
        "the lists that"
        " the service picks. Memory: the most that one worker had of its own while it grew, "
        "trained and searched; the"
        " database with its shared buffers afterwards."
    )
    head = (
        *("items", "lists", "training s", "recall@10", "p50 ms", "p99 ms"),
        *("worker MB", "database MB", "ivfflat MB", "index MB"),
    )
    return _section("Growth", text, head, rows)


def _stages(result: Results) -> str:
    rows = result["rows"]
    names = list(rows[0]["stages_ms"])
    totals = [sum(row["stages_ms"].values()) for row in rows]
    shown = [name for name in names if any(row["stages_ms"].get(name, 0) >= 0.005 for row in rows)]
    cells = [(name, *(f"{row['stages_ms'].get(name, 0):.2f}" for row in rows)) for name in shown]
    cells.append(("together", *(f"{total:.2f}" for total in totals)))
    text = (
        f"{result['data']}, {result['n_items']:,} items, one client, mean milliseconds by the "
        "service's own figures"
        " ([metrics](metrics.md) says what each stage is). `sql` is PostgreSQL and the "
        "candidates' way from there."
    )
    return _section("Stages of a query", text, ("stage", *(row["query"] for row in rows)), cells)


def _filters(result: Results) -> str:
    rows = [
        (
            row["filter"],
            f"{row['share']:.2%}",
            f"{row['recall']:.3f}",
            f"{row['unfiltered_p50_ms']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['changing_p50_ms']:.1f}",
        )
        for row in result["rows"]
    ]
    text = (
        f"{result['data']}, {result['n_items']:,} items, trained, top {result['top_k']}. Each "
        "query is sent without and"
        " with the filter in turn, so the filter is one that was asked for lately "
        "([filters](filters.md)); the last"
        " column is that of queries before each of which an item has changed. Ranges and "
        "patterns have no tokens."
    )
    head = (
        "filter",
        "matches",
        "recall@10",
        "without, p50 ms",
        "with, p50 ms",
        "ratio",
        "while items change, p50 ms",
    )
    return _section("Filters", text, head, rows)


def _ingest(found: Sequence[Results]) -> str:
    rows = []
    for one in found:
        for state in ("untrained", "trained"):
            measured = one[state]
            stretches, cpu = measured["per_second_in_stretches"], measured["cpu_ms_per_1000"]
            rows.append(
                (
                    f"{one['format']}, {one['dimension']}, {state}",
                    f"{measured['per_second']:,.0f}",
                    f"{stretches[-1] / stretches[0]:.2f}",
                    *(f"{cpu[part]:.0f}" for part in ("service", "database", "clients")),
                )
            )
    text = (
        "Batches of a thousand with contents and metadata, from four clients in a process of "
        "their own. CPU time is"
        " that of all processes of each part, in milliseconds for a thousand vectors; where "
        "other work takes its share"
        " of the cores it is steadier than vectors a second."
    )
    head = (
        "format, dimensions",
        "vectors/s",
        "last stretch ÷ first",
        "service CPU",
        "database CPU",
        "clients' CPU",
    )
    return _section("Ingest", text, head, rows) if rows else ""


def _section(title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"## {title}\n", *([text, ""] if text else []), *lines, ""])


SECTIONS: dict[str, Callable[[Results], str]] = {
    "latency": _latency,
    "target_recall": _targets,
    "throughput": _throughput,
    "training": _training,
    "filters_trained": _filters,
    "growth": _growth,
    "stages": _stages,
}
