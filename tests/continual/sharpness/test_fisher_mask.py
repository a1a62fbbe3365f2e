"""The mask: how many weights, which ones, and for how long."""

import itertools

import pytest
import torch

from continual.sharpness.fisher_mask import FisherMaskSAM, top_share
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def length(moves):
    """The norm over all tensors."""
    return float(torch.cat([e.flatten() for e in moves]).norm())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.99, 1.0])
def test_it_has_the_largest_of_all_weights(share):
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator) for shape in ((7, 3), (11,), (2, 2, 2))]
    masks = top_share(tensors, share)
    inside = torch.cat([t[m].abs() for t, m in zip(tensors, masks, strict=True)])
    outside = torch.cat([t[~m].abs() for t, m in zip(tensors, masks, strict=True)])
    assert len(inside) == max(1, round(share * 40))
    assert not len(outside) or inside.min() >= outside.max()


def test_equal_gradients_do_not_make_it_larger():
    first, second = top_share([torch.ones(3, 2), -torch.ones(4)], 0.8)
    assert first.all()
    assert second.tolist() == [True, True, False, False]
    first, second = top_share([torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 3.0])], 0.6)
    assert (first.tolist(), second.tolist()) == ([True, True, False], [False, True])
    (nothing,) = top_share([torch.zeros(10)], 0.3)
    assert nothing.sum() == 3


def test_what_is_outside_stays_whatever_it_is_called():
    """The authors' code perturbs embeddings and biases fully, and by less than rho overall."""
    names = ("encoder.embed_tokens.weight", "decoder.block.bias", "decoder.layer_norm.weight")
    start = {name: torch.linspace(-1, 2, 10).double() for name in names}
    steep = {name: torch.linspace(1, 2 + i, 10).double() for i, name in enumerate(names)}
    run = Quadratic(member("fisher_mask", rho=0.2), start, steep).updates(1)
    assert sum(int(e.count_nonzero()) for e in run.moves[0]) == 3
    assert length(run.moves[0]) == pytest.approx(0.2, rel=1e-12)
    shorter = Quadratic(member("fisher_mask", rho=0.2, renormalise=False), start, steep).updates(1)
    assert length(shorter.moves[0]) < 0.2


def test_it_is_drawn_anew_when_it_is_old():
    run = Quadratic(member("fisher_mask", keep=0.3, refresh=3), WIDE, STEEP)
    masks = []
    for _ in range(7):
        run.update()
        masks.append({name: mask.clone() for name, mask in run.policy.state_dict().items()})
    unchanged = [
        all(torch.equal(old[name], new[name]) for name in WIDE)
        for old, new in itertools.pairwise(masks)
    ]
    assert [unchanged[i] for i in (0, 1, 3, 4)] == [True] * 4
    assert not (unchanged[2] and unchanged[5])
    assert all(mask.dtype == torch.bool for mask in masks[0].values())


def test_the_update_that_draws_it_uses_it():
    run = Quadratic(member("fisher_mask", keep=0.3, refresh=1), WIDE, STEEP)
    for _ in range(4):
        expected = top_share(run.gradient(), 0.3)
        run.update()
        for move, mask in zip(run.moves[-1], expected, strict=True):
            assert torch.equal(move != 0, mask)


@pytest.mark.parametrize(
    ("key", "value"), [("keep", 0.0), ("keep", 1.1), ("refresh", 0), ("rho", -1.0)]
)
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        FisherMaskSAM.Config(**{key: value})
