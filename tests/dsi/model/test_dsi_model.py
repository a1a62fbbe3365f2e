"""DSIModel: T5 where it is T5, and a docid head that grows without forgetting."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from dsi.errors import UserError
from dsi.model.dsi_model import (
    DSIConfig,
    DSIModel,
    from_checkpoint,
    from_scratch,
    grown_rows,
    load_model,
)

SIZES: dict[str, Any] = dict(
    vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0
)
START: dict[str, Any] = {**SIZES, "decoder_start_token_id": 0}
KINDS = ["t5", "t5-v1.1", "mt5", "mt5-tied"]
INPUTS = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
LABELS = torch.tensor([[4, 12, 1], [11, 1, -100]])


def model(code_sizes=(7,), seed=0, **changes) -> DSIModel:
    return from_scratch(seed, code_sizes=list(code_sizes), **{**SIZES, **changes}).eval()


def state(of: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """A folder as published, and the model of transformers that it holds."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    if request.param.startswith("mt5"):
        theirs = MT5ForConditionalGeneration(MT5Config(**START))
    elif request.param == "t5":
        theirs = T5ForConditionalGeneration(T5Config(**START, num_decoder_layers=1))
    else:
        gated: dict[str, Any] = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        theirs = T5ForConditionalGeneration(T5Config(**START, **gated))
    if request.param in ("t5-v1.1", "mt5"):
        theirs.lm_head.weight = nn.Parameter(torch.randn(40, 16))
    theirs.save_pretrained(folder)
    if request.param in ("t5-v1.1", "mt5"):  # as on the hub: written before transformers 5
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.pop("scale_decoder_outputs", None)
        path.write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return request.param, folder, theirs.eval()


def text_logits(ours: DSIModel) -> torch.Tensor:
    states, mask = ours.encode(INPUTS, MASK)
    shifted = torch.tensor([[0, 4, 12], [0, 11, 1]])
    hidden = ours.decoder(
        input_ids=shifted, encoder_hidden_states=states, encoder_attention_mask=mask
    ).last_hidden_state
    return ours.text_logits(hidden)


# --- checkpoints ----------------------------------------------------------------------------------


def test_text_path_is_the_checkpoints(checkpoint):
    kind, folder, theirs = checkpoint
    ours = from_checkpoint(folder, [5], seed=0).eval()
    expected = theirs(input_ids=INPUTS, attention_mask=MASK, labels=LABELS).logits
    torch.testing.assert_close(text_logits(ours), expected, rtol=1e-5, atol=1e-5)
    assert ours.config.untied_text_head is (kind in ("t5-v1.1", "mt5"))
    assert ours.config.scale_text_head is (kind == "t5")


def test_a_loaded_checkpoint_survives_saving(checkpoint, tmp_path):
    _, folder, _ = checkpoint
    ours = from_checkpoint(folder, [5], seed=0).eval()
    ours.save_pretrained(tmp_path)
    again = DSIModel.from_pretrained(tmp_path).eval()
    assert equal(state(again), state(ours))
    assert again.decoder.embed_tokens.weight is again.encoder.embed_tokens.weight
    assert torch.equal(text_logits(again), text_logits(ours))
    assert hasattr(again, "lm_head") is ours.config.untied_text_head


