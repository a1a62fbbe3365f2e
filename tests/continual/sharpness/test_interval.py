"""Interval SAM: two passes now and then."""

import pytest
import torch

from continual.sharpness.interval import IntervalSAM
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def test_in_between_it_is_plain():
    run = Quadratic(member("interval", interval=3), WIDE, STEEP)
    for number in range(7):
        clean = run.gradient()
        run.update()
        plain = all(torch.equal(a, b) for a, b in zip(run.descents[-1], clean, strict=True))
        assert plain is (number % 3 != 0)
    assert len(run.moves) == 3


def test_an_impossible_interval_is_refused():
    with pytest.raises(ValueError, match=r"^interval: "):
        IntervalSAM.Config(interval=0)
