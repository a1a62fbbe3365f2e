"""What settings a run has: frozen dataclasses, each field with its range, default and meaning."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from continual.config.parsing import parse_choice
from continual.config.registry import BASES, Choice
from dsi.settings import FINITE, Count, NotNegative, Positive, Settings, Share
from dsi.text.views import View


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Where the documents come from and which part of their text is used."""

    corpus: str | dict[str, str] = "encyclopedia"
    """The embedded sample, a BEIR folder, or {documents: FILE, queries: FILE}, {dataset: NAME}."""
    stream: str | None = "iid"
    """streams/NAME.json of the corpus, a path to such a file, or null: all documents are D_0."""
    title: bool = True
    """Put the title in front of the text."""
    lowercase: bool = True
    """Lower-case documents and queries (DSI does)."""
    deduplicate: Literal["none", "text", "title", "prefix"] = "none"
    """Drop documents equal in this respect; prefix: DSI's first 4,000 characters."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Settings):
    """A pretrained tokenizer, or a Unigram one trained on D_0 and its train queries."""

    source: str = "train"
    """train, a local folder, or a model name."""
    vocabulary_size: Annotated[int, Ge(100), Le(2**24)] = 6000
    """Upper bound for a trained vocabulary; a small D_0 gives fewer pieces."""
    punctuation: Literal["keep", "drop"] = "keep"
    """drop: a trained tokenizer reads letters and digits alone, as BM25 does, so that a word is the
    same word before a comma; a model that writes text then writes none."""


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """A T5 of one's own size from random weights, or a T5-family checkpoint."""

    source: str = "scratch"
    """scratch, a local folder, or a checkpoint name (its own sizes then hold)."""
    d_model: Annotated[int, Ge(1), Le(2**16)] = 128
    """Width of a token's vector; a multiple of num_heads."""
    d_ff: Annotated[int, Ge(1), Le(2**18)] = 256
    """Width inside the feed-forward layers."""
    num_layers: Annotated[int, Ge(1), Le(1000)] = 1
    """Layers of the encoder."""
    num_decoder_layers: Annotated[int, Ge(1), Le(1000)] = 1
    """Layers of the decoder."""
    num_heads: Count = 4
    """Attention heads, each d_model / num_heads wide."""
    self_heads: Count | None = None
    """Heads of self-attention, as wide; null: as many. Fewer make a wide model small and fast."""
    embedding_std: Positive = 0.02
    """Initial spread of a from-scratch embedding; see dsi.model.dsi_model.DSIConfig."""
    dropout: Share = 0.0
    """T5 uses 0.1 on accelerators; on a CPU its random numbers cost as much as the layers."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Settings):
    """How often old and new documents are drawn, for indexing and pseudo-queries alike."""

    new: Share | None = 0.2
    """Share of draws from D_n in stages n > 0; null: every document of U_n equally often."""
    balance: Share = 0.5
    """Of the draws of old documents, the share that picks an old corpus first."""


@dataclasses.dataclass(frozen=True)
class PromptsConfig(Settings):
    """Text in front of every input, one per task (DSI: one model for both), 512 tokens at most."""

    indexing: str = ""
    """In front of a document."""
    retrieval: str = ""
    """In front of a query."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Settings):
    """Budgets count updates: one update is one optimizer step over ``batch_size`` examples."""

    updates: Annotated[int, Ge(0)] = 1200
    """Updates of stage 0."""
    updates_per_stage: Annotated[int, Ge(0)] = 300
    """Updates of every later stage."""
    batch_size: Annotated[int, Ge(1), Le(2**20)] = 64
    """Examples of one update, over all devices and micro-batches."""
    batch_tokens: Annotated[int, Ge(0), Le(2**30)] = 0
    """Tokens of one update in place of ``batch_size`` examples: long texts then come in smaller
    batches than short ones; 0: ``batch_size``."""
    accumulation: Count = 1
    """Micro-batches that one update is split into."""
    window: Annotated[int, Ge(1), Le(2**20)] = 64
    """Updates drawn together and sorted by length, so that batches need little padding; fewer where
    a stage is no whole number of windows."""
    length_groups: Count = 1
    """Groups of an update, each from another quantile of length, padded and passed on its own; 1:
    all examples are of about one length, which is fastest."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor: the rate is a share of each tensor's own size (T5X: 1e-3 to fine-tune)."""
    learning_rate: Positive = 2e-3
    """Peak rate, of D_0 where ``later_learning_rate`` is set."""
    docid_learning_rate_scale: Positive = 1.0
    """Rate of the docid head (its rows and the vectors that the decoder reads) over the others'."""
    later_learning_rate: Positive | None = 9e-4
    """Peak rate of stages n > 0; null: the same."""
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = "linear"
    """Decay after the warm-up, restarted at every stage; inverse_sqrt: by sqrt(warm-up / update),
    as T5 was pretrained, however long the stage is."""
    warmup: NotNegative = 0.1
    """Updates of linear warm-up per stage: below 1 a share of the stage, else a count. Under
    inverse_sqrt at least one update: it decides how fast the rate falls."""
    weight_decay: NotNegative = 0.01
    """An update takes this share, times the rate, off every weight that decays."""
    clip: NotNegative = 1.0
    """Largest norm of an update's gradient; 0: no clipping."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """An update whose loss or gradient is not finite ends the run, with its batch kept in
    ``nonfinite/``, or is left out and counted."""
    label_smoothing: Share = 0.0
    """Share of the target's probability that is spread over all codes or words."""
    ratio: Annotated[float, Ge(0)] = 0.8
    """Indexing examples per query of D_0 in stage 0 (DSI's r; the paper: 32); .inf: indexing
    alone."""
    docid_softmax: Literal["exact", "sampled"] = "exact"
    """sampled: the sum over all documents is estimated from ``docid_samples`` of them and the
    batch's own (atomic docids only)."""
    docid_samples: Annotated[int, Ge(0)] = 0
    """Documents drawn for every micro-batch under ``sampled``; 0 under ``exact``."""
    docid_update: Literal["all", "touched"] = "all"
    """touched: only rows of documents that were drawn or in the batch change, without momentum, so
    an update's cost does not grow with the documents; needs ``sampled``."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """bf16: autocast with fp32 weights; auto: bf16 on GPUs that have units for it, and no on every
    processor, so that a run means the same on all of them. T5 overflows in fp16."""
    fast_dropout: bool = True
    """On a processor, draw dropout by 8 random bits per value instead of a random float."""
    gradient_checkpointing: bool = False
    """Run each layer again in the backward pass instead of keeping what it computed."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Mode of torch.compile (reduce-overhead: CUDA graphs); slower than no on a processor."""
    pad_to_multiple: Annotated[int, Ge(1), Le(2**10)] = 1
    """Inputs are padded to a multiple of this many tokens, so that few shapes are compiled."""
    prefetch: Annotated[int, Ge(0), Le(2**10)] = 2
    """Batches made ahead by a thread; 0: none."""
    reset_optimizer: bool = False
    """Start every stage with fresh moments. false: they are kept, and the first steps of new docid
    rows are up to 6.6 rates long, which helps them (continual.update.optimizer.restore_state)."""
    restart: bool = False
    """Start every stage from new weights: re-training from scratch on U_n."""
    stages: Literal["all", "last"] = "all"
    """last: only with restart; train the last stage alone, with the updates of all stages."""


