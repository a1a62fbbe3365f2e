"""Dropout from 8 random bits per value."""

import pytest
import torch
from torch import nn

from dsi.model.dropout import Dropout, relu_dropped, use_fast_dropout


def dropped(rate: float, shape=(999, 1001), dtype=torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return Dropout(rate)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 0.001])
def test_a_call_has_one_of_two_rates_and_keeps_the_mean(rate):
    found = dropped(rate)
    error = (rate * (1 - rate) / found.numel()) ** 0.5
    share = float((found == 0).double().mean())
    assert min(abs(share - r / 256) for r in (int(rate * 256), int(rate * 256 + 1))) < 5 * error
    assert float(found.double().mean()) == pytest.approx(1, abs=5 * error / (1 - rate))
    assert len(found.unique()) <= 2


@pytest.mark.parametrize("rate", [0.1, 0.99])
def test_the_rate_is_met_on_average(rate):
    torch.manual_seed(0)
    layer, ones = Dropout(rate), torch.ones(100)
    shares = torch.tensor([float((layer(ones) == 0).double().mean()) for _ in range(10_000)])
    assert abs(float(shares.mean()) - rate) < 5 * (rate * (1 - rate) / 1e6) ** 0.5


def test_a_rate_of_whole_steps_never_varies():
    torch.manual_seed(0)
    kept = torch.cat([Dropout(0.25)(torch.ones(10)) for _ in range(500)]).unique()
    assert kept.tolist() == [0, torch.tensor(4 / 3).item()]


def test_values_are_dropped_independently():
    zero = (dropped(0.5) == 0).double() - 0.5
    for step in (*range(1, 10), 1001):  # neighbours share a draw of 64 bits
        flat = zero.flatten()
        correlation = float((flat[:-step] * flat[step:]).mean()) * 4
        assert abs(correlation) < 5 / flat.numel() ** 0.5


def test_a_seed_decides_and_the_gradient_sees_the_same_mask():
    values = torch.randn(7, 13, requires_grad=True)
    layer = Dropout(0.3)
    torch.manual_seed(3)
    first = layer(values)
    first.sum().backward()
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    assert values.grad is not None
    assert torch.equal(values.grad == 0, first == 0)
    assert torch.allclose(first, values * values.grad)


def test_the_ends_of_the_range():
    ones = torch.ones(5, 3)
    assert Dropout(0.0)(ones) is ones
    assert torch.equal(Dropout(1.0)(ones), torch.zeros(5, 3))
    assert torch.equal(Dropout(0.5).eval()(ones), ones)
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)


def test_few_digits_do_not_change_the_scale():
    threes = torch.full((1000,), 3.0, dtype=torch.bfloat16)
    kept = Dropout(0.1)(threes).unique()
    assert kept.dtype == torch.bfloat16 and len(kept) == 2
    scaled = [torch.tensor(3.0 * 256 / (256 - n), dtype=torch.bfloat16).item() for n in (25, 26)]
    assert float(kept[1]) in scaled


@pytest.mark.parametrize(
    "layer", [Dropout(0.3), Dropout(0.0), nn.Dropout(0.3), Dropout(0.3).eval()]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_relu_and_dropout_in_one_are_the_two(layer, dtype):
    values, down = torch.randn(2, 40, 30, dtype=dtype)
    found = []
    for act in (lambda x: relu_dropped(layer, x), lambda x: layer(torch.relu(x))):
        leaf = values.clone().requires_grad_()
        torch.manual_seed(5)
        result = act(leaf * 1)
        result.backward(down)
        found.append((result, leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_layers_are_exchanged_in_place():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.2)), nn.Dropout(0.4).eval())
    use_fast_dropout(model, fast=False)
    inner, last = model[1][0], model[2]
    assert isinstance(inner, Dropout) and inner.p == 0.2 and not inner.fast and inner.training
    assert isinstance(last, Dropout) and not last.training
    torch.manual_seed(1)
    ours = inner(torch.ones(100))
    torch.manual_seed(1)
    assert torch.equal(ours, nn.functional.dropout(torch.ones(100), 0.2))
