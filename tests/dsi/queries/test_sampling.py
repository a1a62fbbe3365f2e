import copy

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from dsi.errors import UserError
from dsi.queries.sampling import (
    CachedDecoder,
    DecodingConfig,
    candidates,
    draw,
    largest,
    sample_tokens,
)

VOCABULARY, PAD, END = 40, 0, 1


def model(version: str) -> T5ForConditionalGeneration:
    """A random T5: "original" ties and scales, "v1.1" has a head of its own and gated units."""
    torch.manual_seed(1)
    gated = version == "v1.1"
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
    )
    config.decoder_start_token_id = PAD
    t5 = T5ForConditionalGeneration(config)
    for parameter in t5.parameters():  # T5's start is nearly flat: every token equally likely
        parameter.data *= 1.5
    if gated:
        t5.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 24))
        t5.config.tie_word_embeddings = False
    return t5.eval()


def documents() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    input_DL = torch.randint(3, VOCABULARY, (4, 9))
    mask_DL = torch.ones_like(input_DL)
    for row, length in enumerate((9, 5, 7, 1)):
        input_DL[row, length:] = PAD
        mask_DL[row, length:] = 0
    return input_DL, mask_DL


@pytest.mark.parametrize("version", ["original", "v1.1"])
@torch.no_grad()
def test_cached_steps_are_the_model_s_own_logits(version):
    t5, (input_DL, mask_DL) = model(version), documents()
    assert t5.config.scale_decoder_outputs is (version == "original")
    torch.manual_seed(3)
    written_RT = torch.randint(3, VOCABULARY, (8, 6))
    written_RT[:, 0] = PAD
    states = t5.encoder(input_ids=input_DL, attention_mask=mask_DL).last_hidden_state
    decoder = CachedDecoder(t5, states, mask_DL, samples=2, length=6)
    full_RTV = t5(
        input_ids=input_DL.repeat_interleave(2, 0),
        attention_mask=mask_DL.repeat_interleave(2, 0),
        decoder_input_ids=written_RT,
    ).logits
    alive = torch.arange(8)
    for t in range(6):
        torch.testing.assert_close(
            t5.lm_head(decoder.step(written_RT[alive, t])), full_RTV[alive, t], atol=2e-4, rtol=1e-4
        )
        # rows that are finished leave; among them both of document 1, then all but document 2
        if t in (1, 3, 4):
            gone = {1: [2, 3], 3: [0, 7], 4: [1, 6]}[t]
            keep = ~torch.isin(alive, torch.tensor(gone))
            decoder.keep(keep)
            alive = alive[keep]


@pytest.mark.parametrize("version", ["original", "v1.1"])
def test_top_k_1_is_greedy_is_hugging_face_s_greedy(version):
    t5, (input_DL, mask_DL) = model(version), documents()
    forbidden = torch.zeros(VOCABULARY, dtype=torch.bool)
    forbidden[[PAD, 2, 30, 31]] = True

    def ours(sampling: DecodingConfig, samples: int) -> list[list[list[int]]]:
        uniform = torch.rand((4, samples, 12), dtype=torch.float64)
        return sample_tokens(
            t5, input_DL, mask_DL, uniform, sampling, forbidden_V=forbidden, start=PAD, end=END
        )

    reference = t5.generate(
        input_ids=input_DL,
        attention_mask=mask_DL,
        do_sample=False,
        num_beams=1,
        max_new_tokens=12,
        suppress_tokens=[PAD, 2, 30, 31],
        begin_suppress_tokens=[END],
        pad_token_id=PAD,
        eos_token_id=END,
    )
    expected = [[i for i in row[1:] if i not in (PAD, END)] for row in reference.tolist()]
    assert [own[0] for own in ours(DecodingConfig(greedy=True), 1)] == expected
    assert ours(DecodingConfig(top_k=1), 3) == [[row] * 3 for row in expected]


