"""GSAM: what is taken off is orthogonal, and the radius follows the learning rate."""

import pytest
import torch

from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def flat(tensors):
    """All entries in a row."""
    return torch.cat([t.flatten() for t in tensors])


def test_only_what_is_orthogonal_to_sams_gradient_is_taken_off():
    clean = flat(Quadratic(member("sam"), WIDE, STEEP).gradient())
    sams = flat(Quadratic(member("sam", rho=0.1), WIDE, STEEP).updates(1).descents[0])
    ours = flat(Quadratic(member("gsam", rho=0.1), WIDE, STEEP).updates(1).descents[0])
    taken = sams - ours
    assert float(taken @ sams) == pytest.approx(0, abs=1e-9)
    assert float(taken @ clean) > 0  # so the plain loss rises along what is descended


@pytest.mark.parametrize(("rate", "radius"), [(1.0, 0.1), (0.5, 0.06), (0.0, 0.02)])
def test_the_radius_follows_the_learning_rate(rate, radius):
    run = Quadratic(member("gsam", rho=0.1, rho_min=0.02), WIDE, STEEP)
    step = run.step()
    step.rate = rate
    assert float(flat(run.policy.perturbation(step)).norm()) == pytest.approx(radius)
