from typing import Any

import pytest
from msgspec import Struct

from app.api.json_bodies import check_headers, choice, decode, integer
from app.domain import Precision
from app.errors import BodyProblem, InvalidBody, InvalidInput


class Inner(Struct):
    id: str
    numbers: list[float] | None = None
    free: dict[str, Any] | None = None


class Outer(Struct):
    name: str
    items: list[Inner] = []
    count: int | float | None = None
    flag: bool | None = None
    share: float | None = None
    rows: list[float | list[float]] | None = None
    inner: Inner | None = None


def problem_of(body: bytes | str) -> BodyProblem:
    with pytest.raises(InvalidBody) as caught:
        decode(body.encode() if isinstance(body, str) else body, Outer)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        ("{}", "missing", ("name",)),
        ('{"name":1}', "string_type", ("name",)),
        ('{"name":null}', "string_type", ("name",)),
        ("[]", "model_attributes_type", ()),
        ('{"name":"a","items":{}}', "list_type", ("items",)),
        ('{"name":"a","items":[1]}', "model_attributes_type", ("items", 0)),
        ('{"name":"a","items":[{"id":"a"},{}]}', "missing", ("items", 1, "id")),
        (
            '{"name":"a","items":[{"id":"a","numbers":[1,"2"]}]}',
            "float_type",
            ("items", 0, "numbers", 1),
        ),
        ('{"name":"a","items":[{"id":"a","free":[]}]}', "dict_type", ("items", 0, "free")),
        (
            '{"name":"a","items":[{"id":"a","free":{"secret":{"b":1e999}}}]}',
            "finite_number",
            ("items", 0, "free"),
        ),
        (
            '{"name":"a","items":[{"id":"a","free":{"b":[1e999]}}]}',
            "finite_number",
            ("items", 0, "free"),
        ),
        ('{"name":"a","count":"1"}', "int_type", ("count",)),
        ('{"name":"a","count":true}', "int_type", ("count",)),
        ('{"name":"a","count":1e999}', "finite_number", ("count",)),
        ('{"name":"a","flag":1}', "bool_type", ("flag",)),
        ('{"name":"a","share":"1"}', "float_type", ("share",)),
        ('{"name":"a","share":false}', "float_type", ("share",)),
        ('{"name":"a","rows":[[1],["2"]]}', "float_type", ("rows", 1, 0)),
        ('{"name":"a","rows":["2"]}', "float_type", ("rows", 0)),
        ('{"name":"a","inner":[]}', "dict_type", ("inner",)),
    ],
)
def test_what_does_not_fit_is_named_in_pydantics_words(
    body: str, kind: str, loc: tuple[str | int, ...]
) -> None:
    problem = problem_of(body)
    assert (problem.type, problem.loc) == (kind, ("body", *loc))


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b"{bad", ("body", 1)),
        (b'{"name":"a"', ("body", 11)),
        (b'{"name":"a"} x', ("body", 14)),
        (b'{"name":"a","count":NaN}', ("body", 20)),
        (b'{"name":"\xff"}', ("body",)),
        (b'{"name":"a","more":' + b"[" * 100_000, ("body",)),
    ],
)
def test_what_is_no_json_is_located(body: bytes, loc: tuple[str | int, ...]) -> None:
    problem = problem_of(body)
    assert (problem.type, problem.loc) == ("json_invalid", loc)
    assert problem.msg.startswith("JSON decode error")


@pytest.mark.parametrize(
    "body",
    [
        '{"name":["SECRET"]}',
        '{"name":"a","count":"SECRET"}',
        '{"name":"a","items":[{"id":"a","free":{"SECRET":1e999}}]}',
        '{"name":"SECRET',
        '{"name":"SECRET\\ud800"}',
        b'{"name":"SECRET\xff"}',
        '{"SECRET":1}',
        "SECRET",
    ],
)
def test_a_problem_holds_nothing_of_the_body(body: bytes | str) -> None:
    assert "SECRET" not in repr(problem_of(body))


def test_a_problem_in_unknown_words_is_still_a_problem() -> None:
    class Newer(Struct):
        kind: int

        def __post_init__(self) -> None:
            raise ValueError("SECRET")

    with pytest.raises(InvalidBody) as caught:
        decode(b'{"kind":1}', Newer)
    assert caught.value.problems == (
        BodyProblem("value_error", ("body",), "Input should be valid"),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (2, 2), (2.0, 2), (-1, -1), (1e30, 10**30 + 19884624838656), (2**64, 2**64)],
)
def test_an_integer_may_be_written_as_a_float(value: float | None, expected: int | None) -> None:
    answer = integer(value, "count")
    assert answer == expected
    assert answer is None or type(answer) is int


@pytest.mark.parametrize("value", [0.5, -1.5, 1e-300])
def test_a_fraction_is_no_integer(value: float) -> None:
    with pytest.raises(InvalidBody) as caught:
        integer(value, "outer", "count")
    assert [(one.type, one.loc) for one in caught.value.problems] == [
        ("int_from_float", ("body", "outer", "count"))
    ]


def test_a_choice_is_a_member_or_names_them_all() -> None:
    assert choice(None, Precision, "p") is None
    assert choice("float16", Precision, "p") is Precision.FLOAT16
    with pytest.raises(InvalidBody, match="Input should be 'float32' or 'float16'"):
        choice("SECRET", Precision, "p")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON ;charset=utf-8",
        "application/ld+json",
        " application/json ",
    ],
)
def test_json_content_types_pass(content_type: str) -> None:
    check_headers({"content-type": content_type})


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/jsonp", "text/x+json", "application/json5"]
)
def test_other_content_types_do_not(content_type: str) -> None:
    with pytest.raises(InvalidBody):
        check_headers({"content-type": content_type})


def test_a_compressed_body_is_refused_before_its_type_is_looked_at() -> None:
    with pytest.raises(InvalidInput):
        check_headers({"content-encoding": "gzip"})
