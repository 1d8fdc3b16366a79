"""The column `tokens` of a stolen table, as upserts write it, against the frequencies in another
sample.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from app.crypto import keys
from app.engine import batch

Value: TypeAlias = str | int
Fields: TypeAlias = Mapping[str, Sequence[Value]]
Term: TypeAlias = tuple[str, Value]

_DEK = b"data key of an index under attack"[:32]


@dataclass(frozen=True, slots=True)
class Recovered:
    """Of one field: share of items whose value is recovered from their token, and what that is to
    be compared with.

    `recovered` is for an attacker who knows which field each token is of, `field_unknown` for one
    who has the column alone; `guessed` is for always guessing the most frequent value.
    """

    recovered: float
    field_unknown: float
    guessed: float
    values: int


def attack(stored: Fields, known: Fields) -> dict[str, Recovered]:
    """Match ranks: the k-th most frequent token is taken for the k-th most frequent value in
    `known`.
    """
    blinder = batch._Blinder(keys.IndexKeys.derive(_DEK, uuid.UUID(int=1)).token_key)
    column = [
        batch._tokens(blinder, dict(zip(stored, item, strict=True)), frozenset())
        for item in _items(stored)
    ]
    by_column = _match(_flat(column), _terms(known))
    return {
        field: _judge(field, values, known[field], blinder, column, by_column)
        for field, values in stored.items()
    }


def _judge(
    field: str,
    values: Sequence[Value],
    known: Sequence[Value],
    blinder: batch._Blinder,
    column: Sequence[Sequence[bytes]],
    by_column: Mapping[bytes, Term],
) -> Recovered:
    own = [blinder[field, value] for value in values]
    is_own = set(own)
    by_field = _match(
        (token for token in _flat(column) if token in is_own), [(field, value) for value in known]
    )
    truth = [(field, value) for value in values]
    most_frequent = Counter(known).most_common(1)[0][0]
    return Recovered(
        recovered=_share(by_field, own, truth),
        field_unknown=_share(by_column, own, truth),
        guessed=float(np.mean([value == most_frequent for value in values])),
        values=len(set(values)),
    )


def _match(tokens: Iterable[bytes], terms: Iterable[Term]) -> dict[bytes, Term]:
    ranked_tokens = [token for token, _ in Counter(tokens).most_common()]
    ranked_terms = [term for term, _ in Counter(terms).most_common()]
    return dict(zip(ranked_tokens, ranked_terms, strict=False))


def _share(guesses: Mapping[bytes, Term], tokens: Sequence[bytes], truth: Sequence[Term]) -> float:
    return float(
        np.mean([guesses.get(token) == term for token, term in zip(tokens, truth, strict=True)])
    )


def _flat(column: Sequence[Sequence[bytes]]) -> Iterable[bytes]:
    return (token for row in column for token in row)


def _terms(fields: Fields) -> Iterable[Term]:
    return (
        (field, value) for item in _items(fields) for field, value in zip(fields, item, strict=True)
    )


def _items(fields: Fields) -> Iterable[tuple[Value, ...]]:
    return zip(*fields.values(), strict=True)
