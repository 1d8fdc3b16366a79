"""The formulas of docs/sizing.md are those of the code and of PostgreSQL."""

import json
import re
from pathlib import Path

import psycopg
import pytest

from app.engine.sketches.ivf import automatic_n_lists, build_memory_mb
from tests.docs.sizes import CONTENTS, Client
from tests.service.conftest import Service

PAGE = (Path(__file__).parents[2] / "docs" / "sizing.md").read_text()
TRAINING = re.compile(
    r"^\| (?:up to )?([\d,]+) \| (?:up to )?([\d,]+) \| (.+ MB) \|$", re.MULTILINE
)
TABLE = re.compile(r"^\| ([\d,]+) \| (float\d+) \| ([\d,]+) \|", re.MULTILINE)
DIMENSIONS = (384, 768, 1536)
WIDTHS = {"float32": 4, "float16": 2}
PAGE_BYTES, ROOM_BYTES = 8_192, 8_168
ID = "item-00000000"
METADATA = {"lang": "en", "year": 1900}


def number(text: str) -> int:
    return int(text.replace(",", "").removesuffix(" MB"))


def rows_on_a_page(dimension: int, precision: str, *, is_rich: bool) -> int:
    """Return what the page computes: how many rows fit into 8 KB."""
    row = 160 + len(ID) + max(512, 2 * dimension) // 8 + WIDTHS[precision] * dimension
    if is_rich:
        row += 33 + len(CONTENTS) + 33 + len(json.dumps(METADATA, separators=(",", ":")))
        row += 24 + 8 * len(METADATA)
    return ROOM_BYTES // row


@pytest.mark.parametrize(("items", "lists", "memory"), TRAINING.findall(PAGE))
def test_the_memory_of_a_training_is_that_of_the_code(items: str, lists: str, memory: str) -> None:
    n_lists = automatic_n_lists(number(items))
    assert n_lists == number(lists)
    actual = [build_memory_mb(number(items), 2 * dimension, n_lists) for dimension in DIMENSIONS]
    assert actual == [number(cell) for cell in memory.split(" | ")]


# Beyond a page the vectors are elsewhere, and the formula does not hold.
@pytest.mark.parametrize(
    ("dimension", "precision", "measured"),
    [row for row in TABLE.findall(PAGE) if number(row[0]) * WIDTHS[row[1]] < ROOM_BYTES],
)
def test_the_sizes_that_were_measured_agree_with_the_formula(
    dimension: str, precision: str, measured: str
) -> None:
    n_rows = rows_on_a_page(number(dimension), precision, is_rich=False)
    assert number(measured) == pytest.approx(PAGE_BYTES / n_rows, rel=0.03)


@pytest.mark.parametrize("is_rich", [False, True])
@pytest.mark.parametrize(("dimension", "precision"), [(384, "float32"), (1024, "float16")])
def test_as_many_rows_are_on_a_page_as_the_formula_says(
    service: Service, dimension: int, precision: str, *, is_rich: bool
) -> None:
    client, name = Client(service), f"sizes-{dimension}-{is_rich}"
    client.post("indexes/create", name, dimension=dimension, storage_precision=precision)
    client.upsert(name, 0, 100, dimension, is_rich=is_rich)
    with psycopg.connect(service.dsn) as database:
        index = database.execute("SELECT id FROM indexes WHERE name = %s", (name,)).fetchone()
        assert index is not None
        counts = database.execute(
            "SELECT count(*) FROM items WHERE index_id = %s"
            " GROUP BY tableoid, (ctid::text::point)[0] ORDER BY count(*) DESC",
            index,
        ).fetchall()
    client.post("indexes/delete", name)
    assert counts[0][0] == rows_on_a_page(dimension, precision, is_rich=is_rich)
