"""EWC: the Fisher information example by example, the quadratic, and rows that come and go."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from continual.regularizers import ewc
from continual.regularizers.ewc import EWC
from continual.stream.view import StageView
from dsi.errors import UserError
from dsi.examples.batches import Batch
from dsi.model.dsi_model import from_scratch

NOTHING: Any = None
CODES = np.array([[0, 2], [1, -1], [3, 0], [3, 1], [2, 2]])


@dataclass(frozen=True)
class Given(StageView):
    """A view with batches of its own."""

    given: Iterable[Batch] = ()

    def batches(self, count, purpose):
        yield from self.given


def made(stage=0, given=(), accelerator=None, origins=None, model=None, batch_size=8) -> Given:
    config: Any = SimpleNamespace(
        seed=3, training=SimpleNamespace(batch_size=batch_size, batch_tokens=0)
    )
    return Given(
        stage,
        NOTHING,
        NOTHING,
        config,
        NOTHING,
        model if model is not None else small_model([4, 3]),
        CODES,
        accelerator,
        origins=origins or {},
        given=given,
    )


def small_model(sizes):
    shape = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)
    model = from_scratch(0, vocab_size=40, code_sizes=sizes, dropout_rate=0.3, **shape)
    return model.double().eval()


def batch(rows, length, labels=None):
    """Examples of the given documents, of different lengths."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.ones(len(rows), length, dtype=torch.long)
    for i in range(len(rows)):
        mask[i, length - i :] = 0
    ids = torch.randint(1, 40, mask.shape, generator=generator) * mask
    return Batch(ids, mask, torch.tensor(rows), labels)


def docids_and_texts():
    labels = torch.tensor([[5, 6, 7, 8], [9, 10, -100, -100]])
    return batch([0, 1, 2, 4], 6), batch([3, 1], 5, labels)


def by_a_loop(view, batches):
    """The mean of the squared gradients of one example after the other, and how many they are."""
    weights, count = view.weights, 0
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for part in batches:
        for i in range(len(part.documents)):
            loss = view.losses(part.rows(torch.tensor([i]))).sum()
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            count += 1
            for name, gradient in zip(weights, found, strict=True):
                total[name] += 0 if gradient is None else gradient.square()
    return {name: value / count for name, value in total.items()}


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_the_fisher_information_is_that_of_single_examples(monkeypatch, at_once):
    monkeypatch.setattr(ewc, "MOST_EXAMPLES", at_once)
    given = docids_and_texts()
    view = made(given=given)
    before = {name: (weight, weight.detach().clone()) for name, weight in view.weights.items()}
    found, expected = EWC(EWC.Config()).fisher(view), by_a_loop(view, given)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12)
    # the embedding is read by encoder and decoder, so its gradient is the sum of both
    assert bool(found["encoder.embed_tokens.weight"][5:8].any(1).all())
    # the very same parameters are there afterwards, with their numbers and without a gradient
    for name, weight in view.model.named_parameters():
        assert weight is before[name][0] and torch.equal(weight, before[name][1])
        assert weight.grad is None
    assert view.model.decoder.embed_tokens.weight is view.model.encoder.embed_tokens.weight


def test_frozen_weights_have_none():
    view = made(given=docids_and_texts())
    view.model.encoder.requires_grad_(False)
    found = EWC(EWC.Config()).fisher(view)
    expected = by_a_loop(view, docids_and_texts())
    assert found.keys() == expected.keys() and not any(n.startswith("encoder.") for n in found)
    torch.testing.assert_close(found["docids.rows"], expected["docids.rows"], rtol=1e-6, atol=0)