def test_text_loss_is_the_checkpoints_without_the_docid(checkpoint):
    # the docid is one more vector to read; with its row masked away the loss is T5's
    _, folder, theirs = checkpoint
    ours = from_checkpoint(folder, [5], seed=0).eval()
    logits = theirs(input_ids=INPUTS, attention_mask=MASK, labels=LABELS).logits
    expected = nn.functional.cross_entropy(
        logits.transpose(1, 2), LABELS, reduction="none", ignore_index=-100
    ).sum(1)
    encode = ours.encode
    ours.encode = lambda ids, mask, *prefix: encode(ids, mask)  # type: ignore[method-assign]
    loss = ours(INPUTS, MASK, torch.zeros(2, 1, dtype=torch.long), labels=LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_changes_and_seed_of_a_checkpoint(checkpoint):
    _, folder, _ = checkpoint
    one, other = (from_checkpoint(folder, [3, 4], seed, dropout_rate=0.3) for seed in (1, 2))
    assert one.config.dropout_rate == 0.3
    assert {m.p for m in one.modules() if isinstance(m, nn.Dropout)} == {0.3}
    differing = {k for k in one.state_dict() if not torch.equal(state(one)[k], state(other)[k])}
    assert differing == {"docids.start", "docids.rows", "docids.inputs"}
    assert one.dtype == torch.float32


def one_line(source) -> str:
    with pytest.raises(UserError) as caught:
        from_checkpoint(source, [3], 0)
    message = str(caught.value)
    assert message.startswith("model.source: ")
    assert str(source) in message
    assert "\n" not in message
    return message


def saved_t5(folder) -> None:
    T5ForConditionalGeneration(T5Config(**SIZES)).save_pretrained(folder)


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    assert "scratch" in one_line(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{")
    one_line(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert'" in one_line(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "model.safetensors" in one_line(tmp_path)


def test_broken_or_foreign_weights_are_one_line(tmp_path):
    saved_t5(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, values = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:500])
    one_line(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**values, "d_model": 32}))
    one_line(tmp_path)
    config.write_text(json.dumps({**values, "d_model": "wide"}))
    one_line(tmp_path)


def test_an_encoder_alone_is_refused(tmp_path):
    # transformers would train on with a random decoder
    T5EncoderModel(T5Config(**SIZES)).save_pretrained(tmp_path)
    assert "decoder" in one_line(tmp_path)


# --- from scratch ---------------------------------------------------------------------------------


def test_the_seed_decides_and_global_state_stays():
    before = torch.get_rng_state()
    one, same, other = model(seed=3), model(seed=3), model(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(state(one), state(same))
    assert not torch.equal(one.encoder.embed_tokens.weight, other.encoder.embed_tokens.weight)
    torch.manual_seed(99)
    assert equal(state(model(seed=3)), state(one))


@pytest.mark.parametrize("self_heads", [None, 3])
def test_initial_spreads(self_heads):
    sizes = dict(vocab_size=500, d_model=64, embedding_std=0.5, self_heads=self_heads)
    large = model((400, 300), **sizes)
    expected = {
        "encoder.embed_tokens.weight": 0.5,
        "docids.rows": 64**-0.5,
        "docids.inputs": 0.1,
        "encoder.block.0.layer.0.SelfAttention.q.weight": (64 * 8) ** -0.5,
        "encoder.block.1.layer.1.DenseReluDense.wi.weight": 64**-0.5,
        "decoder.block.0.layer.2.DenseReluDense.wo.weight": 24**-0.5,
        "decoder.block.0.layer.0.SelfAttention.o.weight": ((self_heads or 2) * 8) ** -0.5,
        "decoder.block.1.layer.1.EncDecAttention.q.weight": (64 * 8) ** -0.5,
        "decoder.block.1.layer.1.EncDecAttention.v.weight": 64**-0.5,
        "decoder.block.1.layer.1.EncDecAttention.o.weight": (2 * 8) ** -0.5,
    }
    for name, spread in expected.items():
        assert float(state(large)[name].std()) == pytest.approx(spread, rel=0.1), name
    assert (large.encoder.final_layer_norm.weight == 1).all()


@pytest.mark.parametrize("self_heads", [None, 1, 5])
@pytest.mark.parametrize("code_sizes", [(7,), (3, 4, 5)])
def test_saving_keeps_every_bit(code_sizes, self_heads, tmp_path):
    ours = model(code_sizes, self_heads=self_heads)
    ours.save_pretrained(tmp_path)
    again = DSIModel.from_pretrained(tmp_path).eval()
    assert equal(state(again), state(ours))
    assert again.code_sizes == list(code_sizes)
    assert again.decoder.embed_tokens.weight is again.encoder.embed_tokens.weight
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in ours.parameters())
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, DSIConfig)
    codes = torch.zeros(2, len(code_sizes), dtype=torch.long)
    assert torch.equal(again(INPUTS, MASK, codes), ours(INPUTS, MASK, codes))


