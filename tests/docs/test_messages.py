"""docs/troubleshooting.md quotes messages as the code writes them.

`…` stands for what a message fills in.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
TABLE = re.compile(r"^\| [^|\n]*message[^|\n]* \|.*\n(?:\|.*\n)+", re.MULTILINE)
FIRST_CELL = re.compile(r"^\| (.+?) \|", re.MULTILINE)
QUOTED = re.compile(r"`([^`]+)`")
# Of PostgreSQL, pgvector and the framework.
OF_OTHERS = {
    "memory required is … MB, maintenance_work_mem is … MB",
    "Not Found",
    "Request Entity Too Large",
    "Internal Server Error",
}


def templates() -> Iterator[str]:
    """Yield every text in the code, also as bytes, with what an f-string fills in as `…`."""
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                yield node.value.decode(errors="replace")
            elif isinstance(node, ast.JoinedStr):
                parts = node.values
                yield "".join(
                    str(one.value) if isinstance(one, ast.Constant) else "…" for one in parts
                )


TEMPLATES = "\n".join(templates())
MESSAGES = sorted(
    {
        message
        for table in TABLE.findall(PAGE)
        for cell in FIRST_CELL.findall(table)
        for message in QUOTED.findall(cell)
        # A single word names a field or a phase.
        if " " in message
    }
    - OF_OTHERS
)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_code(message: str) -> None:
    assert message in TEMPLATES


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 60
