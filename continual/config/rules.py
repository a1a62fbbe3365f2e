"""The rules between settings, which no single field can state.

They read what a component declares of itself and never ask for its name.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from continual.config.registry import BASES
from dsi.corpus.records import show
from dsi.errors import UserError

if TYPE_CHECKING:
    from continual.config.schema import RunConfig
    from continual.method import Method


def check(config: "RunConfig") -> None:
    """Every rule between settings; UserError for the first that is broken."""
    from continual.method import Method  # its components need torch

    for rules in (_names, _model, _budgets, _material):
        rules(config)
    method = Method.of(config)
    _components(config, method)
    _docid_loss(config, method)


def _names(config: "RunConfig") -> None:
    name, output = config.name, config.output
    _require(
        name not in ("", ".", "..") and not set(name) & set("/\\\0"),
        f"name: must be a plain folder name, got {show(name)}",
    )
    _require(
        name.isprintable() and len(name.encode()) <= 200,
        f"name: must be short and without control characters, got {show(name)}",
    )
    _require(
        output.isprintable() and output != "",
        f"output: must be a folder without control characters, got {show(output)}",
    )


def _model(config: "RunConfig") -> None:
    model = config.model
    tokenizer = config.tokenizer
    _require(model.d_model % model.num_heads == 0, "model.num_heads: must divide model.d_model")
    _require(
        tokenizer.punctuation == "keep" or tokenizer.source == "train",
        f"tokenizer.punctuation: {tokenizer.source!r} decides this itself; set "
        "tokenizer.punctuation: keep, or tokenizer.source: train",
    )
    if model.source == "scratch":
        return
    own = type(model)(source=model.source, dropout=model.dropout)
    for key, value in dataclasses.asdict(model).items():
        _require(
            value == getattr(own, key),
            f"model.{key}: {model.source!r} has its own; leave it out, use source: scratch, or "
            "method: windows, which leaves it to the checkpoint",
        )
    _require(
        config.tokenizer.source != "train",
        f"tokenizer.source: the embeddings of {model.source!r} belong to its own tokenizer; "
        f"set tokenizer.source={model.source}",
    )


def _budgets(config: "RunConfig") -> None:
    training, evaluation = config.training, config.evaluation
    _require(
        training.batch_size % training.accumulation == 0,
        "training.accumulation: must divide training.batch_size",
    )
    _require(
        training.batch_tokens == 0 or training.batch_size == type(training)().batch_size,
        "training.batch_tokens: takes the place of training.batch_size; leave one of them out",
    )
    stages = [n for n in (training.updates, training.updates_per_stage) if n]
    warmup = training.warmup if training.warmup >= 1 else training.warmup * min(stages, default=1)
    _require(
        training.schedule != "inverse_sqrt" or warmup >= 1 or not stages,
        "training.warmup: under schedule: inverse_sqrt the rate is the peak times sqrt(warm-up / "
        f"update), which after {warmup:g} updates of warm-up falls at once; set a tenth of the "
        "updates (0.1), or at least 1",
    )
    _require(
        training.stages == "all" or training.restart,
        "training.stages: 'last' trains on everything from new weights; set training.restart: true",
    )
    _require(evaluation.beams >= evaluation.depth, "evaluation.beams: at least evaluation.depth")


def _material(config: "RunConfig") -> None:
    """Something to train on in every stage."""
    training, is_indexed = config.training, config.indexing != "none"
    _require(
        not is_indexed or sum(view.weight for view in config.views) > 0,
        "views: at least one view needs a weight above zero",
    )
    _require(
        math.isfinite(training.ratio) or is_indexed,
        "training.ratio: infinite with indexing: none leaves nothing to train on",
    )
    # restart trains on D_0's queries where replay has none
    _require(
        is_indexed or training.restart or math.isfinite(config.replay.build().ratio),
        "indexing: none leaves later stages nothing to train on without replay; choose a replay, "
        "or indexing: seen",
    )


def _components(config: "RunConfig", method: "Method") -> None:
    training, policy = config.training, method.sharpness
    embedding = getattr(config.docids.settings, "embedding", None)
    first = embedding.updates if embedding and embedding.source == "model" else 0
    _require(
        first == 0 or (first < training.updates and training.stages == "all"),
        "docids.embedding.updates: must be below training.updates, and stage 0 must be trained; "
        "or choose docids.embedding.source: tfidf",
    )
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
    idle = method.parameters.makes_updates and not training.updates + training.updates_per_stage
    for axis in ("replay", "regularizer", "sharpness"):
        _require(
            not idle or getattr(config, axis).name == BASES[axis][2],
            f"training.updates: 0, so {axis}: {getattr(config, axis).name} has nothing to act on; "
            "set training.updates and training.updates_per_stage, or method: windows",
        )
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
            config.model.source == "scratch" or not component.scratch_only,
            f"model.source: {axis}: {getattr(config, axis).name} writes a model of its own; set "
            f"model.source: scratch, or {axis}: {BASES[axis][2]}",
        )
        _require(
            config.docids.build().atomic or not component.atomic_only,
            f"docids.name: {axis}: {getattr(config, axis).name} needs one row per document; set "
            f"docids: atomic, {axis}: {BASES[axis][2]}, or method: windows, which trains",
        )


def _docid_loss(config: "RunConfig", method: "Method") -> None:
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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
