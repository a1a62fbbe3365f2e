"""What can be set, as text and as a JSON schema: the same as what is read."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from continual.config import describe
from continual.config.loading import dump, load_config, preset_names
from continual.config.registry import FAMILIES, available
from continual.config.schema import RunConfig
from dsi.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "configs" / "schema.json"
OURS = [*ROOT.glob("configs/*.yaml"), *ROOT.glob("continual/presets/*.yaml")]
MEMBERS = [(axis, name) for axis in FAMILIES for name in available(axis)]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(FILE.read_text("utf-8"))
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_the_schema_of_the_repository_is_the_one_that_is_printed():
    text = FILE.read_text("utf-8")
    assert text == describe.schema_text() + "\n", "run dsi config --schema > configs/schema.json"


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_every_file_of_ours_names_the_schema_and_passes(validator, path):
    first, text = path.read_text("utf-8").split("\n", 1)
    folder, _, name = first.partition(" $schema=")
    assert folder == "# yaml-language-server:"
    assert (path.parent / name).resolve() == FILE
    assert not list(validator.iter_errors(yaml.safe_load(text) or {}))


@pytest.mark.parametrize("name", preset_names())
def test_what_is_dumped_passes(validator, name):
    resolved = yaml.safe_load(dump(load_config(None, [f"method={name}"])))
    assert not list(validator.iter_errors(resolved))


@pytest.mark.parametrize(("axis", "name"), MEMBERS)
def test_every_member_passes_with_its_settings(validator, axis, name):
    whole = yaml.safe_load(dump(load_config(None, ["method=windows", f"{axis}={name}"])))[axis]
    for value in (name, {"name": name}, whole, {k: v for k, v in whole.items() if k != "name"}):
        assert not list(validator.iter_errors({axis: value})), value
    assert list(validator.iter_errors({axis: {**whole, "nonsense": 1}}))


# refused by the schema as by the loader
WRONG = [
    {"trainin": {"updates": 5}},
    {"training": {"update": 5}},
    {"training": {"updates": -1}},
    {"training": {"updates": 1.5}},
    {"training": {"learning_rate": 0}},
    {"training": {"later_learning_rate": 0}},
    {"training": {"schedule": "step"}},
    {"training": 5},
    {"threads": 5000},
    {"sampling": {"new": 1.5}},
    {"views": [{"name": "frist", "weight": 1}]},
    {"views": [{"name": "first"}]},
    {"views": [{"name": "first", "weight": -1}]},
    {"data": {"corpus": 5}},
    {"replay": "epsiodic"},
    {"replay": {"name": "episodic", "rato": 5}},
    {"replay": {"name": "episodic", "memory": "learned"}},
    {"replay": {"name": "generative", "stored_queries": 2}},
    {"replay": {"name": "generative", "lexical": {"span_min": 0}}},
    {"replay": {"ratio": -1}},
    {"replay": {"rato": 1}},
    {"replay": ["episodic"]},
    {"regularizer": {"name": "none", "weight": 1}},
    {"sharpness": {"name": "wsam", "gamma": 1}},
    {"docids": {"name": "semantic", "k": 1}},
    {"method": "cl_knew"},
]
RIGHT = [
    {},
    {"method": "mine.yaml", "extends": "cl_seen"},
    {"regularizer": "mypackage.mine"},
    {"regularizer": {"name": "mypackage.mine", "anything": [1]}},
    {"replay": {"ratio": 5}},
    {"data": {"corpus": {"documents": "a", "queries": "b"}, "stream": None}},
    {"training": {"later_learning_rate": None, "ratio": 1e9}},
]


@pytest.mark.parametrize("value", WRONG, ids=json.dumps)
def test_what_is_wrong_is_refused(validator, value, tmp_path):
    assert list(validator.iter_errors(value))
    (tmp_path / "run.yaml").write_text(json.dumps(value))
    with pytest.raises(UserError):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("value", RIGHT, ids=json.dumps)
def test_what_is_right_passes(validator, value):
    assert not list(validator.iter_errors(value))


def leaves(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting of an object, with its dotted key."""
    for key, inner in part["properties"].items():
        if "properties" in inner:
            yield from leaves(inner, f"{path}.{key}")
        elif "const" not in inner:
            yield f"{path}.{key}", inner


def test_every_setting_has_a_meaning_and_a_default():
    schema = describe.json_schema()
    found = dict(leaves(schema, "run"))
    for name, member in schema["$defs"].items():
        found |= dict(leaves(member, name))
    assert len(found) > 150
    assert [key for key, part in found.items() if not part.get("description")] == []
    without = [key for key, part in found.items() if "default" not in part]
    assert without == ["run.extends"]


def test_the_text_has_every_setting_with_default_range_and_meaning():
    text = "\n".join(describe.lines())
    for key in ("name", *(field.name for field in dataclasses.fields(RunConfig))):
        assert f"\n{key}" in f"\n{text}", key
    for axis, name in MEMBERS:
        assert f"\n  {name}: " in text.partition(f"\n{axis} = ")[2], (axis, name)
    assert "  updates = 1200 (whole number, at least 0)\n      Updates of stage 0.\n" in text
    assert '  schedule = "linear" (linear | cosine | constant | inverse_sqrt)\n' in text
    assert "  new = 0.2 (number, at least 0, at most 1; or null)\n" in text
    assert "    decay = 0.9 (number, at least 0, below 1)\n" in text
    assert "\n  What is rehearsed in later stages.\n" in text
    # what members share is said once, unless the default is another
    assert text.count("Stages in which it is used") == 1
    assert "    as above: phase, sync, m, ascent_penalty\n" in text
    assert text.count("    rho = 0.5 (number, at least 0)\n") == 3
