"""Every command in the docs is run: `sh` and `python` by a reader, `sql` by the auditor.

Blocks fenced as `text` need another machine, a container engine or a database that is not there;
what they say is done by other tests: `make serve` and `sealdex serve` by all in `tests/service`,
the restores by `test_backup.py`. The page about embeddings needs a model: `tests/embeddings` runs
its code.
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
README = DOCS.parent / "README.md"
BLOCK = re.compile(r"^```(sh|sql|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page
    for page in (README, *sorted(DOCS.glob("*.md")))
    if BLOCK.search(page.read_text()) and page.stem != "embeddings"
]
# They create an index themselves, the others find one.
FIRST_STEPS = {"README", "quickstart"}
# The address that the pages have.
ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1):8000")
# The database's owner runs these, once; the others are the auditor's.
OF_THE_OWNER = ("GRANT", "CREATE ROLE", "ALTER DEFAULT")
KEY = secrets.token_hex(32)


@pytest.fixture
def place(service: Service, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a reader: a service, its database, an index, the programs on the PATH."""
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
    text = ADDRESS.sub(f"127.0.0.1:{service.port}", page.read_text())
    blocks: dict[str, list[str]] = {"sh": [], "sql": [], "python": []}
    for language, block in BLOCK.findall(text):
        blocks[language].append(block)
    if page.stem not in FIRST_STEPS:
        demo = {"index_name": "demo", "index_key": KEY}
        assert service.post("indexes/create", {**demo, "dimension": 3}).status_code == 200
    try:
        answers = run(["/bin/sh", "-euc", "\n".join(blocks["sh"])], place, tmp_path)
        # The answers follow each other without a line's end.
        assert not re.search(r'(^|[}\n])\{"detail":', answers), answers
        run([sys.executable, "-c", "\n".join(blocks["python"])], place, tmp_path)
        with psycopg.connect(service.dsn) as database:
            run_sql(database, blocks["sql"])
            database.rollback()
    finally:
        # By SQL, since pages make keys of their own.
        with psycopg.connect(service.dsn) as database:
            database.execute("DELETE FROM indexes WHERE name IN ('demo', 'docs')")


def run(command: list[str], place: dict[str, str], directory: Path) -> str:
    """Run a command to its good end, and return what it prints."""
    done = subprocess.run(
        command, env=place, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_sql(database: psycopg.Connection, blocks: list[str]) -> None:
    database.execute("CREATE ROLE alice")
    for block in blocks:
        for statement in filter(None, map(str.strip, block.split(";"))):
            is_owner = statement.startswith(OF_THE_OWNER)
            database.execute("RESET ROLE" if is_owner else "SET ROLE sealdex_auditor")
            # The migration has made the role on this server already.
            if not statement.startswith("CREATE ROLE"):
                database.execute(statement)
