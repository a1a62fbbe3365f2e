"""Layers, presets, error lines, and configurations that survive being written."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from continual.config.loading import (
    differences,
    dump,
    load_config,
    preset_names,
    read_resolved,
)
from continual.config.schema import DataConfig, RunConfig
from dsi.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def write(tmp_path):
    """Write a YAML file and return its path."""

    def make(text: str | bytes, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


# a method that trains from random weights, with a replay that has settings; a setting given again
# takes the place of these
TRAINED = ("method=windows", "replay=generative")

# each: a setting on the command line, the key or text that the line starts with, a part of the fix
BAD_SETTINGS = [
    ("trainin.updates=5", "trainin: unknown key", "did you mean 'training'"),
    ("training.update=5", "training.update: unknown key", "did you mean 'updates'"),
    ("training.updates=many", "training.updates: expected a whole number", "'many'"),
    ("training.updates=1.5", "training.updates: expected a whole number", "1.5"),
    ("training.updates=.inf", "training.updates: expected a whole number", "inf"),
    ("training.updates=true", "training.updates: expected a whole number", "True"),
    ("training.updates=", "training.updates: expected a whole number", "None"),
    ("training.updates=-1", "training.updates: must be at least 0", ""),
    ("training.updates.x=1", "training.updates: expected a whole number", "'x'"),
    ("training.updates_per_stage=-1", "training.updates_per_stage: must be at least 0", ""),
    ("training=5", "training: expected a mapping", "5"),
    ("training=null", "training: expected a mapping", "None"),
    ("training.batch_size=0", "training.batch_size: must be at least 1", ""),
    ("training.accumulation=0", "training.accumulation: must be at least 1", ""),
    ("training.accumulation=3", "training.accumulation: must divide training.batch_size", ""),
    ("training.window=0", "training.window: must be at least 1", ""),
    ("training.learning_rate=0", "training.learning_rate: must be above 0", ""),
    ("training.learning_rate=.inf", "training.learning_rate: must be finite", "finite"),
    ("training.learning_rate=.nan", "training.learning_rate: expected a number", "nan"),
    ("training.learning_rate=fast", "training.learning_rate: expected a number", "'fast'"),
    ("training.later_learning_rate=0", "training.later_learning_rate: must be above 0", ""),
    ("training.schedule=step", "training.schedule: 'step' is not one of", "linear, cosine"),
    ("training.warmup=-1", "training.warmup: must be at least 0", ""),
    ("training.warmup=.inf", "training.warmup: must be finite", ""),
    ("training.weight_decay=-1", "training.weight_decay: must be at least 0", ""),
    ("training.clip=-1", "training.clip: must be at least 0", ""),
    ("training.label_smoothing=2", "training.label_smoothing: must be at most 1", "2"),
    ("training.ratio=-1", "training.ratio: must be at least 0", "got -"),
    ("training.precision=fp16", "training.precision: 'fp16' is not one of", "no, bf16"),
    ("training.precision=yes", "training.precision: True is not one of", "no, bf16"),
    ("training.stages=last", "training.stages: 'last'", "training.restart: true"),
    ("training.restart=1", "training.restart: expected true or false", "1"),
    ("data.corpus=5", "data.corpus: expected text", "5"),
    ("data.stream=[a]", "data.stream: expected text", "['a']"),
    ("data.title=1", "data.title: expected true or false", "1"),
    ("data.deduplicate=url", "data.deduplicate: 'url' is not one of", "none, text, title, prefix"),
    ("tokenizer.vocabulary_size=50", "tokenizer.vocabulary_size: must be", "at least 100"),
    ("tokenizer.source=null", "tokenizer.source: expected text", "None"),
    ("model.d_model=0", "model.d_model: must be at least 1", ""),
    ("model.d_ff=0", "model.d_ff: must be at least 1", ""),
    ("model.num_layers=0", "model.num_layers: must be at least 1", ""),
    ("model.num_decoder_layers=0", "model.num_decoder_layers: must be at least 1", ""),
    ("model.num_heads=3", "model.num_heads: must divide model.d_model", ""),
    ("model.self_heads=0", "model.self_heads: must be at least 1", ""),
    ("model.self_heads=all", "model.self_heads: expected", "'all'"),
    ("model.embedding_std=-1", "model.embedding_std: must be above 0", ""),
    ("model.dropout=1.5", "model.dropout: must be at most 1", "1.5"),
    ("model.source=folder/t5", "tokenizer.source: the embeddings of", "tokenizer.source=folder/t5"),
    ("sampling.new=2", "sampling.new: must be at most 1", "2"),
    ("sampling.balance=-0.5", "sampling.balance: must be at least 0", "-0.5"),
    ("indexing=all", "indexing: 'all' is not one of", "seen, new, none"),
    ("direction=both", "direction: 'both' is not one of", "bidirectional"),
    ("views=first", "views: expected a list", "'first'"),
    ("views=[]", "views: at least one view", "weight above zero"),
    ("views=[{name: first}]", "views[0].weight: missing", "write it"),
    (
        "views=[{name: frist, weight: 1}]",
        "views[0].name: 'frist' is not one of",
        "first, chunk, set",
    ),
    ("views=[{name: set, weight: -1}]", "views[0].weight: must be at least 0", ""),
    ("views=[{name: set, weight: .inf}]", "views[0].weight: must be finite", ""),
    ("views=[{name: set, weight: 0}]", "views: at least one view", "weight above zero"),
    ("views=[{name: set, weight: 1, length: 0}]", "views[0].length: must be at least 1", ""),
    ("views.0.length=5", "views: expected a list", "'0'"),
    ("evaluation.depth=5", "evaluation.depth: must be at least 10", ""),
    ("evaluation.document_length=0", "evaluation.document_length: must be at least 1", ""),
    ("evaluation.events_every=-5", "evaluation.events_every: must be at least 0", ""),
    ("checkpoint.every=-1", "checkpoint.every: must be at least 0", ""),
    ("checkpoint.keep=0", "checkpoint.keep: must be at least 1", ""),
    ("tracking.log_every=0", "tracking.log_every: must be at least 1", ""),
    ("tracking.wandb=maybe", "tracking.wandb: expected true or false", "'maybe'"),
    ("threads=-1", "threads: must be at least 0", ""),
    ("seed=x", "seed: expected a whole number", "'x'"),
    ("name=3", "name: expected text", "in quotes"),
    ("name=", "name: expected text", "None"),
    ("name=''", "name: must be a plain folder name", ""),
    ("name=..", "name: must be a plain folder name", "'..'"),
    ("name=a/b", "name: must be a plain folder name", "'a/b'"),
    ("method=genmem_sen", "method: unknown preset 'genmem_sen'", "did you mean 'genmem_seen'"),
    ("method=5", "method: unknown preset '5'", "cl_new"),
    ("method=absent.yaml", "absent.yaml: cannot read the configuration", "give a YAML file"),
    ("replay=epsiodic", "replay.name: unknown name 'epsiodic'", "did you mean 'episodic'"),
    ("replay=null", "replay.name: missing", "episodic, generative, none"),
    ("replay.ratio=-1", "replay.ratio: must be at least 0", "got -"),
    ("replay.rato=1", "replay.rato: unknown key", "did you mean 'ratio'"),
    ("replay.memory=human", "replay.memory: 'human' is not one of", "lexical, learned, both"),
    ("replay.lexical.span_min=0", "replay.lexical.span_min: must be at least 1", ""),
    ("replay.generator.updates=x", "replay.generator.updates: expected a whole number", "'x'"),
    ("replay.name=no.such.module", "replay.name: 'no.such.module' is code from", "--plugin no "),
    ("replay.name=json.decoder", "replay.name: 'json.decoder' is code from", "--plugin json "),
    ("regularizer.weight=1", "regularizer.weight: unknown key", "no settings"),
    ("regularizer={name: l2, weight: -1}", "regularizer.weight: must be at least 0", ""),
    (
        "sharpness={name: sam, rho: -1}",
        "sharpness.rho: must be at least 0",
        "-1",
    ),
    ("merging={name: average, new: 2}", "merging.new: must be at most 1", ""),
    ("docids=atomc", "docids.name: unknown name 'atomc'", "did you mean 'atomic'"),
    ("updates", "'updates': expected key=value", "training.updates=500"),
    ("=5", "'=5': expected key=value", ""),
    ("training..updates=5", "'training..updates=5': expected key=value", ""),
    ("seed=[1", "'seed=[1': the value is not valid YAML", "quote it"),
    ("name=2024-13-45", "'name=2024-13-45': the value is not valid YAML", "quote it"),
    ("seed=!!int x", "'seed=!!int x': the value is not valid YAML", "quote it"),
    ("training={clip: 1, clip: 2}", "'training={clip: 1, clip: 2}'", "'clip' is there twice"),
    ("name=!!python/name:os.system", "'name=!!python/name:os.system'", "constructor"),
    ("seed=" + "[" * 1500, "'seed=[[[", "not valid YAML"),
]

BAD_COMBINATIONS = [
    (("indexing=none", "replay=none"), "indexing: none leaves later stages nothing"),
    (("indexing=none", "training.ratio=.inf"), "training.ratio: infinite with indexing: none"),
    (("model.d_model=30", "model.num_heads=4"), "model.num_heads: must divide"),
    (("model.source=x", "tokenizer.source=x", "model.d_ff=512"), "model.d_ff: 'x' has its own"),
    (("model.source=x", "tokenizer.source=x", "model.self_heads=2"), "model.self_heads: 'x' has"),
    (("replay.ratio=2", "replay=none"), "replay.ratio: unknown key"),
]

# each: the content of a file, how the line starts (FILE stands for its path), a part of the rest
BAD_FILES = [
    ("training:\n\tupdates: 5\n", "FILE:2: not valid YAML", "\\t"),
    ("name: [a\nseed: 1\n", "FILE:", "not valid YAML"),
    ("name: a\nname: b\n", "FILE:2: not valid YAML", "'name' is there twice"),
    ("training:\n  clip: 1\n  clip: 2\n", "FILE:3: not valid YAML", "'clip' is there twice"),
    ("a: !!python/object/apply:os.system [echo]\n", "FILE:1: not valid YAML", "python/object"),
    ("a: !tag 5\n", "FILE:1: not valid YAML", "!tag"),
    ("name: 2024-13-45\n", "FILE: not valid YAML", "month"),
    ("a: *nowhere\n", "FILE:1: not valid YAML", "nowhere"),
    ("a: 1\n---\na: 2\n", "FILE:2: not valid YAML", "document"),
    ("- a\n- b\n", "FILE: expected 'key: value' lines", ""),
    ("just text\n", "FILE: expected 'key: value' lines", ""),
    ("5: a\n", "FILE: expected 'key: value' lines", ""),
    (b"name: caf\xe9\n", "FILE: not UTF-8 (byte 9)", "save it as UTF-8"),
    (b"name: a\x00b\n", "FILE: not valid YAML", ""),
    ("extends: cl_seen\n", "FILE: extends: is for presets", "method: NAME"),
    ("method: 5\n", "FILE: method: expected a preset's name", "5"),
    ("method: null\n", "FILE: method: expected a preset's name", "None"),
    ("method: cl_knew\n", "method: unknown preset 'cl_knew'", "did you mean 'cl_new'"),
    ("trainng: {updates: 5}\n", "trainng: unknown key", "did you mean 'training'"),
    ("replay: {name: generative, rato: 5}\n", "replay.rato: unknown key", "'ratio'"),
    ("method: cl_new\nreplay: {ratio: 5}\n", "replay.ratio: unknown key", "no settings"),
    ("data: {corpus: [a]}\n", "data.corpus: expected text", "['a']"),
    ("data: &x {corpus: 1, title: *x}\n", "FILE:1: not valid YAML", "inside itself"),
]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, which must be a line."""
    text = str(error.value)
    assert text == " ".join(text.split())
    return text


