"""SAM against the closed form on a quadratic, and its invariants."""

import pytest
import torch

from continual.sharpness.sam import SAM
from dsi.errors import UserError

A = torch.tensor([1.0, 10.0], dtype=torch.float64)  # L(w) = 1/2 w' diag(1, 10) w
START = torch.tensor([2.0, -1.0], dtype=torch.float64)


def loss(w):
    return 0.5 * (A * w * w).sum()


def test_one_step_is_the_closed_form():
    sam = SAM(SAM.Config(rho=0.1))
    (epsilon,) = sam.perturbation([START], [A * START])
    expected = torch.tensor([0.01961161, -0.09805807], dtype=torch.float64)
    torch.testing.assert_close(epsilon, expected, rtol=0, atol=1e-8)
    (gradient,) = sam.combine([A * START], [A * (START + epsilon)])
    expected = torch.tensor([1.79803884, 0.09805807], dtype=torch.float64)
    torch.testing.assert_close(START - 0.1 * gradient, expected, rtol=0, atol=1e-8)
    # L(w + eps) - L(w) = rho ||g|| + rho^2 / 2 * ghat' A ghat, exactly
    rise = loss(START + epsilon) - loss(START)
    assert float(rise) == pytest.approx(1.0680731335, abs=1e-9)


def test_the_norm_is_global_and_the_scale_of_the_loss_does_not_matter():
    sam = SAM(SAM.Config(rho=0.3))
    gradients = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    weights = [torch.zeros_like(g) for g in gradients]
    epsilons = sam.perturbation(weights, gradients)
    assert float(torch.cat([e.flatten() for e in epsilons]).norm()) == pytest.approx(0.3)
    scaled = sam.perturbation(weights, [1000 * g for g in gradients])
    for one, other in zip(epsilons, scaled, strict=True):
        torch.testing.assert_close(one, other)


def test_a_zero_gradient_moves_nothing():
    (epsilon,) = SAM(SAM.Config(rho=0.1)).perturbation([torch.ones(3)], [torch.zeros(3)])
    assert torch.equal(epsilon, torch.zeros(3))


def test_tiny_gradients_keep_their_direction():
    (epsilon,) = SAM(SAM.Config(rho=0.1)).perturbation([torch.ones(2)], [torch.full((2,), 1e-30)])
    torch.testing.assert_close(epsilon, torch.full((2,), 0.1 / 2**0.5))


@pytest.mark.parametrize(
    ("rho", "phase", "stages"),
    [(0.1, "all", [0, 1, 2]), (0.1, "first", [0]), (0.1, "later", [1, 2]), (0.0, "all", [])],
)
def test_when_it_is_used(rho, phase, stages):
    sam = SAM(SAM.Config(rho=rho, phase=phase))
    assert [stage for stage in range(3) if sam.active(stage)] == stages


def test_a_negative_radius_is_refused(lab):
    with pytest.raises(UserError, match=r"sharpness\.rho"):
        lab.config("sharpness.name=sam", "sharpness.rho=-1")


def test_with_radius_zero_it_is_plain_training(lab):
    zero = lab.train("sharpness.name=sam", "sharpness.rho=0")
    assert lab.results(zero) == lab.results(lab.kept())


def test_later_alone_leaves_the_first_stage_as_it_is(lab):
    later = lab.train("sharpness.name=sam", "sharpness.rho=0.5", "sharpness.phase=later")
    for stage, same in ((0, True), (1, False)):
        ours, plain = lab.weights(later, stage), lab.weights(lab.kept(), stage)
        assert all(torch.equal(ours[name], plain[name]) for name in plain) is same