@dataclasses.dataclass(frozen=True)
class SharpnessMeasurement(Settings):
    """How much the loss rises around a stage's last weights (continual.measure.sharpness)."""

    examples: Annotated[int, Ge(0)] = 0
    """Documents of U_n on which it is measured; 0: it is not."""
    rho: Positive = 0.05
    """Radius, over all trainable weights, within which the worst loss is searched."""
    ascents: Count = 5
    """Gradient steps of that search."""
    iterations: Count = 20
    """Power iterations for the largest eigenvalue of the Hessian."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Settings):
    """What is measured after a stage."""

    batch_size: Annotated[int, Ge(1), Le(2**20)] = 256
    """Queries or documents that are searched at once."""
    depth: Annotated[int, Ge(10)] = 10
    """Documents kept per query in the TREC runs; Hits@10 needs ten."""
    beams: Annotated[int, Ge(1), Le(2**20)] = 10
    """Width of the search for docids of several codes; at least ``depth``."""
    length_penalty: Annotated[float, FINITE] = 0.0
    """A docid's log-probability is divided by its length to this power; 0: a plain sum."""
    unconstrained: bool = False
    """Also search without the set of valid docids, and report invalid and repeated ones."""
    document_length: Annotated[int, Ge(1), Le(2**20)] = 48
    """Tokens of a document that indexing accuracy reads, from its start."""
    events_every: Annotated[int, Ge(0)] = 0
    """Updates between two looks at every document for forgetting events; 0: after stages only."""
    sharpness: SharpnessMeasurement = SharpnessMeasurement()