def test_so_many_examples_are_taken():
    given = tuple(batch([0, 1, 2, 3], length) for length in (4, 5))
    view = made(given=itertools.cycle(given))  # no more than needed is asked for
    found = EWC(EWC.Config(samples=6)).fisher(view)
    expected = by_a_loop(view, [given[0], given[1].rows(torch.arange(2))])
    torch.testing.assert_close(found["docids.rows"], expected["docids.rows"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("fisher", ["empirical", "model"])
def test_ranks_share_the_examples(fisher):
    given = (*docids_and_texts(), batch([2], 3))  # one is too few for all of them
    member = EWC(EWC.Config(fisher=fisher))
    whole = member.fisher(made(given=given))

    def share(rank):
        return SimpleNamespace(
            process_index=rank, num_processes=3, reduce=lambda found, reduction: found
        )

    shares = [member.fisher(made(given=given, accelerator=share(rank))) for rank in range(3)]
    assert not torch.allclose(shares[0]["docids.rows"], shares[1]["docids.rows"])
    for name, value in whole.items():
        added = torch.stack([found[name] for found in shares]).sum(0)
        torch.testing.assert_close(added, value, rtol=1e-9, atol=1e-15)


def test_codes_are_drawn_from_the_models_own_distribution():
    scores = torch.tensor([[0.2, 0.5, 0.3]]).log()
    codes = torch.tensor([[1, 0, -1]])
    third = torch.tensor([[0.9, 0.1]]).log()
    chances = torch.tensor([[0.19, 0.71, 0.5]])  # the first code, the third; beyond the end nothing
    loss = ewc._loss_of_drawn([scores, scores, third], {"codes": codes}, chances)
    assert float(loss) == pytest.approx(-math.log(0.2) - math.log(0.3))
    words = torch.stack([scores, scores, scores], 1)
    inputs = {"codes": codes, "labels": torch.tensor([[7, 7, -100]])}
    loss = ewc._loss_of_drawn([words], inputs, torch.tensor([[0.21, 0.999, 0.5, 0.5]]))
    assert float(loss) == pytest.approx(-math.log(0.5) - math.log(0.3))


def test_drawn_and_true_codes_differ_and_each_is_repeatable():
    given = docids_and_texts()
    true, drawn = (EWC(EWC.Config(fisher=f)) for f in ("empirical", "model"))
    ours, theirs = true.fisher(made(given=given)), drawn.fisher(made(given=given))
    again, later = drawn.fisher(made(given=given)), drawn.fisher(made(1, given))
    assert not torch.allclose(ours["docids.rows"], theirs["docids.rows"], rtol=0.1)
    assert torch.equal(theirs["docids.rows"], again["docids.rows"])
    assert not torch.equal(theirs["docids.rows"], later["docids.rows"])


def test_value_and_gradient_are_the_formula():
    model = nn.Linear(3, 2).double()
    member = EWC(EWC.Config(weight=3.0))
    fisher = {f"fisher/{n}": torch.rand_like(p.detach()) for n, p in model.named_parameters()}
    member.load_state_dict(fisher)
    member.begin_stage(made(1, model=model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    other = EWC(EWC.Config(weight=3.0))  # a run that goes on within the stage
    other.load_state_dict(member.state_dict())
    for one in (member, other):
        model.zero_grad()
        penalty = one.penalty(model)  # type: ignore[arg-type]
        assert penalty is not None
        penalty.backward()
        expected = 0.0
        for name, p in model.named_parameters():
            moved, F = p.detach() - before[name], fisher[f"fisher/{name}"]
            expected += 1.5 * (F * moved * moved).sum()
            torch.testing.assert_close(p.grad, 3.0 * F * moved)
        torch.testing.assert_close(penalty.detach(), expected)


def test_stages_add_up_and_new_rows_are_free(monkeypatch):
    monkeypatch.setattr(
        EWC, "fisher", lambda self, view: {n: torch.ones_like(w) for n, w in view.weights.items()}
    )
    model = small_model([5])
    member = EWC(EWC.Config(weight=2.0))
    member.begin_stage(made(0, model=model))
    assert member.penalty(model) is None  # stage 0 has nothing to hold
    member.end_stage(made(0, model=model))
    origins = model.resize([8], torch.Generator().manual_seed(0))
    member.begin_stage(made(1, model=model, origins=origins))
    assert member.state["fisher/docids.rows"].sum(1).tolist() == [8.0] * 5 + [0.0] * 3
    with torch.no_grad():
        model.docids.rows.add_(1.0)
    penalty = member.penalty(model)
    assert penalty is not None
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(5 * 8)  # 2 / 2 * five old rows of eight ones
    assert model.docids.rows.grad is not None
    assert not model.docids.rows.grad[5:].any()
    member.end_stage(made(1, model=model))
    assert not any(key.startswith("anchor/") for key in member.state)
    assert member.state["fisher/docids.start"].tolist() == [2.0] * 8
    # rows 1 and 6 go: those that stay have what they had
    kept = torch.tensor([0, 2, 3, 4, 5, 7])
    origins = model.resize([7], torch.Generator().manual_seed(0), kept)
    member.begin_stage(made(2, model=model, origins=origins))
    assert member.state["fisher/docids.rows"][:, 0].tolist() == [2.0] * 4 + [1.0] * 2 + [0.0]
    assert torch.equal(member.state["anchor/docids.rows"], model.docids.rows)
    penalty = member.penalty(model)
    assert penalty is not None and float(penalty.detach()) == 0.0


def test_what_it_needs_and_that_weight_zero_needs_nothing():
    held, free = EWC(EWC.Config()), EWC(EWC.Config(weight=0.0))
    assert held.needs_previous and held.touches_every_row
    assert not free.needs_previous and not free.touches_every_row
    free.end_stage(made())  # asks for no batch
    assert free.state == {}


def test_it_is_measured_without_dropout(lab, monkeypatch):
    fisher, modes = EWC.fisher, []

    def noted(self, view):
        modes.append(view.model.training)
        return fisher(self, view)

    monkeypatch.setattr(EWC, "fisher", noted)
    few = ("training.updates=5", "training.updates_per_stage=4", "model.dropout=0.3")
    lab.train("regularizer=ewc", "regularizer.samples=8", *few)
    assert modes == [False] * 3


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (("regularizer.weight=-1",), r"regularizer\.weight"),
        (("regularizer.samples=0",), r"regularizer\.samples"),
        (("regularizer.fisher=true",), r"regularizer\.fisher"),
        (("training.restart=true",), r"training\.restart"),
    ],
)
def test_mistakes_are_one_line(lab, settings, names):
    with pytest.raises(UserError, match=names):
        lab.config("regularizer=ewc", *settings)
