"""``python -m continual.train`` is ``dsi train``."""

import runpy
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from continual import runs
from continual.config.loading import load_config


def launch(monkeypatch, *arguments: str) -> int:
    """The exit status of the module, run as launchers run it."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.delitem(sys.modules, "continual.train", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("continual.train", run_name="__main__")
    return stop.value.code  # type: ignore[return-value]


def test_arguments_are_those_of_dsi_train(monkeypatch):
    calls = []
    monkeypatch.setattr(runs, "train", lambda config, *options: calls.append((config, *options)))
    assert launch(monkeypatch, "seed=4", "--overwrite", "--accept", "code", "threads=1") == 0
    config = load_config(None, ["seed=4", "threads=1"])
    assert calls == [(config, False, True, ["code"])]


def test_processes_part_in_good_order(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "train", lambda *_: Accelerator())
    AcceleratorState._reset_state(True)
    assert launch(monkeypatch, "seed=4") == 0  # a process without others
    place = f"file://{tmp_path}/group"
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    assert launch(monkeypatch, "seed=4") == 0
    assert not torch.distributed.is_initialized()
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sed=4"], "dsi: error: sed: unknown key; did you mean 'seed'?"),
        (["--nope"], "dsi: error: unrecognized arguments: --nope"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert launch(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_importing_it_trains_nothing():
    import continual.train as module

    assert module.__name__ == "continual.train"
