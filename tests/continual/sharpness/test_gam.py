"""GAM: where its passes are made, and what is taken off."""

import pytest
import torch

from continual.sharpness.gam import GAM
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def flat(tensors):
    """All entries in a row."""
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize(("name", "inner"), [("gam", 0.02), ("c_flat", 0.2)])
def test_the_three_further_points(name, inner):
    run = Quadratic(member(name), WIDE, STEEP)
    clean, curvature = flat(run.gradient()), flat(STEEP.values())
    first, second, third = (flat(moves) for moves in run.updates(1).moves)
    torch.testing.assert_close(first, inner * clean / clean.norm())
    # up the gradient of the gradient's norm, H g / ||g||, exactly on a quadratic
    steepest = curvature * clean
    torch.testing.assert_close(second, 0.2 * steepest / steepest.norm())
    there = clean + curvature * second
    torch.testing.assert_close(third, second + inner * there / there.norm())


def test_only_what_is_orthogonal_is_taken_off():
    descended = [
        flat(Quadratic(member("gam", gamma=gamma), WIDE, STEEP).updates(1).descents[0])
        for gamma in (0.0, 0.03, 0.06)
    ]
    taken = descended[0] - descended[1]
    assert float(taken @ descended[0]) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(descended[0] - descended[2], 2 * taken)


@pytest.mark.parametrize("key", ["inner", "b1", "b2", "b3", "gamma"])
def test_negative_settings_are_refused(key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        GAM.Config(**{key: -0.1})
