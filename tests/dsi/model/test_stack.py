"""The same numbers as transformers' stacks, values and gradients, in every layout."""

import pytest
import torch
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack

import dsi.model.stack as module
from dsi.model.stack import Block, Stack

SIZES = dict(
    vocab_size=50,
    d_model=24,
    d_kv=6,
    d_ff=32,
    num_layers=2,
    num_heads=4,
    use_cache=False,
    is_encoder_decoder=False,
)
LENGTHS = torch.tensor([9, 4, 1])


def pair(decoder: bool, **changes):
    """Ours and theirs with the same weights, large enough that every term counts."""
    config = T5Config(**{**SIZES, "is_decoder": decoder, "dropout_rate": 0.0, **changes})
    config._attn_implementation = "eager"
    ours, theirs = Stack(config), T5Stack(config)
    generator = torch.Generator().manual_seed(0)
    for weight in ours.parameters():
        nn.init.normal_(weight, 0.0, 0.4, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    return ours.train(), theirs.train()


def inputs(length: int = 9):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(length) < LENGTHS[:, None].clamp(max=length)).long()
    return torch.randn(3, length, SIZES["d_model"], generator=generator), mask


def run(stack, cotangent, **given):
    """States, and the gradients of all weights and of everything that is read."""
    stack.zero_grad()
    read = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in given.items()}
    states = stack(**read).last_hidden_state
    (states * cotangent).sum().backward()
    weights = {n: p.grad for n, p in stack.named_parameters() if p.grad is not None}
    return states, {**weights, **{k: v.grad for k, v in read.items() if v.is_floating_point()}}


def assert_same(ours, theirs, given, where):
    cotangent = torch.randn(where.shape, generator=torch.Generator().manual_seed(2))
    cotangent = cotangent * where.bool()
    one, own = run(ours, cotangent, **given)
    other, their = run(theirs, cotangent, **given)
    torch.testing.assert_close(one * where, other * where, rtol=1e-4, atol=1e-5)
    assert own.keys() == their.keys()
    for name, gradient in their.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_an_encoder(kind):
    states, mask = inputs()
    given = dict(inputs_embeds=states, attention_mask=mask)
    assert_same(*pair(False, feed_forward_proj=kind), given, mask[..., None].expand_as(states))


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("reads", [True, False])
def test_a_decoder_reads_the_encoder(count, reads, monkeypatch):
    monkeypatch.setattr(module, "_reading_is_less", lambda *_: reads)
    source, mask = inputs()
    asked = inputs()[0][:, :count] * 2
    given = dict(inputs_embeds=asked, encoder_hidden_states=source, encoder_attention_mask=mask)
    assert_same(*pair(True), given, torch.ones_like(asked))


def test_words_and_no_mask():
    ids = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(3))
    ours, theirs = pair(False)
    found = ours(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, theirs(input_ids=ids).last_hidden_state)


def test_reading_is_chosen_by_what_it_costs():
    attention = pair(True)[0].block[0].layer[1].EncDecAttention
    short, long = torch.zeros(1, 1, 24), torch.zeros(1, 40, 24)
    assert module._reading_is_less(attention, short, long)
    assert not module._reading_is_less(attention, long, short)
    attention.k = nn.Sequential(attention.k)
    assert not module._reading_is_less(attention, short, long)


def test_gradients_of_the_norm():
    torch.manual_seed(0)
    norm = T5LayerNorm(6)
    nn.init.normal_(norm.weight)
    values = torch.randn(4, 3, 6, requires_grad=True)

    ours = module._Norm.apply(values, norm.weight, 1e-6)
    expected = norm(values)
    torch.testing.assert_close(ours, expected)
    wanted = (values, norm.weight)
    for one, other in zip(
        torch.autograd.grad(ours.sin().sum(), wanted),
        torch.autograd.grad(expected.sin().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_second_derivatives_without_dropout():
    # flatness takes them in evaluation mode; the norm of training has none, and says so
    ours, _ = pair(False)
    states, mask = inputs()
    states.requires_grad_()

    def slope():
        out = ours(inputs_embeds=states, attention_mask=mask).last_hidden_state
        return torch.autograd.grad(out.square().sum(), states, create_graph=True)[0]

    ours.eval()
    slope().square().sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    ours.train()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope().square().sum().backward()


def test_dropout_scales_what_it_keeps():
    ours, _ = pair(False, dropout_rate=0.5)
    states, mask = inputs()
    torch.manual_seed(0)
    with torch.no_grad():
        runs = [ours(inputs_embeds=states, attention_mask=mask)[0] for _ in range(2)]
    assert not torch.equal(*runs) and bool((runs[0] == 0).any())


def test_layers_keep_their_class_and_names():
    ours, theirs = pair(True)
    assert all(type(block) is Block for block in ours.block)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types(dtype):
    ours, theirs = (stack.to(dtype) for stack in pair(True))
    source, mask = inputs()
    source = source.to(dtype)
    given = dict(
        inputs_embeds=source[:, :2], encoder_hidden_states=source, encoder_attention_mask=mask
    )
    found, expected = (stack(**given).last_hidden_state for stack in (ours, theirs))
    assert found.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    found.sum().backward()
    assert all(p.grad.dtype == dtype for p in ours.parameters() if p.grad is not None)
