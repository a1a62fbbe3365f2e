"""The seam: when a component is called, what it is given, what becomes of its loss and state."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from continual.component import Component
from continual.config import registry
from continual.method import Method
from continual.replay import Replay
from continual.stream.view import QueryPool, StageView
from continual.update.update import Update
from tests.continual.test_resume import interrupt, resume

PLUGIN = '''
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from continual.regularizers import Regularizer


class Noted(Regularizer):
    """Notes every call in a file, counts stages in its state, and adds weight * sum of scores^2."""

    @dataclass(frozen=True)
    class Config:
        weight: float = 0.0
        file: str = ""

    def __init__(self, config):
        super().__init__(config)
        self.reads_outputs = config.weight > 0

    def note(self, *what):
        if self.config.file:
            with open(self.config.file, "a") as file:
                file.write(json.dumps(what) + "\\n")

    def begin_stage(self, view):
        self.state["begun"] = self.state.get("begun", torch.zeros(())) + 1
        self.note("begin", view.stage, len(view.documents), len(view.pools))

    def end_stage(self, view):
        batches = list(view.batches(2, "test"))
        losses = torch.cat([view.losses(batch) for batch in batches])
        outputs = [view.outputs(batch)[0] for batch in batches]
        rows = [torch.arange(len(batch.documents)) for batch in batches]
        own = [o[r, b.documents] for o, r, b in zip(outputs, rows, batches)]
        assert torch.allclose(losses, -torch.cat(own), atol=1e-5)
        assert losses.requires_grad and not view.model.training
        self.note("end", view.stage, len(view.pools), [b.documents.tolist() for b in batches])

    def example_loss(self, batch, scores):
        assert len(scores[0]) == len(batch.documents)
        return self.config.weight * scores[0].square().mean(-1)
'''


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """The plugin's name, and a function that reads what it has noted."""
    package = tmp_path / "noted_plugin"
    package.mkdir()
    (package / "noted.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_allowed", {"noted_plugin"})
    file = tmp_path / "calls"
    return ("regularizer=noted_plugin.noted", f"regularizer.file={file}"), file


def calls(file) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_stage_begins_once_and_ends_once_also_in_a_run_that_was_cut_off(lab, tmp_path, noted):
    settings, file = noted
    whole = lab.train(*settings)
    expected = calls(file)
    assert [line[:3] for line in expected if line[0] == "begin"] == [
        ["begin", 0, 18],
        ["begin", 1, 24],
        ["begin", 2, 30],
    ]
    assert [line[:3] for line in expected if line[0] == "end"] == [
        ["end", 0, 1],  # D_0's queries; cl_seen rehearses none later
        ["end", 1, 0],
        ["end", 2, 0],
    ]
    file.unlink()
    # the 14th update is the fourth of stage 1, whose checkpoint is after the third
    run = interrupt(lab, tmp_path, Update, "take", 14, settings=("checkpoint.every=3", *settings))
    resume(lab, run)
    assert calls(file) == expected
    assert lab.results(run) == lab.results(whole)
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    assert float(load_file(checkpoint / "regularizer.safetensors")["begun"]) == 3


def test_what_components_are_given_is_seeded_and_moves_nothing(lab, noted):
    settings, file = noted
    one = lab.train(*settings)
    assert lab.results(one) == lab.results(lab.kept()), "drawing batches changed the run"
    ends = [line[3] for line in calls(file) if line[0] == "end"]
    assert [len(batch) for batch in ends[1]] == [8, 8]
    assert {d for batch in ends[2] for d in batch} <= set(range(30)) and ends[1] != ends[2]


@pytest.mark.parametrize("more", [(), ("sharpness=sam",), ("training.precision=bf16",)])
def test_a_loss_per_example_is_inside_every_pass(lab, noted, more):
    settings, _ = noted
    strong = (*settings, "regularizer.weight=0.3", *more)
    run = lab.train(*strong)
    assert lab.matrix(run)["metrics"] != lab.matrix(lab.kept(*more))["metrics"] or any(
        not torch.equal(value, lab.weights(lab.kept(*more), 2)[name])
        for name, value in lab.weights(run, 2).items()
    )
    scale = float(lab.weights(run, 2)["docids.rows"].square().mean())
    plain = float(lab.weights(lab.kept(*more), 2)["docids.rows"].square().mean())
    assert scale < plain, "the scores are held small, and so the rows"


