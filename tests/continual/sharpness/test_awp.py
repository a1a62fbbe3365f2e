"""AWP: each matrix by a share of its norm, vectors not at all."""

import pytest
import torch

from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def test_each_matrix_moves_by_a_share_of_its_norm():
    run = Quadratic(member("awp", rho=0.02), WIDE, STEEP)
    gradient = run.gradient()
    for move, g, weight in zip(run.updates(1).moves[0], gradient, WIDE.values(), strict=True):
        if weight.dim() < 2:
            assert move is None
        else:
            assert float(move.norm()) == pytest.approx(0.02 * float(weight.norm()))
            torch.testing.assert_close(move / move.norm(), g / g.norm())


def test_a_matrix_of_zeros_stays():
    start = {"a": torch.zeros(2, 2), "b": torch.ones(2, 2)}
    run = Quadratic(member("awp"), start, start)
    step = run.step()
    step.gradients = [[torch.ones(2, 2), torch.ones(2, 2)]]
    first, second = run.policy.perturbation(step)
    assert not first.any()
    assert second.any()
