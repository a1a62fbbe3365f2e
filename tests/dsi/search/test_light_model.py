"""What search opens without transformers is what transformers opens, or nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsi.model.dsi_model import from_scratch
from dsi.search.forward import Inference
from dsi.search.light_model import stored_model, stored_tokenizer
from dsi.text.tokens import load_tokenizer, tokenize, train_tokenizer

SHAPE = {"vocab_size": 60, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 3, "num_layers": 2}
TEXTS = ["a whale sings", "copper turns green in the rain", "<extra_id_1> ﬁne lantern"]
HEAVY = {"transformers", "datasets", "matplotlib", "scipy", "sklearn", "accelerate", "wandb"}


def saved(folder, **more):
    model = from_scratch(3, **{**SHAPE, "num_decoder_layers": 3, "code_sizes": [9], **more})
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"code_sizes": [5, 6, 7]},
        {"code_sizes": [6, 6, 6], "shared_codes": True},
        {"feed_forward_proj": "gated-gelu"},
        {"untied_text_head": True},
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    ],
)
def test_the_forward_pass_is_bit_for_bit_the_same(tmp_path, more):
    model = saved(tmp_path, **more)
    stored = stored_model(tmp_path)
    assert stored is not None
    ids = torch.randint(3, 60, (4, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    one, other = Inference(model), Inference(stored)
    assert (one.code_sizes, one.code_starts) == (other.code_sizes, other.code_starts)
    assert torch.equal(one.query_states(ids, mask), other.query_states(ids, mask))
    if len(one.code_sizes) > 1:
        assert torch.equal(one.past(4, 3, 3).bias, other.past(4, 3, 3).bias)
        assert torch.equal(one.inputs, other.inputs)


def test_weights_that_do_not_fit_are_left_to_transformers(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "decoder.block.2.layer.1.EncDecAttention.q.weight"
    for changed in (
        {k: v for k, v in weights.items() if k != name},
        {**weights, "more": torch.zeros(1)},
        {**weights, name: torch.zeros(24, 23)},
        {**weights, name: weights[name].bfloat16()},
    ):
        save_file(changed, path)
        assert stored_model(tmp_path) is None
    path.write_bytes(b"{")
    assert stored_model(tmp_path) is None
    save_file(weights, path)
    assert stored_model(tmp_path) is not None
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("model_type", "t5"), ("dense_act_fn", "silu"), ("d_model", "wide")):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        assert stored_model(tmp_path) is None
    (tmp_path / "config.json").unlink()
    assert stored_model(tmp_path) is None


def test_a_tokenizer_of_ours_gives_the_same_ids(tmp_path):
    train_tokenizer(TEXTS * 5, 100).save_pretrained(tmp_path)
    ours, theirs = stored_tokenizer(tmp_path), load_tokenizer(tmp_path)
    assert ours is not None
    assert len(ours) == len(theirs)
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    one, other = (tokenize(tokenizer, [*TEXTS, "", "Ünknown"]) for tokenizer in (ours, theirs))
    assert one.values.tolist() == other.values.tolist()
    assert one.offsets.tolist() == other.offsets.tolist()


def test_tokenizers_of_other_kinds_are_left_to_transformers(tmp_path):
    train_tokenizer(TEXTS * 5, 100).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    how = json.loads(path.read_text())
    without = {key: value for key, value in how.items() if key != "eos_token"}
    for changed in (
        {**how, "tokenizer_class": "T5Tokenizer"},
        {**how, "pad_token": "<none>"},
        {**how, "unk_token": "<none>"},
        without,
    ):
        path.write_text(json.dumps(changed))
        assert stored_tokenizer(tmp_path) is None
    path.write_text("{")
    assert stored_tokenizer(tmp_path) is None


def test_searching_loads_no_training_library():
    code = "import sys, dsi.index; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert HEAVY.isdisjoint(done.stdout.split())
    assert "torch" in done.stdout.split()
