"""No regularizer: no penalty, nothing remembered."""

from torch import nn

from continual.regularizers.none import NoRegularizer


def test_nothing_is_added_and_nothing_is_kept():
    member, model = NoRegularizer(NoRegularizer.Config()), nn.Linear(2, 2)
    member.begin_stage(model, 1)
    assert member.penalty(model) is None
    assert member.state_dict() == {}
    member.load_state_dict({})
