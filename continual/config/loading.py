"""A run's configuration from its layers: YAML files, presets and ``key=value`` on top.

Layers, later ones win: the defaults of the schema, the method preset that the file names, the file,
the method preset given on the command line, ``key=value`` overrides. A preset on the command line
takes the place of the file's, so nothing of that one is left, nor of what the file only repeats of
the preset that it names. Within a component a changed ``name`` starts from the new component's own
defaults. A preset may extend another one.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from continual.config.parsing import coerce, parse_choice, to_plain
from continual.config.paths import expand, with_paths
from continual.config.registry import FAMILIES, suggest
from continual.config.rules import check
from continual.config.schema import DEFAULT_NAMES, RunConfig
from dsi.corpus.records import show
from dsi.errors import UserError
from dsi.files import refuse_special

AXES = tuple(FAMILIES)
LARGEST_FILE = 1 << 18  # bytes
MOST_VALUES = 10_000


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file (None: the defaults) with ``key=value`` overrides on top."""
    file = _read_yaml(Path(path)) if path is not None else {}
    if "method" in file and not isinstance(file["method"], str):
        raise UserError(
            f"{path}: method: expected a preset's name or file, got {show(file['method'])}"
        )
    if "extends" in file:
        raise UserError(f"{path}: extends: is for presets; name the preset as method: NAME")
    assignments = [_override(text) for text in overrides]
    method = None
    for keys, value in assignments:
        if keys == ["method"]:
            method = str(value)
    defaults = {axis: {"name": name} for axis, name in DEFAULT_NAMES.items()}
    below = _merge(defaults, _preset(file.get("method", "default")))
    merged = _merge(below, file)
    if method is not None:
        if "method" in file:
            file = _beyond(file, to_plain(parse(below)))
        # settings that the file makes without naming the component belong to the one it had
        own = {
            axis: {"name": below[axis]["name"], **file[axis]}
            for axis in AXES
            if isinstance(file.get(axis), Mapping)
        }
        merged = _merge(defaults, {**file, **own})
        merged = _merge(_merge(merged, _preset(method)), {"method": method})
    # all of them first: replay.ratio=2 replay=episodic is replay=episodic replay.ratio=2
    given: dict[str, Any] = {}
    for keys, value in assignments:
        given = _merge(given, _nested(keys, value))
    config = parse(with_paths(_merge(merged, given)))
    check(config)
    return config


def parse(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain data such as config.yaml of a run directory."""
    plain = {key: value for key, value in values.items() if key not in AXES}
    choices = {axis: parse_choice(axis, values[axis]) for axis in AXES if axis in values}
    return dataclasses.replace(coerce(plain, RunConfig), **choices)


def dump(config: RunConfig) -> str:
    """YAML with every default written out; :func:`read_resolved` is the inverse."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def read_resolved(path: Path) -> RunConfig:
    """The configuration of an existing run, as written: no preset is applied again."""
    config = parse(_read_yaml(path))
    check(config)
    return config


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Dotted keys of the settings in which two configurations differ, in the fields' order."""

    def walk(a: Any, b: Any, path: str) -> Iterator[str]:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in {**a, **b}:
                yield from walk(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        elif a != b:
            yield path

    return list(walk(to_plain(one), to_plain(other), ""))


def preset_names() -> list[str]:
    """The method presets that ship with the package."""
    folder = resources.files("continual") / "presets"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def _preset(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a preset on top of those of the one that it extends."""
    if name in above:
        raise UserError(f"method: {' extends '.join((*above, name))}; let one of them extend none")
    if name in preset_names():
        text = (resources.files("continual") / "presets" / f"{name}.yaml").read_text("utf-8")
        own = yaml.safe_load(text) or {}
    elif name.endswith((".yaml", ".yml")):
        own = _read_yaml(Path(expand(name, "method")))
    else:
        raise UserError(f"method: unknown preset {show(name)}{suggest(name, preset_names())}")
    below = own.pop("extends", None)
    if below is None:
        return own
    if not isinstance(below, str):
        raise UserError(f"{name}: extends: expected a preset's name or file, got {show(below)}")
    return _merge(_preset(below, (*above, name)), own)


def _beyond(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What of a file is not said by ``known``, the whole of its preset with every default."""
    own: dict[str, Any] = {}
    for key, value in values.items():
        if key in AXES and isinstance(value, str):
            value = {"name": value}
        there = known.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            renamed = value.get("name", there.get("name")) != there.get("name")
            inner = dict(value) if renamed else _beyond(value, there)
            if inner or not value:
                own[key] = inner
        # 1 is no true, and is refused later
        elif value != there or type(value) is bool is not type(there):
            own[key] = value
    return own


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that appears twice is an error, where PyYAML drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    """Plain data; yaml.YAMLError for whatever is wrong with the text."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # before anything is made of it: nine lines of aliases can stand for a billion values
        if _count(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values with its aliases written out")
        return loader.construct_document(node)
    # dates such as 2024-13-45, tags on what they are not for (!!bool x), a deep nest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when aliases are written out."""
    if id(node) not in known:
        known[id(node)] = 0  # while it is counted: an alias of it that finds 0 is inside it
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (part for entry in parts for part in (entry if type(entry) is tuple else (entry,)))
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    if not known[id(node)]:
        raise yaml.MarkedYAMLError(problem="a value inside itself", problem_mark=node.start_mark)
    return known[id(node)]


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    refuse_special(path, "give a YAML file")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE} bytes; give a configuration")
        value = _load_yaml(content.decode("utf-8"))
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the configuration ({error.strerror}); give a YAML file, or "
            "--resume with a run directory"
        ) from error
    except ValueError as error:  # a path with a NUL
        raise UserError(f"{path}: cannot read the configuration ({error}); give a file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = _problem(error)
        raise UserError(f"{path}{line}: not valid YAML ({problem}); correct the line") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: expected 'key: value' lines at the top level")
    return value


def _override(text: str) -> tuple[list[str], Any]:
    key, separator, value = text.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys) or len(keys) > 20:
        raise UserError(f"{show(text)}: expected key=value, for example training.updates=500")
    try:
        return keys, _load_yaml(value)
    except yaml.YAMLError as error:
        problem = _problem(error)
        raise UserError(
            f"{show(text)}: the value is not valid YAML ({problem}); quote it"
        ) from error


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    if isinstance(value.get(keys[0]), str) and keys[0] in AXES:
        return {keys[0]: {"name": value[keys[0]]}}
    return value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if key in AXES and isinstance(value, str):
            value = {"name": value}
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = "name" in value and value["name"] != old.get("name", value["name"])
            merged[key] = dict(value) if renamed else _merge(old, value)
        else:
            merged[key] = value
    return merged
