"""Names become classes, plain data becomes checked settings, and back."""

import dataclasses
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from continual.config.loading import load_config
from continual.config.parsing import parse_choice, to_plain
from continual.config.registry import (
    FAMILIES,
    Choice,
    allow,
    available,
    base_class,
    component_class,
    suggest,
)
from continual.config.rules import check
from continual.config.schema import RunConfig
from continual.devices import accelerator as devices
from dsi.errors import UserError

MEMBERS = [(axis, name) for axis in FAMILIES for name in available(axis)]


@pytest.mark.parametrize(("axis", "name"), MEMBERS)
def test_every_member_builds_from_its_defaults(axis, name):
    choice = parse_choice(axis, name)
    cls = component_class(axis, name)
    assert type(choice.build()) is cls
    assert choice.build() is not choice.build()
    config: Any = cls
    assert choice.settings == config.Config()
    assert config.Config.__dataclass_params__.frozen
    assert parse_choice(axis, to_plain(choice)) == choice


@pytest.mark.parametrize(("axis", "name"), MEMBERS)
def test_every_member_is_of_its_family(axis, name):
    assert isinstance(parse_choice(axis, name).build(), base_class(axis))


NEEDS = {
    "regularizer": ["needs_previous", "reads_outputs", "touches_every_row"],
    "sharpness": ["needs_previous", "reads_outputs", "keeps", "remembers", "reference"],
    "merging": ["needs_previous", "reads_outputs"],
}


def test_the_members_that_do_nothing_need_nothing():
    nothing = {"regularizer": "none", "sharpness": "none", "merging": "none"}
    for axis, name in nothing.items():
        component = parse_choice(axis, name).build()
        assert not any(getattr(component, key) for key in NEEDS[axis])
    assert parse_choice("parameters", "full").build().trains_all
    assert parse_choice("replay", "none").build().ratio == math.inf
    off = {"regularizer": {"name": "l2", "weight": 0}, "merging": {"name": "average", "new": 1}}
    for axis, value in off.items():
        component = parse_choice(axis, value).build()
        assert not any(getattr(component, key) for key in NEEDS[axis]), "nor one turned off"


# --- components from elsewhere, which no rule knows by name ---------------------------------------


@dataclasses.dataclass(frozen=True)
class Elsewhere(Choice):
    """A component that says what it is given to say."""

    def build(self) -> Any:
        cls: Any = base_class(self.axis)
        component = cls(self.settings)
        vars(component).update(self.settings)
        return component


def with_elsewhere(axis: str, declared: dict[str, Any], *settings: str) -> RunConfig:
    """A configuration in which the member of ``axis`` is not of this repository."""
    return dataclasses.replace(
        load_config(None, ["method=windows", *settings]),
        **{axis: Elsewhere(axis, "mypackage.mine", declared)},
    )


FREE = {"needs_previous": False, "touches_every_row": False}
HELD = {**FREE, "needs_previous": True}
SAMPLED = ("training.docid_softmax=sampled", "training.docid_samples=4")
TOUCHED = (*SAMPLED, "training.docid_update=touched")
CASES = [
    ("regularizer", FREE, HELD, ("training.restart=true",), "training.restart: starts"),
    ("merging", FREE, HELD, ("training.restart=true",), "training.restart: starts"),
    (
        "regularizer",
        FREE,
        {**FREE, "touches_every_row": True},
        TOUCHED,
        "training.docid_update: touched: 'mypackage.mine' pulls at every row",
    ),
    (
        "replay",
        {"ratio": 2.0},
        {"ratio": math.inf},
        ("replay=generative", "indexing=none"),
        "indexing: none leaves",
    ),
    ("docids", {"atomic": True}, {"atomic": False}, SAMPLED, "training.docid_softmax: sampled is"),
]


@pytest.mark.parametrize(("axis", "right", "wrong", "settings", "start"), CASES)
def test_rules_judge_a_component_by_what_it_says(axis, right, wrong, settings, start):
    check(with_elsewhere(axis, right, *settings))
    with pytest.raises(UserError) as caught:
        check(with_elsewhere(axis, wrong, *settings))
    assert str(caught.value).startswith(start)


