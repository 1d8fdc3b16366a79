"""docs/rest.md lists every route with the fields of its request and answer, as the code does."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from msgspec import inspect

from app.api import item_bodies
from app.server.application import create_app
from app.settings import Settings
from tests.service.conftest import Service

PAGE = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
SECTION = re.compile(
    r"^### `((?:GET|POST|DELETE) /v1/\S+)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL
)
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \|$", re.MULTILINE)
# Routes that a table of fields says nothing about, and the one whose answer has no struct.
DOCUMENTS = {"/v1/openapi.json", "/v1/docs", "/v1/redoc"}
STATS = "POST /v1/indexes/stats"
KEY = "5ea1" * 16
# What a field that is left out counts as, where a struct says None.
COUNTS_AS = {"top_k": str(item_bodies._DEFAULT_TOP_K), "metric": "euclidean"}


@dataclass(frozen=True)
class Documented:
    """The tables of one route: the cells beside each field."""

    request: dict[str, list[str]]
    answer: dict[str, list[str]]

    @classmethod
    def of(cls, text: str) -> "Documented":
        request, answer = (cls._cells(text, kind) for kind in ("Request", "Answer"))
        return cls(request, answer)

    @staticmethod
    def _cells(text: str, kind: str) -> dict[str, list[str]]:
        table = text.partition(f"\n{kind}:\n")[2].partition("\n\nAnswer:")[0]
        return {
            name: [cell.strip() for cell in cells.split(" | ")]
            for name, cells in ROW.findall(table)
        }


@dataclass(frozen=True)
class Field:
    """One field of a struct, by its path in the JSON document."""

    path: str
    words: str
    is_required: bool
    default: Any


DOCUMENTED = {route: Documented.of(text) for route, text in SECTION.findall(PAGE)}


def handlers() -> Iterator[tuple[str, HTTPRouteHandler]]:
    """Yield the routes below /v1, but for the documents of the API."""
    for route in create_app(Settings()).routes:
        path = re.sub(r":str}", "}", route.path)
        if isinstance(route, HTTPRoute) and path.startswith("/v1/") and path not in DOCUMENTS:
            for handler in route.route_handlers:
                for method in handler.http_methods - {"OPTIONS", "HEAD"}:
                    yield f"{method} {path}", handler


HANDLERS = dict(handlers())


def fields_of(kind: Any, prefix: str = "") -> Iterator[Field]:
    """Yield the fields of a struct, and after a field those of the structs inside of it."""
    for item in inspect.type_info(kind).fields:  # type: ignore[attr-defined]  # structs and dataclasses have them
        path = prefix + item.encode_name
        default = (
            item.default if item.default_factory is msgspec.NODEFAULT else item.default_factory()
        )
        yield Field(path, words(item.type), item.required, default)
        for inner, step in inner_structs(item.type):
            yield from fields_of(inner, f"{path}{step}.")


def inner_structs(kind: inspect.Type) -> Iterator[tuple[type, str]]:
    """Yield the structs in a type, each with the step that leads to it."""
    if isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from inner_structs(member)
    elif isinstance(kind, inspect.StructType | inspect.DataclassType):
        yield kind.cls, ""
    elif isinstance(kind, inspect.ListType | inspect.CollectionType):
        # Of `results`, which are objects or lists of objects, the inner step is left out.
        yield from {cls: "[]" for cls, _ in inner_structs(kind.item_type)}.items()
    elif isinstance(kind, inspect.DictType):
        yield from ((cls, f".*{step}") for cls, step in inner_structs(kind.value_type))


def words(kind: inspect.Type, *, are_many: bool = False) -> str:
    """Return a type in the words of the page."""
    plural = "s" if are_many else ""
    if isinstance(kind, inspect.UnionType):
        members = {type(one): one for one in kind.types if not isinstance(one, inspect.NoneType)}
        # An integer may be written 2.0.
        if set(members) == {inspect.IntType, inspect.FloatType}:
            return f"integer{plural}"
        return " or ".join(words(member, are_many=are_many) for member in members.values())
    if isinstance(kind, inspect.ListType | inspect.CollectionType):
        return f"list{plural} of {words(kind.item_type, are_many=True)}"
    for types, name in WORDS.items():
        if isinstance(kind, types):
            return name + plural
    raise AssertionError(kind)


WORDS = {
    (inspect.StrType, inspect.EnumType): "string",
    (inspect.IntType,): "integer",
    (inspect.FloatType,): "number",
    (inspect.BoolType,): "boolean",
    (inspect.NoneType,): "null",
    (inspect.DictType, inspect.StructType, inspect.DataclassType): "object",
}


def request_of(handler: HTTPRouteHandler) -> list[Field]:
    field = handler.parsed_data_field
    return [] if field is None else list(fields_of(field.annotation))


def answer_of(handler: HTTPRouteHandler) -> list[Field]:
    annotation = handler.parsed_return_field.annotation
    return list(fields_of(annotation)) if hasattr(annotation, "__struct_fields__") else []


def test_the_page_has_every_route_and_no_other() -> None:
    assert set(DOCUMENTED) == set(HANDLERS)


@pytest.mark.parametrize("route", HANDLERS)
def test_the_page_has_every_field_of_a_request_with_its_type(route: str) -> None:
    documented = {name: cells[0] for name, cells in DOCUMENTED[route].request.items()}
    assert documented == {item.path: item.words for item in request_of(HANDLERS[route])}


@pytest.mark.parametrize("route", HANDLERS)
def test_the_page_says_what_a_field_that_is_left_out_counts_as(route: str) -> None:
    for item in request_of(HANDLERS[route]):
        default = DOCUMENTED[route].request[item.path][1].strip("`")
        assert (default == "required") == item.is_required, item.path
        if isinstance(item.default, bool):
            assert default == str(item.default).lower(), item.path
        if item.default is None and item.path in COUNTS_AS:
            assert default == COUNTS_AS[item.path], item.path


@pytest.mark.parametrize("route", [route for route in HANDLERS if route != STATS])
def test_the_page_has_every_field_of_an_answer_with_its_type(route: str) -> None:
    documented = {name: cells[0] for name, cells in DOCUMENTED[route].answer.items()}
    assert documented == {item.path: item.words for item in answer_of(HANDLERS[route])}


def test_the_page_has_every_fact_of_the_statistics(service: Service) -> None:
    index = {"index_name": "statistics", "index_key": KEY}
    assert service.post("indexes/create", {**index, "metric": "cosine"}).status_code == 200
    items = [{"id": str(number), "vector": [number, 1, 2]} for number in range(1_000)]
    assert service.post("vectors/upsert", {**index, "items": items}).status_code == 200
    assert service.post("indexes/train", index).json()["status"] == "success"
    stats = service.post("indexes/stats", index).json()
    service.post("indexes/delete", index)
    # What stats say of an embedding model, which no index has here.
    embedding = {"model": "", "dimension": 0, "weights_sha256": "", "status": ""}
    assert set(DOCUMENTED[STATS].answer) == set(paths({**stats, "embedding": embedding}))


def paths(document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the path of each fact; numbers as names, those of results, stand for each other."""
    for name, value in document.items():
        path = prefix + ("*" if name.isdecimal() else name)
        if not name.isdecimal():
            yield path
        if isinstance(value, dict):
            yield from paths(value, f"{path}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from paths(value[0], f"{path}[].")