@pytest.mark.parametrize(("setting", "start", "fix"), BAD_SETTINGS)
def test_a_bad_setting_is_one_line_that_names_the_key(setting, start, fix):
    with pytest.raises(UserError) as error:
        load_config(None, [*TRAINED, setting])
    line = one_line(error)
    assert line.startswith(start)
    assert fix in line


@pytest.mark.parametrize(("overrides", "start"), BAD_COMBINATIONS)
def test_settings_that_contradict_each_other(overrides, start):
    with pytest.raises(UserError) as error:
        load_config(None, ["method=windows", *overrides])
    assert one_line(error).startswith(start)


@pytest.mark.parametrize(("content", "start", "rest"), BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it(write, content, start, rest):
    path = write(content)
    with pytest.raises(UserError) as error:
        load_config(path)
    line = one_line(error)
    assert line.startswith(start.replace("FILE", str(path)))
    assert rest in line


@pytest.mark.parametrize("name", ["absent.yaml", "", "run.yaml/inside.yaml"])
def test_what_is_no_file(write, tmp_path, name):
    write("seed: 1")
    with pytest.raises(UserError, match=r": cannot read the configuration \(.*; give a YAML file"):
        load_config(tmp_path / name)


def test_nothing_in_yaml_runs(write, tmp_path):
    mark = tmp_path / "mark"
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]"
    with pytest.raises(UserError):
        load_config(write(f"name: {tag}\n"))
    with pytest.raises(UserError):
        load_config(None, [f"name={tag}"])
    assert not mark.exists()


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n", "\ufeffname: quickstart\n"])
def test_an_empty_file_is_the_quickstart(write, text):
    assert load_config(write(text)) == load_config()


