"""Tables alone move, in every stage; the layers stay as they began."""

from itertools import pairwise

import pytest
import torch

from continual.update.update import Update

EMBEDDING = "encoder.embed_tokens.weight"
STILL = ("training.updates=0", "training.updates_per_stage=0")


def moved(before, after):
    """Names of the weights that differ in the rows that both have."""
    return {n for n, value in before.items() if not torch.equal(after[n][: len(value)], value)}


@pytest.mark.parametrize(
    ("settings", "tables"),
    [
        ((), {EMBEDDING, "docids.rows"}),
        (("direction=bidirectional",), {EMBEDDING, "docids.rows"}),
        (("docids=naive",), {EMBEDDING, "docids.rows", "docids.inputs"}),
    ],
    ids=["atomic", "bidirectional", "naive"],
)
def test_in_every_stage_the_tables_move_and_nothing_else(lab, monkeypatch, settings, tables):
    take, stale = Update.take, []

    def noted(self, *arguments, **options):
        frozen = {n: p for n, p in self.model.named_parameters() if not p.requires_grad}
        stale.extend(name for name, p in frozen.items() if p.grad is not None)
        return take(self, *arguments, **options)

    begun = lab.weights(lab.train("parameters=tables", *settings, *STILL), 0)
    monkeypatch.setattr(Update, "take", noted)
    run = lab.train("parameters=tables", *settings)
    stages = [begun, *(lab.weights(run, stage) for stage in range(3))]
    for before, after in pairwise(stages):
        assert moved(before, after) == tables
    assert not stale, "the norm that is clipped would count it"


def test_new_rows_begin_as_without_it(lab):
    ours, plain = (lab.kept(*STILL, f"parameters={name}") for name in ("tables", "full"))
    for stage in range(3):
        one, other = lab.weights(ours, stage), lab.weights(plain, stage)
        assert all(torch.equal(value, other[name]) for name, value in one.items())
