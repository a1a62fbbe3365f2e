"""Functional SAM: what it asks of the passes, and its preconditioned ascent."""

import pytest
import torch

from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def flat(tensors):
    """All entries in a row."""
    return torch.cat([t.flatten() for t in tensors])


def test_it_asks_for_the_gradient_of_the_outputs():
    assert member("functional").functional
    assert not member("sam").functional


def test_preconditioned_it_ascends_as_the_optimizer_descends():
    run = Quadratic(member("functional", preconditioned=True, rho=0.2), WIDE, STEEP)
    step = run.step()
    # the moments are the squared curvatures, so what is left of a w is the sign of a, times w
    expected = flat(WIDE.values())
    move = flat(run.policy.perturbation(step))
    torch.testing.assert_close(move, 0.2 * expected / expected.norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("missing", ["all", "one"])
def test_without_moments_the_gradient_is_taken_as_it_is(missing):
    run = Quadratic(member("functional", preconditioned=True, rho=0.2), WIDE, STEEP)
    step = run.step()
    clean = run.gradient()
    if missing == "all":
        step.second_moments = None
    else:  # one plain gradient among divided ones would be of no size, or of all of it
        step.second_moments[1] = None
    length = flat(clean).norm()
    for move, direction in zip(run.policy.perturbation(step), clean, strict=True):
        torch.testing.assert_close(move, 0.2 * direction / length, rtol=1e-6, atol=0)
