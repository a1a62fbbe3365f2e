"""Names become classes, plain data becomes checked settings, and back."""

import dataclasses
import math
import sys
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.config.registry import (
    FAMILIES,
    Choice,
    allow,
    available,
    base_class,
    coerce,
    component_class,
    parse_choice,
    parse_dataclass,
    suggest,
    to_plain,
)
from continual.config.rules import check
from continual.config.schema import RunConfig, load_config
from continual.devices import accelerator as devices
from dsi.errors import UserError

MEMBERS = [(axis, name) for axis in FAMILIES for name in available(axis)]


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


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
        load_config(None, settings), **{axis: Elsewhere(axis, "mypackage.mine", declared)}
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
    ("replay", {"ratio": 2.0}, {"ratio": math.inf}, ("indexing=none",), "indexing: none leaves"),
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


@pytest.mark.parametrize("value", [None, 5, [], {}, {"name": 3}, {"ratio": 1}])
def test_a_choice_needs_a_name(value):
    with pytest.raises(UserError, match=r"^replay\.name: missing; one of: .*episodic, "):
        parse_choice("replay", value)


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


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3e-4", float, 3e-4),
        ("1e3", int, 1000),
        (2.0, int, 2),
        (10**30, int, 10**30),
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
        parse_dataclass(Outer, values, "outer")
    assert str(error.value).startswith(message)


def test_errors_of_a_component_keep_their_key():
    with pytest.raises(UserError, match=r"^replay\.ratio: must not be negative"):
        parse_choice("replay", {"name": "episodic", "ratio": -1})
    with pytest.raises(UserError, match=r"^replay\.lexical\.share_terms=2"):
        parse_choice("replay", {"name": "generative", "lexical": {"share_terms": 2}})
    with pytest.raises(UserError, match=r"^replay\.sampling\.top_k=-1"):
        parse_choice("replay", {"name": "generative", "sampling": {"top_k": -1}})
    with pytest.raises(UserError, match=r"^replay\.ratio: unknown key; it has no settings"):
        parse_choice("replay", {"name": "none", "ratio": 3})


def test_plain_data_and_back():
    value = Outer(parts=(Inner(1), Inner(2, math.inf)), source={"a": "b"}, limit=0.1)
    plain = to_plain(value)
    assert plain["parts"] == [{"size": 1, "rate": 0.5}, {"size": 2, "rate": math.inf}]
    assert list(plain) == [field.name for field in dataclasses.fields(Outer)]
    assert parse_dataclass(Outer, plain, "") == value
