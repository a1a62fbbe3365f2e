"""A finished stage opened for search alone: weights and tokenizer without the package transformers.

Importing transformers' models takes several times as long as everything else that the first query
needs. What a run writes of its own is read here by safetensors and tokenizers, and only where it is
exactly as expected; otherwise the answer is None, and the caller loads it in the general way, which
also says what is wrong. Nothing here can train.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class StoredTokenizer:
    """What search asks of a tokenizer."""

    backend_tokenizer: Tokenizer
    pad_token_id: int
    eos_token_id: int
    unk_token_id: int | None

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)


@dataclass(frozen=True)
class StoredModel:
    """The weights of a :class:`dsi.model.dsi_model.DSIModel` under the same names."""

    config: Any
    encoder: Any
    decoder: Any
    docids: Any

    @property
    def code_sizes(self) -> list[int]:
        """Codes of each docid position."""
        return list(self.config.code_sizes)

    @property
    def code_starts(self) -> list[int]:
        """The row at which each position's codes begin."""
        sizes = self.code_sizes
        return [0 if self.config.shared_codes else sum(sizes[:t]) for t in range(len(sizes))]


def stored_tokenizer(folder: Path) -> StoredTokenizer | None:
    """A tokenizer that is all in tokenizer.json; None for every other."""
    try:
        how = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        if how["tokenizer_class"] not in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return None
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = [how[name] for name in ("pad_token", "eos_token")]
        extra = how.get("extra_special_tokens") or []
        pad, end, *others = (backend.token_to_id(name) for name in [*names, *extra])
        unknown = how.get("unk_token")
        number = backend.token_to_id(unknown) if unknown is not None else None
        special = {*names, *extra, unknown, "▁"}
    except Exception:  # missing or broken: the general way says how
        return None
    if pad is None or end is None or None in others:
        return None
    if unknown is not None and number is None:
        return None
    if backend.get_vocab_size() <= len(special) and set(backend.get_vocab()) <= special:
        return None
    backend.no_truncation()
    backend.no_padding()
    return StoredTokenizer(backend, pad, end, number)


def stored_model(folder: Path) -> StoredModel | None:
    """A stage's model on the processor; None where a name, shape or type is not as expected."""
    try:
        absent = {"shared_codes": False}  # as in runs before there was such a key
        values = json.loads((folder / "config.json").read_text("utf-8"))
        config = SimpleNamespace(**{**absent, **values})
        if config.model_type != "dsi":
            return None
        activation = ACTIVATIONS[config.dense_act_fn]
        expected = _shapes(config)
        weights = load_file(folder / "model.safetensors")
    except Exception:  # missing or broken: the general way says how
        return None
    found = {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
    if found != {name: (shape, torch.float32) for name, shape in expected.items()}:
        return None
    stacks = _nested(weights)
    for stack, both_ways in ((stacks.encoder, True), (stacks.decoder, False)):
        attention = stack.block[0].layer[0].SelfAttention
        attention.compute_bias = partial(
            _position_bias, attention.relative_attention_bias.weight, config, both_ways
        )
        stack.block[0].layer[-1].DenseReluDense.act = activation
    return StoredModel(config, stacks.encoder, stacks.decoder, stacks.docids)


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every weight of a saved DSIModel by name."""
    width, inner, hidden = config.d_model, config.num_heads * config.d_kv, config.d_ff
    buckets = (config.relative_attention_num_buckets, config.num_heads)
    total = config.code_sizes[0] if config.shared_codes else sum(config.code_sizes)
    read = total if config.shared_codes else sum(config.code_sizes[:-1])
    shapes = {
        "encoder.embed_tokens.weight": (config.vocab_size, width),
        "docids.start": (width,),
        "docids.rows": (total, width),
    }
    if len(config.code_sizes) > 1:
        shapes["docids.inputs"] = (read, width)
    if config.untied_text_head:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    for stack, depth, attentions in (
        ("encoder", config.num_layers, ["SelfAttention"]),
        ("decoder", config.num_decoder_layers, ["SelfAttention", "EncDecAttention"]),
    ):
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[table] = buckets
        for block in range(depth):
            for place, attention in enumerate(attentions):
                layer = f"{stack}.block.{block}.layer.{place}"
                shapes[f"{layer}.layer_norm.weight"] = (width,)
                shapes |= {f"{layer}.{attention}.{n}.weight": (inner, width) for n in "qkv"}
                shapes[f"{layer}.{attention}.o.weight"] = (width, inner)
            layer = f"{stack}.block.{block}.layer.{len(attentions)}"
            shapes[f"{layer}.layer_norm.weight"] = (width,)
            for name in ("wi_0", "wi_1") if config.is_gated_act else ("wi",):
                shapes[f"{layer}.DenseReluDense.{name}.weight"] = (hidden, width)
            shapes[f"{layer}.DenseReluDense.wo.weight"] = (width, hidden)
    return shapes


def _nested(weights: dict[str, Tensor]) -> Any:
    """Dotted names as attributes, numbers as places of a list."""
    tree: dict[str, Any] = {}
    for name, weight in weights.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = weight

    def build(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "0" in node:
            return [build(node[str(place)]) for place in range(len(node))]
        return SimpleNamespace(**{name: build(value) for name, value in node.items()})

    return build(tree)


def _position_bias(table: Tensor, config: Any, both_ways: bool, queries: int, keys: int) -> Tensor:
    """T5's relative positions (Raffel et al. 2020, section 2.1): (1, H, queries, keys).

    Half of the buckets are one distance each, the others grow in width up to the largest distance;
    the encoder has a half of all for either direction.
    """
    ahead = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
    number = config.relative_attention_num_buckets // (2 if both_ways else 1)
    distance = ahead.abs() if both_ways else (-ahead).clamp(min=0)
    near, longest = number // 2, config.relative_attention_max_distance
    wide = torch.log(distance.float() / near) / math.log(longest / near) * (number - near)
    far = (near + wide.clamp(min=0).long()).clamp(max=number - 1)
    bucket = torch.where(distance < near, distance, far)
    if both_ways:
        bucket = bucket + (ahead > 0) * number
    return table[bucket].permute(2, 0, 1)[None]


def _gelu(hidden: Tensor) -> Tensor:
    inner = math.sqrt(2.0 / math.pi) * (hidden + 0.044715 * torch.pow(hidden, 3.0))
    return 0.5 * hidden * (1.0 + torch.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "gelu_new": _gelu}
