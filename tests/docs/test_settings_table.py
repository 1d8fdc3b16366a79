import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.settings import Settings, variables_of

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
ROW = re.compile(r"^\| (`[A-Z_`, ]+`) \| (.+?) \| .+ \|$", re.MULTILINE)


def text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_table_names_every_setting_with_its_default_and_no_other() -> None:
    documented = [
        (tuple(names.strip("`").split("`, `")), default)
        for names, default in ROW.findall(PAGE.read_text())
    ]
    actual = [(variables_of(item.name), text(item.default)) for item in fields(Settings)]
    assert documented == actual
