"""One update against closed forms: passes, restoration, random state, clipping, penalties."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

import continual.update.update as module
from continual.sharpness._base import Policy, SharpnessConfig
from continual.sharpness.sam import SAM
from dsi.examples.batches import Batch
from tests.continual.one_update import Penalty, take

A = torch.tensor([1.0, 10.0], dtype=torch.float64)


class Quadratic(nn.Module):
    """The loss of every example is 1/2 w' diag(1, 10) w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))

    def forward(self, input_ids, attention_mask, codes, labels, label_smoothing) -> Tensor:
        return (0.5 * (A * self.w * self.w).sum()).expand(len(input_ids))


class Noisy(nn.Module):
    """Examples with different losses, dropout, and a weight that no example uses."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(8, 16, generator=generator))
        self.unused = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.passes: list[Tensor] = []

    def forward(self, input_ids, attention_mask, codes, labels, label_smoothing) -> Tensor:
        hidden = self.dropout(self.table[input_ids])
        self.passes.append((hidden.detach() != 0).flatten())
        return (hidden * attention_mask[..., None]).sum((1, 2)).square()


@dataclass
class Stay(Policy):
    """Sharpness that perturbs by ``by`` and notes the gradients of both passes."""

    by: float = 0.0
    config: SharpnessConfig = SharpnessConfig()
    clean: list[Tensor] = field(default_factory=list)
    perturbed: list[Tensor] = field(default_factory=list)

    def perturbation(self, step):
        self.clean = [g.clone() for g in step.gradients[0]]
        return [torch.full_like(w, self.by) for w in step.weights]

    def combine(self, step):
        self.perturbed = [g.clone() for g in step.gradients[-1]]
        return step.gradients[-1]


def batch(size=8) -> Batch:
    ids = torch.arange(size)[:, None] % 8 * torch.ones(1, 3, dtype=torch.long)
    return Batch(ids, torch.ones_like(ids), torch.arange(size), None)


def step(model, accelerator, lr=0.1, **changes):
    """One SGD update; returns the loss."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    given = changes.pop("batch", batch())
    codes = torch.arange(8)[:, None]
    taken = take(model, optimizer, given, codes, accelerator, **changes)
    assert taken.made
    return taken.loss


@pytest.mark.parametrize("micro_batches", [1, 2, 8])
def test_plain_and_sharp_steps_are_the_closed_forms(accelerator, micro_batches):
    plain, sharp = Quadratic(), Quadratic()
    loss = step(plain, accelerator, micro_batches=micro_batches)
    assert float(loss) == pytest.approx(7.0)  # 1/2 (4 + 10), the mean over the examples
    expected = torch.tensor([1.8, 0.0], dtype=torch.float64)
    torch.testing.assert_close(plain.w.detach(), expected, rtol=0, atol=1e-12)
    sam = SAM(SAM.Config(rho=0.1))
    step(sharp, accelerator, micro_batches=micro_batches, sharpness=sam, sharp=True)
    expected = torch.tensor([1.79803884, 0.09805807], dtype=torch.float64)
    torch.testing.assert_close(sharp.w.detach(), expected, rtol=0, atol=1e-8)


def test_weights_are_restored_bit_for_bit(accelerator):
    model = Noisy()
    before = model.table.detach().clone()
    step(model, accelerator, lr=0.0, sharpness=Stay(by=0.1), sharp=True)
    assert torch.equal(model.table, before)


