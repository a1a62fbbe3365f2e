"""Components by name: the folder is the registry.

``name: ewc`` under ``regularizer`` is the module ``continual/regularizers/ewc.py`` and its one
public class, whose nested frozen ``Config`` dataclass holds the settings. A dotted name
(``mypackage.mymethod``) loads a module from elsewhere where :func:`allow`, or ``--plugin`` on the
command line, has named its package: importing runs code, and a configuration may be somebody
else's. Nothing is scanned or decorated.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsi.corpus.records import show
from dsi.errors import UserError, printable

FAMILIES = {
    "replay": "continual.replay",
    "regularizer": "continual.regularizers",
    "sharpness": "continual.sharpness",
    "parameters": "continual.parameters",
    "starts": "continual.starts",
    "merging": "continual.merging",
    "docids": "dsi.docids",
}


BASES = {
    "replay": ("continual.replay", "Replay", "none"),
    "regularizer": ("continual.regularizers", "Regularizer", "none"),
    "sharpness": ("continual.sharpness", "Policy", "none"),
    "parameters": ("continual.parameters", "Parameters", "full"),
    "starts": ("continual.starts", "Start", "random"),
    "merging": ("continual.merging", "Merging", "none"),
    "docids": ("dsi.docids", "Scheme", None),
}
"""Module and name of each family's base class, and what it is called as a member: the one that
does nothing. A component declares what it needs by the attributes of its base class; rules ask for
these, never for its name."""

_allowed: set[str] = set()  # packages and modules that configurations may load from


def allow(package: str) -> None:
    """Let configurations load components from a package (or one module of it), which runs its code.

    Holds for this process. UserError where no such package is installed.
    """
    top = package.partition(".")[0]
    try:
        is_there = _is_dotted(package) and importlib.util.find_spec(top) is not None
    except ValueError:  # made by hand, without a specification
        is_there = True
    if not is_there:
        raise UserError(f"plugin: no package {show(package)} is installed; give the name to import")
    _allowed.add(package)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def available(axis: str) -> list[str]:
    """Names of the members that live in the axis' own folder."""
    package = importlib.import_module(FAMILIES[axis])
    folder = Path(typing.cast(str, package.__file__)).parent
    found = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    return sorted(found | ({BASES[axis][2]} - {None}))


def base_class(axis: str) -> type:
    """What every member of a family is a subclass of."""
    module, name, _ = BASES[axis]
    return getattr(importlib.import_module(module), name)


def component_class(axis: str, name: str) -> type:
    """The one public class of the module that ``name`` means on ``axis``."""
    if name == BASES[axis][2]:
        return base_class(axis)
    if "." in name and _is_dotted(name):
        module_name = name
        if not any(f"{name}.".startswith(f"{package}.") for package in _allowed):
            top = name.partition(".")[0]
            raise UserError(
                f"{axis}.name: {show(name)} is code from elsewhere; if you trust it, add "
                f"--plugin {top[:80]} (in Python: continual.config.registry.allow), or use one of: "
                + ", ".join(available(axis))
            )
    elif name in available(axis):
        module_name = f"{FAMILIES[axis]}.{name}"
    else:
        raise UserError(f"{axis}.name: unknown name {show(name)}{suggest(name, available(axis))}")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{axis}.name: cannot import {show(module_name)} ({printable(str(error))[:200]}); "
            "install the package that has it, or use one of: " + ", ".join(available(axis))
        ) from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and dataclasses.is_dataclass(getattr(value, "Config", None))
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise UserError(
            f"{axis}.name: {module_name} must define exactly one public class with a nested "
            f"Config dataclass, found {[c.__name__ for c in found]}"
        )
    if not issubclass(found[0], base_class(axis)):
        module, base, _ = BASES[axis]
        raise UserError(
            f"{axis}.name: {module_name}.{found[0].__name__} is no {base}; make it a subclass of "
            f"{module}.{base}"
        )
    return found[0]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A member chosen on an axis and its settings."""

    axis: str
    name: str
    settings: Any

    def build(self) -> Any:
        """A fresh component."""
        return component_class(self.axis, self.name)(self.settings)


def parse_choice(axis: str, value: Any) -> Choice:
    """A :class:`Choice` from ``{"name": ..., settings}``, or from just the name."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{axis}.name: missing; one of: " + ", ".join(available(axis)))
    cls = component_class(axis, value["name"])
    settings = {key: item for key, item in value.items() if key != "name"}
    config = typing.cast(Any, cls).Config
    return Choice(axis, value["name"], parse_dataclass(config, settings, axis))


def suggest(word: str, known: list[str]) -> str:
    """``; did you mean 'x'? known: ...`` for an error line."""
    if not known:
        return "; it has no settings, leave it out"
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(known)}"


def parse_dataclass(cls: type, values: Any, where: str) -> Any:
    """A dataclass from plain data: unknown keys, wrong types and bad values name their key."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a mapping of settings, got {show(values)}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    parsed = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            raise UserError(f"{printable(path)[:200]}: unknown key{suggest(str(key), names)}")
        parsed[key] = coerce(value, hints[key], path)
    for field in dataclasses.fields(cls):
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and field.name not in parsed:
            raise UserError(f"{where}.{field.name}: missing; it has no default, so write it")
    try:
        return cls(**parsed)
    except ValueError as error:
        text = str(error).removeprefix(f"{where.rpartition('.')[2]}: ")
        raise UserError(f"{where}.{text}" if where else text) from error


def coerce(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the annotated type; PyYAML reads 3e-4 as a string, so numbers are re-read."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        errors = []
        for kind in kinds:
            try:
                return coerce(value, kind, where)
            except UserError as error:
                errors.append(error)
        raise errors[0]
    if origin is typing.Literal:
        if value is False and "no" in arguments:
            return "no"  # YAML reads an unquoted no as false
        if value is False and "off" in arguments:
            return "off"
        if value in arguments and type(value) is not bool:
            return value
        raise UserError(f"{where}: {show(value)} is not one of: {', '.join(map(str, arguments))}")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else parse_dataclass(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, got {show(value)}")
        return tuple(coerce(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if dict in (hint, origin):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a mapping, got {show(value)}")
        try:
            json.dumps(value, default=str)
        except (TypeError, ValueError, RecursionError):
            text = f"{show(value)} has a value inside itself, or keys that are no text"
            raise UserError(f"{where}: {text}; write it out") from None
        return dict(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        try:
            # YAML's "\\ud83d\\ude00", as JSON writes it, is one character
            is_whole = value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
            return value if is_whole else value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            text = f"half a surrogate pair in {show(value)}; remove it"
            raise UserError(f"{where}: {text}") from None
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value) if isinstance(value, str | int | float) else None
        except (ValueError, OverflowError):
            number = None
        if number is not None and number == number:
            if hint is float:
                return number
            whole = abs(number) != float("inf") and number == int(number)
            if whole:
                return value if isinstance(value, int) else int(number)
    kind = {
        bool: "true or false",
        str: "text (in quotes where YAML reads something else)",
        int: "a whole number",
        float: "a number",
    }
    raise UserError(f"{where}: expected {kind.get(hint, hint)}, got {show(value)}")


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
