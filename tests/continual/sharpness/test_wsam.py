"""WSAM: the two terms, together and apart."""

import pytest
import torch

from continual.sharpness.wsam import WSAM
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def test_decoupled_terms_add_up_to_the_coupled_gradient():
    (coupled,) = Quadratic(member("wsam"), WIDE, STEEP).updates(1).descents
    run = Quadratic(member("wsam", decoupled=True), WIDE, STEEP)
    plain = run.gradient()
    clean, past = run.updates(1).descents
    for whole, first, second, gradient in zip(coupled, clean, past, plain, strict=True):
        assert torch.equal(first, gradient)
        torch.testing.assert_close(first + second, whole)


def test_coupled_nothing_goes_past_the_optimizer():
    run = Quadratic(member("wsam"), WIDE, STEEP)
    step = run.step()
    step.gradients.append(run.gradient())
    assert run.policy.decoupled(step) is None


@pytest.mark.parametrize("gamma", [-0.1, 1.0])
def test_impossible_weights_are_refused(gamma):
    with pytest.raises(ValueError, match=r"^gamma: "):
        WSAM.Config(gamma=gamma)
