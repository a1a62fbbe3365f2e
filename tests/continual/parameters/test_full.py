"""Full fine-tuning: everything moves, also what was frozen."""

from torch import nn

from continual.parameters.full import Full


def test_everything_is_trained_in_every_stage():
    model = nn.Linear(2, 2).requires_grad_(False)
    for stage in (0, 1):
        Full(Full.Config()).select(model, stage)
        assert all(p.requires_grad for p in model.parameters())
