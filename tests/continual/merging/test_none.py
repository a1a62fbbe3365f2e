"""No merging: the weights that were trained."""

import torch

from continual.merging.none import NoMerging


def test_weights_stay_as_they_are():
    member = NoMerging(NoMerging.Config())
    after = {"w": torch.ones(2)}
    assert member.merge({"w": torch.zeros(2)}, after) == after
    assert not member.needs_previous
