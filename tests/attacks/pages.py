"""The report as a page: tables in Markdown, plots as small PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HEAD = """# The stolen-dump report

Written by `make attack-report` (`tests/attacks/report.py`); do not edit. Corpus: {corpus}. The
measurements took {minutes} minutes, {cpu_minutes} of processor time on two cores shared with other
work.

`threat-model.md` says what the figures mean. "Centred cosine" is the mean cosine between an
attacker's estimate and the truth, both without the mean of all vectors, over 2,000 items that the
attacker had not seen. The attacker is given the mean, the field that a token belongs to, and the
regularisation that works best on the very items judged.
"""
_PAIRS = """## (a) Known pairs of vector and stored sketch

Centred cosine of the best decoder, by number of pairs.

{best}
![centred cosine by known pairs](images/known-pairs.png)

Ridge regression / logistic recovery of each bit's hyperplane, then least squares:

{by_decoder}"""
_UNPAIRED = """## (b) No pairs: alignment with an independent sample

Centred cosine. Same corpus: half of it is stored, the attacker has 16,000 vectors of the other
half. Another: nouns are stored, the attacker has verbs, adjectives and adverbs. Last column: the
same corpus, and 2,000 known pairs besides.

{table}"""
_STRUCTURE = """## (c) Neighbours, (d) members, (f) links

(c) Share of an item's true 10 nearest among the 10 nearest stored sketches. (d) True minus false
positives when asked whether a text is stored, with a decoder from 200 or 2,000 known pairs, or
aligned as in (b). (f) Two indexes with the same 2,000 items: chance that sketches of one item agree
more than those of two (.5 says nothing), and share linked by the closest sketch (chance is
{chance}); no item key is in both. Last columns: share of bits that differ when the same item is
stored again, and when its vector is stored under another id.

{table}"""
_VERSIONS = """## (h) Old versions

Fifteen versions of an item lie in old copies of the table. Share of the bits of the last one that
the majority of all versions gets wrong, by the change between versions as a share of
the vector's length. Below the share of flips, noise has averaged away.

{table}"""
_FREQUENCY = """## (e) Frequency attack on tokens

The column `tokens` as upserts write it: one array an item, sorted. Tokens are deterministic: the
k-th most frequent token is taken for the k-th most frequent value of a sample, half of the corpus
each. Share of items whose value is recovered, when the attacker knows which field each token is of
and when not, and by always guessing the most frequent value.

{table}"""
_PRICE = """## (g) The price

Share of the true 10 nearest in the pool, exact scan of the sketches. Then the smallest of these
pools with .97 or more (else the largest), and the median time of a search with it: a quarter of 256
lists, opening and reranking included, one client, on the same shared machine.

