"""A run that is stopped anywhere and goes on ends with the same bytes."""

import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save, save_file

from continual import runs, trainer
from continual.config.loading import load_config
from continual.replay import generative
from continual.run import checkpoint, directory
from continual.update.update import Update
from dsi.errors import UserError
from dsi.manifest import checksum

SETTINGS = (
    "checkpoint.every=4",
    "evaluation.events_every=3",
    "replay.name=generative",
    "replay.ratio=1",
    "replay.queries_per_document=2",
    "regularizer.name=l2",
    "sharpness.name=sam",
    "merging.name=average",
    "merging.new=0.7",
    "model.dropout=0.2",
)


class Stop(Exception):
    """What interrupts a run here."""


def stop_at(patch, owner, name, call, before=True):
    """Raise at the given call of a function, before or after it has done its work."""
    original, count = getattr(owner, name), [0]

    def wrapper(*arguments, **options):
        count[0] += 1
        if count[0] == call and before:
            raise Stop
        result = original(*arguments, **options)
        if count[0] == call:
            raise Stop
        return result

    patch.setattr(owner, name, wrapper)


def interrupt(lab, place, owner, name, call, before=True, settings=SETTINGS):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, owner, name, call, before)
        lab.train(*settings, output=place)
    return place / "run"


TIMES = {"timing.json", "environment.json", "decoding.json", "memory_quality.json", "state.json"}


