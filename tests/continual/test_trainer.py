"""The loop: reproducible to the last bit, and equal to plain training where it must be."""

import json

import numpy as np
import pytest
import torch

from continual.config.loading import preset_names
from continual.trainer import Trainer
from continual.update.optimizer import named_state
from continual.update.update import Taken, Update
from dsi.errors import UserError

EVERYTHING = (
    "replay.name=generative",
    "replay.ratio=1",
    "replay.queries_per_document=2",
    "replay.first_stage=0.5",
    "regularizer.name=l2",
    "sharpness.name=sam",
    "merging.name=average",
    "model.dropout=0.2",
)


def same_weights(lab, one, other, stages=range(3)):
    return all(
        torch.equal(value, lab.weights(other, stage)[name])
        for stage in stages
        for name, value in lab.weights(one, stage).items()
    )


BF16 = ("training.precision=bf16",)  # in software where the processor has no units for it


@pytest.mark.parametrize(
    "settings", [(), EVERYTHING, (*EVERYTHING, *BF16)], ids=["plain", "everything", "bf16"]
)
def test_the_same_configuration_gives_the_same_bytes(lab, settings):
    again = lab.train(*settings)
    assert lab.results(again) == lab.results(lab.kept(*settings))


def test_another_seed_gives_another_run(lab):
    other = lab.train("seed=1")
    assert not same_weights(lab, other, lab.kept())
    assert lab.matrix(other) != lab.matrix(lab.kept())


def test_looking_more_often_changes_nothing(lab):
    often = lab.kept("evaluation.events_every=4", *EVERYTHING)
    without = lab.results(often, "forgetting_events.json")
    assert without == lab.results(lab.kept(*EVERYTHING), "forgetting_events.json")


@pytest.mark.parametrize("settings", [(), ("sharpness.name=sam",)], ids=["plain", "sam"])
def test_micro_batches_add_up(lab, settings):
    whole = lab.kept(*settings, double=True)
    parts = lab.kept("training.accumulation=4", *settings, double=True)
    for stage in range(3):
        one, other = lab.weights(whole, stage), lab.weights(parts, stage)
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9)


def test_from_scratch_on_one_corpus_is_naive(lab):
    scratch = lab.train("method=scratch", "data.stream=one")
    naive = lab.train("method=cl_seen", "data.stream=one")
    assert lab.results(scratch) == lab.results(naive)


def test_from_scratch_forgets_the_weights_and_has_every_update_so_far(lab):
    scratch = lab.train("training.restart=true")
    assert lab.matrix(scratch)["num_updates"] == [10, 18, 26]
    assert same_weights(lab, scratch, lab.kept(), [0])
    # the last stage alone is the last stage of all of them
    last = lab.train("training.restart=true", "training.stages=last")
    matrix = lab.matrix(last)
    assert matrix["num_updates"] == [0, 0, 26]
    assert matrix["metrics"]["hits@10"][1] == [None] * 3
    assert matrix["metrics"]["hits@10"][2] == lab.matrix(scratch)["metrics"]["hits@10"][2]
    assert same_weights(lab, scratch, last, [2])


@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["plain", "everything"])
def test_growing_keeps_old_rows_and_their_moments(lab, monkeypatch, settings):
    grown = []

    def begin(self, state, stage):
        model = state.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        moments = {k: v.clone() for k, v in named_state(state.optimizer, model).items()}
        view = original(self, state, stage)
        if stage == 0:
            return view
        after, kept = state.model.state_dict(), named_state(state.optimizer, state.model)
        old, count = len(before["docids.rows"]), self.stream.count(stage)
        grown.append((old, count))
        for name, value in before.items():
            assert torch.equal(after[name][: len(value)], value), name
        assert after["docids.rows"].shape == (count, 16)
        assert len(after["docids.rows"][old:].unique()) > 16  # new rows are random, not zero
        assert moments.keys() == kept.keys() and len(moments) > 30
        for key, value in moments.items():
            if key.startswith("docids.rows/exp"):
                assert torch.equal(kept[key][:old], value), key
                assert not kept[key][old:].any()
                assert value.any()
            else:
                assert torch.equal(kept[key], value), key
        return view

    original = Trainer._begin
    monkeypatch.setattr(Trainer, "_begin", begin)
    run = lab.train(*settings)
    assert grown == [(18, 24), (24, 30)]
    assert same_weights(lab, run, lab.kept(*settings))