{table}
![recall by what an attacker learns](images/price.png)
"""


def render(figures: dict[str, Any], docs: Path) -> None:
    """Write `attack-report.md` and the plots it shows."""
    settings = figures["settings"]
    parts = [_HEAD.format(**figures)]
    parts += [
        _pairs(settings),
        _unpaired(settings),
        _structure(settings),
        _frequency(figures["frequency"]),
        _price(settings),
        _versions(settings),
    ]
    (docs / "attack-report.md").write_text("\n".join(parts))
    (docs / "images").mkdir(exist_ok=True)
    plot(settings, docs / "images")


def plot(settings: list[dict[str, Any]], directory: Path) -> None:
    """Draw the known-pair curves and what a setting costs."""
    import matplotlib as mpl  # noqa: PLC0415 - an optional dependency, of this alone

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    for one in (one for one in settings if one["bits"] == 768):
        counts = [int(count) for count in one["pairs"] if int(count)]
        axes.semilogx(
            counts,
            [_best(one["pairs"][str(count)]) for count in counts],
            marker="o",
            label=_percent(one["noise"]),
        )
    axes.axhline(0.8, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="known pairs",
        ylabel="centred cosine, unseen items",
        ylim=(0, 1),
        title="768 bits, by share of flips",
    )
    axes.legend()
    figure.savefig(directory / "known-pairs.png", dpi=80)
    figure, axes = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    for bits in sorted({one["bits"] for one in settings}):
        of_size = [one for one in settings if one["bits"] == bits]
        learned = [_best(one["pairs"]["2000"]) for one in of_size]
        axes.plot(
            learned, [one["recall"]["200"] for one in of_size], marker="o", label=f"{bits} bits"
        )
    axes.set(
        xlabel="centred cosine with 2,000 known pairs", ylabel="true 10 nearest in a pool of 200"
    )
    axes.set_title("flips 20, 10, 5, 0 % from left to right")
    axes.legend()
    figure.savefig(directory / "price.png", dpi=80)


def _pairs(settings: list[dict[str, Any]]) -> str:
    counts = list(settings[0]["pairs"])
    best = [
        [_name(one), *(f"{_best(one['pairs'][count]):.2f}" for count in counts)] for one in settings
    ]
    shown = ("200", "2000", "10000")
    by_decoder = [
        [
            _name(one),
            *(
                f"{one['pairs'][n]['ridge']:.3f} / {one['pairs'][n]['hyperplanes']:.3f}"
                for n in shown
            ),
        ]
        for one in settings
        if "hyperplanes" in one["pairs"]["200"]
    ]
    return _PAIRS.format(
        best=_table(["setting", *(f"{int(count):,}" for count in counts)], best),
        by_decoder=_table(["setting", "200", "2,000", "10,000"], by_decoder),
    )


def _unpaired(settings: list[dict[str, Any]]) -> str:
    rows = [
        [
            _name(one),
            *(f"{one['unpaired'][name]:.2f}" for name in ("same", "other", "with_2000_pairs")),
        ]
        for one in settings
        if "unpaired" in one
    ]
    return _UNPAIRED.format(
        table=_table(["setting", "same corpus", "another", "same + 2,000 pairs"], rows)
    )


def _structure(settings: list[dict[str, Any]]) -> str:
    head = [
        "setting",
        "(c) shown",
        "(d) 200",
        "2,000",
        "aligned",
        "(f) AUC",
        "linked",
        "same item",
        "same vector",
    ]
    rows = [
        [
            _name(one),
            f"{one['neighbours']:.2f}",
            *(f"{one['membership'][count]:.2f}" for count in ("200", "2000")),
            f"{one['unpaired']['membership']:.2f}" if "unpaired" in one else "",
            f"{one['linked']['auc']:.3f}",
            f"{one['linked']['rank_1']:.4f}",
            f"{one['upserts']['same_item']:.3f}",
            f"{one['upserts']['same_vector']:.3f}",
        ]
        for one in settings
    ]
    return _STRUCTURE.format(
        chance=f"{settings[0]['linked']['chance']:.4f}", table=_table(head, rows)
    )


def _versions(settings: list[dict[str, Any]]) -> str:
    measured = [one for one in settings if "versions" in one]
    if not measured:
        return ""
    changes = list(measured[0]["versions"])
    rows = [
        [_name(one), *(f"{one['versions'][change]:.3f}" for change in changes)] for one in measured
    ]
    return _VERSIONS.format(table=_table(["setting", *changes], rows))


def _frequency(fields: dict[str, dict[str, float]]) -> str:
    rows = [
        [
            name,
            f"{one['values']:,.0f}",
            *(f"{one[key]:.2f}" for key in ("recovered", "field_unknown", "guessed")),
        ]
        for name, one in fields.items()
    ]
    return _FREQUENCY.format(
        table=_table(["field", "values", "recovered", "field unknown", "guessed"], rows)
    )


def _price(settings: list[dict[str, Any]]) -> str:
    pools = list(settings[0]["recall"])
    head = ["setting", *(f"pool {pool}" for pool in pools), "pool taken", "ms"]
    rows = [
        [
            _name(one),
            *(f"{one['recall'][pool]:.3f}" for pool in pools),
            str(one["pool"]),
            f"{one['latency_ms']:.1f}",
        ]
        for one in settings
    ]
    return _PRICE.format(table=_table(head, rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _best(found: dict[str, float]) -> float:
    return max(found.values())


def _percent(noise: float) -> str:
    return f"{100 * noise:g} %"


def _name(one: dict[str, Any]) -> str:
    return f"{one['bits']} bits, {_percent(one['noise'])} flips"
