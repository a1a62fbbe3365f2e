"""The T5 of the query generator: its settings, one from scratch, or a pretrained one."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge
from transformers import (
    AutoModelForSeq2SeqLM,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from dsi import hub
from dsi.errors import UserError
from dsi.settings import Count, Positive, Settings, Share

SIZES = ("d_model", "num_layers", "num_decoder_layers", "num_heads", "d_ff")


@dataclass(frozen=True)
class GeneratorConfig(Settings):
    """What is trained and for how long; ``None`` stands for the default of the source."""

    source: str = "scratch"
    """"scratch" (sizes below), or a T5, T5 v1.1, flan or mT5 checkpoint: name or local folder."""
    d_model: Count | None = None
    """Width. Scratch 128; must be left out with a checkpoint, like the next four."""
    num_layers: Count | None = None
    """Encoder layers. Scratch 2."""
    num_decoder_layers: Count | None = None
    """Decoder layers. Scratch 2."""
    num_heads: Count | None = None
    """Scratch 4."""
    d_ff: Count | None = None
    """Scratch 256."""
    dropout: Share | None = None
    """Scratch 0 (dropout is slow on CPUs, and few passes are made); checkpoint 0.1."""
    updates: Count = 400
    """Optimizer steps on (document, query) pairs."""
    copy_updates: Annotated[int, Ge(0)] = 0
    """Steps before those on pairs, on (document, random span of it) instead: teaches to copy.
    Default 0: of a few hundred updates, those on pairs are worth more, since the biases copy."""
    copy_bias: float | None = None
    """Added per unit of idf to the logits of the document's own tokens (dsi.queries.copy_bias), in
    training and in sampling. Scratch 1, checkpoint 0."""
    follow_bias: float | None = None
    """Added to the logits of tokens that follow the last one in the document. Scratch 3, checkpoint
    0."""
    batch_size: Count = 32
    """Pairs per step; a document's queries share one pass of the encoder."""
    learning_rate: Positive | None = None
    """Of AdamW; linear to 0 over all steps. Scratch 3e-3, checkpoint 3e-4."""
    warmup: Annotated[int, Ge(0)] = 20
    """Steps of linear increase."""
    document_length: Annotated[int, Ge(2)] = 128
    """Tokens read of a document, end token included."""
    query_length: Annotated[int, Ge(2)] = 32
    """Tokens written at most, end token included; DSI-QG 32."""
    bf16: bool = False
    """Train under bfloat16 autocast; sampling is always float32."""

    def resolved(self) -> "GeneratorConfig":
        """All fields filled in; UserError for a setting that would be ignored or cannot work."""
        scratch = self.source == "scratch"
        if not scratch and (given := [n for n in SIZES if getattr(self, n) is not None]):
            raise UserError(
                f"generator.{given[0]}: {', '.join(given)} cannot be chosen with "
                f"source={self.source!r}; leave out or use source: scratch"
            )
        defaults: dict[str, Any] = (
            dict(d_model=128, num_layers=2, num_decoder_layers=2, num_heads=4, d_ff=256)
            | dict(dropout=0.0, copy_bias=1.0, follow_bias=3.0, learning_rate=3e-3)
            if scratch
            else dict(dropout=0.1, copy_bias=0.0, follow_bias=0.0, learning_rate=3e-4)
        )
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        config = replace(self, **missing)
        if scratch and config.d_model % config.num_heads:  # type: ignore[operator]
            raise UserError(
                f"generator.d_model: {config.d_model} is not a multiple of "
                f"num_heads={config.num_heads}; choose one that is"
            )
        return config


def scratch(
    config: GeneratorConfig, tokenizer: PreTrainedTokenizerFast
) -> T5ForConditionalGeneration:
    """A T5 with random weights; input and output embeddings are one small table.

    Embeddings start at std 0.1 and the decoder output is not scaled down: with T5's own std of 1
    (or with the scale) AdamW needs many times the updates to move the logits.
    """
    sizes = {name: getattr(config, name) for name in SIZES}
    assert None not in sizes.values() and config.dropout is not None
    settings = T5Config(
        vocab_size=len(tokenizer),
        d_kv=sizes["d_model"] // sizes["num_heads"],
        dropout_rate=config.dropout,
        pad_token_id=cast(int, tokenizer.pad_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        **sizes,
    )
    settings.decoder_start_token_id = tokenizer.pad_token_id
    settings.scale_decoder_outputs = False
    model = T5ForConditionalGeneration(settings)
    torch.nn.init.normal_(model.shared.weight, std=0.1)
    return model


def pretrained(
    source: str, **settings: Any
) -> T5ForConditionalGeneration | MT5ForConditionalGeneration:
    """A checkpoint with its own output head, in float32.

    transformers 5 writes ``tie_word_embeddings: true`` into the configuration of every T5, also of
    v1.1, flan and mT5, whose head is a matrix of its own; saving or resizing such a model would
    make other programs replace the head by the input embeddings. The flag is set to what is true.
    """
    try:
        with hub.asked(source):
            model = AutoModelForSeq2SeqLM.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, **settings
            )
    except Exception as error:  # of four libraries: a bad value, size, file or name
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"generator.source: cannot load {source!r} ({first}); give 'scratch', the name of a "
            "T5 or mT5 model or a local folder with config.json and model.safetensors"
        ) from error
    if not isinstance(model, T5ForConditionalGeneration | MT5ForConditionalGeneration):
        raise UserError(
            f"generator.source: {source!r} is a {type(model).__name__}; use a T5 or mT5 checkpoint"
        )
    model.config.tie_word_embeddings = model.lm_head.weight is model.shared.weight
    return model
