"""What the Dockerfile copies is there, and `.dockerignore` lets it into the build context."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPY = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)
SOURCES = [
    source for line in COPY.findall((ROOT / "Dockerfile").read_text()) for source in line.split()
]
# What must never be sent to a build: data, keys, environments, history.
PRIVATE = (
    ".env",
    ".git/config",
    ".venv/bin/python",
    "sealdex-data/postgres/PG_VERSION",
    "app/__pycache__/settings.cpython-313.pyc",
    "app/crypto/__pycache__/aead.cpython-313.pyc",
    "docker-compose.yml",
    "tests/conftest.py",
)


def rules(text: str) -> list[tuple[re.Pattern[str], bool]]:
    """The patterns of a `.dockerignore` with whether each takes out: comments and blank lines
    go."""
    lines = [line.strip() for line in text.splitlines()]
    return [
        (re.compile(expression(line.removeprefix("!").strip("/"))), not line.startswith("!"))
        for line in lines
        if line and not line.startswith("#")
    ]


def expression(pattern: str) -> str:
    """The regular expression of a pattern: `*` and `?` stay within a name, `**` is any number of
    folders.
    """
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.sub(
        r"\*\*/|\*\*|\*|\?|[^*?]+", lambda part: parts.get(part[0], re.escape(part[0])), pattern
    )


def is_in_context(path: str, ignore: Sequence[tuple[re.Pattern[str], bool]]) -> bool:
    """Whether a file is sent: the last pattern that fits the file or a folder above it decides."""
    places = [path, *(str(above) for above in Path(path).parents if str(above) != ".")]
    is_out = False
    for pattern, takes_out in ignore:
        if any(pattern.fullmatch(place) for place in places):
            is_out = takes_out
    return not is_out


def files(source: str) -> Iterator[str]:
    """The source files of what a line of the Dockerfile copies."""
    place = ROOT / source
    for path in [place] if place.is_file() else place.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def ignore() -> list[tuple[re.Pattern[str], bool]]:
    return rules((ROOT / ".dockerignore").read_text())


def test_the_dockerfile_copies_something() -> None:
    assert {"app", "migrations", "requirements", "pyproject.toml"} <= set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_what_the_dockerfile_copies_is_in_the_build_context(
    source: str, ignore: list[tuple[re.Pattern[str], bool]]
) -> None:
    found = list(files(source))
    assert found
    assert [path for path in found if not is_in_context(path, ignore)] == []


@pytest.mark.parametrize("path", PRIVATE)
def test_what_is_private_stays_out_of_the_build_context(
    path: str, ignore: list[tuple[re.Pattern[str], bool]]
) -> None:
    assert not is_in_context(path, ignore)


@pytest.mark.parametrize(
    ("path", "is_in"),
    [
        ("app/main.py", True),
        ("app/deep/cache.tmp", False),
        ("docs/page.md", False),
        ("docs/kept/page.md", True),
        ("one.txt", False),
        ("three.txt", True),
    ],
)
def test_the_rules_are_docker_s(path: str, is_in: bool) -> None:
    text = "# a comment\n\n**/*.tmp\ndocs\n!docs/kept\n???.txt\n"
    assert is_in_context(path, rules(text)) == is_in
