"""Every command in the docs is run: the fenced `sh` blocks of a page as a reader would, its `sql`
as the auditor.

Blocks fenced as `text` need another machine, a container engine or a database that is not there;
what they say is done by other tests: `make serve` and `sealdex serve` by all in `tests/service`,
the restores by `test_backup.py`.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.server.programs import bin_dir
from tests.service.conftest import Service

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(sh|sql)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(path for path in DOCS.glob("*.md") if BLOCK.search(path.read_text()))
# The database's owner runs these, once; the others are the auditor's.
OF_THE_OWNER = ("GRANT", "CREATE ROLE", "ALTER DEFAULT")
KEY = secrets.token_hex(32)


@pytest.fixture
def place(service: Service, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a reader: a service, its database, an index to work with, the programs on
    the PATH.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sealdex").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app "$@"\n')
    (programs / "sealdex").chmod(0o755)
    (tmp_path / "canaries.txt").write_text("a canary that was stored nowhere\n")
    item = {"id": "x", "vector": [1.0, 2.0, 3.0], "contents": "text", "metadata": {"n": 1}}
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    yield {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SEALDEX_", "DATABASE_"))
        },
        "PATH": f"{programs}:{bin_dir()}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parent),
        "DATABASE_URL": service.dsn,
        "SEALDEX_URL": service.url,
        "SEALDEX_INDEX_KEY": KEY,
    }
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_commands_of_a_page_work(
    page: Path, service: Service, place: dict[str, str], tmp_path: Path
) -> None:
    blocks = BLOCK.findall(page.read_text())
    script = "\n".join(text for language, text in blocks if language == "sh")
    if page.stem != "quickstart":
        demo = {"index_name": "demo", "index_key": KEY}
        assert service.post("indexes/create", {**demo, "dimension": 3}).status_code == 200
    try:
        done = subprocess.run(
            ["/bin/sh", "-euc", script],
            env=place,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # The answers follow each other without a line's end.
        assert not re.search(r'(^|[}\n])\{"detail":', done.stdout), done.stdout
        with psycopg.connect(service.dsn) as database:
            run_sql(database, [text for language, text in blocks if language == "sql"])
            database.rollback()
    finally:
        # By SQL, since the quick start makes a key of its own.
        with psycopg.connect(service.dsn) as database:
            database.execute("DELETE FROM indexes WHERE name = 'demo'")


def run_sql(database: psycopg.Connection, blocks: list[str]) -> None:
    database.execute("CREATE ROLE alice")
    for block in blocks:
        for statement in filter(None, map(str.strip, block.split(";"))):
            is_owner = statement.startswith(OF_THE_OWNER)
            database.execute("RESET ROLE" if is_owner else "SET ROLE sealdex_auditor")
            # The migration has made the role on this server already.
            if not statement.startswith("CREATE ROLE"):
                database.execute(statement)


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set[Path](), {DOCS.parent / "README.md"}
    while new:
        reached |= new
        new = {
            target for page in new for target in links_of(page) if target.suffix == ".md"
        } - reached
    assert set(DOCS.glob("*.md")) <= reached


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in links_of(page):
            assert target.exists(), f"{page.name}: {target}"


def links_of(page: Path) -> set[Path]:
    """The files that a page links to, whether they are there or not."""
    if not page.is_file():
        return set()
    return {
        (page.parent / target).resolve()
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    }
