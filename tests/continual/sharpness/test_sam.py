"""SAM against the closed form on a quadratic, and its invariants."""

import pytest
import torch

from continual.sharpness._base import Step
from continual.sharpness.sam import SAM
from dsi.errors import UserError
from tests.continual.sharpness.quadratic import Quadratic, member, tensor


def perturb(gradients, rho=0.1):
    """The perturbation along ``gradients``; where the weights are does not matter."""
    weights = [torch.zeros_like(g) for g in gradients]
    names = [f"decoder.{i}.weight" for i in range(len(weights))]
    return member("sam", rho=rho).perturbation(Step(names, weights, [gradients]))


def test_one_step_is_the_closed_form():
    run = Quadratic(member("sam", rho=0.1))
    before = run.loss()
    (move,) = run.policy.perturbation(run.step())
    torch.testing.assert_close(move, tensor([0.01961161, -0.09805807]), rtol=0, atol=1e-8)
    with torch.no_grad():
        run.weights["decoder.weight"].add_(move)
    # L(w + eps) - L(w) = rho ||g|| + rho^2 / 2 * ghat' A ghat, exactly
    assert run.loss() - before == pytest.approx(1.0680731335, abs=1e-9)
    run = Quadratic(member("sam", rho=0.1)).updates(1)
    found = run.weights["decoder.weight"].detach()
    torch.testing.assert_close(found, tensor([1.79803884, 0.09805807]), rtol=0, atol=1e-8)


def test_the_norm_is_global_and_the_scale_of_the_loss_does_not_matter():
    gradients = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    epsilons = perturb(gradients, rho=0.3)
    assert float(torch.cat([e.flatten() for e in epsilons]).norm()) == pytest.approx(0.3)
    scaled = perturb([1000 * g for g in gradients], rho=0.3)
    for one, other in zip(epsilons, scaled, strict=True):
        torch.testing.assert_close(one, other)


def test_a_zero_gradient_moves_nothing():
    (epsilon,) = perturb([torch.zeros(3)])
    assert torch.equal(epsilon, torch.zeros(3))


def test_tiny_gradients_keep_their_direction():
    (epsilon,) = perturb([torch.full((2,), 1e-30)])
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