def test_as_many_heads_of_self_attention_as_named():
    plain, fewer = model(), model(self_heads=1)
    shapes = {name: tuple(value.shape) for name, value in fewer.state_dict().items()}
    for stack in ("encoder", "decoder"):
        own = f"{stack}.block.1.layer.0.SelfAttention"
        assert shapes[f"{own}.q.weight"] == (8, 16) and shapes[f"{own}.o.weight"] == (16, 8)
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert shapes[first] == (32, 1)
    changed = {n for n, v in plain.state_dict().items() if tuple(v.shape) != shapes[n]}
    assert shapes.keys() == plain.state_dict().keys()
    assert {name.split(".layer.")[1].split(".")[1] for name in changed} == {"SelfAttention"}
    # as many as there would be without the setting: the same forward pass
    same = model(self_heads=2, seed=5)
    same.load_state_dict(plain.state_dict())
    codes = torch.tensor([[2], [6]])
    assert torch.equal(same(INPUTS, MASK, codes), plain(INPUTS, MASK, codes))


def test_a_model_saved_without_the_number_of_self_heads(tmp_path):
    ours = model()
    ours.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config.pop("self_heads", None)
    path.write_text(json.dumps(config))
    assert equal(state(load_model(tmp_path)), state(ours))


@pytest.mark.parametrize("wrong", [3, 0, "two", 1.5])
def test_a_wrong_number_of_self_heads_is_one_line(wrong, tmp_path):
    model(self_heads=1).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "self_heads": wrong}))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_copy_shares_its_own_embedding_alone():
    ours = model()
    twin = copy.deepcopy(ours)
    assert twin.decoder.embed_tokens.weight is twin.encoder.embed_tokens.weight
    assert twin.encoder.embed_tokens.weight is not ours.encoder.embed_tokens.weight
    fresh = nn.Embedding(41, 16)
    twin.set_input_embeddings(fresh)
    assert twin.get_input_embeddings() is twin.decoder.embed_tokens is fresh


# --- docids ---------------------------------------------------------------------------------------


def test_atomic_loss_is_cross_entropy_over_the_rows():
    ours, codes = model((7,)), torch.tensor([[2], [6]])
    hidden = ours.query_states(INPUTS, MASK)
    expected = -torch.log_softmax(hidden @ ours.docids.rows.T, 1).gather(1, codes)[:, 0]
    torch.testing.assert_close(ours(INPUTS, MASK, codes), expected)


def test_string_loss_adds_the_positions_by_hand():
    sizes = (3, 4, 5)
    ours, codes = model(sizes), torch.tensor([[2, 0, 4], [1, 3, 0]])
    states, mask = ours.encode(INPUTS, MASK)
    rows = ours.docids.rows.split(sizes)
    inputs = ours.docids.inputs.split(sizes[:-1])
    expected = torch.zeros(2)
    for t in range(3):
        # one forward per position with the codes before it alone: nothing later can leak in
        read = [ours.docids.start.expand(2, -1)]
        read += [inputs[s][codes[:, s]] for s in range(t)]
        hidden = ours.decoder(
            inputs_embeds=torch.stack(read, 1),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
        ).last_hidden_state[:, -1]
        logp = torch.log_softmax(hidden @ rows[t].T, 1)
        expected -= logp.gather(1, codes[:, t : t + 1])[:, 0]
    torch.testing.assert_close(ours(INPUTS, MASK, codes), expected)


