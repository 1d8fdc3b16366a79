"""Measure every attack and write docs/attack-report.md with its plots: `make attack-report`.

The numbers are kept in docs/attack-report.json, so that the page can be written again without
measuring (`--render`).
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks import frequency, price, structure, versions
from tests.attacks.alignment import align
from tests.attacks.corpus import Corpus, unit
from tests.attacks.decoders import (
    covariance_of,
    hyperplane_cosine,
    mean_cosine,
    ridge,
    ridge_cosine,
)
from tests.attacks.pages import render
from tests.attacks.stolen import Setting, StolenIndex, steal

DOCS = Path(__file__).parents[2] / "docs"
DEFAULT = Setting(768, 0.10)
NOISES = (0.0, 0.05, 0.10, 0.20)
PAIRS = (0, 10, 50, 200, 1_000, 2_000, 10_000)
_JUDGED = slice(-2_000, None)
_PRICED_RECALL = 0.97


def main() -> None:
    """Measure, unless told only to render, and write the pages."""
    path = DOCS / "attack-report.json"
    if "--render" not in sys.argv:
        path.write_text(json.dumps(measure(Corpus.from_env()), indent=1) + "\n")
    render(json.loads(path.read_text()), DOCS)


def measure(corpus: Corpus) -> dict[str, Any]:
    """Every figure of the report."""
    started = time.monotonic()
    dimension = corpus.vectors.shape[1]
    settings = [
        Setting(bits, noise)
        for bits in sorted({512, 2 * dimension, 4 * dimension})
        for noise in NOISES
    ]
    results, latency = [], {}
    with price.database() as connection:
        for setting in settings:
            stolen = steal(corpus.vectors, setting)
            if setting.bits not in latency:
                latency[setting.bits] = price.latency_ms(connection, stolen, corpus)
            result = {
                "bits": setting.bits,
                "noise": setting.noise,
                **_attacks(stolen, corpus, setting),
            }
            result["recall"] = price.recall_in_pools(stolen, corpus)
            result["pool"] = next(
                (pool for pool, one in result["recall"].items() if one >= _PRICED_RECALL), 1_000
            )
            result["latency_ms"] = latency[setting.bits][result["pool"]]
            results.append(result)
            print(f"{time.monotonic() - started:5.0f} s  {setting}", flush=True)
    return {
        "corpus": f"{corpus.name}, {len(corpus.vectors):,} vectors, d = {dimension}",
        "settings": results,
        "frequency": frequencies(corpus),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "cpu_minutes": round(time.process_time() / 60, 1),
    }


def _attacks(stolen: StolenIndex, corpus: Corpus, setting: Setting) -> dict[str, Any]:
    is_default_size = setting.bits == DEFAULT.bits
    result: dict[str, Any] = {
        "pairs": {
            count: known_pairs(stolen, count, with_hyperplanes=is_default_size or count == 2_000)
            for count in PAIRS
        },
        "neighbours": structure.neighbours_shown(stolen),
        "linked": structure.linked_across_indexes(corpus.vectors, setting),
        "upserts": structure.linked_across_upserts(corpus.vectors, setting),
        "versions": {
            f"{change:g}": share
            for change, share in versions.averaged(corpus.vectors, setting).items()
        },
        "membership": {
            count: structure.membership_advantage(stolen, corpus.queries, _decoder(stolen, count))
            for count in (200, 2_000)
        },
    }
    if is_default_size:
        result |= unpaired(corpus, setting)
    return result


def known_pairs(
    stolen: StolenIndex, count: int, *, with_hyperplanes: bool = True
) -> dict[str, float]:
    """Centred cosine on unseen items with `count` known pairs, by decoder."""
    centred = stolen.signs - stolen.signs.mean(axis=0)
    known, unseen = (
        (centred[:count], stolen.truth[:count]),
        (centred[_JUDGED], stolen.truth[_JUDGED]),
    )
    found = {"ridge": ridge_cosine(known, unseen)}
    if with_hyperplanes:
        # The attacker knows how texts in general are spread: from items that are neither known
        # pairs nor judged.
        covariance = covariance_of(stolen.truth[count : count + 10_000])
        known, unseen = (stolen.signs[:count], known[1]), (stolen.signs[_JUDGED], unseen[1])
        found["hyperplanes"] = hyperplane_cosine(known, unseen, covariance)
    return found


def unpaired(corpus: Corpus, setting: Setting) -> dict[str, Any]:
    """Centred cosine through a sample of the same corpus, alone and with 2,000 known pairs, and of
    another corpus.
    """
    stolen = steal(corpus.half(first=True).vectors, setting)
    reference = stolen.lift(corpus.half(first=False).vectors)
    weights = align(stolen.signs, reference)
    centred = stolen.signs - stolen.signs.mean(axis=0)
    aligned = centred[_JUDGED] @ weights
    paired = centred[_JUDGED] @ _decoder(stolen, 2_000)
    found = {
        "same": mean_cosine(aligned, stolen.truth[_JUDGED]),
        "with_2000_pairs": mean_cosine(unit(aligned) + unit(paired), stolen.truth[_JUDGED]),
        "membership": structure.membership_advantage(stolen, corpus.queries, weights),
    }
    nouns, others = (corpus.where("pos", "noun", equal=equal) for equal in (True, False))
    stolen = steal(nouns.vectors, setting)
    weights = align(stolen.signs, stolen.lift(others.vectors))
    # A map that is worse than none would not be used.
    found["other"] = max(
        0.0,
        mean_cosine(
            (stolen.signs - stolen.signs.mean(axis=0))[_JUDGED] @ weights, stolen.truth[_JUDGED]
        ),
    )
    return {"unpaired": found}


def frequencies(corpus: Corpus) -> dict[str, dict[str, float]]:
    """Share of values recovered from tokens, by field: half of the corpus is stored, the other half
    is known.
    """
    found = frequency.attack(corpus.half(first=True).fields, corpus.half(first=False).fields)
    return {field: asdict(one) for field, one in found.items()}


def _decoder(stolen: StolenIndex, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    centred = stolen.signs[:count] - stolen.signs.mean(axis=0)
    (weights,) = ridge(centred, stolen.truth[:count], (1.0,))
    return weights


if __name__ == "__main__":
    main()
