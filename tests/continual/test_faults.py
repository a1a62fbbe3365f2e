"""Faults for real: kills, signals, disks that are full, losses that are no numbers."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from continual import cli, runs, trainer
from continual.config.loading import load_config
from continual.run.signals import Interrupted
from continual.update.update import Update
from dsi.errors import UserError
from dsi.model.dsi_model import DSIModel

SETTINGS = (
    "checkpoint.every=2",
    "evaluation.events_every=3",
    "docids=product",
    "docids.groups=2",
    "docids.codes=4",
    "docids.embedding.source=model",
    "docids.embedding.updates=4",
    "replay.name=generative",
    "replay.ratio=1",
    "replay.queries_per_document=2",
    "sharpness.name=friendly",
    "model.dropout=0.2",
)


def run_to_the_end(lab, place, resume):
    """What a process does that may be killed."""
    os.environ["DSI_CACHE"] = str(place / "cache")
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        if resume:
            config = load_config(place / "run" / "config.yaml", [f"output={place}"])
            lab.call(runs.train, config, resume=True)
        else:
            lab.train(*SETTINGS, output=place)


def kill_at_random(lab, place, kills, seed):
    """A run killed so often; whenever one is finished it is compared, and another one starts."""
    context, rng = multiprocessing.get_context("fork"), random.Random(seed)
    expected = lab.results(lab.kept(*SETTINGS))
    started = time.monotonic()
    child = context.Process(target=run_to_the_end, args=(lab, place / "measured", False))
    child.start()
    child.join()
    assert child.exitcode == 0
    whole, done, finished = time.monotonic() - started, 0, 0
    target = place / "killed"
    while done < kills or finished == 0:
        resume = (target / "run" / "config.yaml").exists()
        if not resume:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
        child = context.Process(target=run_to_the_end, args=(lab, target, resume))
        child.start()
        child.join(rng.uniform(0.05, whole) if done < kills else None)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            done += 1
            continue
        assert child.exitcode == 0
        assert lab.results(target / "run") == expected
        finished += 1
        shutil.rmtree(target)
    return finished


def test_a_killed_run_goes_on_as_if_nothing_had_happened(lab, tmp_path):
    assert kill_at_random(lab, tmp_path, kills=3, seed=1) >= 1


@pytest.mark.slow
def test_thirty_kills(lab, tmp_path):
    finished = kill_at_random(lab, tmp_path, kills=30, seed=2)
    print(f"30 kills, {finished} runs finished, all equal byte for byte")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_the_update_that_it_came_in(lab, tmp_path, signum):
    step, calls = Update.take, []

    def signalled(*arguments, **options):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signum)
        return step(*arguments, **options)

    before = signal.getsignal(signum)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(Update, "take", signalled)
        lab.train("sharpness=sam", output=tmp_path)
    assert signal.getsignal(signum) is before
    assert caught.value.signum == signum and caught.value.where == "at update 7 of stage 0"
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00-00000007"]
    lab.call(runs.train, load_config(run / "config.yaml", [f"output={tmp_path}"]), resume=True)
    assert lab.results(run) == lab.results(lab.kept("sharpness=sam"))


def test_outside_of_updates_a_signal_stops_at_once(lab, tmp_path):
    look = trainer.Trainer._look

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return look(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trainer.Trainer, "_look", signalled)
        lab.train("checkpoint.every=4", output=tmp_path)
    run = tmp_path / "run"
    lab.call(runs.train, load_config(run / "config.yaml", [f"output={tmp_path}"]), resume=True)
    assert lab.results(run) == lab.results(lab.kept())


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_the_exit_status_says_what_stopped_it(lab, tmp_path, capsys, monkeypatch, signum, status):
    step = Update.take

    def signalled(*arguments, **options):
        os.kill(os.getpid(), signum)
        return step(*arguments, **options)

    monkeypatch.setattr(Update, "take", signalled)
    AcceleratorState._reset_state(True)
    assert cli.main(["train", *lab.settings("name=stopped", output=tmp_path)]) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dsi:")]
    name = signal.Signals(signum).name
    assert errors == [f"dsi: stopped by {name} at update 1 of stage 0; go on with --resume"]


def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_whole(lab, tmp_path):
    """In a process of its own, whose files may not grow beyond a size."""
    settings = lab.settings("checkpoint.every=2", "model.d_ff=512", output=tmp_path)
    code = (
        "import resource, sys\n"
        "from continual.run import checkpoint\n"
        "from continual import cli\n"
        "save, calls = checkpoint.save, []\n"
        "def limited(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "    return save(*arguments)\n"
        "checkpoint.save = limited\n"
        "sys.exit(cli.main(['train', *sys.argv[1:]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *settings], capture_output=True, text=True, timeout=300
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("dsi: error")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and "file too large" in errors[0] and "--resume" in errors[0]
    assert "Traceback" not in done.stderr
    run = tmp_path / "run"
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == ["00-00000002", "00-00000004"]  # nothing half-written beside them
    lab.call(runs.train, load_config(run / "config.yaml", [f"output={tmp_path}"]), resume=True)
    assert lab.results(run) == lab.results(lab.kept("model.d_ff=512"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_access_is_one_line(lab, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        lab.train(output=tmp_path)


def nan_at(patch, call):
    """The loss of one forward pass is no number."""
    forward, calls = DSIModel.forward, []

    def spoilt(self, *arguments, **options):
        losses = forward(self, *arguments, **options)
        if self.training:
            calls.append(1)
        return losses * float("nan") if self.training and len(calls) == call else losses

    patch.setattr(DSIModel, "forward", spoilt)


@pytest.mark.parametrize("settings", [("checkpoint.every=2",), ("sharpness=sam",), ()])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_batch(lab, tmp_path, settings):
    sharp = "sharpness=sam" in settings
    with pytest.MonkeyPatch.context() as patch:
        nan_at(patch, 9 if sharp else 5)  # in update 4, counted from 0
        with pytest.raises(UserError, match=r"nan at update 4 of stage 0.*nonfinite: skip"):
            lab.train(*settings, output=tmp_path)
    run = tmp_path / "run"
    kept = json.loads((run / "nonfinite" / "batch.json").read_text())
    tensors = load_file(run / "nonfinite" / "batch.safetensors")
    assert (kept["stage"], kept["update"]) == (0, 4)
    assert len(kept["examples"]) == len(tensors["input_ids"]) == 8
    assert all(example["document"].startswith("d") for example in kept["examples"])
    seen = batch_of_update(lab, tmp_path / "other", settings, 4)
    assert torch.equal(seen, tensors["input_ids"])
    # no checkpoint holds weights that are no numbers
    for path in (run / "checkpoints").glob("*/model.safetensors"):
        assert all(torch.isfinite(value).all() for value in load_file(path).values())


def batch_of_update(lab, place, settings, number):
    seen, step = [], Update.take

    def noted(self, batch, *arguments, **options):
        seen.append(batch.input_ids)
        return step(self, batch, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "take", noted)
        lab.train(*settings, output=place)
    return seen[number]


@pytest.mark.parametrize("settings", [("sharpness=sam",), ()])
def test_an_update_that_is_not_finite_can_be_left_out(lab, tmp_path, settings):
    with pytest.MonkeyPatch.context() as patch:
        nan_at(patch, 5)
        run = lab.train("training.nonfinite=skip", *settings, output=tmp_path)
    lines = [line for line in lab.metrics(run) if "skipped_updates" in line]
    assert [line["skipped_updates"] for line in lines if line["stage"] == 0][-1] == 1
    assert all(torch.isfinite(value).all() for value in lab.weights(run, 2).values())
    # and where all are finite, looking changes nothing
    assert lab.weights(lab.kept("training.nonfinite=skip"), 2).keys()
    for name, value in lab.weights(lab.kept("training.nonfinite=skip"), 2).items():
        assert torch.equal(value, lab.weights(lab.kept(), 2)[name])