@pytest.mark.parametrize("more", [(), ("sharpness=sam",)])
def test_a_loss_per_example_adds_up_over_micro_batches(lab, noted, more):
    settings, _ = noted
    strong = (*settings, "regularizer.weight=0.3", *more)
    with lab.in_double():
        whole, parts = lab.train(*strong), lab.train(*strong, "training.accumulation=4")
    for name, value in lab.weights(whole, 2).items():
        torch.testing.assert_close(lab.weights(parts, 2)[name], value, rtol=1e-9, atol=1e-9)


def test_a_component_is_its_state():
    one, other = Component(), Component()
    one.state["fisher/docids.rows"] = torch.ones(2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.state["fisher/docids.rows"], torch.ones(2))
    assert one.state_dict() is not one.state


def test_kept_tensors_follow_the_rows():
    nothing: Any = None
    origins = {"docids.rows": torch.tensor([1, 2, -1])}
    view = StageView(1, nothing, nothing, nothing, nothing, nothing, nothing, origins=origins)
    kept = {"fisher/docids.rows": torch.tensor([[1.0], [2.0], [3.0]]), "other": torch.ones(2)}
    found = view.followed(kept, fill=9.0)
    assert found["fisher/docids.rows"].tolist() == [[2.0], [3.0], [9.0]]
    assert found["other"] is kept["other"]
    assert view.fresh()["docids.rows"].tolist() == [False, False, True]


class Scored(Replay):
    """Rehearses D_0's queries, each with its document's number as a further tensor."""

    def __init__(self, config=None):
        super().__init__(config)
        self.ratio, self.reads_outputs, self.seen = 1.0, True, []

    def pools(self, view):
        if view.stage == 0:
            return []
        tokens, documents = view.stream.train_queries(0)
        extras = {"twice": 2.0 * documents, "pair": np.stack([documents, documents], 1)}
        return [QueryPool("scored", tokens, documents, 1.0, extras=extras)]

    def example_loss(self, batch, scores):
        self.seen.append((batch.documents, dict(batch.extras)))
        return torch.zeros(len(batch.documents))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_further_tensors_of_a_query_reach_its_batches(lab, monkeypatch, accumulation):
    member = Scored()
    of = Method.of.__func__  # type: ignore[attr-defined]

    def chosen(cls, config):
        return replace(of(cls, config), replay=member)

    monkeypatch.setattr(Method, "of", classmethod(chosen))
    lab.train("training.updates=2", f"training.accumulation={accumulation}")
    with_extras = [(d, extras) for d, extras in member.seen if extras]
    assert len(with_extras) >= 8 * accumulation
    rehearsed = 0
    for documents, extras in with_extras:
        own = ~extras["twice"].isnan()
        assert torch.equal(extras["twice"][own], 2.0 * documents[own])
        assert torch.equal(extras["pair"][own], documents[own, None].expand(-1, 2))
        assert (extras["pair"][~own] == -1).all()
        rehearsed += int(own.sum())
    assert 0.4 < rehearsed / sum(len(d) for d, _ in with_extras) < 0.6  # ratio 1


def test_the_worked_example_works(lab, tmp_path, monkeypatch, repository):
    """CONTRIBUTING's: as printed, under 40 lines, with a loss per example and state."""
    text = (repository / "CONTRIBUTING.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n# mymethods/confidence.py\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "mymethods").mkdir()
    (tmp_path / "mymethods" / "confidence.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_allowed", set())
    registry.allow("mymethods")
    settings = ("regularizer=mymethods.confidence", "regularizer.weight=1", "checkpoint.every=3")
    whole = lab.train(*settings)
    assert lab.results(lab.train(*settings, "regularizer.weight=0")) == lab.results(lab.kept())
    plain, held = lab.weights(lab.kept(), 2), lab.weights(whole, 2)
    assert not torch.equal(plain["docids.rows"], held["docids.rows"])
    run = interrupt(lab, tmp_path, Update, "take", 14, settings=settings)
    resume(lab, run)
    assert lab.results(run) == lab.results(whole)
