"""Two ranks are one rank, and every launcher starts the same run.

In float64, where what the order of sums changes stays small. In float32 AdamW makes a whole step of
a gradient that is almost zero, whatever it is: on the quickstart the first weight that two ranks
move differently is one of a rare word's, with gradients of -6.5e-9 and -4.6e-9 in the fourth
update, and after 20 updates 0.8 % of the embedding's weights differ by more than 1e-4. In float64
all agree to 3e-12 by then; so they do, to 1e-7, in float32 with Adafactor, whose steps are shares
of a gradient's size.
"""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import timedelta

import numpy as np
import pytest
import torch

from continual import cli, runs, trainer
from continual.devices import make_accelerator
from dsi.query_generation import QueryGenerator
from tests.ranks import on_two_ranks

SETTINGS = {
    "dropout per two examples": (
        "parameters=docid_rows",
        "model.dropout=0.2",
        "sharpness=sam",
        "sharpness.sync=local",
        "sharpness.m=2",
    ),
    "much at once": (
        "replay.name=generative",
        "replay.ratio=1",
        "replay.queries_per_document=2",
        "replay.first_stage=0.5",
        "regularizer.name=l2",
        "sharpness.name=sam",
        "training.accumulation=2",
        "training.batch_size=6",  # parts of two examples and of one
        "merging.name=average",
    ),
    "text": ("direction=bidirectional",),
    "docids of several codes": (
        "docids=product",
        "docids.groups=2",
        "docids.codes=4",
        "docids.embedding.source=model",
        "docids.embedding.updates=4",
    ),
}


def equal(lab, one, other, tolerance=1e-10):
    """The same results but for rounding in sums over ranks, of float64 numbers."""
    assert lab.matrix(one) == lab.matrix(other)
    for stage in range(3):
        ours, theirs = lab.per_query(one, stage), lab.per_query(other, stage)
        for a, b in zip(ours, theirs, strict=True):
            assert {**a, "top": a["top"][:3]} == {**b, "top": b["top"][:3]}
        weights = lab.weights(other, stage)
        for name, value in lab.weights(one, stage).items():
            torch.testing.assert_close(value, weights[name], rtol=tolerance, atol=tolerance)
    assert json.loads((other / "environment.json").read_text())["world_size"] == 2


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_ranks_are_one(lab, tmp_path, settings):
    # 30 documents and 32 queries in batches of 7: both ranks, and the last batches are odd
    chosen = (*SETTINGS[settings], "evaluation.batch_size=7")
    one = lab.kept(*chosen, double=True)
    with lab.in_double():
        on_two_ranks(lab.train_quietly, tmp_path, *chosen)
    equal(lab, one, tmp_path / "run")
    assert {value.dtype for value in lab.weights(one, 2).values()} == {torch.float64}


def test_two_ranks_are_one_of_two_micro_batches_byte_for_byte(lab, tmp_path):
    """Also what is drawn by chance, and in float32: two sums of two are the same."""
    chosen = ["model.dropout=0.2", "sharpness=sam", "evaluation.batch_size=7"]
    chosen += ["training.docid_softmax=sampled", "training.docid_samples=4"]
    chosen += ["training.batch_size=64", "training.batch_tokens=90", "training.precision=no"]
    on_two_ranks(lab.train_quietly, tmp_path, *chosen)
    one = lab.train(*chosen, "training.accumulation=2")
    assert lab.results(tmp_path / "run") == lab.results(one)


def test_two_ranks_in_bfloat16_learn_as_one(lab, tmp_path):
    chosen = ("training.precision=bf16",)
    on_two_ranks(lab.train_quietly, tmp_path, *chosen)
    one, other, single = (
        np.array([event["loss"] for event in lab.metrics(run) if "loss" in event])
        for run in (lab.kept(*chosen), tmp_path / "run", lab.kept())
    )
    # products have three digits, and AdamW makes more of it with every update
    np.testing.assert_allclose(one[:2], other[:2], rtol=5e-3)
    np.testing.assert_allclose(one, other, rtol=0.1)
    assert not np.array_equal(one, single)


