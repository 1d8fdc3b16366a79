"""The table of limits in docs/guarantees.md says what the code does."""

import re
from pathlib import Path

import pytest

from app.domain import MAX_DIMENSION
from app.engine import batch, metadata_schema
from app.filters import grammar, operands, terms
from app.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text().partition("## Limits")[2]
SETTING = re.compile(r"`SEALDEX_([A-Z_]+)`, (none|[0-9,]+)( MB| s)?")
UNITS = {"": 1, " MB": 1024**2, " s": 1}
CONSTANTS = {
    "dimension": [MAX_DIMENSION],
    "id": [batch.MAX_ID_BYTES],
    "fields of a `metadata_schema`": [metadata_schema.MAX_FIELDS, metadata_schema.MAX_NAME_LENGTH],
    "a filter": [
        *(
            grammar.MAX_DEPTH,
            grammar.MAX_CONDITIONS,
            grammar.MAX_VALUES,
            grammar.MAX_COMPOSITE_VALUES,
            grammar.MAX_PATTERNS,
        ),
        *(operands.MAX_PATTERN_LENGTH, operands.MAX_PATH_LENGTH, operands.MAX_PATH_LEVELS),
    ],
    "tokens": [terms.MAX_TERMS_OF_FIELD, terms.MAX_TERMS_OF_ITEM],
}


@pytest.mark.parametrize(("name", "value", "unit"), SETTING.findall(PAGE))
def test_a_limit_that_can_be_set_has_this_default(name: str, value: str, unit: str) -> None:
    default = getattr(Settings(), name.lower())
    scale = 1_000 if name.endswith("_MS") else UNITS[unit]
    assert default == (0 if value == "none" else int(value.replace(",", "")) * scale)


@pytest.mark.parametrize(("what", "limits"), CONSTANTS.items(), ids=CONSTANTS)
def test_a_fixed_limit_is_so(what: str, limits: list[int]) -> None:
    (row,) = re.findall(rf"^\| {re.escape(what)} \| (.+?) \|", PAGE, re.MULTILINE)
    numbers = [int(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,]*", row)]
    assert set(limits) <= set(numbers), row


def test_every_setting_that_is_a_limit_is_in_the_table() -> None:
    limits = {
        name
        for name in Settings.__slots__
        if name.startswith("max_") and name != "max_loaded_models"
    }
    assert limits <= {name.lower() for name, _, _ in SETTING.findall(PAGE)}
