"""Micro SAM: the share of the batch that the first pass sees."""

import pytest

from continual.sharpness.micro import MicroSAM
from tests.continual.sharpness.quadratic import member


def test_the_first_pass_sees_a_share():
    assert member("micro").ascent_share() == 0.25
    assert member("micro", share=1.0).ascent_share() == member("sam").ascent_share() == 1


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match=r"^share: "):
        MicroSAM.Config(share=share)