def train_and_note(lab, place, *chosen):
    """A run; notes how many documents this rank has written queries for."""
    write, count = QueryGenerator._write, []

    def noted(self, sources, keys, batch, *others):
        count.extend(batch)
        return write(self, sources, keys, batch, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QueryGenerator, "_write", noted)
        lab.train_quietly(place, *chosen)
    (place / f"documents-{torch.distributed.get_rank()}").write_text(str(len(count)))


def test_two_ranks_share_the_writing_of_queries(lab, tmp_path, monkeypatch):
    chosen = ("replay=generative", "replay.memory=both", "replay.ratio=1", "replay.first_stage=0.5")
    chosen += ("replay.queries_per_document=2", "replay.generator.updates=4")
    one, other = lab.kept(*chosen, double=True), tmp_path / "run"
    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "cache"))  # where nothing is written yet
    with lab.in_double():
        on_two_ranks(train_and_note, lab, tmp_path, *chosen)
    assert all(int((tmp_path / f"documents-{rank}").read_text()) >= 10 for rank in (0, 1))
    for stage in range(3):
        name = f"stages/{stage:02d}/pseudo_queries.jsonl"
        assert (one / name).read_bytes() == (other / name).read_bytes()
    equal(lab, one, other)


def wait_or_fail(lab, place):
    accelerator = make_accelerator(lab.config())
    options = torch.distributed.group.WORLD._get_backend(accelerator.device).options
    (place / f"limit-{accelerator.process_index}").write_text(str(options._timeout))
    if accelerator.process_index == 1:
        raise KeyError("what went wrong")
    accelerator.wait_for_everyone()


def test_a_rank_waits_for_what_another_does_alone_but_not_for_a_dead_one(lab, tmp_path):
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 1.*what went wrong"):
        on_two_ranks(wait_or_fail, lab, tmp_path)
    # the docids of a large corpus take hours, and gloo's own limit is half of one
    assert (tmp_path / "limit-0").read_text() == str(timedelta(days=1))


def rank(lab, place, kill, *arguments):
    """One rank of ``dsi train``, that SIGTERM may reach in its seventh update; notes its status."""
    step, calls, mine = trainer.take_step, [], int(os.environ["RANK"])

    def signalled(*inputs, **options):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*inputs, **options)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setattr(runs, "_show", lambda folder: None)
        if kill in ("all", str(mine)):
            patch.setattr(trainer, "take_step", signalled)
        status = cli.main(["train", *arguments])
    (place / f"status-{mine}").write_text(str(status))


def launch(lab, place, kill, *arguments):
    """The exit statuses of two ranks."""
    on_two_ranks(rank, lab, place, kill, *arguments)
    return [int((place / f"status-{number}").read_text()) for number in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["all", "1"])
def test_two_ranks_stop_together_and_go_on_as_if_nothing_had_happened(lab, tmp_path, kill):
    settings = (*SETTINGS["much at once"], "training.updates=12", "model.dropout=0.2")
    for name, killed in (("whole", ""), ("stopped", kill)):
        (tmp_path / name).mkdir()
        arguments = lab.settings(*settings, output=tmp_path / name)
        expected = [143, 143] if killed else [0, 0]
        assert launch(lab, tmp_path / name, killed, *arguments) == expected
    run = tmp_path / "stopped" / "run"
    # asked every ten updates: both stopped at the same one
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00-00000010"]
    assert launch(lab, tmp_path / "stopped", "", "--resume", str(run)) == [0, 0]
    assert lab.results(run) == lab.results(tmp_path / "whole" / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc-per-node=2", "--master-port=29871"],
        ["accelerate.commands.launch", "--num_processes=1", "--cpu"],
        [],
    ],
    ids=["torchrun", "accelerate", "python"],
)
def test_launchers(lab, tmp_path, repository, launcher):
    module = [sys.executable, "-m", *launcher]
    module += ["-m", "continual.train"] if launcher else ["continual.train"]
    config = tmp_path / "config.yaml"
    config.write_text("evaluation: {batch_size: 7}\n")
    done = subprocess.run(
        [*module, str(config), *lab.settings(output=tmp_path)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept, run = lab.kept("evaluation.batch_size=7"), tmp_path / "run"
    if "torch.distributed.run" in launcher:
        equal(lab, kept, run, tolerance=1e-2)  # float32, blown up by AdamW
    else:
        assert lab.results(run) == lab.results(kept)
    assert f"run directory: {run}" in done.stdout
