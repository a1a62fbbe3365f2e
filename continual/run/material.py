"""From a configuration to what a run works on: corpora, tokenizer, stream, model."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pyarrow.compute import call_function
from transformers import PreTrainedTokenizerFast

from continual.config.schema import RunConfig, TrainingConfig
from continual.run.arrivals import Arrivals
from continual.stream.stream import CorpusRows, Stream
from dsi.corpus.corpus import Corpus, check_stream, document_texts, read_corpus, read_stream
from dsi.corpus.ids import take
from dsi.errors import UserError
from dsi.files import cache_folder, replace_atomically
from dsi.manifest import text_hash
from dsi.model.dropout import use_fast_dropout
from dsi.model.dsi_model import DSIModel, from_checkpoint, from_scratch
from dsi.seeding import derive
from dsi.text.tokens import load_tokenizer, pad_id, prompt_ids, train_tokenizer
from dsi.text.views import has_words

TOKENIZER_BYTES = 1 << 25  # of text that a tokenizer is trained on


@dataclass(frozen=True)
class Material:
    """What a run works on; ``warnings`` are for the user to read before training."""

    stream: Stream
    tokenizer: PreTrainedTokenizerFast
    warnings: list[str]


def read_parts(
    config: RunConfig, added: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[CorpusRows], list[str]]:
    """What every stage brings, those of the configuration and then of added.json, and warnings."""
    arrivals, warnings = read_arrivals(config, added)
    return arrivals.parts, warnings


def read_arrivals(
    config: RunConfig, added: Sequence[Mapping[str, Any]] = ()
) -> tuple[Arrivals, list[str]]:
    """The same, which also knows the number of every document by its id."""
    data, arrivals = config.data, Arrivals()
    corpus = read_corpus(data.corpus, deduplicate=data.deduplicate)
    stages = read_stream(corpus, data.stream)
    warnings = [*corpus.warnings, *check_stream(corpus, stages)]
    arrivals.extend(corpus, stages)
    for entry in added:
        more, found = read_added(config, entry)
        warnings += [*found, *arrivals.add(more, entry)]
    return arrivals, warnings


def read_added(config: RunConfig, entry: Mapping[str, Any]) -> tuple[Corpus | None, list[str]]:
    """The corpus of an entry of added.json, None where it has none, and warnings."""
    if "corpus" not in entry:
        return None, []
    more = read_corpus(entry["corpus"], deduplicate=config.data.deduplicate)
    expected = entry.get("content_hash")
    if expected is not None and expected != more.content_hash:
        raise UserError(
            f"{entry['corpus']}: has changed since it was added to the run; restore it, or "
            "start a new run"
        )
    return more, list(more.warnings)


def prepare(
    config: RunConfig,
    tokenizer_folder: Path | None = None,
    added: Sequence[Mapping[str, Any]] = (),
    read: tuple[list[CorpusRows], list[str]] | None = None,
) -> Material:
    """Read and check the corpora, then the tokenizer (a run's own, when it has one).

    ``read``: what :func:`read_parts` gave, where it was asked before.
    """
    parts, warnings = read or read_parts(config, added)
    if tokenizer_folder is not None and (tokenizer_folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(tokenizer_folder)
    elif config.tokenizer.source == "train":
        tokenizer = _trained(config, parts[0])
    else:
        tokenizer = load_tokenizer(config.tokenizer.source)
    for task, prompt in vars(config.prompts).items():
        prompt_ids(tokenizer, prompt, f"prompts.{task}")  # a prompt that is too long is refused now
    stream = Stream(
        parts,
        tokenizer,
        title=config.data.title,
        lowercase=config.data.lowercase,
        with_set_view=any(view.name == "set" and view.weight > 0 for view in config.views),
    )
    embedding = getattr(config.docids.settings, "embedding", None)
    is_tfidf = embedding is not None and embedding.source == "tfidf"
    if is_tfidf and not has_words(stream.texts(0, stream.count(0))):
        raise UserError(
            "docids.embedding.source: tfidf finds no words in D_0; choose model, or docids=atomic"
        )
    return Material(stream, tokenizer, warnings)


def make_model(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    code_sizes: list[int],
    stage: int,
    shared_codes: bool = False,
) -> DSIModel:
    """A new model: from random weights, or from a pretrained checkpoint with new docid rows."""
    model, seed = config.model, derive(config.seed, "weights", stage)
    if model.source != "scratch":
        loaded = from_checkpoint(
            model.source,
            code_sizes,
            seed,
            dropout_rate=model.dropout,
            shared_codes=shared_codes,
        )
        if loaded.config.vocab_size < len(tokenizer):
            raise UserError(
                f"tokenizer.source: {len(tokenizer)} tokens, but {model.source!r} has rows for "
                f"{loaded.config.vocab_size}; use the checkpoint's own tokenizer"
            )
        return loaded
    return from_scratch(
        seed,
        vocab_size=len(tokenizer),
        d_model=model.d_model,
        d_kv=model.d_model // model.num_heads,
        d_ff=model.d_ff,
        num_layers=model.num_layers,
        num_decoder_layers=model.num_decoder_layers,
        num_heads=model.num_heads,
        self_heads=model.self_heads,
        dropout_rate=model.dropout,
        embedding_std=model.embedding_std,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=cast(int, tokenizer.eos_token_id or 1),
        code_sizes=code_sizes,
        shared_codes=shared_codes,
    )


def prepare_layers(model: DSIModel, training: TrainingConfig) -> None:
    """Set how the layers compute while training, before devices wrap them; no weight changes."""
    use_fast_dropout(model, training.fast_dropout)
    if training.gradient_checkpointing:
        # its name in the newest transformers, and in the oldest that we support
        for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
            if enable := getattr(model, name, None):
                enable({"use_reentrant": False})
                break
    if training.compile != "no":
        model.compile(mode=training.compile)


def _trained(config: RunConfig, first: CorpusRows) -> PreTrainedTokenizerFast:
    """A tokenizer trained on D_0's documents and train queries alone, kept in the cache.

    The trainer needs some 25 bytes per character, so of a large D_0 it reads every second document,
    every third, and so on.
    """
    data, size = config.data, config.tokenizer.vocabulary_size
    drop = config.tokenizer.punctuation == "drop"
    settings = f"unigram-3:{first.corpus.content_hash}:{data.title}:{data.lowercase}:{size}"
    rows = hashlib.sha256(np.ascontiguousarray(first.rows, "<i8").tobytes()).hexdigest()
    lengths = call_function("binary_length", [first.corpus.documents["text"]]).to_numpy()
    step = max(1, math.ceil(int(lengths[first.rows].sum()) / TOKENIZER_BYTES))
    settings += f":every {step}" if step > 1 else ""
    settings += ":words" if drop else ""
    folder = cache_folder() / "tokenizers" / text_hash(f"{settings}:{rows}")
    if not (folder / "tokenizer.json").exists():

        def texts() -> Iterator[str]:
            yield from document_texts(
                first.corpus.documents,
                title=data.title,
                lowercase=data.lowercase,
                rows=first.rows[::step],
            )
            pairs = first.corpus.qrels["train"]
            of_d0 = np.unique(pairs[np.isin(pairs[:, 1], first.rows), 0])
            for text in take(first.corpus.queries, of_d0)["text"].to_pylist():
                yield text.lower() if data.lowercase else text

        def write(target: Path) -> None:
            train_tokenizer(texts(), size, drop).save_pretrained(target)

        replace_atomically(folder, write)
    return load_tokenizer(folder)