def test_the_quickstart_is_written_out():
    path = ROOT / "configs" / "quickstart.yaml"
    assert load_config(path) == load_config()
    assert load_config().method == "default"
    # every key is there: what the file says is all there is to say
    text = path.read_text("utf-8")
    for key in {line.lstrip("- ").split(":")[0] for line in dump(load_config()).splitlines()}:
        assert f"{key}:" in text, key


@pytest.mark.parametrize("name", ["nq", "msmarco"])
def test_the_papers_scale(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert config.name == config.data.corpus == name
    assert config.data.lowercase
    assert (config.training.batch_size, config.training.ratio) == (128, 32)
    assert [(v.name, v.length) for v in config.views] == [("first", 32)]
    assert config.training.updates > 10 * config.training.updates_per_stage / 2
    replay = config.replay.settings
    sources = {config.model.source, config.tokenizer.source, replay.generator.source}
    assert sources == {"google/t5-v1_1-base"}
    assert (replay.memory, replay.documents, replay.ratio) == ("learned", "seen", 32)
    assert (replay.stored_queries, replay.first_stage) == (0, 0), "nothing of another preset"
    assert replay.generator.resolved().dropout == 0.1
    # another method keeps the data and the models
    other = load_config(ROOT / "configs" / f"{name}.yaml", ["method=genmem_new"])
    assert other.replay.settings.generator == replay.generator
    assert other.model == config.model


DIFFERENCES = {
    # of two presets that a table compares -> the settings in which they differ, and no others
    ("cl_seen", "cl_new"): ["indexing"],
    ("cl_seen", "scratch"): ["training.restart"],
    ("cl_seen", "epsmem_initial"): ["replay.name", "replay.documents", "replay.ratio"],
    ("genmem_seen", "genmem_new"): ["replay.documents"],
    ("genmem_seen", "genmem_initial"): ["replay.documents"],
    ("windows", "cl_seen"): [
        "views",
        "sampling.new",
        "training.later_learning_rate",
        "training.ratio",
        "evaluation.document_length",
    ],
    ("default", "windows"): [
        "tokenizer.punctuation",
        "model.d_model",
        "model.num_heads",
        "model.self_heads",
        "parameters.name",
        *(f"starts.{key}" for key in ("name", "k1", "b", "norm", "prior", "strength", "rounds")),
        *(f"merging.{key}" for key in ("name", "steps", "newcomers", "queries")),
        "training.updates",
        "training.updates_per_stage",
        "training.learning_rate",
        "training.later_learning_rate",
    ],
}


@pytest.mark.parametrize(("pair", "expected"), DIFFERENCES.items(), ids=str)
def test_two_presets_differ_in_what_their_names_say(pair, expected):
    one, other = (load_config(None, [f"method={name}"]) for name in pair)
    assert differences(one, other) == ["method", *expected]


def test_a_preset_on_the_command_line_takes_the_place_of_a_file(write):
    text = "indexing: new\nsampling: {new: 0.5}\ntraining: {ratio: 5}\n"
    text += "views: [{name: set, weight: 1}]\n"
    for name in ("default", "cl_seen", "genmem_new"):
        alone = load_config(None, [f"method={name}"])
        assert load_config(write(text), [f"method={name}"]) == alone
    file = "replay: {name: generative, ratio: 9, round_trip: 3, stored_queries: 0.9}\n"
    alone = load_config(None, ["method=genmem_seen"])
    assert load_config(write(file), ["method=genmem_seen"]) == alone


def test_a_preset_extends_another(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("extends: genmem_new\nreplay: {ratio: 7}\n", "mine.yaml")
    own = load_config(None, ["method=mine.yaml"])
    theirs = load_config(None, ["method=genmem_new"])
    assert differences(own, theirs) == ["method", "replay.ratio"]
    write("extends: mine.yaml\nreplay: episodic\n", "further.yaml")
    further = load_config(None, ["method=further.yaml"])
    assert (further.replay.name, further.replay.settings.ratio) == ("episodic", 32)
    assert further.sampling.new is None


BAD_PRESETS = [
    ("extends: a.yaml\n", "method: a.yaml extends a.yaml; "),
    ("extends: b.yaml\n", "method: a.yaml extends b.yaml extends a.yaml; "),
    ("extends: genmem_sen\n", "method: unknown preset 'genmem_sen'; did you mean 'genmem_seen'?"),
    ("extends: [cl_seen]\n", "a.yaml: extends: expected a preset's name or file, got ['cl_seen']"),
    ("extends: c.yaml\n", "c.yaml: cannot read the configuration"),
]


@pytest.mark.parametrize(("text", "start"), BAD_PRESETS)
def test_a_preset_that_extends_nothing_there_is(write, monkeypatch, tmp_path, text, start):
    monkeypatch.chdir(tmp_path)
    write(text, "a.yaml")
    write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(UserError) as error:
        load_config(None, ["method=a.yaml"])
    assert one_line(error).startswith(start)


def test_the_order_of_the_layers(write):
    def seen(*overrides: str, text: str | None = None) -> tuple[float, ...]:
        config = load_config(None if text is None else write(text), overrides)
        training = config.training
        return training.ratio, config.views[0].length, training.batch_size, config.sampling.balance

    defaults = RunConfig()
    below = (defaults.training.batch_size, defaults.sampling.balance)
    text = "method: cl_new\ntraining: {batch_size: 32}\n"
    assert seen() == (0.8, 48, *below)  # the preset "default" over the defaults
    assert seen(text=text) == (32, 32, 32, below[1])
    text += "views: [{name: first, weight: 1, length: 7}]\n"
    assert seen(text=text) == (32, 7, 32, below[1])  # the file over its preset
    assert seen("method=default", text=text) == (0.8, 48, 32, 0.5)  # a preset over the file
    assert seen("method=default", "training.ratio=5", text=text) == (5, 48, 32, 0.5)
    assert seen("training.ratio=5", "method=default", text=text) == (5, 48, 32, 0.5)
    assert seen("training.ratio=5", "training.ratio=6", text=text)[0] == 6


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_the_same_wherever_it_is_named(write, name):
    config = load_config(None, [f"method={name}"])
    assert config.method == name
    assert load_config(write(f"method: {name}\n")) == config
    # nothing is left of the preset that the file names, nor of a file that spells one out
    for other in preset_names():
        assert load_config(write(f"method: {other}\n"), [f"method={name}"]) == config
    assert load_config(ROOT / "configs" / "quickstart.yaml", [f"method={name}"]) == config


def test_settings_without_a_name_belong_to_the_files_own_component(write):
    path = write("method: genmem_new\nreplay: {generator: {updates: 7}, ratio: 3}\n")
    own = load_config(path).replay.settings
    assert (own.generator.updates, own.ratio, own.documents) == (7, 3, "new")
    same = load_config(path, ["method=genmem_seen"]).replay.settings
    assert (same.generator.updates, same.ratio, same.documents) == (7, 32, "seen")
    assert load_config(path, ["method=cl_new"]).replay.name == "none"
    assert load_config(path, ["method=epsmem_initial"]).replay.settings.ratio == 32


def test_a_changed_name_starts_from_its_own_defaults(write):
    text = "replay: {name: generative, ratio: 5, queries_per_document: 3}\n"
    path = write(f"method: windows\n{text}")
    assert load_config(path).replay.settings.ratio == 5
    assert load_config(path, ["replay=episodic"]).replay.settings.ratio == 32
    same = load_config(path, ["replay=generative"]).replay.settings
    assert (same.ratio, same.queries_per_document) == (5, 3)
    chosen = ("replay=episodic", "replay.ratio=4")
    assert load_config(path, chosen).replay.settings.ratio == 4
    assert load_config(path, chosen[::-1]) == load_config(path, chosen)
    again = load_config(path, ["replay=episodic", "replay.ratio=4", "replay=none"])
    assert again.replay.name == "none"
    # a plain name in a file, too
    assert load_config(write("method: windows\nreplay: episodic\n")).replay.settings.ratio == 32


def test_a_preset_from_a_file(write):
    path = write("# mine\nregularizer: {name: l2, weight: 2}\nseed: 9\n", "mine.yaml")
    config = load_config(None, [f"method={path}"])
    assert (config.regularizer.settings.weight, config.seed, config.method) == (2, 9, str(path))
    assert config.training.ratio == RunConfig().training.ratio, "not the preset 'default'"


def test_code_from_elsewhere(write, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "pull.py").write_text(
        "import dataclasses\n"
        "from continual.regularizers import Regularizer\n"
        "class Pull(Regularizer):\n"
        "    @dataclasses.dataclass(frozen=True)\n"
        "    class Config:\n        force: float = 2.0\n        depth: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("continual.config.registry._allowed", {"my_package"})
    config = load_config(
        write("method: windows\nregularizer: {name: my_package.pull, force: 3e-4}\n")
    )
    assert config.regularizer.build().config.force == 3e-4
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert read_resolved(path) == config
    with pytest.raises(UserError, match=r"^regularizer\.forc: unknown key; did you mean 'force'"):
        load_config(None, ["regularizer.name=my_package.pull", "regularizer.forc=1"])


def test_values_as_people_write_them():
    config = load_config(
        None,
        [
            *TRAINED,
            "training.learning_rate=3e-4",
            "training.updates=1e3",
            "training.later_learning_rate=null",
            "training.precision=no",
            "replay.ratio=.inf",
            "sampling.new=null",
            "data.stream=null",
            "tracking.wandb=yes",
            " seed = 5",
            "name=a=b",
            "data.corpus={documents: a.jsonl, queries: b.jsonl}",
        ],
    )
    training = config.training
    assert (training.learning_rate, training.updates, training.precision) == (3e-4, 1000, "no")
    assert training.later_learning_rate is config.sampling.new is config.data.stream is None
    assert (config.replay.settings.ratio, config.tracking.wandb) == (math.inf, True)
    assert (config.seed, config.name) == (5, "a=b")
    assert config.data.corpus == {"documents": "a.jsonl", "queries": "b.jsonl"}
    one = load_config(None, ["data.corpus.documents=a.jsonl", "data.corpus.queries=b.jsonl"])
    assert one.data == dataclasses.replace(DataConfig(), corpus=config.data.corpus)


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"method={name}"] for name in preset_names()),
        [*TRAINED, "replay.ratio=.inf", "training.learning_rate=1e-5", "data.stream=null"],
        ["data.corpus={dataset: some/name, documents: corpus}", "name='5'", "output='no'"],
        ["prompts.indexing='Dokument: ü\"'", "views=[{name: set, weight: 1}]"],
        ["method=windows", "sharpness=sam"],
        ["method=windows", "model.source=a/b", "tokenizer.source=a/b", "training.precision=no"],
    ],
)
def test_what_is_dumped_is_read_back(tmp_path, overrides):
    config = load_config(None, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), "utf-8")
    assert read_resolved(path) == config
    assert differences(read_resolved(path), config) == []
    # as a configuration file it means the same run
    assert load_config(path) == config


