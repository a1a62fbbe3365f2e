"""What settings there are, and that their defaults are the quickstart."""

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


def test_the_defaults_are_what_a_run_without_settings_has():
    assert RunConfig() == load_config() == load_config(None, ["method=default"])
