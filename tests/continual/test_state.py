"""A run between two updates, as a checkpoint and back."""

import torch

from continual.config.schema import TrainingConfig
from continual.method import Method
from continual.state import TrainState, as_checkpoint, restored
from continual.update.optimizer import make_optimizer
from dsi.model.dsi_model import from_scratch


def test_what_becomes_a_checkpoint_comes_back():
    model = from_scratch(
        0, vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, code_sizes=[5]
    )
    training = TrainingConfig()
    optimizer = make_optimizer(model, training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rows = [{"hits@1": [0.5]}, None]
    state = TrainState(model, optimizer, 2, 7, False, [3, 4], rows, [torch.tensor(1.5)], 2)
    method, other = Method(), Method()
    method.regularizer.state = {"w": torch.ones(2)}
    found = as_checkpoint(state, method, {"timing": [1]})
    assert (found.stage, found.update, found.finished) == (2, 7, False)
    assert found.values["timing"] == [1] and found.tensors["regularizer"].keys() == {"w"}
    assert "decoder.embed_tokens.weight" not in found.tensors["model"]  # it is the encoder's
    again = restored(found, other, training, torch.device("cpu"))
    assert torch.equal(other.regularizer.state["w"], torch.ones(2))
    assert all(p.requires_grad for p in again.model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert again.model.decoder.embed_tokens.weight is again.model.encoder.embed_tokens.weight
    ours, theirs = list(model.parameters()), list(again.model.parameters())
    for one, other in zip(ours, theirs, strict=True):
        moments, same = optimizer.state[one], again.optimizer.state[other]
        assert moments.keys() == same.keys()
        assert all(torch.equal(moments[key], same[key]) for key in moments)
    assert (again.rows, again.num_updates, again.skipped) == (rows, [3, 4], 2)
    assert [float(loss) for loss in again.recent] == [1.5]