def test_label_smoothing_reaches_docids_and_text():
    ours, codes = model((7,)), torch.tensor([[2], [6]])
    logp = torch.log_softmax(ours.query_states(INPUTS, MASK) @ ours.docids.rows.T, 1)
    expected = -0.9 * logp.gather(1, codes)[:, 0] - 0.1 * logp.mean(1)
    torch.testing.assert_close(ours(INPUTS, MASK, codes, label_smoothing=0.1), expected)
    plain = ours(INPUTS, MASK, codes, labels=LABELS)
    assert not torch.allclose(ours(INPUTS, MASK, codes, LABELS, label_smoothing=0.5), plain)


def test_padding_changes_nothing():
    ours, codes = model((7,)), torch.tensor([[2], [6]])
    wide = torch.cat([INPUTS, torch.full((2, 3), 17)], 1)
    mask = torch.cat([MASK, torch.zeros(2, 3, dtype=torch.long)], 1)
    torch.testing.assert_close(ours(wide, mask, codes), ours(INPUTS, MASK, codes))
    alone = ours(INPUTS[1:, :3], MASK[1:, :3], codes[1:])
    torch.testing.assert_close(alone, ours(INPUTS, MASK, codes)[1:])
    words = torch.cat([LABELS, torch.full((2, 2), -100)], 1)
    torch.testing.assert_close(
        ours(INPUTS, MASK, codes, labels=words), ours(INPUTS, MASK, codes, labels=LABELS)
    )


def test_text_depends_on_the_docid_in_front():
    ours = model((7,))
    one, other = (
        ours(INPUTS, MASK, torch.full((2, 1), code), labels=LABELS).detach() for code in (0, 1)
    )
    assert not torch.allclose(one, other)
    # and equal rows are equal docids
    with torch.no_grad():
        ours.docids.rows[1] = ours.docids.rows[0]
    torch.testing.assert_close(ours(INPUTS, MASK, torch.ones(2, 1).long(), labels=LABELS), one)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("untied", [False, True])
def test_gradient_reaches_everything(untied, labels):
    ours, codes = model((3, 4), untied_text_head=untied), torch.tensor([[0, 1], [2, 3]])
    ours(INPUTS, MASK, codes, labels=labels).sum().backward()
    untouched = {name for name, p in ours.named_parameters() if p.grad is None or not p.grad.any()}
    # a direction leaves alone what only the other one uses
    unused = {"lm_head.weight"} & dict(ours.named_parameters()).keys()
    assert untouched == (unused if labels is None else {"docids.start", "docids.inputs"})


@pytest.mark.filterwarnings("ignore::FutureWarning")  # newer releases rename it
def test_gradient_checkpointing_changes_no_gradient():
    ours, codes = model((3, 4)), torch.tensor([[0, 1], [2, 3]])
    ours(INPUTS, MASK, codes).sum().backward()
    plain = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    ours.train()
    ours(INPUTS, MASK, codes).sum().backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(dict(ours.named_parameters())[name].grad, gradient)


# --- growing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [((4,), (9,)), ((3, 4, 5), (6, 4, 7))])
def test_growing_keeps_old_rows_bit_for_bit(old, new):
    ours = model(old)
    before, embedding = state(ours), ours.encoder.embed_tokens.weight
    ours.resize(new, torch.Generator().manual_seed(5))
    assert ours.code_sizes == list(new)
    after = state(ours)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"docids.rows"} if len(old) == 1 else {"docids.rows", "docids.inputs"})
    for position, size in enumerate(old):
        kept = after["docids.rows"].split(new)[position]
        assert torch.equal(kept[:size], before["docids.rows"].split(old)[position])
        assert kept[size:].numel() == 0 or kept[size:].std() > 0
        if position + 1 < len(old):
            kept = after["docids.inputs"].split(new[:-1])[position]
            assert torch.equal(kept[:size], before["docids.inputs"].split(old[:-1])[position])
    assert ours.encoder.embed_tokens.weight is embedding
    assert torch.equal(after["docids.rows"][grown_rows(old, new)], before["docids.rows"])
    codes = torch.tensor([[size - 1 for size in new]] * 2)
    assert ours(INPUTS, MASK, codes).isfinite().all()


