import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from dsi.errors import UserError
from dsi.queries.generator_model import SIZES, GeneratorConfig, pretrained, scratch
from dsi.text.tokens import train_tokenizer


def test_every_open_field_is_filled_in_by_the_source():
    own = GeneratorConfig().resolved()
    assert (own.d_model, own.dropout, own.copy_bias, own.follow_bias) == (128, 0.0, 1.0, 3.0)
    assert own.resolved() == own
    theirs = GeneratorConfig(source="t5", dropout=0.3).resolved()
    assert (theirs.dropout, theirs.copy_bias, theirs.follow_bias) == (0.3, 0.0, 0.0)
    assert all(getattr(theirs, name) is None for name in SIZES)


def test_settings_that_would_be_ignored_or_cannot_work():
    with pytest.raises(UserError, match="d_model, num_heads cannot be chosen with source='t5'"):
        GeneratorConfig(source="t5", d_model=8, num_heads=1).resolved()
    with pytest.raises(UserError, match="not a multiple"):
        GeneratorConfig(d_model=10, num_heads=4).resolved()
    with pytest.raises(UserError, match="updates"):
        GeneratorConfig(updates=0).resolved()
    with pytest.raises(UserError, match="query_length"):
        GeneratorConfig(query_length=1).resolved()


def test_a_scratch_model_has_one_small_table_and_no_scale():
    tokenizer = train_tokenizer(["a heron in the river", "a mill on the hill"], 100)
    model = scratch(GeneratorConfig(d_model=64, num_layers=1).resolved(), tokenizer)
    assert model.lm_head.weight is model.shared.weight
    assert model.shared.weight.shape == (len(tokenizer), 64)
    assert float(model.shared.weight.detach().std()) == pytest.approx(0.1, rel=0.1)
    assert model.config.scale_decoder_outputs is False
    assert (len(model.encoder.block), len(model.decoder.block)) == (1, 2)


def test_an_untied_head_is_marked_as_such(tmp_path):
    sizes = dict(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    for tied in (True, False):
        model = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=tied))
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(30, 8))
            model.config.tie_word_embeddings = False
        model.save_pretrained(tmp_path / str(tied))
        loaded = pretrained(str(tmp_path / str(tied)))
        assert loaded.config.tie_word_embeddings is tied
        head = loaded.lm_head.weight.detach().clone()
        loaded.resize_token_embeddings(34)  # the trap: with a false flag this replaces the head
        torch.testing.assert_close(loaded.lm_head.weight[:30], head)


def test_other_kinds_of_checkpoint_are_refused(tmp_path):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"generator\.source.*T5 or mT5"):
        pretrained(str(tmp_path))