def test_weights_are_restored_when_the_second_pass_raises(accelerator):
    model = Noisy()
    before, forward = model.table.detach().clone(), model.forward

    def fails(**inputs):
        if len(model.passes) == 1:
            assert not torch.equal(model.table, before)
            raise RuntimeError("out of memory")
        return forward(**inputs)

    model.forward = fails
    with pytest.raises(RuntimeError, match="out of memory"):
        step(model, accelerator, sharpness=Stay(by=0.1), sharp=True)
    assert torch.equal(model.table, before)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_both_passes_drop_the_same_units(accelerator, micro_batches):
    model, stay = Noisy(), Stay()
    step(model, accelerator, micro_batches=micro_batches, sharpness=stay, sharp=True)
    first, second = model.passes[:micro_batches], model.passes[micro_batches:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert 0.2 < float(torch.cat(first).float().mean()) < 0.8  # dropout is on
    if micro_batches > 1:
        assert not all(torch.equal(first[0], other) for other in first[1:])
    # so without a perturbation both gradients are the same, and so is the step
    assert all(torch.equal(a, b) for a, b in zip(stay.clean, stay.perturbed, strict=True))
    plain = Noisy()
    step(plain, accelerator, micro_batches=micro_batches)
    assert torch.equal(plain.table, model.table)


def test_dropout_depends_on_the_seed_and_on_nothing_before(accelerator):
    models = [Noisy() for _ in range(3)]
    step(models[0], accelerator)
    torch.rand(17)
    step(models[1], accelerator)
    step(models[2], accelerator, seed=6)
    assert torch.equal(models[0].table, models[1].table)
    assert not torch.equal(models[0].table, models[2].table)


def test_weights_without_a_gradient_are_left_alone(accelerator):
    model, stay = Noisy(), Stay(by=1.0)
    step(model, accelerator, sharpness=stay, sharp=True)
    assert len(stay.clean) == 1
    assert model.unused.item() == 1.0 and model.unused.grad is None


@pytest.mark.parametrize("sharp", [False, True])
def test_the_gradient_is_clipped_once_and_last(accelerator, monkeypatch, sharp):
    clipped = []

    def clip(accelerator, parameters, limit):
        clipped.append(limit)
        return original(accelerator, parameters, limit)

    original = module.clip_gradient
    monkeypatch.setattr(module, "clip_gradient", clip)
    model, stay = Quadratic(), Stay()
    step(model, accelerator, clip=0.5, micro_batches=4, sharpness=stay, sharp=sharp)
    assert clipped == [0.5]
    moved = torch.tensor([2.0, -1.0], dtype=torch.float64) - model.w.detach()
    assert float(moved.norm()) == pytest.approx(0.1 * 0.5, rel=1e-5)
    if sharp:  # the policy sees gradients as they are
        torch.testing.assert_close(stay.clean[0], torch.tensor([2.0, -10.0], dtype=torch.float64))
    step(model, accelerator, clip=0.0)
    assert clipped == [0.5]


@pytest.mark.parametrize(("micro_batches", "sharp"), [(1, False), (4, False), (1, True), (4, True)])
def test_the_penalty_is_added_once_per_update(accelerator, micro_batches, sharp):
    asked = []

    def penalty(model):
        asked.append(model.w.detach().clone())
        return 3.0 * model.w.sum()

    model = Quadratic()
    step(
        model,
        accelerator,
        micro_batches=micro_batches,
        regularizer=Penalty(penalty),
        sharpness=Stay(),
        sharp=sharp,
    )
    assert [w.tolist() for w in asked] == [[2.0, -1.0]]  # at the weights, not near them
    expected = torch.tensor([1.8 - 0.3, 0.0 - 0.3], dtype=torch.float64)
    torch.testing.assert_close(model.w.detach(), expected)


def test_words_count_where_text_is_written(accelerator):
    """Micro-batches with unequal numbers of words add up to the gradient of one big batch."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, input_ids, attention_mask, codes, labels, label_smoothing):
            return self.w * (labels != -100).sum(1) * input_ids[:, 0]

    labels = torch.tensor([[1, -100, -100], [1, 2, 3], [1, 2, -100], [4, -100, -100]])
    ids = torch.arange(4)[:, None]
    given = Batch(ids, torch.ones_like(ids), torch.arange(4), labels)
    moved = []
    for parts in (1, 2, 4):
        model = Words()
        loss = step(model, accelerator, batch=given, micro_batches=parts)
        assert float(loss) == pytest.approx((0 * 1 + 1 * 3 + 2 * 2 + 3 * 1) / 7)
        moved.append(model.w.item())
    assert moved == pytest.approx([1 - 0.1 * 10 / 7] * 3)


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_groups_of_equal_length_make_the_update_of_the_whole(accelerator, micro_batches, sharp):
    whole, grouped = Noisy(), Noisy()
    for model in (whole, grouped):
        model.dropout.p = 0.0
    sam = SAM(SAM.Config(rho=0.1))
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    how = dict(micro_batches=micro_batches, sharpness=sam, sharp=sharp, lr=0.01)
    loss = step(whole, accelerator, **how)
    again = step(grouped, accelerator, batch=replace(batch(), groups=groups), **how)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(grouped.table, whole.table)
    assert len(grouped.passes) == 3 * len(whole.passes)
