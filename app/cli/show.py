"""`sealdex config`: the effective settings."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.cli.output import print_json, print_table
from app.configuration import Configuration
from app.settings import Settings, variables_of

_HIDDEN = "(hidden)"


def config(options: argparse.Namespace, configuration: Configuration) -> int:
    """Print every setting, its value and where it came from. Secrets are hidden."""
    rows = effective(configuration)
    if options.json:
        print_json({"settings": rows, "notices": configuration.notices})
        return 0
    print_table(
        ("setting", "value", "from"),
        [(row["setting"], _text(row["value"]), row["from"]) for row in rows],
    )
    for notice in configuration.notices:
        print(f"sealdex: {notice}", file=sys.stderr)
    return 0


def effective(configuration: Configuration) -> list[dict[str, Any]]:
    """Return the settings as they may be shown."""
    return [
        {
            "setting": variables_of(item.name)[0],
            "value": _shown(
                item.name, getattr(configuration.settings, item.name), is_secret=not item.repr
            ),
            "from": configuration.origins[item.name],
        }
        for item in fields(Settings)
    ]


def _shown(name: str, value: Any, *, is_secret: bool) -> Any:
    if value is None:
        return None
    if name == "database_url":
        # User and place are no secret and are what one looks for; password and parameters may be
        # one.
        parts = urlsplit(value)
        user = f"{parts.username}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"
    if is_secret:
        return _HIDDEN
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
