"""L2: the penalty's value and gradient, and that new rows are free."""

from typing import Any

import pytest
import torch
from torch import nn

from continual.regularizers.l2 import L2
from continual.stream.view import StageView
from dsi.errors import UserError
from dsi.model.dsi_model import from_scratch


def begun(model, stage, origins=None):
    """The view of a stage that has begun with a model."""
    nothing: Any = None
    return StageView(
        stage, nothing, nothing, nothing, nothing, model, nothing, origins=origins or {}
    )


def small_model(count: int):
    sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)
    return from_scratch(0, vocab_size=40, code_sizes=[count], **sizes)


def test_value_and_gradient_are_the_formula():
    model = nn.Linear(3, 2).double()
    member = L2(L2.Config(weight=3.0))
    member.begin_stage(begun(model, 1))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    penalty = member.penalty(model)
    assert penalty is not None
    penalty.backward()
    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    expected = 1.5 * sum((m * m).sum() for m in moved)
    torch.testing.assert_close(penalty.detach(), expected)
    for p, m in zip(model.parameters(), moved, strict=True):
        torch.testing.assert_close(p.grad, 3.0 * m)


def test_the_first_stage_and_weight_zero_have_no_penalty():
    model = nn.Linear(3, 2)
    first, zero = L2(L2.Config(weight=3.0)), L2(L2.Config(weight=0.0))
    first.begin_stage(begun(model, 0))
    zero.begin_stage(begun(model, 1))
    assert first.penalty(model) is None and zero.penalty(model) is None


def test_rows_new_in_the_stage_are_free():
    model = small_model(5)
    origins = model.resize([8], torch.Generator().manual_seed(0))
    member = L2(L2.Config(weight=2.0))
    member.begin_stage(begun(model, 1, origins))
    with torch.no_grad():
        model.docids.rows.add_(1.0)
    penalty = member.penalty(model)
    assert penalty is not None
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(5 * 8)  # 2 / 2 * five old rows of eight ones
    gradient = model.docids.rows.grad
    assert gradient is not None
    torch.testing.assert_close(gradient[:5], torch.full((5, 8), 2.0), rtol=1e-5, atol=1e-5)
    assert torch.equal(gradient[5:], torch.zeros(3, 8))
    # the next stage grows again: what was new then has a version to stay near now
    origins = model.resize([9], torch.Generator().manual_seed(0))
    member.begin_stage(begun(model, 2, origins))
    assert member.state["docids.rows"][:8].isfinite().all()
    assert member.state["docids.rows"][8:].isnan().all()


def test_frozen_weights_are_not_remembered():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    member = L2(L2.Config())
    member.begin_stage(begun(model, 1))
    assert list(member.state_dict()) == ["weight"]


def test_the_anchor_survives_a_checkpoint():
    model = nn.Linear(3, 2)
    member, other = L2(L2.Config()), L2(L2.Config())
    member.begin_stage(begun(model, 1))
    with torch.no_grad():
        model.weight.add_(1.0)
    other.load_state_dict(member.state_dict())
    one, two = member.penalty(model), other.penalty(model)
    assert one is not None and two is not None
    assert torch.equal(one, two) and float(one.detach()) == pytest.approx(3.0)


def test_a_negative_weight_is_refused(lab):
    with pytest.raises(UserError, match=r"regularizer\.weight"):
        lab.config("regularizer.name=l2", "regularizer.weight=-1")


def test_a_strong_pull_keeps_old_weights_where_they_were(lab):
    def drift(run):
        before, after = lab.weights(run, 1), lab.weights(run, 2)
        old = after["docids.rows"][: len(before["docids.rows"])]
        return float((old - before["docids.rows"]).norm())

    held = lab.train("regularizer.name=l2", "regularizer.weight=100", "training.clip=0")
    assert drift(held) < 0.7 * drift(lab.kept("training.clip=0"))
