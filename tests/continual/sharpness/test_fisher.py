"""Fisher SAM against the ball that it stays in."""

import pytest
import torch

from continual.sharpness.fisher import FisherSAM
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member, tensor


def flat(tensors):
    """All entries in a row."""
    return torch.cat([t.flatten() for t in tensors])


def test_numbers_by_hand():
    # g = (2, -10), eta 0.1: F = (1.4, 11), g' F^-1 g = 4 / 1.4 + 100 / 11
    run = Quadratic(member("fisher")).updates(1)
    root = (4 / 1.4 + 100 / 11) ** 0.5
    expected = tensor([0.1 * 2 / 1.4 / root, -0.1 * 10 / 11 / root])
    torch.testing.assert_close(run.moves[0][0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.1, 3.0])
def test_nothing_else_in_the_ball_rises_faster(eta):
    run = Quadratic(member("fisher", eta=eta, rho=0.2), WIDE, STEEP).updates(1)
    move, gradient = flat(run.moves[0]), flat(Quadratic(member("sam"), WIDE, STEEP).gradient())
    fisher = 1 + eta * gradient**2
    assert float((fisher * move**2).sum()) == pytest.approx(0.2**2)
    generator = torch.Generator().manual_seed(3)
    others = torch.randn(200, len(move), generator=generator, dtype=torch.float64)
    others *= 0.2 / (fisher * others**2).sum(1, keepdim=True).sqrt()
    assert bool((others @ gradient <= move @ gradient).all())


def test_a_negative_eta_is_refused():
    with pytest.raises(ValueError, match=r"^eta: "):
        FisherSAM.Config(eta=-0.1)
