"""Weighted averages of the weights before and after a stage."""

import pytest
import torch

from continual.merging.average import Average
from dsi.errors import UserError


def test_values_and_what_has_no_older_version():
    member = Average(Average.Config(new=0.25))
    before = {"w": torch.tensor([[4.0, 8.0], [float("nan")] * 2])}
    after = {
        "w": torch.tensor([[0.0, 0.0], [5.0, 6.0]]),
        "unknown": torch.ones(1),
        "count": torch.tensor(3),
    }
    merged = member.merge(before, after)
    assert merged["w"].tolist() == [[3.0, 6.0], [5.0, 6.0]]
    assert merged["unknown"].tolist() == [1.0] and merged["count"].item() == 3
    assert after["w"].tolist() == [[0.0, 0.0], [5.0, 6.0]]


def test_all_new_needs_nothing_old():
    member = Average(Average.Config(new=1.0))
    assert not member.needs_previous
    after = {"w": torch.randn(3)}
    assert torch.equal(member.merge({}, after)["w"], after["w"])


@pytest.mark.parametrize("new", [-0.1, 1.1])
def test_weights_outside_the_line_are_refused(lab, new):
    with pytest.raises(UserError, match=r"merging\.new"):
        lab.config("merging.name=average", f"merging.new={new}")


def test_nothing_new_keeps_old_weights_and_trains_new_rows(lab):
    run, plain = lab.train("merging.name=average", "merging.new=0"), lab.kept()
    before, after = lab.weights(run, 0), lab.weights(run, 1)
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)], value), name
    # stage 1 started from the same weights as without merging: its new rows are the same
    new = slice(lab.sizes[0], None)
    assert torch.equal(after["docids.rows"][new], lab.weights(plain, 1)["docids.rows"][new])
