"""DSIModel: T5 encoder, T5 decoder and a docid output of its own.

The 32k-word softmax is never computed for a docid: the decoder reads and writes the codes of the
docid scheme, a small vocabulary per position. Atomic docids are one position with one row per
document. Original T5 checkpoints tie embeddings and scale the decoder's output, v1.1 does neither;
the text head (only used by the indexing directions that write text) keeps what its checkpoint does.

Shape legend: B batch, L source length, T docid length, C codes of a position, D width,
W text length, V text vocabulary, N documents.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5DenseActDense,
    T5DenseGatedActDense,
    T5LayerNorm,
)
from transformers.utils import logging

from dsi import hub
from dsi.errors import UserError
from dsi.model.docid_loss import at_least_float32, docid_loss, loss_of_scores
from dsi.model.stack import Stack

T5_FAMILY = ("t5", "mt5")
INPUT_STD = 0.1  # initial spread of the vectors that the decoder reads for codes; T5's own is 1


@strict
class DSIConfig(T5Config):
    """A T5 configuration and the shape of the docids.

    ``code_sizes``: codes of each docid position (atomic: one position, one code per document).
    ``shared_codes``: all positions read and write one table of codes (docids that are text); the
    sizes then are all the same.
    ``embedding_std``: initial spread of a from-scratch text embedding. T5 uses 1.0 with Adafactor's
    parameter-scaled steps; under AdamW such rows hardly move, relative to their size: on 1,034
    documents 1,500 updates reached Hits@10 .41 with 1.0, .53 with 0.1 and .71 with 0.03.
    ``untied_text_head``: the checkpoint has a text head apart from its embedding (v1.1, mT5).
    ``scale_text_head``: the decoder's output times d_model^-0.5 before the text head (T5 1.0).
    ``self_heads``: heads of self-attention, as wide as those of the cross-attention; None: as many.
    """

    model_type = "dsi"

    code_sizes: list[int] | None = None
    shared_codes: bool = False
    embedding_std: float | int = 0.03
    untied_text_head: bool = False
    scale_text_head: bool = True
    self_heads: int | None = None


class DocidHead(nn.Module):
    """Rows that score the codes of every position, and the vectors the decoder reads.

    ``rows`` (sum of C over positions, D): output rows, position after position. ``start`` (D,):
    decoder input of the first position. ``inputs``: decoder inputs of the later positions, absent
    for one-position docids. Shared codes: ``rows`` and ``inputs`` are (C, D).

    ``samples``, ``sparse``: how the loss is made in training (``dsi.model.docid_loss``), no part of
    what is saved; 0: exactly.
    """

    samples, sparse = 0, False

    def __init__(self, width: int, code_sizes: Sequence[int], shared: bool = False):
        super().__init__()
        self.start = nn.Parameter(torch.empty(width))
        tables = table_sizes(code_sizes, shared)
        self.rows = nn.Parameter(torch.empty(sum(tables["rows"]), width))
        if len(code_sizes) > 1:
            self.inputs = nn.Parameter(torch.empty(sum(tables["inputs"]), width))


class DSIModel(PreTrainedModel):
    """Maps token ids to scores over docid codes (and, for text directions, over words)."""

    config_class = DSIConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["T5Block"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight"
    }

    def __init__(self, config: DSIConfig):
        super().__init__(config)
        encoder_config, decoder_config = self._stack_configs(config)
        self.encoder = Stack(encoder_config, config.self_heads)
        self.decoder = Stack(decoder_config, config.self_heads)
        self.docids = DocidHead(config.d_model, config.code_sizes or [1], config.shared_codes)
        if config.untied_text_head:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
        self.decoder.embed_tokens = self.encoder.embed_tokens

    @staticmethod
    def _stack_configs(config: DSIConfig) -> tuple[T5Config, T5Config]:
        values = {
            key: value
            for key, value in config.to_dict().items()
            if key in T5Config.__dataclass_fields__ and key != "model_type"
        }
        common = {**values, "is_encoder_decoder": False, "use_cache": False}
        encoder = T5Config(**{**common, "is_decoder": False})
        decoder_layers = config.num_decoder_layers or config.num_layers
        decoder = T5Config(**{**common, "is_decoder": True, "num_layers": decoder_layers})
        for stack in (encoder, decoder):
            stack._attn_implementation = config._attn_implementation
        return encoder, decoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # T5's initialisation, but for the embedding's spread; transformers calls this only for
        # modules that no checkpoint filled
        width = self.config.d_model
        if isinstance(module, T5LayerNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, T5DenseActDense):
            module.wi.weight.normal_(0.0, width**-0.5)
            module.wo.weight.normal_(0.0, self.config.d_ff**-0.5)
        elif isinstance(module, T5DenseGatedActDense):
            module.wi_0.weight.normal_(0.0, width**-0.5)
            module.wi_1.weight.normal_(0.0, width**-0.5)
            module.wo.weight.normal_(0.0, self.config.d_ff**-0.5)
        elif isinstance(module, T5Attention):
            module.q.weight.normal_(0.0, (width * self.config.d_kv) ** -0.5)
            module.k.weight.normal_(0.0, width**-0.5)
            module.v.weight.normal_(0.0, width**-0.5)
            module.o.weight.normal_(0.0, module.inner_dim**-0.5)
            if module.has_relative_attention_bias:
                module.relative_attention_bias.weight.normal_(0.0, width**-0.5)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0.0, width**-0.5)
        elif isinstance(module, DocidHead):
            module.start.normal_(0.0, 1.0)
            module.rows.normal_(0.0, width**-0.5)
            if len(self.config.code_sizes or [1]) > 1:
                module.inputs.normal_(0.0, INPUT_STD)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embed_tokens = value
        self.decoder.embed_tokens = value

    @property
    def code_sizes(self) -> list[int]:
        """Codes of each docid position."""
        return list(self.config.code_sizes or [1])

    @property
    def code_starts(self) -> list[int]:
        """The row at which each position's codes begin."""
        sizes = self.code_sizes
        return [0 if self.config.shared_codes else sum(sizes[:t]) for t in range(len(sizes))]

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encoder states (B, L, D) and their mask.

        ``prefix`` (B, P, D): vectors in front of the tokens, with ``prefix_mask`` (B, P).
        """
        embeddings = self.encoder.embed_tokens(input_ids)
        if prefix is not None:
            embeddings = torch.cat([prefix.to(embeddings.dtype), embeddings], dim=1)
            assert prefix_mask is not None
            attention_mask = torch.cat([prefix_mask.to(attention_mask), attention_mask], dim=1)
        states = self.encoder(inputs_embeds=embeddings, attention_mask=attention_mask)
        return states.last_hidden_state, attention_mask

    def code_vectors(self, codes_BT: Tensor, table: Tensor) -> Tensor:
        """The rows of ``table`` that stand for codes: (B, T) -> (B, T, D); any row for -1."""
        starts = torch.tensor(self.code_starts[: codes_BT.shape[1]], device=codes_BT.device)
        return table[codes_BT.clamp(min=0) + starts]

    def decode_docid(self, states: Tensor, mask: Tensor, codes_BT: Tensor) -> Tensor:
        """Decoder states (B, T, D) of every docid position, given the codes before it."""
        inputs = self.docids.start.expand(len(states), 1, -1)
        if codes_BT.shape[1] > 1:
            read = self.code_vectors(codes_BT[:, :-1], self.docids.inputs)
            inputs = torch.cat([inputs, read], dim=1)
        return self.decoder(
            inputs_embeds=inputs, encoder_hidden_states=states, encoder_attention_mask=mask
        ).last_hidden_state

    def docid_logits(self, hidden_BD: Tensor, position: int = 0) -> Tensor:
        """Scores (B, C) over the codes of one position."""
        return hidden_BD @ self.position_rows(position).T

    def position_rows(self, position: int) -> Tensor:
        """The rows (C, D) that score the codes of one position."""
        start, size = self.code_starts[position], self.code_sizes[position]
        # not a slice where it is all: its gradient would be copied into another of the same size
        whole = size == len(self.docids.rows)
        return self.docids.rows if whole else self.docids.rows[start : start + size]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores (B, W, V) over words."""
        if self.config.scale_text_head:
            hidden = hidden * self.config.d_model**-0.5
        if self.config.untied_text_head:
            return self.lm_head(hidden)
        return hidden @ self.encoder.embed_tokens.weight.T

    def query_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The decoder's state (B, D) before the first code: what ranks atomic docids."""
        states, mask = self.encode(input_ids, attention_mask)
        first = torch.zeros(len(input_ids), 1, dtype=torch.long, device=input_ids.device)
        return self.decode_docid(states, mask, first)[:, 0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        codes: Tensor,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
        encoded: tuple[Tensor, Tensor] | None = None,
        return_logits: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Summed cross-entropy per example (B,); divide by the number of targets for a mean.

        Without ``labels``: text (B, L) -> docid ``codes`` (B, T), -1 after the end of a docid,
        summed over positions. With
        ``labels`` (B, W), -100 where padded: the docid is read in front of ``input_ids`` and the
        text is written (targets to inputs, span corruption). ``encoded``: what
        :meth:`encode_example` gave for these inputs. ``return_logits``: also the scores, one
        tensor (B, C) per docid position, or one (B, W, V).
        """
        if encoded is None:
            encoded = self.encode_example(input_ids, attention_mask, codes, labels)
        states, mask = encoded
        if labels is None:
            hidden = self.decode_docid(states, mask, codes)
            positions = range(codes.shape[1])
            if return_logits:
                scores = [self.docid_logits(hidden[:, t], t) for t in positions]
                scores = [s.to(at_least_float32(s)) for s in scores]
                parts = [loss_of_scores(scores[t], codes[:, t], label_smoothing) for t in positions]
                return torch.stack(parts).sum(0), scores
            samples, sparse = self.docids.samples if self.training else 0, self.docids.sparse
            parts = [
                docid_loss(
                    hidden[:, t],
                    self.position_rows(t),
                    codes[:, t],
                    label_smoothing,
                    samples,
                    sparse,
                )
                for t in positions
            ]
            return torch.stack(parts).sum(0)
        shifted = labels.new_full(labels.shape, self.config.pad_token_id or 0)
        shifted[:, 1:] = labels[:, :-1].clamp(min=0)
        hidden = self.decoder(
            input_ids=shifted, encoder_hidden_states=states, encoder_attention_mask=mask
        ).last_hidden_state
        logits = self.text_logits(hidden)
        logits = logits.to(at_least_float32(logits))
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2),
            labels,
            reduction="none",
            ignore_index=-100,
            label_smoothing=label_smoothing,
        ).sum(1)
        return (losses, [logits]) if return_logits else losses

    def encode_example(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        codes: Tensor,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`encode` as training reads an example: with its docid in front of a text task."""
        if labels is None:
            return self.encode(input_ids, attention_mask)
        vectors = self.code_vectors(codes, self.docids.rows)
        return self.encode(input_ids, attention_mask, vectors, codes >= 0)

    @torch.no_grad()
    def resize(
        self, code_sizes: Sequence[int], generator: torch.Generator, kept: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Rows for new codes and positions; every row that stays keeps its value bit for bit.

        ``kept``: the rows of a one-position head that stay, int64 in rising order; None: all.
        Replaces ``docids.rows`` (and ``docids.inputs``) by other parameters, so an optimizer must
        be told. Returns, by the name of each that changed, where its rows (rows now,) were before;
        -1 for new ones, which are random.
        """
        old, new = self.code_sizes, list(code_sizes)
        if kept is not None:
            if len(old) > 1:
                raise ValueError("rows of several positions are shared by documents and all stay")
            old = [len(kept)]
        shrinks = any(n < o for n, o in zip(new, old, strict=False))
        if len(new) < len(old) or shrinks or (len(old) == 1 < len(new)):
            raise ValueError(f"docid codes can only grow: {old} -> {new}")
        shared, origins = self.config.shared_codes, {}
        before, after = table_sizes(old, shared), table_sizes(new, shared)
        for name, std in (("rows", self.config.d_model**-0.5), ("inputs", INPUT_STD)):
            table = getattr(self.docids, name, None)
            if table is None or (before[name] == after[name] and kept is None):
                continue
            places = grown_rows(before[name], after[name])
            origin = torch.full((sum(after[name]),), -1)
            origin[places] = torch.arange(sum(before[name])) if kept is None else kept
            setattr(self.docids, name, _resized(table, origin, std, generator))
            origins[f"docids.{name}"] = origin
        self.config.code_sizes = new
        return origins


def table_sizes(code_sizes: Sequence[int], shared: bool) -> dict[str, list[int]]:
    """Rows of the head's two tables, part by part (one part per position, or one for all)."""
    sizes = list(code_sizes)
    if shared:
        if len(set(sizes)) > 1:
            raise ValueError(f"shared docid codes need equal sizes, got {sizes}")
        return {"rows": sizes[:1], "inputs": sizes[:1]}
    return {"rows": sizes, "inputs": sizes[:-1]}


def grown_rows(old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Where each old row goes in a table grown from ``old`` to ``new`` codes per part."""
    starts = [sum(new[:t]) for t in range(len(new))]
    parts = [torch.arange(start, start + size) for start, size in zip(starts, old, strict=False)]
    return torch.cat(parts)


def follow_rows(value: Tensor, origin: Tensor, fill: float = 0.0) -> Tensor:
    """``value`` (old rows, ...) with the rows that its parameter has now, ``fill`` in new ones."""
    origin = origin.to(value.device)
    full = value.new_full((len(origin), *value.shape[1:]), fill)
    full[origin >= 0] = value[origin[origin >= 0]]
    return full


def _resized(
    table: nn.Parameter, origin: Tensor, std: float, generator: torch.Generator
) -> nn.Parameter:
    rows = torch.empty(len(origin), table.shape[1], dtype=table.dtype)
    rows.normal_(0.0, std, generator=generator)
    rows[origin >= 0] = table.detach().cpu()[origin[origin >= 0]]
    return nn.Parameter(rows.to(table.device), requires_grad=table.requires_grad)


def from_scratch(seed: int, **sizes: Any) -> DSIModel:
    """A randomly initialised model, the same for the same seed, without touching global state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds the devices, too
        model = DSIModel(DSIConfig(**sizes))
        # the stacks initialise their embedding themselves, T5's way, when they are built
        nn.init.normal_(model.encoder.embed_tokens.weight, 0.0, model.config.embedding_std)
    return model


def from_checkpoint(
    source: str | Path, code_sizes: Sequence[int], seed: int, **changes: Any
) -> DSIModel:
    """A DSIModel whose stacks come from a T5, T5 v1.1, flan-T5 or mT5 checkpoint.

    ``source`` is a local folder or a hub name; ``changes`` replaces configuration values such as
    ``dropout_rate``. The docid head is new.
    """
    config, checkpoint = _read_checkpoint(str(source))
    embedding, head = checkpoint.get_input_embeddings(), checkpoint.get_output_embeddings()
    untied = head.weight.data_ptr() != embedding.weight.data_ptr()
    untied = untied and not torch.equal(head.weight, embedding.weight)
    values = {
        key: value
        for key, value in config.to_dict().items()
        if key in T5Config.__dataclass_fields__ and key != "model_type"
    }
    values.update(
        code_sizes=list(code_sizes),
        untied_text_head=untied,
        # only T5's configuration has this; mT5 never scales
        scale_text_head=bool(getattr(config, "scale_decoder_outputs", False)),
        **changes,
    )
    model = from_scratch(seed, **values)
    with torch.no_grad():
        model.encoder.load_state_dict(checkpoint.get_encoder().state_dict())
        decoder = checkpoint.get_decoder().state_dict()
        model.decoder.load_state_dict(decoder)
        if untied:
            model.lm_head.weight.copy_(head.weight)
    return model


def _read_checkpoint(source: str) -> tuple[PretrainedConfig, Any]:
    """Configuration and float32 weights of a T5-like checkpoint that has every weight."""
    try:
        with hub.asked(source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if config.model_type not in T5_FAMILY:
                raise UserError(
                    f"model.source: {source!r} is a {config.model_type!r} checkpoint; "
                    f"use one of the T5 family ({', '.join(T5_FAMILY)})"
                )
            checkpoint, report = AutoModelForSeq2SeqLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except UserError:
        raise
    except Exception as error:  # of four libraries: a bad value, size, file or name
        first = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"model.source: cannot load {source!r} ({first}); give a local folder with "
            "config.json and model.safetensors, a model name, or 'scratch'"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would train on with random weights in their place
        raise UserError(
            f"model.source: {source!r} lacks {len(missing)} weights ({missing[0]}, ...); "
            "give a checkpoint with encoder and decoder"
        )
    return config, checkpoint


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of missing weights: load_model raises an error of its own."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_model(folder: str | Path) -> DSIModel:
    """A model that ``save_pretrained`` wrote; UserError for files that are missing or broken."""
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; restore the whole folder")
    try:
        options: dict[str, Any] = dict(output_loading_info=True, local_files_only=True)
        with _quiet():
            loaded: Any = DSIModel.from_pretrained(str(folder), use_safetensors=True, **options)
        model, report = loaded
    except Exception as error:  # of four libraries: a bad value, size or file
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder}: cannot load the model ({what}); restore the folder") from error
    # transformers would go on with random weights in the place of what is not there
    odd = sorted(str(key) for part in report.values() for key in part)
    if odd:
        name = folder / "model.safetensors"
        raise UserError(f"{name}: {len(odd)} weights do not fit ({odd[0]}, ...); restore the file")
    return model


# AutoModel.from_pretrained(FOLDER) works on a saved stage wherever this module is imported
AutoConfig.register("dsi", DSIConfig)
AutoModel.register(DSIConfig, DSIModel)
