"""The rules of a configuration that no single type can state."""

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from continual.config.registry import BASES, suggest, to_plain
from dsi.corpus.records import show
from dsi.errors import UserError

if TYPE_CHECKING:
    from continual.config.schema import RunConfig
    from continual.method import Method


def check(config: "RunConfig") -> None:
    """Every rule that a single type cannot state."""
    training, evaluation, model = config.training, config.evaluation, config.model
    positive = {
        "tokenizer.vocabulary_size": config.tokenizer.vocabulary_size - 99,
        "model.d_model": model.d_model,
        "model.d_ff": model.d_ff,
        "model.num_heads": model.num_heads,
        "model.num_layers": model.num_layers,
        "model.num_decoder_layers": model.num_decoder_layers,
        "model.embedding_std": model.embedding_std,
        "training.batch_size": training.batch_size,
        "training.accumulation": training.accumulation,
        "training.window": training.window,
        "training.length_groups": training.length_groups,
        "training.pad_to_multiple": training.pad_to_multiple,
        "training.learning_rate": training.learning_rate,
        "training.docid_learning_rate_scale": training.docid_learning_rate_scale,
        "evaluation.batch_size": evaluation.batch_size,
        "evaluation.document_length": evaluation.document_length,
        "checkpoint.keep": config.checkpoint.keep,
        "tracking.log_every": config.tracking.log_every,
    }
    if training.later_learning_rate is not None:
        positive["training.later_learning_rate"] = training.later_learning_rate
    for key, value in positive.items():
        least = " (at least 100)" if "vocabulary" in key else ""
        _require(0 < value < math.inf, f"{key}: must be above zero and finite{least}")
    for key, value in _whole_numbers(to_plain(config), ""):
        _require(abs(value) < 2**63, f"{key}: {show(value)} is too large; at most 2^63 - 1")
    # beyond these memory, or a library's 32-bit numbers, end the run with less than a line
    at_most = {
        "threads": (config.threads, 4096),
        "tokenizer.vocabulary_size": (config.tokenizer.vocabulary_size, 2**24),
        "model.d_model": (model.d_model, 2**16),
        "model.d_ff": (model.d_ff, 2**18),
        "model.num_layers": (model.num_layers, 1000),
        "model.num_decoder_layers": (model.num_decoder_layers, 1000),
        "training.batch_size": (training.batch_size, 2**20),
        "training.window": (training.window, 2**20),
        "training.batch_tokens": (training.batch_tokens, 2**30),
        "training.pad_to_multiple": (training.pad_to_multiple, 2**10),
        "training.prefetch": (training.prefetch, 2**10),
        "evaluation.batch_size": (evaluation.batch_size, 2**20),
        "evaluation.beams": (evaluation.beams, 2**20),
        "evaluation.document_length": (evaluation.document_length, 2**20),
        **{f"views[{i}].length": (view.length, 2**20) for i, view in enumerate(config.views)},
    }
    for key, (value, most) in at_most.items():
        _require(value <= most, f"{key}: must be at most {most}, got {value}")
    not_negative = {
        "threads": config.threads,
        "evaluation.events_every": evaluation.events_every,
        "checkpoint.every": config.checkpoint.every,
    }
    for key in (
        "updates",
        "updates_per_stage",
        "batch_tokens",
        "prefetch",
        "warmup",
        "clip",
        "weight_decay",
    ):
        not_negative[f"training.{key}"] = getattr(training, key)
    for key, value in not_negative.items():
        _require(0 <= value < math.inf, f"{key}: must not be negative or infinite")
    _require(training.ratio >= 0, "training.ratio: must not be negative; .inf: indexing alone")
    for key, value in {
        "model.dropout": model.dropout,
        "training.label_smoothing": training.label_smoothing,
        "sampling.balance": config.sampling.balance,
        "sampling.new": config.sampling.new or 0.0,
    }.items():
        _require(0 <= value <= 1, f"{key}: must lie between 0 and 1, got {value}")
    _require(model.d_model % model.num_heads == 0, "model.num_heads: must divide model.d_model")
    if model.source != "scratch":
        fixed = dataclasses.replace(type(model)(), source=model.source, dropout=model.dropout)
        for key, value in to_plain(model).items():
            _require(
                value == getattr(fixed, key),
                f"model.{key}: {model.source!r} has its own; leave it out, or use source: scratch",
            )
        _require(
            config.tokenizer.source != "train",
            f"tokenizer.source: the embeddings of {model.source!r} belong to its own tokenizer; "
            f"set tokenizer.source={model.source}",
        )
    _require(
        training.batch_size % training.accumulation == 0,
        "training.accumulation: must divide training.batch_size",
    )
    stages = [n for n in (training.updates, training.updates_per_stage) if n]
    warmup = training.warmup if training.warmup >= 1 else training.warmup * min(stages, default=1)
    _require(
        training.schedule != "inverse_sqrt" or warmup >= 1 or not stages,
        "training.warmup: under schedule: inverse_sqrt the rate is the peak times sqrt(warm-up / "
        f"update), which after {warmup:g} updates of warm-up falls at once; set a tenth of the "
        "updates (0.1), or at least 1",
    )
    _require(evaluation.depth >= 10, "evaluation.depth: at least 10, Hits@10 needs them")
    _require(evaluation.beams >= evaluation.depth, "evaluation.beams: at least evaluation.depth")
    _require(math.isfinite(evaluation.length_penalty), "evaluation.length_penalty: must be finite")
    embedding = getattr(config.docids.settings, "embedding", None)
    first = embedding.updates if embedding and embedding.source == "model" else 0
    _require(
        first == 0 or (first < training.updates and training.stages == "all"),
        "docids.embedding.updates: must be below training.updates, and stage 0 must be trained; "
        "or choose docids.embedding.source: tfidf",
    )
    _require(
        training.stages == "all" or training.restart,
        "training.stages: 'last' trains on everything from new weights; set training.restart: true",
    )
    _require(
        training.batch_tokens == 0 or training.batch_size == type(training)().batch_size,
        "training.batch_tokens: takes the place of training.batch_size; leave one of them out",
    )
    policy = config.sharpness.build()
    _require(
        not (training.batch_tokens and getattr(policy.config, "m", None) is not None),
        "training.batch_tokens: sharpness.m needs groups of equally many examples; use batch_size",
    )
    local = getattr(policy.config, "sync", "global") == "local"
    _require(
        not (local and (policy.remembers or policy.descent_share() < 1)),
        f"sharpness.sync: local lets ranks go separate ways, and {config.sharpness.name!r} carries "
        "something from update to update or compares all examples; use global",
    )
    _require(
        not (getattr(policy.config, "preconditioned", False) and training.optimizer != "adamw"),
        "sharpness.preconditioned: needs training.optimizer: adamw, which keeps every square",
    )
    from continual.method import Method  # its components need torch

    method = Method.of(config)
    for axis, component in method:
        _require(
            not (training.restart and component.needs_previous),
            f"training.restart: starts from new weights, so {axis} has no earlier ones to compare "
            f"with; set {axis}: {BASES[axis][2]}",
        )
        _require(
            method.parameters.makes_updates or axis == "parameters" or not component.needs_previous,
            f"{axis}.name: acts on what later stages train, and parameters: "
            f"{config.parameters.name} trains nothing there; set {axis}: {BASES[axis][2]}",
        )
        _require(
            config.docids.build().atomic or not component.atomic_only,
            f"docids.name: {axis}: {getattr(config, axis).name} needs one row per document; set "
            f"docids: atomic, or {axis}: {BASES[axis][2]}",
        )
    _check_docid_loss(config, method)
    views = ("first", "chunk", "set")
    for i, view in enumerate(config.views):
        known = suggest(view.name, list(views))
        _require(view.name in views, f"views[{i}].name: {view.name!r} is no view{known}")
        finite = 0 <= view.weight < math.inf
        _require(finite, f"views[{i}].weight: must not be negative or infinite")
        _require(view.length > 0 and view.shortest > 0, f"views[{i}].length: must be above zero")
    _require(
        config.indexing == "none" or sum(v.weight for v in config.views) > 0,
        "views: at least one view needs a weight above zero",
    )
    _require(
        config.name not in ("", ".", "..") and not set(config.name) & set("/\\\0"),
        f"name: must be a plain folder name, got {show(config.name)}",
    )
    _require(
        config.name.isprintable() and len(config.name.encode()) <= 200,
        f"name: must be short and without control characters, got {show(config.name)}",
    )
    _require(
        config.output.isprintable() and config.output != "",
        f"output: must be a folder without control characters, got {show(config.output)}",
    )
    _require(
        math.isfinite(training.ratio) or config.indexing != "none",
        "training.ratio: infinite with indexing: none leaves nothing to train on",
    )
    # restart trains on D_0's queries where replay has none
    rehearses = math.isfinite(config.replay.build().ratio)
    _require(
        config.indexing != "none" or rehearses or training.restart,
        "indexing: none leaves later stages nothing to train on without replay; choose a replay, "
        "or indexing: seen",
    )


