"""AMP: every tensor has a ball of its own."""

import pytest
import torch

from continual.sharpness.amp import AMP
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def test_each_tensor_stays_in_its_own_ball():
    small = {key: weight / 10**i for i, (key, weight) in enumerate(WIDE.items())}
    run = Quadratic(member("amp", rho=0.5), small, STEEP)
    gradient = run.gradient()
    lengths = [float(e.norm()) for e in run.updates(1).moves[0]]
    assert lengths == pytest.approx([min(0.5, float(g.norm())) for g in gradient])
    assert lengths[0] == pytest.approx(0.5)
    assert lengths[-1] < 0.5


def test_several_ascents_add_up_from_where_they_are():
    run = Quadratic(member("amp", rho=100.0, zeta=0.01, ascents=3), WIDE, STEEP)
    clean = run.gradient()
    run.updates(1)
    assert len(run.moves) == 3
    for i, steep in enumerate(STEEP.values()):
        # on a quadratic: delta <- delta + zeta (g + a delta)
        expected = torch.zeros_like(steep)
        for moves in run.moves:
            expected = expected + 0.01 * (clean[i] + steep * expected)
            torch.testing.assert_close(moves[i], expected)


@pytest.mark.parametrize(("key", "value"), [("zeta", 0.0), ("ascents", 0)])
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        AMP.Config(**{key: value})
