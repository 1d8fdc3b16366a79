"""Recall keeps its floor on hard data, in every stage of an index's life.

`make recall` measures all cells and writes docs/recall.md. Without it, a minute's worth of cells is
drawn; SEALDEX_RECALL_SEED draws the same again.
"""

import os
import random

import pytest

from app.services.context import ServiceContext
from tests.recall.cells import CELLS, Cell
from tests.recall.measure import Measured, measured

pytestmark = pytest.mark.anyio

N_DRAWN = 12


def chosen() -> list[Cell]:
    """Return all cells if the environment says so, else some."""
    if os.environ.get("SEALDEX_RECALL_CELLS") == "all":
        return list(CELLS)
    seed = os.environ.get("SEALDEX_RECALL_SEED")
    return random.Random(seed).sample(CELLS, N_DRAWN)


@pytest.mark.parametrize("cell", chosen(), ids=str)
async def test_recall_keeps_its_floor(
    services: ServiceContext, report: list[Measured], cell: Cell
) -> None:
    result = await measured(services, cell)
    report.append(result)
    assert result.recall >= result.floor
