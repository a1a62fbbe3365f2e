"""C-Flat: its gradient. Its points are those of test_gam.py."""

import pytest
import torch

from continual.sharpness.c_flat import CFlat
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def test_it_descends_the_loss_and_the_gradient_norm():
    run = Quadratic(member("c_flat", lam=0.5), WIDE, STEEP)
    clean = run.gradient()
    run.updates(1)
    first, second, third = run.moves
    for i, steep in enumerate(STEEP.values()):
        expected = clean[i] + steep * (first[i] + 0.5 * (third[i] - second[i]))
        torch.testing.assert_close(run.descents[0][i], expected)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"^lam: "):
        CFlat.Config(lam=-0.1)