def test_fresh_moments_when_asked(lab, monkeypatch):
    sizes = []

    def begin(self, state, stage):
        view = original(self, state, stage)
        sizes.append(len(named_state(state.optimizer, state.model)))
        return view

    original = Trainer._begin
    monkeypatch.setattr(Trainer, "_begin", begin)
    lab.train("training.reset_optimizer=true")
    assert sizes == [0, 0, 0]


LONGER = ("data.stream=one", "training.updates=45", "tracking.log_every=15")


def losses(lab, run):
    return [event["loss"] for event in lab.metrics(run) if "loss" in event]


@pytest.mark.parametrize(
    "settings",
    [
        ("direction=inputs_to_targets",),
        ("direction=targets_to_inputs",),
        ("direction=bidirectional",),
        ("direction=span_corruption",),
        ("views=[{name: set, weight: 1.0, length: 16}]",),
        (
            "views=[{name: first, weight: 1}, {name: chunk, weight: 2}]",
            "training.label_smoothing=0.1",
        ),
        ("training.precision=bf16",),
        ("prompts.indexing=index", "prompts.retrieval=find"),
    ],
    ids=lambda settings: settings[0].split("=", 1)[1][:20],
)
def test_every_direction_and_view_learns(lab, settings):
    found = losses(lab, lab.train(*LONGER, *settings))
    assert len(found) == 3 and found[-1] < 0.9 * found[0]


def test_training_in_bfloat16_keeps_weights_in_float32(lab):
    run = lab.train("training.precision=bf16")
    assert {value.dtype for value in lab.weights(run, 2).values()} == {torch.float32}
    assert not same_weights(lab, run, lab.kept())
    assert lab.matrix(run)["num_updates"] == lab.matrix(lab.kept())["num_updates"]


def test_every_preset_trains(lab):
    for name in preset_names():
        config = lab.config(f"method={name}")
        assert config.method == name
    # that each of them also runs is shown in test_leakage


def test_a_diverging_loss_is_one_line(lab, monkeypatch):
    monkeypatch.setattr(Update, "take", lambda *a, **k: Taken(torch.tensor(float("nan"))))
    with pytest.raises(UserError, match=r"training\.learning_rate.*update 0 of stage 0"):
        lab.train()


def test_the_learning_rate_starts_again_at_every_stage(lab):
    rates = [e for e in lab.metrics(lab.kept("tracking.log_every=1")) if "loss" in e]
    for stage, budget in enumerate((10, 8, 8)):
        found = [event["learning_rate"] for event in rates if event["stage"] == stage]
        assert len(found) == budget
        assert max(found) == pytest.approx(0.01) and found[-1] < 0.002


def test_metrics_lines_mirror_the_matrix(lab):
    run = lab.kept()
    matrix, events = lab.matrix(run), lab.metrics(run)
    for event in events:
        if "corpus" in event:
            n, o = event["stage"], int(event["corpus"][1:])
            for metric, P in matrix["metrics"].items():
                assert event[metric] == P[n][o]
    assert sum("corpus" in event for event in events) == 6
    last = events[-1]
    assert last["A/hits@10"] == matrix["average_performance"]["hits@10"][2]
    assert last["F/hits@10"] == matrix["forgetting"]["hits@10"][2]


def test_only_the_stage_at_hand_is_timed(lab):
    timing = json.loads((lab.kept() / "timing.json").read_text())
    assert [entry["stage"] for entry in timing] == [0, 1, 2]
    assert all(np.isfinite(entry[key]) for entry in timing for key in ("prepare", "train"))