def test_growing_draws_from_its_generator_alone():
    before = torch.get_rng_state()
    grown = [model((4,)) for _ in range(3)]
    for ours, seed in zip(grown, (1, 1, 2), strict=True):
        ours.docids.rows.requires_grad_(False)
        ours.resize([6], torch.Generator().manual_seed(seed))
        assert not ours.docids.rows.requires_grad
    assert torch.equal(grown[0].docids.rows, grown[1].docids.rows)
    assert not torch.equal(grown[0].docids.rows, grown[2].docids.rows)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_grown_model_survives_saving(tmp_path):
    ours = model((4,))
    ours.resize([6], torch.Generator().manual_seed(1))
    ours.save_pretrained(tmp_path)
    assert equal(state(DSIModel.from_pretrained(tmp_path)), state(ours))


def test_growing_to_the_same_size_draws_nothing():
    ours, generator = model((4,)), torch.Generator().manual_seed(1)
    rows, drawn = ours.docids.rows, generator.get_state()
    ours.resize([4], generator)
    assert ours.docids.rows is rows
    assert torch.equal(generator.get_state(), drawn)


def test_growing_by_positions_keeps_old_rows():
    ours = model((3, 4))
    before = state(ours)
    origins = ours.resize([3, 5, 2], torch.Generator().manual_seed(1))
    after = state(ours)
    assert ours.code_sizes == [3, 5, 2]
    assert after["docids.rows"].shape[0] == 10 and after["docids.inputs"].shape[0] == 8
    for name, origin in origins.items():
        old = origin >= 0
        assert torch.equal(after[name][old], before[name][origin[old]])
        assert (origin < 0).sum() == len(after[name]) - len(before[name])
    assert ours(INPUTS, MASK, torch.tensor([[2, 4, 1], [0, 1, -1]])).isfinite().all()


def test_shared_codes_grow_in_one_table():
    ours = model((5, 5), shared_codes=True)
    before = state(ours)
    assert before["docids.rows"].shape[0] == before["docids.inputs"].shape[0] == 5
    assert ours.resize([5, 5, 5], torch.Generator()) == {}  # longer docids need no row
    ours.resize([7, 7, 7], torch.Generator().manual_seed(1))
    after = state(ours)
    for name in ("docids.rows", "docids.inputs"):
        assert torch.equal(after[name][:5], before[name])
        assert len(after[name]) == 7
    with pytest.raises(ValueError, match="equal sizes"):
        ours.resize([8, 7, 7], torch.Generator())


def test_what_follows_the_end_of_a_docid_counts_nothing():
    ours = model((4, 4, 4))
    whole = ours(INPUTS, MASK, torch.tensor([[1, 2, 3], [1, 2, 3]]))
    short = ours(INPUTS, MASK, torch.tensor([[1, 2, 3], [1, 2, -1]]))
    torch.testing.assert_close(short[0], whole[0])
    assert short[1] < whole[1]
    alone = ours(INPUTS, MASK, torch.tensor([[1, 2], [1, 2]]))
    torch.testing.assert_close(short[1], alone[1])
    # as a prefix of text to write, the missing code is not read
    labels = torch.tensor([[3, 4], [5, 6]])
    codes = torch.tensor([[1, 2, -1], [1, 2, -1]])
    text = ours(INPUTS, MASK, codes, labels)
    with torch.no_grad():
        ours.docids.rows[8:] += 1.0
    torch.testing.assert_close(ours(INPUTS, MASK, codes, labels), text)


@pytest.mark.parametrize(
    ("old", "new"), [((3, 4), n) for n in [(2, 4), (3, 3), (3,)]] + [((3,), (3, 4))]
)
def test_shrinking_is_refused(old, new):
    ours = model(old)
    before = state(ours)
    with pytest.raises(ValueError, match="only grow"):
        ours.resize(new, torch.Generator())
    assert equal(state(ours), before)
    assert ours.code_sizes == list(old)
