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

from continual import cli, runs
from continual.devices.accelerator import make_accelerator
from continual.update.update import Update
from dsi.queries.generator import QueryGenerator
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
    "rows": ("parameters=incremental_rows",),
    "adapters": ("parameters=lora", "parameters.r=2", "training.accumulation=2"),
    "docids of several codes": (
        "docids=product",
        "docids.groups=2",
        "docids.codes=4",
        "docids.embedding.source=model",
        "docids.embedding.updates=4",
    ),
}


def equal(lab, one, other):
    """The same results but for rounding in sums over ranks, of float64 numbers."""
    assert lab.matrix(one) == lab.matrix(other)
    for stage in range(3):
        ours, theirs = lab.per_query(one, stage), lab.per_query(other, stage)
        for a, b in zip(ours, theirs, strict=True):
            assert {**a, "top": a["top"][:3]} == {**b, "top": b["top"][:3]}
        weights = lab.weights(other, stage)
        for name, value in lab.weights(one, stage).items():
            torch.testing.assert_close(value, weights[name], rtol=1e-10, atol=1e-10)
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
    step, calls, mine = Update.take, [], int(os.environ["RANK"])

    def signalled(*inputs, **options):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*inputs, **options)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setattr(runs, "_show", lambda folder: None)
        if kill in ("all", str(mine)):
            patch.setattr(Update, "take", signalled)
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


AS_LAUNCHED = """
import os, sys
from continual import runs
from continual.cli import main
from continual.update.update import Update

place, lost, *settings = sys.argv[1:]
runs._show = lambda folder: None
statuses = [main(["train", *settings]), main(["train", *settings]), main(["train", "sed=1"])]
with open(f"{place}/statuses-{os.environ['RANK']}", "w") as file:
    print(*statuses, file=file)
if os.environ["RANK"] == "1":
    os.rename(lost, f"{lost}.moved")
other = [text for text in settings if not text.startswith(("name=", "data.corpus="))]
sys.exit(main(["train", *other, "name=other", f"data.corpus={lost}"]))
"""


def environment_of_a_user(repository):
    """Without what this suite sets: nothing that one has to know to start ranks on a processor."""
    known = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    return {**known, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}


def test_torchrun_starts_ranks_on_processors_and_a_mistake_is_one_line(lab, tmp_path, repository):
    script, lost = tmp_path / "as_launched.py", lab.write_stream(tmp_path / "lost")
    script.write_text(AS_LAUNCHED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path), str(lost), *lab.settings(output=tmp_path)],
        env=environment_of_a_user(repository),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    run = tmp_path / "run"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2, done.stderr
    assert [(tmp_path / f"statuses-{rank}").read_text() for rank in "01"] == ["0 2 2\n"] * 2
    # what the first rank alone meets, what both meet, and what the second alone meets
    said = [line for line in done.stderr.splitlines() if line.startswith("dsi: ")]
    assert len(said) == 3, done.stderr
    starts = (f"{run}: a run is there", "sed: unknown key", f"{lost}: no such folder")
    assert all(line.startswith(f"dsi: error: {s}") for line, s in zip(said, starts, strict=True))
    assert done.returncode != 0 and not (tmp_path / "other").exists()
    assert "peer" not in done.stderr  # the first rank's loss of the second is no news


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc-per-node=2", "--master-port=29871"],
        ["accelerate.commands.launch", "--config_file=configs/accelerate/cpu-2-ranks.yaml"],
        ["accelerate.commands.launch", "--num_processes=1", "--cpu"],
        [],
    ],
    ids=["torchrun", "accelerate for two", "accelerate", "python"],
)
def test_launchers(lab, tmp_path, repository, launcher):
    module = [sys.executable, "-m", *launcher]
    module += ["-m", "continual.train"] if launcher else ["continual.train"]
    config = tmp_path / "config.yaml"
    config.write_text("evaluation: {batch_size: 7}\n")
    done = subprocess.run(
        [*module, str(config), *lab.settings(output=tmp_path)],
        cwd=repository,
        env=environment_of_a_user(repository),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept, run = lab.kept("evaluation.batch_size=7"), tmp_path / "run"
    if "2" in "".join(launcher):  # what one process does with two micro-batches
        kept = lab.kept("evaluation.batch_size=7", "training.accumulation=2")
    assert lab.results(run) == lab.results(kept)
    assert f"run directory: {run}" in done.stdout
