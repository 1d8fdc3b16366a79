"""Each page can be reached, each link leads somewhere, and prose is wrapped.

What `make bench` and `make attack-report` write is wrapped as its generators do it.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SPECIFICATION = ROOT / "app" / "crypto" / "README.md"
GENERATED = "do not edit"
COLUMNS = 100

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
BARE_PAGE = re.compile(r"`(?:docs/)?[\w-]+\.md`")
CODE_PATH = re.compile(r"`((?:\w+/)+[\w.]*)(?:`|:)")


def prose_of(page: Path) -> str:
    """Return the text of a page without its code."""
    return COMMENT.sub("", FENCED.sub("", page.read_text()))


def links_of(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of each link to this repository."""
    for target in LINK.findall(prose_of(page)):
        path, _, anchor = target.partition("#")
        yield (page.parent / path).resolve() if path else page, anchor


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in HEADING.findall(FENCED.sub("", page.read_text())):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target, anchor in links_of(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors_of(target), f"{name(target)}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set[Path](), {README}
    while new:
        reached |= new
        targets = {target for page in new for target, _ in links_of(page)}
        new = {target for target in targets if target.suffix == ".md"} - reached
    assert {*PAGES, SPECIFICATION} <= reached


def test_the_readme_links_to_every_page_but_the_decisions() -> None:
    assert set(DOCS.glob("*.md")) <= {target for target, _ in links_of(README)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_of_prose_is_wider_than_a_screen(page: Path) -> None:
    if GENERATED in page.read_text():
        return
    lines = [line for line in prose_of(page).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_links_to_another_page_instead_of_naming_its_file(page: Path) -> None:
    if GENERATED not in page.read_text():
        assert BARE_PAGE.findall(LINK.sub("", prose_of(page))) == []


@pytest.mark.parametrize("page", sorted((DOCS / "decisions").glob("0*.md")), ids=name)
def test_the_index_of_decisions_has_this_one_with_its_title(page: Path) -> None:
    title = page.read_text().partition("\n")[0].removeprefix("# ")
    assert (
        f"[{page.stem[:4]}]({page.name}) | {title}"
        in (DOCS / "decisions" / "README.md").read_text()
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_names_files_that_exist(page: Path) -> None:
    places = (ROOT, ROOT / "app")
    paths = [path for path in CODE_PATH.findall(prose_of(page)) if path.endswith((".py", "/"))]
    assert [path for path in paths if not any((place / path).exists() for place in places)] == []


def test_the_page_about_the_architecture_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    text = "\n".join(layers).replace("app.", "")
    assert f"```text\n{text}\n```" in (DOCS / "architecture.md").read_text()
