"""Settings: frozen dataclasses in which every field says its own range.

A field is written ``share: Annotated[float, Gt(0), Le(1)] = 0.25``. The range is checked here
when the settings are made in Python, by pydantic when they are read from a file, and is what
``dsi config`` and the JSON schema show. A rule between two fields is a ``__post_init__`` that
calls this one first and raises UserError ``field: what is wrong; fix``.
"""

import functools
import math
import operator
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, Predicate

from dsi.errors import UserError

FINITE = Predicate(math.isfinite)
"""A float that is not infinite."""

Share = Annotated[float, Ge(0), Le(1)]
"""A number from 0 to 1."""
NotNegative = Annotated[float, Ge(0), FINITE]
"""A number that is zero or above."""
Positive = Annotated[float, Gt(0), FINITE]
"""A number above zero."""
Count = Annotated[int, Ge(1)]
"""A whole number of at least one."""

WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Settings:
    """Base of settings: a value outside of its field's range is a UserError that names the key."""

    def __post_init__(self) -> None:
        for key, hint in _hints(type(self)).items():
            value = getattr(self, key)
            for part in _parts(hint) if value is not None else ():
                if get_origin(part) is Literal and value not in get_args(part):
                    raise UserError(
                        f"{key}: {value!r} is not one of: {', '.join(map(str, get_args(part)))}"
                    )
                for limit in getattr(part, "__metadata__", ()):
                    if wrong := _broken(limit, value):
                        raise UserError(f"{key}: {wrong}")


def _broken(limit: Any, value: Any) -> str | None:
    if limit == FINITE and not math.isfinite(value):
        return f"must be finite, got {value!r}"
    if isinstance(limit, Ge | Gt | Le | Lt):
        ((kind, bound),) = asdict(limit).items()
        if not getattr(operator, kind)(value, bound):
            return outside(kind, bound, value)
    return None


def outside(kind: str, bound: Any, value: Any) -> str:
    """``must be at least 1, got 0``; ``kind`` is ge, gt, le or lt."""
    bound = int(bound) if float(bound).is_integer() else bound
    return f"must be {WORDS[kind]} {bound}, got {value!r}"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one hint itself."""
    union = get_origin(hint) not in (None, Annotated, Literal, tuple, dict, list)
    return get_args(hint) if union else (hint,)
