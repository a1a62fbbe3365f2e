"""A soup along the stream: means by hand, rows that are in fewer models, and decay."""

from typing import Any

import pytest
import torch

from continual.merging.soup import Soup
from continual.stream.view import StageView
from dsi.errors import UserError
from dsi.model.dsi_model import from_scratch

NOTHING: Any = None


def small_model():
    shape = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)
    return from_scratch(0, vocab_size=40, code_sizes=[2], **shape).double()


def view(stage, model, origins=None):
    return StageView(
        stage, NOTHING, NOTHING, NOTHING, NOTHING, model, NOTHING, origins=origins or {}
    )


def train(model, value):
    """A stage in which everything becomes ``value``."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)


def rows(model):
    assert torch.equal(model.docids.rows[:, :1].expand(-1, 8), model.docids.rows)
    return model.docids.rows[:, 0].tolist()


@pytest.mark.parametrize(
    ("decay", "second", "third", "third_of_later_rows"),
    [
        (1.0, (2 + 8) / 2, (2 + 8 + 14) / 3, (8 + 14) / 2),
        (0.5, (1 + 8) / 1.5, (0.5 + 4 + 14) / 1.75, (4 + 14) / 1.5),
    ],
)
def test_the_mean_of_the_stages_models(decay, second, third, third_of_later_rows):
    model, member = small_model(), Soup(Soup.Config(decay=decay))
    member.begin_stage(view(0, model))
    train(model, 2.0)
    member.end_stage(view(0, model))
    assert rows(model) == [2.0, 2.0]
    # two rows more in stage 1
    origins = model.resize([4], torch.Generator().manual_seed(0))
    member.begin_stage(view(1, model, origins))
    train(model, 8.0)
    member.end_stage(view(1, model))
    assert rows(model) == pytest.approx([second, second, 8.0, 8.0])
    assert model.docids.start.tolist() == pytest.approx([second] * 8)
    # row 1 goes and one comes in stage 2, in the middle of which the run is stopped
    origins = model.resize([4], torch.Generator().manual_seed(0), torch.tensor([0, 2, 3]))
    member.begin_stage(view(2, model, origins))
    other = Soup(Soup.Config(decay=decay))
    other.load_state_dict(member.state_dict())
    train(model, 14.0)
    other.end_stage(view(2, model))
    assert rows(model) == pytest.approx([third, *[third_of_later_rows] * 2, 14.0])
    assert model.encoder.embed_tokens.weight[3, 0].item() == pytest.approx(third)
    # between stages there is no copy of the weights, which are the mean
    assert all(key.startswith("count/") for key in other.state)
    assert all(value.dim() == 1 for value in other.state.values())


def test_no_decay_left_is_no_merging():
    model, member = small_model(), Soup(Soup.Config(decay=0.0))
    assert not member.needs_previous
    for stage in (0, 1):
        member.begin_stage(view(stage, model))
        train(model, 0.1 + stage)
        member.end_stage(view(stage, model))
        assert rows(model) == [0.1 + stage] * 2 and member.state == {}


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_outside_of_the_line_is_refused(lab, decay):
    with pytest.raises(UserError, match=r"merging\.decay"):
        lab.config("merging=soup", f"merging.decay={decay}")


def test_every_stage_starts_from_new_weights_and_so_has_no_soup(lab):
    with pytest.raises(UserError, match=r"training\.restart"):
        lab.config("merging=soup", "training.restart=true")