@dataclasses.dataclass(frozen=True)
class TrackingConfig(Settings):
    """metrics.jsonl is always written; W&B mirrors it when asked."""

    wandb: bool = False
    """Whether W&B gets a row for every line."""
    project: str = "dsi-continual"
    """W&B's project."""
    log_every: Count = 50
    """Updates between two training lines."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Settings):
    """Checkpoints are written after every stage, and within stages every so many updates."""

    every: Annotated[int, Ge(0)] = 0
    """Updates; 0: only after stages."""
    keep: Count = 2
    """How many are kept."""


DEFAULT_NAMES: dict[str, str] = {axis: base[2] for axis, base in BASES.items() if base[2]}
DEFAULT_NAMES |= {"docids": "atomic", "replay": "generative"}


def _choice(axis: str) -> Any:
    return dataclasses.field(default_factory=lambda: parse_choice(axis, DEFAULT_NAMES[axis]))


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """Everything that decides a run's result.

    The defaults stand under every preset; ``dsi train`` alone is the preset ``default`` on top.
    """

    name: str = "quickstart"
    """The run directory is output/name."""
    output: str = "runs"
    """The folder of run directories."""
    seed: int = 0
    """Every random choice follows from it."""
    threads: Annotated[int, Ge(0), Le(4096)] = 1
    """Processor threads; sums depend on it in the last digit, so equal runs need the same number.
    A small model gains little from a second one. 0: leave it to torch."""
    method: str = "default"
    """The preset under the settings below: a name in continual/presets, or a YAML file."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    docids: Choice = _choice("docids")
    indexing: Literal["seen", "new", "none"] = "seen"
    """Documents indexed in a stage: cl(U_n), cl(D_n), or none (pseudo-queries only)."""
    views: tuple[View, ...] = (View("first", 0.3, 48), View("chunk", 0.7, 24, 5))
    """Which tokens of a document are read when it is indexed, and how often."""
    direction: Literal[
        "inputs_to_targets", "targets_to_inputs", "bidirectional", "span_corruption"
    ] = "inputs_to_targets"
    """DSI's indexing methods (section 3.1.1 there); retrieval always maps query to docid."""
    sampling: SamplingConfig = SamplingConfig()
    prompts: PromptsConfig = PromptsConfig()
    replay: Choice = _choice("replay")
    regularizer: Choice = _choice("regularizer")
    sharpness: Choice = _choice("sharpness")
    parameters: Choice = _choice("parameters")
    starts: Choice = _choice("starts")
    merging: Choice = _choice("merging")
    baseline: Choice = _choice("baseline")
    """With one no model is trained, and of the other settings only ``data`` and
    ``evaluation.depth`` count."""
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.output) / self.name

    @property
    def is_baseline(self) -> bool:
        """Whether the run is of a baseline and trains no model."""
        return self.baseline.name != DEFAULT_NAMES["baseline"]
