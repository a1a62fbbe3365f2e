"""The fused forward pass gives the model's own numbers, whatever the order of the beams."""

import pytest
import torch

import dsi.search.forward as module
from dsi.model.dsi_model import from_scratch
from dsi.search.beam_search import rank_rows
from dsi.search.forward import Inference

SHAPE = {"vocab_size": 60, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3, "num_layers": 2}
SIZES = [5, 6, 7, 3]


def setup(**more):
    model = from_scratch(3, **{**SHAPE, "num_decoder_layers": 3, "code_sizes": SIZES, **more})
    model.eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (4, 9), generator=generator)
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 5:] = 0
    mask[3, 1:] = 0
    sizes = model.code_sizes
    codes = [torch.randint(0, size, (4, 3), generator=generator) for size in sizes]
    return model, ids, mask, torch.stack(codes, 2)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
@pytest.mark.parametrize("self_heads", [None, 2])
@pytest.mark.parametrize("padded", [False, True])
@torch.inference_mode()
def test_states_are_the_models(kind, shared, padded, self_heads):
    sizes = [6] * 4 if shared else SIZES
    more = {"code_sizes": sizes, "shared_codes": shared, "feed_forward_proj": kind}
    more["self_heads"] = self_heads
    model, ids, mask, codes_BKT = setup(**more)
    mask = mask if padded else torch.ones_like(mask)
    inference = Inference(model)
    encoded = inference.encode(ids, mask)
    states, _ = model.encode(ids, mask)
    torch.testing.assert_close(encoded.states[mask.bool()], states[mask.bool()])
    past = inference.past(4, 3, 4)
    # beams that change places: beam k goes on from beam parents[k]
    parents = torch.tensor([[2, 0, 0], [1, 1, 2], [0, 2, 1], [2, 1, 0]])
    first = inference.step(None, encoded, past)
    written = codes_BKT[:, :, :0]
    steps = [(first, written.new_zeros(4, 1, 0))]
    past.choose(torch.zeros(4, 3, dtype=torch.long))
    for position in range(3):
        written = torch.cat([written, codes_BKT[:, :, position : position + 1]], 2)
        steps.append((inference.step(written[:, :, position], encoded, past), written))
        past.choose(parents)
        written = written.gather(1, parents[..., None].expand(-1, -1, written.shape[2]))
    for position, (hidden_BKD, written) in enumerate(steps):
        for beam in range(hidden_BKD.shape[1]):
            codes = torch.cat([written[:, beam], torch.zeros(4, 1, dtype=torch.long)], 1)
            expected = model.decode_docid(states, mask, codes)[:, position]
            torch.testing.assert_close(hidden_BKD[:, beam], expected, atol=2e-5, rtol=1e-4)
            ours = inference.logits(hidden_BKD[:, beam], position)
            theirs = model.docid_logits(expected, position)
            assert ours.shape == (4, sizes[position])
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"feed_forward_proj": "gated-gelu"}, {"self_heads": 1}, {"num_decoder_layers": 1}]
)
@torch.inference_mode()
def test_query_states_are_the_models(more, padded, reads, monkeypatch):
    monkeypatch.setattr(module, "reading_is_less", lambda *_: reads)
    model, ids, mask, _ = setup(code_sizes=[11], **more)
    mask[2, :4] = 0  # nothing in front, either
    mask = mask if padded else torch.ones_like(mask)
    ours = Inference(model).query_states(ids, mask)
    torch.testing.assert_close(ours, model.query_states(ids, mask), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_keys_are_computed_where_they_are_less_work(monkeypatch):
    model, ids, mask, _ = setup()
    inference, computed = Inference(model), []
    real = module.EncodedTexts.keys_and_values

    def counted(encoded, layer):
        computed.append((layer, layer in encoded._known))
        return real(encoded, layer)

    monkeypatch.setattr(module.EncodedTexts, "keys_and_values", counted)
    encoded = inference.encode(ids, mask)
    states = inference.query_states(ids, mask, encoded)
    assert computed == []
    # one token: its states are as wide as its keys and values
    inference.query_states(ids[:, :1], mask[:, :1])
    assert {layer for layer, _ in computed} == {1, 2}  # in layer 0 one query asks all texts
    # the steps of a search share the keys of each layer
    computed.clear()
    past = inference.past(4, 1, 4)
    first = inference.step(None, encoded, past)
    torch.testing.assert_close(first[:, 0], states, atol=2e-5, rtol=1e-4)
    inference.step(torch.zeros(4, 1, dtype=torch.long), encoded, past)
    assert computed == [(0, False), (1, False), (2, False), (0, True), (1, True), (2, True)]


@torch.inference_mode()
def test_padding_changes_nothing():
    model, ids, mask, _ = setup()
    inference = Inference(model)
    for row in range(4):
        length = int(mask[row].sum())
        alone = inference.query_states(ids[row : row + 1, :length], mask[row : row + 1, :length])
        together = inference.query_states(ids, mask)[row : row + 1]
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reads", [True, False])
@torch.inference_mode()
def test_bfloat16_stays_near(reads, monkeypatch):
    monkeypatch.setattr(module, "reading_is_less", lambda *_: reads)
    model, ids, mask, _ = setup()
    exact = Inference(model).query_states(ids, mask)
    rough = Inference(model, torch.bfloat16).query_states(ids, mask)
    assert rough.dtype == torch.float32  # what is scored; the layers before it are narrow
    error = (rough - exact).norm() / exact.norm()
    assert 0 < error < 0.03


@pytest.mark.parametrize("wide", [False, True])
@torch.inference_mode()
def test_scores_have_all_digits_whatever_the_weights_are_in(wide):
    model, ids, mask, _ = setup(code_sizes=[3000])
    if not wide:  # a model that was loaded in half precision
        model.to(torch.bfloat16)
    inference = Inference(model, torch.bfloat16)
    states = inference.query_states(ids, mask)
    scores = inference.logits(states, 0)
    exact = states.double() @ model.docids.rows.double().T
    torch.testing.assert_close(scores, exact.float(), rtol=1e-5, atol=1e-6)
    found, numbers = rank_rows(states, inference.rows, 10)
    assert all(len(set(row)) == 10 for row in found.tolist())  # bfloat16 products tie
    assert torch.equal(numbers, exact.topk(10).indices)


def test_it_is_a_copy_of_the_moment():
    model, ids, mask, _ = setup()
    inference = Inference(model)
    before = inference.query_states(ids, mask)
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.v.weight.add_(1.0)
    assert torch.equal(inference.query_states(ids, mask), before)
    assert not torch.equal(Inference(model).query_states(ids, mask), before)


# of the first release of Python 3.13 alone
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_step_compiles_without_a_break():
    model, ids, mask, codes_BKT = setup()
    inference = Inference(model)
    encoded = inference.encode(ids, mask)

    def two_steps(codes_BK):
        past = inference.past(4, 3, 4)
        inference.step(None, encoded, past)
        past.choose(torch.zeros(4, 3, dtype=torch.long))
        return inference.step(codes_BK, encoded, past)

    with torch.inference_mode():
        compiled = torch.compile(two_steps, backend="aot_eager", fullgraph=True)
        codes_BK = codes_BKT[:, :, 0]
        torch.testing.assert_close(compiled(codes_BK), two_steps(codes_BK))
