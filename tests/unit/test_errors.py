"""The tree at the head of `app.errors` is the tree of its classes."""

import re

from app import errors

# Each line of the tree: bars and corners, a name, a sentence.
LINE = re.compile(r"^([│├└─ ]*)([A-Z][A-Za-z]+)(?: {2,}\S|$)", re.MULTILINE)


def drawn() -> dict[str, str | None]:
    """The parent of each error, as the tree shows it."""
    above: list[str] = []
    parents: dict[str, str | None] = {}
    for bars, name in LINE.findall(errors.__doc__ or ""):
        depth = len(bars) // 4
        del above[depth:]
        parents[name] = above[-1] if above else None
        above.append(name)
    return parents


def test_the_tree_is_drawn_as_it_is() -> None:
    classes = {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, Exception)
    }
    parents = {
        name: None if (base := found.__bases__[0]) is Exception else base.__name__
        for name, found in classes.items()
    }
    assert drawn() == parents
