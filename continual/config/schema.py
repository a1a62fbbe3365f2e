"""A run's configuration: frozen dataclasses, YAML files and ``key=value`` on top.

Layers, later ones win: the defaults below, the method preset that the file names, the file, the
method preset given on the command line, ``key=value`` overrides. A preset on the command line takes
the place of the file's, so nothing of that one is left. Within a component a changed ``name``
starts from the new component's own defaults.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from continual.config.paths import expand, with_paths
from continual.config.registry import (
    FAMILIES,
    Choice,
    coerce,
    parse_choice,
    parse_dataclass,
    suggest,
    to_plain,
)
from continual.config.rules import check
from dsi.corpus.records import show
from dsi.errors import UserError
from dsi.files import refuse_special
from dsi.text.views import View


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the documents come from and which part of their text is used."""

    corpus: str | dict = "encyclopedia"
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
class TokenizerConfig:
    """A pretrained tokenizer, or a Unigram one trained on D_0 and its train queries."""

    source: str = "train"
    """train, a local folder, or a model name."""
    vocabulary_size: int = 6000
    """Upper bound for a trained vocabulary; a small D_0 gives fewer pieces."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A T5 of one's own size from random weights, or a T5-family checkpoint."""

    source: str = "scratch"
    """scratch, a local folder, or a checkpoint name (its own sizes then hold)."""
    d_model: int = 128
    d_ff: int = 256
    num_layers: int = 1
    num_decoder_layers: int = 1
    num_heads: int = 4
    embedding_std: float = 0.02
    """Initial spread of a from-scratch embedding; see dsi.model.dsi_model.DSIConfig."""
    dropout: float = 0.0
    """0..1. T5 uses 0.1 on accelerators; on a CPU its random numbers cost as much as the layers."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How often old and new documents are drawn, for indexing and pseudo-queries alike."""

    new: float | None = 0.35
    """Share of draws from D_n in stages n > 0, 0..1; null: every document of U_n equally often."""
    balance: float = 0.5
    """Of the draws of old documents, the share that picks an old corpus first, 0..1."""


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Text in front of every input, one per task (DSI: one model for both), 512 tokens at most."""

    indexing: str = ""
    retrieval: str = ""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Budgets count updates: one update is one optimizer step over ``batch_size`` examples."""

    updates: int = 1200
    """Updates of stage 0."""
    updates_per_stage: int = 300
    """Updates of every later stage."""
    batch_size: int = 64
    """Examples of one update, over all devices and micro-batches."""
    batch_tokens: int = 0
    """Tokens of one update in place of ``batch_size`` examples: long texts then come in smaller
    batches than short ones; 0: ``batch_size``."""
    accumulation: int = 1
    """Micro-batches that one update is split into."""
    window: int = 64
    """Updates drawn together and sorted by length, so that batches need little padding; fewer where
    a stage is no whole number of windows."""
    length_groups: int = 1
    """An update has examples of so many quantiles of length, each padded and passed on its own; 1:
    all of about one length, the fastest."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor: the rate is a share of each tensor's own size (T5X: 1e-3 to fine-tune)."""
    learning_rate: float = 2e-3
    docid_learning_rate_scale: float = 1.0
    """Rate of the docid head (its rows and the vectors that the decoder reads) over the others'."""
    later_learning_rate: float | None = None
    """Peak rate of stages n > 0; null: the same."""
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = "linear"
    """Decay after the warm-up, restarted at every stage; inverse_sqrt: by sqrt(warm-up / update),
    as T5 was pretrained, however long the stage is."""
    warmup: float = 0.1
    """Updates of linear warm-up per stage: below 1 a share of the stage, else a count. Under
    inverse_sqrt at least one update: it decides how fast the rate falls."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of an update's gradient; 0: no clipping."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """An update whose loss or gradient is not finite ends the run, with its batch kept in
    ``nonfinite/``, or is left out and counted."""
    label_smoothing: float = 0.0
    ratio: float = 0.67
    """Indexing examples per query of D_0 in stage 0 (DSI's r; the paper: 32)."""
    docid_softmax: Literal["exact", "sampled"] = "exact"
    """sampled: the sum over all documents is estimated from ``docid_samples`` of them and the
    batch's own (atomic docids only)."""
    docid_samples: int = 0
    """Documents drawn for every micro-batch under ``sampled``; 0 under ``exact``."""
    docid_update: Literal["all", "touched"] = "all"
    """touched: only rows of documents that were drawn or in the batch change, without momentum, so
    an update's cost does not grow with the documents; needs ``sampled``."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """bf16: autocast with fp32 weights; auto: bf16 on GPUs that have units for it, and no on every
    processor, so that a run means the same on all of them. T5 overflows in fp16."""
    fast_dropout: bool = True
    """On a processor, decide by 8 random bits per value instead of a random float."""
    gradient_checkpointing: bool = False
    """Run each layer again in the backward pass instead of keeping what it computed."""
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Mode of torch.compile (reduce-overhead: CUDA graphs); slower than no on a processor."""
    pad_to_multiple: int = 1
    """Inputs are padded to a multiple of so many tokens, so that few shapes are compiled."""
    prefetch: int = 2
    """Batches made ahead by a thread; 0: none."""
    reset_optimizer: bool = False
    """Start every stage with fresh moments. false: they are kept, and the first steps of new docid
    rows are up to six rates long, which helps them (continual.update.optimizer.restore_state)."""
    restart: bool = False
    """Start every stage from new weights: re-training from scratch on U_n."""
    stages: Literal["all", "last"] = "all"
    """last: only with restart; train the last stage alone, with the updates of all stages."""


@dataclasses.dataclass(frozen=True)
class SharpnessMeasurement:
    """How much the loss rises around a stage's last weights (continual.measure.sharpness)."""

    examples: int = 0
    """Documents of U_n on which it is measured; 0: it is not."""
    rho: float = 0.05
    """Radius, over all trainable weights, within which the worst loss is searched."""
    ascents: int = 5
    """Gradient steps of that search."""
    iterations: int = 20
    """Power iterations for the largest eigenvalue of the Hessian."""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError("examples: must not be negative; 0 turns the measurement off")
        if not 0 < self.rho < float("inf"):
            raise ValueError("rho: must be above zero and finite")
        for key in ("ascents", "iterations"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured after a stage."""

    batch_size: int = 256
    depth: int = 10
    """Documents kept per query in the TREC runs; at least 10."""
    beams: int = 10
    """Width of the search for docids of several codes; at least ``depth``."""
    length_penalty: float = 0.0
    """A docid's log-probability is divided by its length to this power; 0: a plain sum."""
    unconstrained: bool = False
    """Also search without the set of valid docids, and report invalid and repeated ones."""
    document_length: int = 48
    """Tokens of a document that indexing accuracy reads, from its start."""
    events_every: int = 0
    """Updates between two looks at every document for forgetting events; 0: after stages only."""
    sharpness: SharpnessMeasurement = SharpnessMeasurement()


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """metrics.jsonl is always written; W&B mirrors it when asked."""

    wandb: bool = False
    project: str = "dsi-continual"
    log_every: int = 50
    """Updates between two training lines."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints are written after every stage, and within stages every so many updates."""

    every: int = 0
    """Updates; 0: only after stages."""
    keep: int = 2
    """How many are kept."""


_DEFAULT_NAMES = {
    "docids": "atomic",
    "replay": "generative",
    "regularizer": "none",
    "sharpness": "none",
    "parameters": "full",
    "starts": "random",
    "merging": "none",
}


def _choice(axis: str) -> Any:
    return dataclasses.field(default_factory=lambda: parse_choice(axis, _DEFAULT_NAMES[axis]))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result; under the preset ``default``: the quickstart."""

    name: str = "quickstart"
    """The run directory is output/name."""
    output: str = "runs"
    seed: int = 0
    threads: int = 1
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
    views: tuple[View, ...] = (View("first", 0.35, 48), View("chunk", 0.65, 24, 5))
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
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.output) / self.name


AXES = tuple(axis for axis in FAMILIES)
LARGEST_FILE = 1 << 18  # bytes
MOST_VALUES = 10_000


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    method: str | None = None,
) -> RunConfig:
    """The configuration of a YAML file (None: the defaults), a method and overrides."""
    file = _read_yaml(Path(path)) if path is not None else {}
    if "method" in file and not isinstance(file["method"], str):
        raise UserError(
            f"{path}: method: expected a preset's name or file, got {show(file['method'])}"
        )
    assignments = [_override(text) for text in overrides]
    for keys, value in assignments:
        if keys == ["method"]:
            method = str(value)
    defaults = {axis: {"name": name} for axis, name in _DEFAULT_NAMES.items()}
    below = _merge(defaults, _preset(file.get("method", "default")))
    merged = _merge(below, file)
    if method is not None:
        # settings that the file makes without naming the component belong to the one it had
        own = {
            axis: {"name": below[axis]["name"], **file[axis]}
            for axis in AXES
            if isinstance(file.get(axis), Mapping)
        }
        merged = _merge(defaults, {**file, **own})
        merged = _merge(_merge(merged, _preset(method)), {"method": method})
    # all of them first: replay.ratio=2 replay=episodic is replay=episodic replay.ratio=2
    given: dict[str, Any] = {}
    for keys, value in assignments:
        given = _merge(given, _nested(keys, value))
    config = parse(with_paths(_merge(merged, given)))
    check(config)
    return config


def parse(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain data such as config.yaml of a run directory."""
    plain = {key: value for key, value in values.items() if key not in AXES}
    choices = {axis: parse_choice(axis, values[axis]) for axis in AXES if axis in values}
    return dataclasses.replace(parse_dataclass(RunConfig, plain, ""), **choices)


def dump(config: RunConfig) -> str:
    """YAML with every default written out; :func:`read_resolved` is the inverse."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def read_resolved(path: Path) -> RunConfig:
    """The configuration of an existing run, as written: no preset is applied again."""
    config = parse(_read_yaml(path))
    check(config)
    return config


def differences(one: RunConfig, other: RunConfig) -> list[str]:
    """Dotted keys of the settings in which two configurations differ, in the fields' order."""

    def walk(a: Any, b: Any, path: str) -> Iterator[str]:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in {**a, **b}:
                yield from walk(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        elif a != b:
            yield path

    return list(walk(to_plain(one), to_plain(other), ""))


def preset_names() -> list[str]:
    """The method presets that ship with the package."""
    folder = resources.files("continual") / "presets"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def _preset(name: str) -> dict[str, Any]:
    if name in preset_names():
        text = (resources.files("continual") / "presets" / f"{name}.yaml").read_text("utf-8")
        return yaml.safe_load(text) or {}
    if name.endswith((".yaml", ".yml")):
        return _read_yaml(Path(expand(name, "method")))
    raise UserError(f"method: unknown preset {show(name)}{suggest(name, preset_names())}")


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that appears twice is an error, where PyYAML drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str) -> Any:
    """Plain data; yaml.YAMLError for whatever is wrong with the text."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # before anything is made of it: nine lines of aliases can stand for a billion values
        if _count(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values with its aliases written out")
        return loader.construct_document(node)
    # dates such as 2024-13-45, tags on what they are not for (!!bool x), a deep nest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when aliases are written out, but for those in itself."""
    if id(node) not in known:
        known[id(node)] = 1
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (part for entry in parts for part in (entry if type(entry) is tuple else (entry,)))
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    return known[id(node)]


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    refuse_special(path, "give a YAML file")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE} bytes; give a configuration")
        value = _load_yaml(content.decode("utf-8"))
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the configuration ({error.strerror}); give a YAML file, or "
            "--resume with a run directory"
        ) from error
    except ValueError as error:  # a path with a NUL
        raise UserError(f"{path}: cannot read the configuration ({error}); give a file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = _problem(error)
        raise UserError(f"{path}{line}: not valid YAML ({problem}); correct the line") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: expected 'key: value' lines at the top level")
    return value


def _override(text: str) -> tuple[list[str], Any]:
    key, separator, value = text.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys) or len(keys) > 20:
        raise UserError(f"{show(text)}: expected key=value, for example training.updates=500")
    try:
        return keys, _load_yaml(value)
    except yaml.YAMLError as error:
        problem = _problem(error)
        raise UserError(
            f"{show(text)}: the value is not valid YAML ({problem}); quote it"
        ) from error


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    if isinstance(value.get(keys[0]), str) and keys[0] in AXES:
        return {keys[0]: {"name": value[keys[0]]}}
    return value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if key in AXES and isinstance(value, str):
            value = {"name": value}
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = "name" in value and value["name"] != old.get("name", value["name"])
            merged[key] = dict(value) if renamed else _merge(old, value)
        else:
            merged[key] = value
    return merged


__all__ = [
    "RunConfig",
    "check",
    "coerce",
    "differences",
    "dump",
    "load_config",
    "parse",
    "read_resolved",
]