def _check_docid_loss(config: "RunConfig", method: "Method") -> None:
    training, policy = config.training, method.sharpness
    sampled, touched = training.docid_softmax == "sampled", training.docid_update == "touched"
    sharp = policy.active(0) or policy.active(1)
    _require(
        training.docid_samples > 0 if sampled else training.docid_samples == 0,
        "training.docid_samples: above zero with training.docid_softmax: sampled, and 0 with exact",
    )
    _require(
        not sampled or config.docids.build().atomic,
        "training.docid_softmax: sampled is for one row per document (docids: atomic); the codes "
        "of a position are few, so use exact",
    )
    _require(
        not (sampled and sharp and (policy.functional or policy.reference)),
        f"training.docid_softmax: {config.sharpness.name!r} compares the scores of all documents; "
        "use exact",
    )
    for axis, component in method:
        _require(
            not (sampled and component.reads_outputs),
            f"training.docid_softmax: {axis} reads the scores of all documents; use exact",
        )
    reasons = {
        "needs training.docid_softmax: sampled; an exact softmax touches every row": not sampled,
        "Adafactor's steps are shares of the whole table's size; set training.optimizer: adamw": (
            training.optimizer != "adamw"
        ),
        f"{config.sharpness.name!r} perturbs every row; use all": sharp,
        f"{config.regularizer.name!r} pulls at every row; use all": (
            method.regularizer.touches_every_row
        ),
        "text directions read rows as well, with a gradient for every row; use all": (
            config.direction != "inputs_to_targets"
        ),
    }
    for reason, applies in reasons.items():
        _require(not (touched and applies), f"training.docid_update: touched: {reason}")


def _whole_numbers(value: Any, path: str) -> Iterator[tuple[str, int]]:
    """Every whole number of plain data, with its dotted key."""
    if isinstance(value, int):
        yield path, value
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _whole_numbers(part, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _whole_numbers(part, f"{path}.{key}" if path else str(key))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
