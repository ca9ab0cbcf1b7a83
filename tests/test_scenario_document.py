"""YAML 1.2 scalars, and where every value stands."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.reading.document import MAX_VALUES, parse_document
from simbatch.sim.scenario.reading.syntax import parse_plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2024-01-01", "2024-01-01"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("TrUe", "TrUe"),
        ("1e", "1e"),
        ("-", "-"),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_plain(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.INF", "1e400", "-1e999"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        parse_plain(text)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_an_error_that_says_why(text: str) -> None:
    with contextlib.suppress(ValueError):
        value = parse_plain(text)
        assert value is None or isinstance(value, (str, int, float, bool))


@given(st.text(alphabet="ab01 :-[]{},'\"&*!|>%@`#\n\t.~<?\\", max_size=60))
def test_any_text_is_a_mapping_or_a_user_error(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        document = parse_document(text, name="x.yaml")
        assert isinstance(document.data, dict)
        assert all(place.value.line >= 1 for place in document.places.values())
    except UserError as error:
        problems = error.problems
    assert all(problem.place.startswith("x.yaml:") for problem in problems)


def test_places_of_keys_and_values() -> None:
    document = parse_document("a: 1\nb:\n  c: [x, {d: 2}]\n", name="x.yaml")
    assert document.data == {"a": 1, "b": {"c": ["x", {"d": 2}]}}
    assert document.places[("b", "c")] == ((3, 3), (3, 6))
    assert document.places[("b", "c", 1, "d")] == ((3, 11), (3, 14))


def test_quotes_make_text() -> None:
    assert parse_document("a: '1'\nb: \"true\"\nc: ''\n", name="x").data == {"a": "1", "b": "true", "c": ""}


def test_anchors_are_allowed_up_to_a_size() -> None:
    document = parse_document("a: &x {n: 1}\nb: *x\nc: [*x, *x]\n", name="x")
    assert document.data == {"a": {"n": 1}, "b": {"n": 1}, "c": [{"n": 1}, {"n": 1}]}
    long: dict[str, Any] = parse_document("a: [" + "1," * (MAX_VALUES - 10) + "]", name="x").data  # type: ignore[assignment]
    assert len(long["a"]) == MAX_VALUES - 10
