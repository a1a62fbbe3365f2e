"""A range stands at its field: what lies outside is refused when the settings are made."""

import dataclasses
import math
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt

from dsi.errors import UserError
from dsi.settings import FINITE, Count, NotNegative, Positive, Settings, Share


@dataclasses.dataclass(frozen=True)
class Common(Settings):
    rate: Positive = 0.5
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Member(Common):
    rate: Positive = 0.1
    share: Share = 0.0
    size: NotNegative = 1.0
    count: Count = 1
    part: Annotated[float, Gt(0), Le(1)] | None = None
    decay: Annotated[float, Ge(0), Lt(1)] = 0.5
    ratio: Annotated[float, Ge(0)] = 1.0
    offset: Annotated[float, FINITE] = 0.0
    free: str | dict[str, str] = "x"


RIGHT = [
    {},
    {"rate": 1e-9, "share": 1, "size": 0, "count": 10**9, "part": 1, "decay": 0, "offset": -5},
    {"part": None, "ratio": math.inf, "kind": "b", "free": {"a": "b"}},
]
WRONG = {
    "rate: must be above 0, got 0": {"rate": 0},
    "rate: must be finite, got inf": {"rate": math.inf},
    "rate: must be above 0, got nan": {"rate": math.nan},
    "share: must be at most 1, got 1.5": {"share": 1.5},
    "share: must be at least 0, got -0.5": {"share": -0.5},
    "size: must be at least 0, got -inf": {"size": -math.inf},
    "count: must be at least 1, got 0": {"count": 0},
    "part: must be above 0, got 0": {"part": 0},
    "part: must be at most 1, got 2": {"part": 2},
    "decay: must be below 1, got 1": {"decay": 1},
    "ratio: must be at least 0, got -1": {"ratio": -1},
    "offset: must be finite, got nan": {"offset": math.nan},
    "kind: 'c' is not one of: a, b": {"kind": "c"},
}


@pytest.mark.parametrize("values", RIGHT, ids=str)
def test_what_lies_within_is_taken(values):
    made = Member(**values)
    assert {key: getattr(made, key) for key in values} == values


@pytest.mark.parametrize(("line", "values"), WRONG.items(), ids=str)
def test_what_lies_outside_is_refused_by_its_key(line, values):
    with pytest.raises(UserError) as caught:
        Member(**values)
    assert str(caught.value) == line
    with pytest.raises(ValueError, match=f"^{next(iter(values))}: "):
        dataclasses.replace(Member(), **values)