def test_devices_judge_a_component_by_what_it_says(monkeypatch):
    asked = []

    def started(**options):
        asked.append(options["kwargs_handlers"][0].find_unused_parameters)
        return SimpleNamespace(num_processes=1, distributed_type=None)

    monkeypatch.setattr(devices, "Accelerator", started)
    for trains_all in (True, False):
        devices.make_accelerator(with_elsewhere("parameters", {"trains_all": trains_all}))
    assert asked == [False, True]

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    two: Any = SimpleNamespace(num_processes=2, distributed_type=None)
    devices.refuse(with_elsewhere("regularizer", FREE), two)
    with pytest.raises(UserError, match=r"regularizer\.name: 'mypackage.mine' .* use DDP"):
        devices.refuse(with_elsewhere("regularizer", HELD), two)


def test_a_class_of_another_family_is_one_line(tmp_path, monkeypatch):
    source = """from dataclasses import dataclass
class Mine:
    @dataclass(frozen=True)
    class Config:
        pass
"""
    (tmp_path / "other_family").mkdir()
    (tmp_path / "other_family" / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("continual.config.registry._allowed", set())
    allow("other_family")
    with pytest.raises(UserError) as caught:
        parse_choice("regularizer", "other_family.mine")
    message = "regularizer.name: other_family.mine.Mine is no Regularizer; make it a subclass of "
    assert str(caught.value) == message + "continual.regularizers.Regularizer"


def test_the_folder_is_the_registry():
    assert {"none", "episodic", "generative"} <= set(available("replay"))
    for axis in FAMILIES:
        assert available(axis) == sorted(available(axis))
        assert not any(name.startswith("_") for name in available(axis))


def test_code_from_elsewhere(tmp_path, monkeypatch):
    package = tmp_path / "outside_tree"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pull.py").write_text(
        "import dataclasses\n"
        "from continual.regularizers.l2 import L2  # imported, so not this module's own\n"
        "class _Hidden:\n    Config = L2.Config\n"
        "class Helper:\n    pass\n"
        "from continual.regularizers import Regularizer\n"
        "class Pull(Regularizer):\n"
        "    @dataclasses.dataclass(frozen=True)\n"
        "    class Config:\n        force: float = 2.0\n"
        "    needs_previous = touches_every_row = True\n"
    )
    (package / "two.py").write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass\nclass C:\n    pass\n"
        "class A:\n    Config = C\n"
        "class B:\n    Config = C\n"
    )
    (package / "plain.py").write_text("class A:\n    class Config:\n        pass\n")
    (package / "broken.py").write_text("class A(:\n")
    (package / "needs.py").write_text("import a_package_that_is_not_there\n")
    (package / "moved.py").write_text("from os import a_function_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("continual.config.registry._allowed", set())
    with pytest.raises(UserError, match=r"add --plugin outside_tree \(in Python"):
        parse_choice("regularizer", "outside_tree.pull")
    assert not [name for name in sys.modules if name.startswith("outside_tree")]
    allow("outside_tree")
    choice = parse_choice("regularizer", {"name": "outside_tree.pull", "force": "3e-4"})
    assert choice.build().config.force == 3e-4
    assert to_plain(choice) == {"name": "outside_tree.pull", "force": 3e-4}
    messages = {
        "two": r"exactly one public class .* found \['A', 'B'\]",
        "plain": r"exactly one public class .* found \[\]",
        "broken": "invalid syntax",
        "needs": "a_package_that_is_not_there.*install the package",
        "moved": "a_function_that_is_not_there",
        "absent": "outside_tree.absent.*one of: .*l2, none",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=r"^regularizer\.name: .*" + message):
            component_class("regularizer", f"outside_tree.{name}")
    for name in [name for name in sys.modules if name.startswith("outside_tree")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "package", ["", ".", "a.", "os path", "a_package_that_is_not_there.x", "\0"]
)
def test_a_plugin_is_an_installed_package(package):
    with pytest.raises(UserError, match=r"^plugin: no package .* is installed") as caught:
        allow(package)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "..l2", "L2", "l2 ", "__init__", "../l2"])
def test_a_name_is_a_member_or_a_module(name):
    with pytest.raises(UserError, match=r"^regularizer\.name: "):
        component_class("regularizer", name)


def test_suggestions():
    assert suggest("regularizr", ["replay", "regularizer"]) == (
        "; did you mean 'regularizer'? known: replay, regularizer"
    )
    assert suggest("zzz", ["replay"]) == "; known: replay"
    assert "known" not in suggest("zzz", []), "no empty list"
