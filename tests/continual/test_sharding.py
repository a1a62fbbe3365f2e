"""Weights in pieces over two processes, from a run's first update to its last file."""

import json

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState


@pytest.mark.parametrize("settings", [(), ("sharpness=sam", "training.accumulation=2")])
def test_a_run_in_pieces_is_a_run(lab, tmp_path, monkeypatch, settings):
    chosen = (*settings, "evaluation.batch_size=7", "checkpoint.every=3")
    one = lab.kept(*chosen)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    AcceleratorState._reset_state(True)
    debug_launcher(lab.train_quietly, args=(tmp_path, *chosen), num_processes=2)
    other = tmp_path / "run"
    assert lab.matrix(one) == lab.matrix(other)
    for stage in range(3):
        theirs = lab.weights(other, stage)
        for name, value in lab.weights(one, stage).items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-4)
    assert json.loads((other / "environment.json").read_text())["world_size"] == 2
