"""Plain data to checked settings, by pydantic, and back; every mistake is one line with its key.

Types and ranges stand at the fields of the dataclasses. Added here is what people mean in YAML:
PyYAML reads ``3e-4`` and ``1e3`` as text and ``no`` and ``off`` as false, and a character may be
written as the two halves of a JSON escape.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Strict, TypeAdapter, ValidationError

from continual.config.registry import Choice, available, component_class, suggest
from dsi.corpus.records import show
from dsi.errors import UserError, printable
from dsi.settings import WORDS, outside

EXPECTED = {
    "bool": "true or false",
    "string": "text (in quotes where YAML reads something else)",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
}
"""In words, by the first word of pydantic's name for an error."""


class _Unreadable(ValueError):
    """What is wrong with one value, without its key."""


def parse_choice(axis: str, value: Any) -> Choice:
    """A :class:`Choice` from ``{"name": ..., settings}``, or from just the name."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{axis}.name: missing; one of: " + ", ".join(available(axis)))
    cls = component_class(axis, value["name"])
    settings = {key: item for key, item in value.items() if key != "name"}
    return Choice(axis, value["name"], coerce(settings, typing.cast(Any, cls).Config, axis))


def coerce(value: Any, hint: Any, where: str = "") -> Any:
    """``value`` as the annotated type; ``where`` is its dotted key, which errors name."""
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # of a union's members the one that got furthest; else the first
    raise UserError(_line(max(found, key=lambda entry: len(entry["loc"])), value, where))


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_lenient(hint))


def _lenient(hint: Any, limits: tuple[Any, ...] = ()) -> Any:
    """The type, with a reader of what people mean in YAML; nothing else is converted silently."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (bool, int, float, str):
        return Annotated[hint, Strict(), *limits, BeforeValidator(READ[hint])]
    if origin is Annotated and arguments[0] in (bool, int, float, str):
        return _lenient(arguments[0], hint.__metadata__)
    if origin is Annotated:
        return Annotated[_lenient(arguments[0]), *hint.__metadata__]
    if origin is Literal:
        return Annotated[hint, BeforeValidator(functools.partial(_word, arguments))]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_lenient(part) for part in arguments)]  # noqa: UP007
    if origin in (tuple, list, dict):
        parts = tuple(part if part is ... else _lenient(part) for part in arguments)
        return typing.cast(Any, origin)[parts]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _settings(hint)
    return hint


def _settings(cls: type) -> Any:
    """A dataclass: pydantic fills a twin whose fields are lenient, and the class is made of it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    parts = [
        (
            field.name,
            _lenient(hints[field.name]),
            dataclasses.field(default=field.default, default_factory=field.default_factory),  # type: ignore[call-overload]
        )
        for field in fields
    ]
    twin = dataclasses.make_dataclass(cls.__name__, parts, kw_only=True)
    names = [field.name for field in fields]
    known = BeforeValidator(functools.partial(_known, names))
    return Annotated[twin, AfterValidator(lambda made: cls(**vars(made))), known]


def _known(names: list[str], values: Any) -> Any:
    """The mapping, if it has no other keys."""
    if not isinstance(values, Mapping):
        raise _Unreadable(f"expected a mapping of settings, got {show(values)}")
    for key in values:
        if key not in names:
            raise ValueError(f"{printable(str(key))[:200]}: unknown key{suggest(str(key), names)}")
    return values


def _number(value: Any) -> Any:
    for read in (int, float):
        try:
            value = read(value) if isinstance(value, str) else value
        except ValueError:
            continue
    if value != value:
        raise _Unreadable("expected a number, got nan")
    return value


def _whole(value: Any) -> Any:
    value = _number(value) if value == value else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _Unreadable(f"{show(value)} is too large; at most 2^63 - 1")
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str) or not any("\ud800" <= c <= "\udfff" for c in value):
        return value
    try:  # YAML's "\\ud83d\\ude00", as JSON writes it, is one character
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _Unreadable(f"half a surrogate pair in {show(value)}; remove it") from None


def _word(choices: tuple[Any, ...], value: Any) -> Any:
    """YAML reads an unquoted no or off as false."""
    words = [word for word in ("no", "off") if word in choices]
    return words[0] if value is False and words else value


READ = {int: _whole, float: _number, str: _text, bool: lambda value: value}


def _line(error: Any, data: Any, where: str) -> str:
    """``family.key: what is wrong; fix`` for one of pydantic's errors."""
    kind, value, context = error["type"], error["input"], error.get("ctx") or {}
    for part in error["loc"]:  # names of a union's members, which are no keys, are left out
        if isinstance(part, int) and isinstance(data, list | tuple):
            where, data = f"{where}[{part}]", data[part]
        elif isinstance(data, Mapping) and part in data:
            where, data = f"{where}.{part}" if where else str(part), data[part]
    if kind == "value_error":
        wrong = context["error"]
        if isinstance(wrong, _Unreadable):
            return f"{where}: {wrong}"
        return f"{where}.{wrong}" if where else str(wrong)  # of a dataclass: it names the field
    if error["loc"] and error["loc"][-1] == "[key]":
        return f"{where}: a key is text; put it in quotes"
    if kind == "missing":
        return f"{where}.{error['loc'][-1]}: missing; it has no default, so write it"
    if kind == "literal_error":
        known = context["expected"].replace(" or ", ", ").replace("'", "")
        return f"{where}: {show(value)} is not one of: {known}"
    if kind == "predicate_failed" and isinstance(value, float):
        return f"{where}: must be finite, got {value}"
    for limit, bound in context.items():
        if limit in WORDS:
            return f"{where}: {outside(limit, bound, value)}"
    expected = EXPECTED.get(kind.partition("_")[0])
    if expected:
        return f"{where}: expected {expected}, got {show(value)}"
    return f"{where}: {printable(error['msg'])[:300]}"


def to_plain(value: Any) -> Any:
    """A configuration as plain data, every default written out."""
    if isinstance(value, Choice):
        return {"name": value.name, **to_plain(value.settings)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value
