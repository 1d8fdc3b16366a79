"""Write docs/benchmarks.md and its picture from docs/benchmarks/*.json: `python -m
tests.benchmarks.plot`.

`make bench` runs it at the end. What was not measured is left out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from tests.benchmarks.pages import Results, page

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = Path("images/benchmarks.png")
_COLUMNS = 3

Panel: TypeAlias = Callable[[Any, Results], None]


def main() -> None:
    """Read the results, draw them and write the page."""
    results = {
        path.stem: json.loads(path.read_text())
        for path in sorted((DOCS / "benchmarks").glob("*.json"))
    }
    panels = [
        panel for name, panel in PANELS.items() if any(key.startswith(name) for key in results)
    ]
    (DOCS / PICTURE).parent.mkdir(exist_ok=True)
    (DOCS / PICTURE).unlink(missing_ok=True)
    if panels:
        draw(panels, results)
    (DOCS / "benchmarks.md").write_text(page(results, PICTURE if panels else None))


def draw(panels: list[Panel], results: Results) -> None:
    """Write the picture, a panel each."""
    n_rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 3.2 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, _COLUMNS, squeeze=False)
    for panel, one in zip(panels, axes.flat, strict=False):
        panel(one, results)
    for one in axes.flat[len(panels) :]:
        one.set_axis_off()
    figure.savefig(DOCS / PICTURE, dpi=80)


def latency(axes: Any, results: Results) -> None:
    """Draw the median time at the same recall, beside plaintext pgvector."""
    rows = results["latency"]["rows"]
    places = range(len(rows))
    for shift, name in ((-0.2, "sealdex"), (0.2, "pgvector")):
        axes.bar(
            [place + shift for place in places],
            [row[name]["p50_ms"] for row in rows],
            0.4,
            label=name,
        )
    for place, row in zip(places, rows, strict=True):
        axes.annotate(
            f"{row['p50_ratio']:.2f}", (place, row["sealdex"]["p50_ms"]), ha="right", va="bottom"
        )
    axes.set_xticks(
        places,
        [f"{row['top_k']}\n{row['n_lists']}\n{row['sealdex']['recall']:.3f}" for row in rows],
    )
    axes.set(xlabel="results, lists, recall", ylabel="p50, ms", title="at the same recall")
    # Room for the legend above the bars.
    axes.margins(y=0.4)
    axes.legend()


def targets(axes: Any, results: Results) -> None:
    """Draw time by recall, as the target moves."""
    rows = results["target_recall"]["rows"]
    for quantile in ("p50_ms", "p99_ms"):
        axes.plot(
            [row["recall"] for row in rows],
            [row[quantile] for row in rows],
            marker="o",
            label=quantile[:3],
        )
    axes.set(xlabel="recall@10", ylabel="ms", ylim=(0, None), title="recall and latency")
    axes.legend()


def throughput(axes: Any, results: Results) -> None:
    """Draw queries a second by the number of clients."""
    for n_lists in dict.fromkeys(row["n_lists"] for row in results["throughput"]["rows"]):
        rows = [row for row in results["throughput"]["rows"] if row["n_lists"] == n_lists]
        n_clients, per_second = (
            [row["n_clients"] for row in rows],
            [row["per_second"] for row in rows],
        )
        axes.plot(n_clients, per_second, marker="o", label=f"{n_lists} lists")
    axes.set(xlabel="clients", ylabel="queries a second", ylim=(0, None), title="throughput")
    axes.legend()


def growth(axes: Any, results: Results) -> None:
    """Draw latency by the number of items."""
    rows = results["growth"]["rows"]
    for quantile in ("p50_ms", "p99_ms"):
        axes.semilogx(
            [row["n_items"] for row in rows],
            [row[quantile] for row in rows],
            marker="o",
            label=quantile[:3],
        )
    axes.set(xlabel="items", ylabel="ms", ylim=(0, None), title="growth")
    axes.legend()


def ingest(axes: Any, results: Results) -> None:
    """Draw vectors a second as the index fills."""
    for name, one in results.items():
        if name.startswith("ingest_"):
            stretches = one["untrained"]["per_second_in_stretches"]
            step = one["n_items"] / len(stretches)
            places = [step * (number + 1) for number in range(len(stretches))]
            axes.plot(places, stretches, marker="o", label=f"{one['format']}, {one['dimension']}")
    axes.set(
        xlabel="items stored", ylabel="vectors a second", ylim=(0, None), title="ingest, untrained"
    )
    axes.legend()


def stages(axes: Any, results: Results) -> None:
    """Draw the stages of a query as one bar each."""
    rows = results["stages"]["rows"]
    names = [
        name
        for name, mean_ms in rows[0]["stages_ms"].items()
        if mean_ms >= 0.01 * sum(rows[0]["stages_ms"].values())
    ]
    left = [0.0] * len(rows)
    for name in names:
        widths = [row["stages_ms"].get(name, 0.0) for row in rows]
        axes.barh(
            [row["query"].replace(" with ", "\nwith ") for row in rows],
            widths,
            left=left,
            label=name,
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="ms", title="stages of a query")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


# By the beginning of the names of the results they need.
PANELS: dict[str, Panel] = {
    "target_recall": targets,
    "latency": latency,
    "throughput": throughput,
    "growth": growth,
    "ingest_": ingest,
    "stages": stages,
}


if __name__ == "__main__":
    main()
