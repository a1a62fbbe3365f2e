"""The parts that passes are made of."""

import pytest
import torch
from torch import nn

from continual.update.passes import MicroBatch, Passes, among_largest, displaced, noised
from dsi.examples.batches import Batch


def weights():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def test_weights_are_moved_from_where_they_were_and_put_back():
    ours = weights()
    before = [w.detach().clone() for w in ours]
    addresses = [w.data_ptr() for w in ours]
    with displaced(ours) as move:
        move([torch.full((3, 4), 0.1), None])
        assert torch.equal(ours[0], before[0] + 0.1) and torch.equal(ours[1], before[1])
        move([torch.full((3, 4), 0.2), torch.ones(5)])  # not from the last place
        assert torch.equal(ours[0], before[0] + 0.2) and torch.equal(ours[1], before[1] + 1)
        move([None, None])
        assert torch.equal(ours[0], before[0])
    assert all(torch.equal(w, old) for w, old in zip(ours, before, strict=True))
    assert [w.data_ptr() for w in ours] == addresses


def test_weights_are_put_back_when_something_raises():
    ours = weights()
    before = [w.detach().clone() for w in ours]
    with pytest.raises(RuntimeError), displaced(ours) as move:
        move([torch.full((3, 4), float("nan")), torch.ones(5)])
        raise RuntimeError
    assert all(torch.equal(w, old) for w, old in zip(ours, before, strict=True))


def test_the_displacement_is_taken_and_its_memory_used():
    ours = weights()
    one, other = torch.ones(3, 4), torch.ones(5)
    displacement = [one, other]
    with displaced(ours) as move:
        move(displacement)
        assert displacement == [None, None]
        assert ours[0].data_ptr() == one.data_ptr()
    with displaced(ours, overwrite=False) as move:
        move([kept := torch.ones(3, 4), torch.ones(1).expand(5)])
        assert torch.equal(kept, torch.ones(3, 4))
        assert ours[0].data_ptr() != kept.data_ptr()
    with displaced(ours) as move:
        move([None, torch.ones(1).expand(5)])  # its memory has one number, not five
        assert not torch.equal(ours[1], torch.ones(5))


def test_weights_that_others_read_by_address_are_moved_in_place(monkeypatch):
    monkeypatch.setattr("continual.update.passes._exchangeable", lambda weight: False)
    test_weights_are_moved_from_where_they_were_and_put_back()
    test_weights_are_put_back_when_something_raises()
    ours = weights()
    addresses = [w.data_ptr() for w in ours]
    with displaced(ours) as move:
        move([torch.ones(3, 4), torch.ones(5)])
        assert [w.data_ptr() for w in ours] == addresses


def test_the_largest_of_all_parts(accelerator):
    values = [torch.tensor([3.0, 1.0]), torch.tensor([5.0, 2.0, 4.0])]
    chosen = among_largest(values, 3, accelerator)
    assert [mask.tolist() for mask in chosen] == [[True, False], [True, False, True]]


def test_noise_lasts_as_long_as_its_context():
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 1000)

        def get_input_embeddings(self):
            return self.table

    model = Embeds()
    ids = torch.arange(7)
    plain = model.table(ids)
    with noised(model, 0.3):
        spread = (model.table(ids) - plain).std()
        assert float(spread.detach()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(model.table(ids), plain)


class Linear(nn.Module):
    """An example's loss is its first token times the weight."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, input_ids, return_logits=False, **others):
        logits = input_ids[:, :1] * self.w
        losses = logits[:, 0] ** 2
        return (losses, [logits]) if return_logits else losses


def test_what_a_pass_gives_back(accelerator):
    ids = torch.tensor([[1.0], [2.0], [3.0]])
    parts = [
        MicroBatch(Batch(ids[:2], torch.ones(2, 1), torch.arange(2), None), 0),
        MicroBatch(Batch(ids[2:], torch.ones(1, 1), torch.arange(1), None), 1, factor=0.5),
    ]
    model = Linear()
    passes = Passes(model, accelerator, torch.zeros(3, 1, dtype=torch.long), 0, 0.0)
    found = passes.gradients(parts, 4, scores="gradients")
    # (1 + 4 + 9 / 2) w^2 / 4
    assert float(found.loss) == pytest.approx(9.5 / 4)
    assert model.w.grad.item() == pytest.approx(2 * 9.5 / 4)
    assert [losses.tolist() for losses in found.losses] == [[1.0, 4.0], [9.0]]
    clean = [score[0].flatten().tolist() for score in found.scores]
    assert clean == [[pytest.approx(0.5), pytest.approx(1.0)], [pytest.approx(0.75)]]
    model.w.grad = None
    with torch.no_grad():
        model.w.fill_(2.0)
    # the outputs' gradient of before, through the outputs' slope now: sum of c * x
    passes.gradients(parts, 4, cotangents=found.scores)
    assert model.w.grad.item() == pytest.approx(0.5 * 1 + 1.0 * 2 + 0.75 * 3)
    looked = passes.look(parts, logits=True)
    assert [losses.tolist() for losses in looked.losses] == [[4.0, 16.0], [36.0]]
    assert not any(score[0].requires_grad for score in looked.scores)


def test_weights_of_examples_scale_their_losses_alone(accelerator):
    ids = torch.tensor([[1.0], [2.0], [3.0]])
    extras = {"weight": torch.tensor([0.5, float("nan"), 0.0])}
    batch = Batch(ids, torch.ones(3, 1), torch.arange(3), None, extras=extras)
    model = Linear()
    passes = Passes(model, accelerator, torch.zeros(3, 1, dtype=torch.long), 0, 0.0)
    found = passes.gradients([MicroBatch(batch, 0)], 3)
    assert found.losses[0].tolist() == [0.5, 4.0, 0.0]
    assert float(found.loss) == pytest.approx(4.5 / 3)  # by the targets, whatever they weigh
    assert model.w.grad.item() == pytest.approx(2 * 4.5 / 3)