@settings(max_examples=20)
@given(
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    rate=st.floats(min_value=1e-12, max_value=1e3),
    ratio=st.floats(min_value=0),
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    name=st.sampled_from(preset_names()),
)
def test_any_configuration_survives_a_round_trip(tmp_path_factory, seed, rate, ratio, prompt, name):
    base = load_config(None, [f"method={name}"])
    config = dataclasses.replace(
        base,
        seed=seed,
        training=dataclasses.replace(base.training, learning_rate=rate, ratio=ratio),
        prompts=dataclasses.replace(base.prompts, retrieval=prompt),
    )
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(dump(config), "utf-8")
    assert read_resolved(path) == config


def test_an_edited_run_is_checked(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump(load_config()).replace("window: 64", "window: 0"))
    with pytest.raises(UserError, match=r"^training\.window: must be at least 1"):
        read_resolved(path)


def test_differences_are_dotted_keys():
    one = load_config(None, TRAINED)
    changed = ["seed=1", "training.clip=2", "replay.lexical.span_max=5"]
    other = load_config(None, [*TRAINED, *changed])
    assert differences(one, one) == []
    assert differences(one, other) == ["seed", "replay.lexical.span_max", "training.clip"]
    assert differences(one, load_config(None, [*TRAINED, "regularizer=l2"])) == [
        "regularizer.name",
        "regularizer.weight",
    ]