def test_only_allowed_tokens_and_never_nothing():
    t5, (input_DL, mask_DL) = model("original"), documents()
    forbidden = torch.zeros(VOCABULARY, dtype=torch.bool)
    forbidden[[PAD, *range(10, VOCABULARY)]] = True
    uniform = torch.rand((4, 20, 10), dtype=torch.float64)
    sampling = DecodingConfig(top_k=0, temperature=5.0)
    rows = sample_tokens(
        t5, input_DL, mask_DL, uniform, sampling, forbidden_V=forbidden, start=PAD, end=END
    )
    lengths = {len(row) for own in rows for row in own}
    assert min(lengths) >= 1 and max(lengths) <= 10 and len(lengths) > 3
    assert {i for own in rows for row in own for i in row} <= set(range(2, 10))


def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass():
    torch.manual_seed(0)
    logits = torch.randn(50, 30) * 2
    full = torch.softmax(logits.double(), -1)
    for top_p in (0.1, 0.5, 0.9, 0.999):
        ids, p = candidates(logits, DecodingConfig(top_k=0, top_p=top_p))
        torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64))
        for row in range(50):
            kept = ids[row][p[row] > 0]
            mass = full[row, kept]
            assert mass.sum() >= top_p - 1e-6
            assert mass.sum() - mass.min() < top_p  # without the least likely it would not do
            dropped = np.setdiff1d(np.arange(30), kept.numpy())
            assert len(dropped) == 0 or full[row, dropped].max() <= mass.min() + 1e-12


def test_filters_are_those_of_hugging_face():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(20, 30) * 2
    for k, top_p, temperature in ((10, 1.0, 1.0), (7, 0.8, 0.8), (0, 0.6, 1.5), (0, 1.0, 0.7)):
        warped = TemperatureLogitsWarper(temperature)(None, logits)
        if k:
            warped = TopKLogitsWarper(k)(None, warped)
        if top_p < 1:
            warped = TopPLogitsWarper(top_p)(None, warped)
        sampling = DecodingConfig(top_k=k, top_p=top_p, temperature=temperature)
        ids, p = candidates(logits, sampling)
        ours = torch.zeros(20, 30, dtype=torch.float64).scatter_(-1, ids, p)
        torch.testing.assert_close(ours, torch.softmax(warped.double(), -1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [40, 1024, 1025, 1279, 6000])
@pytest.mark.parametrize("k", [1, 10, 32, 33])
def test_the_largest_are_those_of_topk(width, k):
    values = torch.randn(40, width, generator=torch.Generator().manual_seed(width + k))
    values[3, 7:] = -torch.inf  # fewer finite values than are asked for
    values[4, -5:] += 9  # behind the last whole group
    best, places = largest(values, k)
    assert torch.equal(best, values.topk(k).values)
    assert torch.equal(values.gather(1, places), best)
    assert all(len(set(row)) == k for row in places.tolist())


def test_draws_have_the_probabilities():
    ids = torch.tensor([[4, 7, 9]]).expand(1000, -1)
    p = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64).expand(1000, -1)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert draw(ids, p, grid).tolist() == [4] * 250 + [9] * 750
    edge = torch.tensor([np.nextafter(1.0, 0.0)])
    assert draw(ids[:1], p[:1], edge).item() == 9
    trailing = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    assert draw(ids[:1], trailing, edge).item() == 7  # a token of probability 0 is never drawn


def test_settings_that_cannot_work():
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            DecodingConfig(**wrong)
    with pytest.raises(UserError, match="greedy"):
        DecodingConfig(greedy=True, top_k=5)


def test_the_model_is_left_as_it_was():
    t5, (input_DL, mask_DL) = model("original"), documents()
    before = copy.deepcopy(t5.state_dict())
    state = torch.get_rng_state()
    sample_tokens(
        t5,
        input_DL,
        mask_DL,
        torch.full((4, 2, 5), 0.5, dtype=torch.float64),
        DecodingConfig(),
        forbidden_V=torch.zeros(VOCABULARY, dtype=torch.bool),
        start=PAD,
        end=END,
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in t5.state_dict().items())
