"""What settings there are, and that a run without any has their defaults under the preset."""

import dataclasses
from pathlib import Path

from continual.config.loading import AXES, load_config, parse
from continual.config.rules import check
from continual.config.schema import RunConfig


def test_the_defaults_are_valid():
    check(RunConfig())
    assert parse({}) == RunConfig()
    assert {field.name for field in dataclasses.fields(RunConfig)} >= set(AXES)
    assert RunConfig(name="a", output="b").folder == Path("b/a")


def test_a_run_without_settings_is_the_preset_on_top_of_the_defaults(tmp_path):
    assert load_config() == load_config(None, ["method=default"])
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("")
    assert load_config(None, [f"method={nothing}"]) == dataclasses.replace(
        RunConfig(), method=str(nothing)
    )
