"""Plain data becomes checked settings, and back; every mistake is one line with its key."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from continual.config.parsing import coerce, parse_choice, to_plain
from dsi.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    size: Annotated[int, Ge(1)]
    rate: Annotated[float, Gt(0), Field(le=9)] = 0.5
    share: Annotated[float | None, Field(lt=1)] = None


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = Inner(1)
    limit: float | None = None
    kind: Literal["no", "yes", "maybe"] = "no"
    parts: tuple[Inner, ...] = ()
    source: str | dict = "text"
    on: bool = False

    def __post_init__(self):
        if self.name == "bad":
            raise ValueError("name: must not be bad")


@pytest.mark.parametrize("value", [None, 5, [], {}, {"name": 3}, {"ratio": 1}])
def test_a_choice_needs_a_name(value):
    with pytest.raises(UserError, match=r"^replay\.name: missing; one of: .*generative, "):
        parse_choice("replay", value)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3e-4", float, 3e-4),
        ("1e3", int, 1000),
        (2.0, int, 2),
        ("1e18", int, 10**18),
        ("9007199254740993", int, 2**53 + 1),
        (-(2**63) + 1, int, -(2**63) + 1),
        (1, float, 1.0),
        (math.inf, float, math.inf),
        (".5", float, 0.5),
        (None, float | None, None),
        ("1e-2", float | None, 0.01),
        ("x", str, "x"),
        (False, bool, False),
        (False, Literal["no", "bf16"], "no"),
        ("bf16", Literal["no", "bf16"], "bf16"),
        ([1, "2"], tuple[int, ...], (1, 2)),
        ({"a": 1}, str | dict, {"a": 1}),
        ("a", str | dict, "a"),
        ({"a": [1]}, dict[str, Any], {"a": [1]}),
        ({"size": 2}, Inner, Inner(2)),
    ],
)
def test_coercion(value, hint, expected):
    found = coerce(value, hint, "key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (True, float),
        (1, bool),
        ("true", bool),
        (1, str),
        (None, str),
        (1.5, int),
        ("1.5", int),
        (math.inf, int),
        (math.nan, float),
        ("nan", float),
        ("ten", int),
        (None, int),
        ([1], float),
        (True, Literal["no", "bf16"]),
        (False, Literal["seen", "new"]),
        (["no"], Literal["no"]),
        ("abc", tuple[int, ...]),
        ([1, "x"], tuple[int, ...]),
        ([1], dict),
        (3, str | dict),
        ("size", Inner),
    ],
)
def test_what_is_not_coerced(value, hint):
    with pytest.raises(UserError, match=r"^key(\[1\])?: .*(expected|is not one of)"):
        coerce(value, hint, "key")


@given(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none()))
)
def test_any_value_is_taken_or_refused_in_one_line(value):
    for hint in (int, float, str, bool, dict, float | None, Literal["no"], tuple[int, ...], Inner):
        try:
            coerce(value, hint, "some.key")
        except UserError as error:
            assert str(error).startswith("some.key")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nme": "a"}, "outer.nme: unknown key; did you mean 'name'?"),
        ({"inner": {"rate": 1}}, "outer.inner.size: missing"),
        ({"inner": {"size": 0}}, "outer.inner.size: must be at least 1, got 0"),
        ({"inner": {"size": 1, "rate": 0}}, "outer.inner.rate: must be above 0, got 0"),
        ({"parts": [{"size": 1, "rate": 9.5}]}, "outer.parts[0].rate: must be at most 9, got 9.5"),
        ({"inner": {"size": 1, "share": "1e0"}}, "outer.inner.share: must be below 1, got '1e0'"),
        ({"inner": {"size": 1, "rate": True}}, "outer.inner.rate: expected a number, got True"),
        ({"inner": {"size": 2**63}}, "outer.inner.size: 9223372036854775808 is too large; at most"),
        ({"inner": {"size": "x"}}, "outer.inner.size: expected a whole number, got 'x'"),
        ({"parts": [{"size": 1}, {"sze": 1}]}, "outer.parts[1].sze: unknown key; did you mean"),
        ({"limit": "much"}, "outer.limit: expected a number, got 'much'"),
        ({"name": "bad"}, "outer.name: must not be bad"),
        ({"name": 5}, "outer.name: expected text (in quotes"),
        ({3: 1}, "outer.3: unknown key"),
        ([1], "outer: expected a mapping of settings"),
    ],
)
def test_a_bad_value_names_its_key(values, message):
    with pytest.raises(UserError) as error:
        coerce(values, Outer, "outer")
    assert str(error.value).startswith(message)


def test_errors_of_a_component_keep_their_key():
    with pytest.raises(UserError, match=r"^replay\.ratio: must be at least 0"):
        parse_choice("replay", {"name": "episodic", "ratio": -1})
    with pytest.raises(UserError, match=r"^replay\.lexical\.share_terms: must be at most 1"):
        parse_choice("replay", {"name": "generative", "lexical": {"share_terms": 2}})
    with pytest.raises(UserError, match=r"^replay\.sampling\.top_k: must be at least 0"):
        parse_choice("replay", {"name": "generative", "sampling": {"top_k": -1}})
    with pytest.raises(UserError, match=r"^replay\.ratio: unknown key; it has no settings"):
        parse_choice("replay", {"name": "none", "ratio": 3})


def test_plain_data_and_back():
    value = Outer(parts=(Inner(1), Inner(2, 9, 0.5)), source={"a": "b"}, limit=0.1)
    plain = to_plain(value)
    assert plain["parts"] == [
        {"size": 1, "rate": 0.5, "share": None},
        {"size": 2, "rate": 9, "share": 0.5},
    ]
    assert list(plain) == [field.name for field in dataclasses.fields(Outer)]
    assert coerce(plain, Outer) == value