def timeless(run):
    """Every file but those that hold times, which the README names, and the output folder."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in {*TIMES, "manifest.json", "config.yaml"}
    }


def resume(lab, run):
    config = load_config(run / "config.yaml", [f"output={run.parent}"])
    return lab.call(runs.train, config, resume=True)


WHERE = {
    "before the first checkpoint": (Update, "take", 3, True),
    "within stage 0": (Update, "take", 8, True),
    "after the last update of stage 0": (Update, "take", 10, False),
    "while stage 0 is evaluated": (directory, "write_results", 1, False),
    "before the checkpoint of stage 0": (checkpoint, "save", 3, True),
    "after the checkpoint of stage 0": (checkpoint, "save", 3, False),
    "while pseudo-queries are written": (generative, "cached_generate", 2, True),
    "before the first update of stage 1": (Update, "take", 11, True),
    "within stage 1": (Update, "take", 17, False),
    "at the very end": (directory, "finish_environment", 1, True),
}


FAST = (
    "within stage 0",
    "before the checkpoint of stage 0",
    "while pseudo-queries are written",
    "within stage 1",
)


@pytest.mark.parametrize(
    "where",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WHERE],
)
def test_going_on_is_never_having_stopped(lab, tmp_path, where):
    run = interrupt(lab, tmp_path, *WHERE[where])
    assert json.loads((run / "environment.json").read_text())["end"] is None
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*SETTINGS))
    assert timeless(run) == timeless(lab.kept(*SETTINGS))
    assert json.loads((run / "environment.json").read_text())["end"] is not None


def test_going_on_in_bfloat16_is_never_having_stopped(lab, tmp_path):
    settings = (*SETTINGS, "training.precision=bf16")
    run = interrupt(lab, tmp_path, *WHERE["within stage 1"], settings=settings)
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*settings))


@pytest.mark.slow
def test_stopping_twice_and_with_frozen_parameters(lab, tmp_path):
    settings = ("checkpoint.every=3", "parameters=docid_rows", "training.restart=true")
    run = interrupt(lab, tmp_path, Update, "take", 5, settings=settings)
    for call in (10, 9, 14):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, Update, "take", call)
            resume(lab, run)
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*settings[1:]))


def test_a_finished_run_has_nothing_left_to_do(lab, tmp_path):
    run = shutil.copytree(lab.kept(), tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "take", lambda *a, **k: 1 / 0)
        resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept())


def test_the_pretrained_checkpoint_is_not_read_again(lab, tmp_path):
    run = interrupt(lab, tmp_path, Update, "take", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_model", lambda *a, **k: 1 / 0)
        resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*SETTINGS))


def line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_another_corpus_is_refused(lab, tmp_path):
    corpus = shutil.copytree(lab.corpus, tmp_path / "corpus")
    settings = (f"data.corpus={corpus}", "checkpoint.every=4")
    run = interrupt(lab, tmp_path / "out", Update, "take", 8, settings=settings)
    with open(corpus / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "d99", "title": "", "text": "one more"}\n')
    with pytest.raises(UserError, match="corpora differ") as caught:
        resume(lab, run)
    assert str(run) in line(caught)


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(lab, tmp_path, name):
    run = interrupt(lab, tmp_path, Update, "take", 17)
    newest = run / "checkpoints" / "01-00000004"
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    config, printed = load_config(run / "config.yaml", [f"output={run.parent}"]), StringIO()
    AcceleratorState._reset_state(True)
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_show", lambda folder: None)
        runs.train(config, resume=True)
    told = [text for text in printed.getvalue().splitlines() if "damaged" in text]
    assert len(told) == 1
    assert (
        "01-00000004" in told[0]
        and f"{name}: not what was written" in told[0]
        and "skipped" in told[0]
    )
    assert lab.results(run) == lab.results(lab.kept(*SETTINGS))


@pytest.mark.parametrize(
    ("key", "flag"), [("world_size", "world_size"), ("code", "code"), ("precision", "code")]
)
def test_other_code_and_other_processes_are_refused_unless_accepted(lab, tmp_path, key, flag):
    run = interrupt(lab, tmp_path, Update, "take", 17)
    config = load_config(run / "config.yaml", [f"output={run.parent}"])
    now = directory.made_by(SimpleNamespace(num_processes=1, mixed_precision="no"))
    before = re.escape(str(now[key]))
    other = {**now, key: 4 if key == "world_size" else "0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "made_by", lambda *_: other)
        with pytest.raises(UserError, match=rf"{before}.*--accept {flag}") as caught:
            lab.call(runs.train, config, resume=True)
        line(caught)
        lab.call(runs.train, config, resume=True, accept=[flag])
    assert lab.results(run) == lab.results(lab.kept(*SETTINGS))


def reseal(folder):
    """Checksums that are right for whatever is there."""
    sums = {
        path.name: checksum(path)
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}, indent=1) + "\n")


def without_group(folder):
    (folder / "optimizer.safetensors").unlink()
    state = json.loads((folder / "state.json").read_text())
    state["groups"].remove("optimizer")
    (folder / "state.json").write_text(json.dumps(state))


def with_other_sizes(folder):
    weights = load_file(folder / "model.safetensors")
    weights["docids.rows"] = weights["docids.rows"][:3].clone()
    save_file(weights, folder / "model.safetensors")
    (folder / "optimizer.safetensors").write_bytes(save({}))


@pytest.mark.parametrize("damage", [without_group, with_other_sizes])
def test_a_whole_checkpoint_that_does_not_fit_is_one_line(lab, tmp_path, damage):
    settings = ("checkpoint.every=4",)
    run = interrupt(lab, tmp_path, Update, "take", 17, settings=settings)
    newest = run / "checkpoints" / "01-00000004"
    damage(newest)
    reseal(newest)
    with pytest.raises(UserError, match=r"01-00000004: does not fit .*delete it") as caught:
        resume(lab, run)
    line(caught)
    shutil.rmtree(newest)
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*settings))


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_one_line(lab, tmp_path):
    settings = ("checkpoint.every=4",)
    run = interrupt(lab, tmp_path, Update, "take", 17, settings=settings)
    path = run / "metrics.jsonl"
    content = path.read_bytes()
    for damaged in (content[:40], content.replace(b"0", b"1", 1)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl: .*restore the file") as caught:
            resume(lab, run)
        line(caught)
        assert path.read_bytes() == damaged
    path.write_bytes(content)
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*settings))
