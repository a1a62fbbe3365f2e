"""What can be set, for people and for editors: made of the fields, their ranges and docstrings."""

import dataclasses
import functools
import importlib
import json
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from continual.config.loading import preset_names
from continual.config.registry import FAMILIES, available, component_class
from continual.config.schema import DEFAULT_NAMES, RunConfig

ELSEWHERE = {"type": "string", "pattern": r"\."}  # a component of another package
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}


def schema_text() -> str:
    """The content of ``configs/schema.json``."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file or preset, which may leave out any setting."""
    run = _object(RunConfig)
    files = {"type": "string", "pattern": r"\.ya?ml$"}
    preset = {"anyOf": [{"enum": preset_names()}, files]}
    own = {
        **{axis: _choice(axis) for axis in FAMILIES},
        "method": run["properties"]["method"] | preset,
        "extends": {"description": "In a preset: the one whose settings lie below.", **preset},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dsi-continual configuration",
        **run,
        "properties": {**run["properties"], **own},
        "$defs": {
            f"{axis}.{name}": _member(axis, name) for axis in FAMILIES for name in available(axis)
        },
    }


def _member(axis: str, name: str) -> dict[str, Any]:
    config = _object(typing.cast(Any, component_class(axis, name)).Config)
    return {
        **config,
        "description": _first_paragraph(component_class(axis, name)),
        "properties": {"name": {"const": name}, **config["properties"]},
        "required": ["name"],
    }


def _choice(axis: str) -> dict[str, Any]:
    """A member by its name alone, a mapping with its settings, or settings without a name."""
    names = available(axis)
    settings: dict[str, list[Any]] = {}
    for name in names:
        for key in _member(axis, name)["properties"]:
            if key != "name":
                place = {"$ref": f"#/$defs/{axis}.{name}/properties/{key}"}
                settings.setdefault(key, []).append(place)
    return {
        "description": _purpose(axis),
        "default": DEFAULT_NAMES[axis],
        "oneOf": [
            {"type": "string", "enum": names},
            ELSEWHERE,
            *({"$ref": f"#/$defs/{axis}.{name}"} for name in names),
            {"type": "object", "properties": {"name": ELSEWHERE}, "required": ["name"]},
            {
                "type": "object",
                "properties": {key: {"anyOf": places} for key, places in settings.items()},
                "additionalProperties": False,
            },
        ],
    }


@functools.cache
def _object(cls: type) -> dict[str, Any]:
    """A dataclass as JSON schema, nested ones in their place, with the docstrings of its bases."""
    options = ConfigDict(use_attribute_docstrings=True)
    whole = TypeAdapter(list[cls], config=options).json_schema()  # type: ignore[valid-type]
    found = _inlined(whole["items"], whole["$defs"])
    for base in cls.__mro__[1:]:
        for key, part in _object(base)["properties"].items() if _has_fields(base) else ():
            if "description" in part:
                found["properties"][key].setdefault("description", part["description"])
    return found


def _has_fields(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and bool(dataclasses.fields(cls))


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references, without titles, and with every text on one line."""
    if isinstance(node, list):
        return [_inlined(part, definitions) for part in node]
    if not isinstance(node, dict):
        return " ".join(node.split()) if isinstance(node, str) else node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        node = {**definitions[name], **{k: part for k, part in node.items() if k != "$ref"}}
    found = {
        key: part if key == "default" else _inlined(part, definitions)
        for key, part in node.items()
        if key not in ("title", "properties")
    }
    if found.get("type") == "object" and "additionalProperties" not in found:
        own = node.get("properties", {}).items()
        found["properties"] = {key: _inlined(part, definitions) for key, part in own}
        found["additionalProperties"] = False  # a dataclass takes no other keys
        found.pop("default", None)  # its fields have theirs
    return dict(sorted(found.items()))


def lines() -> Iterator[str]:
    """Every setting with its default, its range and its meaning; families with their members."""
    run = _object(RunConfig)["properties"]
    groups = {key: part for key, part in run.items() if key in FAMILIES or "properties" in part}
    yield from _settings({key: part for key, part in run.items() if key not in groups}, "")
    for key, part in groups.items():
        yield ""
        if key in FAMILIES:
            yield from _family(key)
        else:
            yield f"{key}: {part['description']}"
            yield from _settings(part["properties"], "  ")


def _family(axis: str) -> Iterator[str]:
    names = available(axis)
    yield f"{axis} = {DEFAULT_NAMES[axis]} ({' | '.join(names)})"
    yield f"  {_purpose(axis)}"
    said: dict[str, Any] = {}
    for name in names:
        member = _member(axis, name)
        settings = {key: part for key, part in member["properties"].items() if key != "name"}
        known = [key for key, part in settings.items() if said.get(key) == part]
        yield from _wrapped(f"{name}: {member['description']}", "  ")
        yield from _settings({k: p for k, p in settings.items() if k not in known}, "    ")
        if known:
            yield f"    as above: {', '.join(known)}"
        said |= {key: part for key, part in settings.items() if key not in said}


def _settings(properties: dict[str, Any], indent: str) -> Iterator[str]:
    for key, part in properties.items():
        if "properties" in part:
            yield from _wrapped(f"{key}: {part.get('description', '')}", indent)
            yield from _settings(part["properties"], indent + "  ")
            continue
        default = f" = {json.dumps(part['default'])}" if "default" in part else ""
        yield f"{indent}{key}{default} ({_range(part)})"
        yield from _wrapped(part.get("description", ""), indent + "    ")
        if "items" in part:
            yield from _settings(part["items"].get("properties", {}), indent + "    ")


def _range(part: dict[str, Any]) -> str:
    """``whole number, at least 1``; ``linear | cosine``."""
    if "anyOf" in part:
        return "; or ".join(_range(one) for one in part["anyOf"])
    if "enum" in part or "const" in part:
        return " | ".join(map(str, part.get("enum", [part.get("const")])))
    if part.get("type") == "array":
        return "list of " + ("mappings, each:" if "properties" in part["items"] else "values")
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {part[key]}" for key, word in limits.items() if key in part]
    return ", ".join([TYPES.get(part.get("type", ""), "any"), *found])


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent)


def _first_paragraph(cls: type) -> str:
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())


def _purpose(axis: str) -> str:
    """What a family decides: the first sentence of its package."""
    return (importlib.import_module(FAMILIES[axis]).__doc__ or "").partition(".")[0] + "."
