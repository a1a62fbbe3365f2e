"""Weights in pieces over two processes, from a run's first update to its last file."""

import json
import shutil

import pytest
import torch

from continual import runs
from continual.config.loading import load_config
from dsi.errors import UserError
from tests.ranks import on_two_ranks


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("sharpness=sam", "training.accumulation=2"),
        ("parameters=lora", "parameters.r=2", "evaluation.events_every=3"),
    ],
)
def test_a_run_in_pieces_is_a_run(lab, tmp_path, monkeypatch, settings):
    chosen = (*settings, "evaluation.batch_size=7", "checkpoint.every=3")
    one = lab.kept(*chosen, double=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with lab.in_double():
        on_two_ranks(lab.train_quietly, tmp_path, *chosen)
    other = tmp_path / "run"
    assert lab.matrix(one) == lab.matrix(other)
    for stage in range(3):
        theirs = lab.weights(other, stage)
        for name, value in lab.weights(one, stage).items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-10)
    assert json.loads((other / "environment.json").read_text())["world_size"] == 2
    # what two processes kept, one reads: the row of the matrix, and a checkpoint if allowed
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    rows = [lab.call(runs.evaluate, run)[:-1] for run in (one, other)]
    assert rows[0] == rows[1]
    shutil.rmtree(sorted((other / "checkpoints").iterdir())[-1])
    config = load_config(other / "config.yaml", [f"output={tmp_path}"])
    with pytest.raises(UserError, match=r"number of processes was 2 and is 1"):
        lab.call(runs.train, config, resume=True)
    lab.call(runs.train, config, resume=True, accept=["world_size"])
    assert lab.matrix(one) == lab.matrix(other)
