"""Loading a run, a model or a corpus executes nothing, and names from data are no paths."""

import ast
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

from continual import runs
from continual.cli import main
from dsi.corpus.corpus import read_corpus, write_corpus
from dsi.embeddings import load_embedder
from dsi.errors import UserError
from dsi.model.dsi_model import from_checkpoint, load_model
from dsi.queries.generator import QueryGenerator
from dsi.text.tokens import load_tokenizer
from tests.continual.conftest import Lab

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for name in ("dsi", "continual", "data") for path in ROOT.glob(f"{name}/**/*.py")
)
TREE = (
    "docids=semantic",
    "docids.k=3",
    "docids.c=4",
    "docids.embedding.source=tfidf",
    "training.updates=2",
    "training.updates_per_stage=2",
    "data.stream=two",
)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, sentinel: Path):
        self.sentinel = str(sentinel)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.sentinel,))


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """The same payload in the containers that a library might unpickle; none may be opened."""
    sentinel, payload = tmp_path / "sentinel", Payload(tmp_path / "sentinel")
    torch.save(payload, tmp_path / "archive")
    array = np.array([payload], dtype=object)
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    made = {
        "pickle": pickle.dumps(payload),
        "text pickle": pickle.dumps(payload, protocol=0),
        "torch": (tmp_path / "archive").read_bytes(),
        "numpy": (tmp_path / "array.npy").read_bytes(),
    }
    yield made
    assert not sentinel.exists(), "the payload was run"


def test_the_payload_is_one(tmp_path: Path) -> None:
    """The other tests look for something that can happen."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "sentinel")))  # noqa: S301
    assert (tmp_path / "sentinel").is_dir()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("security"))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Call the command line; a run that would begin goes no further."""
    transformers.utils.logging.disable_progress_bar()

    def call(*arguments: str) -> tuple[int, str]:
        AcceleratorState._reset_state(True)
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(runs, "_run", lambda *_: None)
            patch.setattr("continual.report.figures.save_figures", lambda *_: [])
            status = main(list(arguments))
        return status, capfd.readouterr().err

    return call


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pruned(run: Path) -> list[str]:
    """What is read of a run: all but figures, logs and the files of former stages."""
    unread = re.compile(r"figures/|stages/00/|checkpoints/|.*\.(trec|jsonl)$|timing|decoding")
    return [name for name in files(run) if not unread.match(name.replace("stages/01/", ""))]


def test_a_pickle_at_any_name_of_a_run_is_never_run(lab, cli, evil, tmp_path) -> None:
    original = lab.kept(*TREE)
    run = shutil.copytree(original, tmp_path / "run")
    for path in (run, *run.glob("stages/*")):  # whose checksums would be refused before any reader
        (path / "manifest.json").unlink()
    commands = (
        ("search", str(run), "water"),
        ("evaluate", str(run)),
        ("report", str(run), "--out", str(tmp_path / "out")),
        ("add", str(run), str(lab.corpus)),
        ("train", "--resume", str(run)),
    )
    names = pruned(run)
    assert len(names) > 15
    silent = set()
    for name in names:
        refused = 0
        content = (run / name).read_bytes()
        kind = {".npy": "numpy", ".safetensors": "torch"}.get(Path(name).suffix, "pickle")
        (run / name).write_bytes(evil[kind])
        for command in commands:
            status, err = cli(*command)
            assert (status, err.count("\n")) in ((0, 0), (2, 1)), (name, command, err)
            refused += status == 2
        (run / name).write_bytes(content)
        if not refused:
            silent.add(name)
    # written for people, never read
    assert silent <= {"environment.json", "forgetting_events.json"}


def test_a_pickle_beside_the_weights_is_never_run(lab, cli, evil, tmp_path) -> None:
    """Names under which libraries look for weights, tokenizers and code of their own accord."""
    run = shutil.copytree(lab.kept(*TREE), tmp_path / "run")
    names = (
        "pytorch_model.bin", "model.pt", "model.pkl", "tf_model.h5", "training_args.bin",
        "adapter_model.bin", "tokenizer.pkl", "spiece.model", "conftest.py", "modeling_dsi.py",
    )  # fmt: skip
    for folder in (run / "stages/01/model", run / "tokenizer", run / "docids/embedder", run):
        for name in names:
            (folder / name).write_bytes(evil["torch" if name.endswith("bin") else "pickle"])
    assert cli("search", str(run), "water") == (0, "")
    (run / "stages/01/manifest.json").unlink()
    (run / "stages/01/model/model.safetensors").unlink()
    status, err = cli("search", str(run), "water")
    assert (status, err.count("\n")) == (2, 1)
    assert "model.safetensors: missing" in err


def test_code_that_a_configuration_names_is_run_when_the_command_line_names_it(
    lab, cli, tmp_path, monkeypatch
) -> None:
    sentinel, package = tmp_path / "sentinel", tmp_path / "a_plugin"
    package.mkdir()
    (package / "pull.py").write_text(
        f"import os\nos.mkdir({str(sentinel)!r})\n"
        "from continual.regularizers import Regularizer\n"
        "class Pull(Regularizer):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("continual.config.registry._allowed", set())
    run = shutil.copytree(lab.kept(*TREE), tmp_path / "run")
    (run / "manifest.json").unlink()
    config = run / "config.yaml"
    old = "regularizer:\n  name: none"
    assert old in config.read_text("utf-8")
    config.write_text(config.read_text("utf-8").replace(old, f"{old[:-4]}a_plugin.pull"), "utf-8")
    commands = (
        ("evaluate", str(run)),
        ("add", str(run), str(lab.write_stream(tmp_path / "more", (3,), first=90))),
        ("train", "--resume", str(run)),
        ("train", str(config), f"output={tmp_path}", "name=new", "--overwrite"),
    )
    for command in commands:
        before = files(run)
        status, err = cli(*command)
        assert status == 2
        assert err.startswith(
            "dsi: error: regularizer.name: 'a_plugin.pull' is code from elsewhere"
        )
        assert "add --plugin a_plugin (in Python" in err and err.count("\n") == 1
        # another package is not this one
        assert cli(*command, "--plugin", "a_plugin.pu")[0] == 2
        monkeypatch.setattr("continual.config.registry._allowed", set())
        assert cli(*command, "--plugin", "tests") == (2, err)
        monkeypatch.setattr("continual.config.registry._allowed", set())
        assert files(run) == before and not sentinel.exists()
    for command in commands:
        for plugin in ("a_plugin", "a_plugin.pull"):
            monkeypatch.delitem(sys.modules, "a_plugin.pull", raising=False)
            assert cli(*command, "--plugin", "tests", "--plugin", plugin) == (0, "")
            assert sentinel.exists()
            sentinel.rmdir()
            monkeypatch.setattr("continual.config.registry._allowed", set())


def test_code_that_a_checkpoint_or_tokenizer_asks_for_is_never_run(lab, tmp_path, evil) -> None:
    run = shutil.copytree(lab.kept(*TREE), tmp_path / "run")
    code = f"import os\nos.mkdir({str(tmp_path / 'sentinel')!r})\nclass Evil: pass\n"
    for folder, name in (
        ("stages/01/model", "config.json"),
        ("tokenizer", "tokenizer_config.json"),
    ):
        (run / folder / "evil.py").write_text(code)
        path = run / folder / name
        kinds = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", "AutoTokenizer")
        value = {"auto_map": dict.fromkeys(kinds, "evil.Evil"), "model_type": "evil"}
        path.write_text(json.dumps({**json.loads(path.read_text()), **value}))
    with pytest.raises(UserError, match=r"model\.source: cannot load"):
        from_checkpoint(run / "stages/01/model", [1], 0)
    for load in (load_model, load_tokenizer):
        for folder in (run / "stages/01/model", run / "tokenizer"):
            try:
                load(folder)
            except UserError as error:
                assert "\n" not in str(error)


def test_a_checkpoint_of_pickled_weights_is_never_run(evil, tmp_path) -> None:
    config = transformers.T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=110
    )
    config.save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "pytorch_model.bin").write_bytes(evil["torch"])
    with pytest.raises(UserError, match=r"model\.source: cannot load"):
        from_checkpoint(tmp_path / "t5", [1], 0)


@pytest.mark.parametrize("kind", ["pickle", "text pickle", "torch", "numpy"])
def test_a_pickle_at_any_name_of_a_corpus_is_never_run(evil, tmp_path, cli, kind) -> None:
    folder = write_corpus(
        tmp_path / "corpus",
        [{"_id": "d", "title": "", "text": "text"}],
        [{"_id": "q", "text": "query"}],
        {split: [("q", "d", 1)] for split in ("train", "dev", "test")},
        {"one": [["d"]]},
    )
    for name in files(folder):
        path, content = folder / name, (folder / name).read_bytes()
        for target in (path, path.with_name(path.name + ".gz")):
            if target.suffix == ".gz" and "streams" in name:
                continue
            path.unlink()
            target.write_bytes(evil[kind])
            arguments = (f"data.corpus={folder}", "data.stream=one", f"output={tmp_path / 'out'}")
            status, err = cli("train", *arguments)
            assert (status, err.count("\n")) == (2, 1), (name, err)
            assert err.startswith(f"dsi: error: {target}")
            target.unlink()
            path.write_bytes(content)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pt", "tar", "jsonl", "parquet", "arrow"])
def test_a_pickle_in_a_dataset_is_never_run(evil, tmp_path, suffix) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / f"documents.{suffix}").write_bytes(evil["pickle"])
    (tmp_path / "set" / "set.py").write_bytes(evil["text pickle"])
    for where in (f"documents.{suffix}", "documents", "."):
        with pytest.raises(UserError) as caught:
            source = {"dataset": str(tmp_path / "set"), "documents": where}
            read_corpus(source, cache=tmp_path / "cache")
        assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_at_any_name_of_the_cache_is_never_run(lab, cli, evil, tmp_path, monkeypatch):
    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "cache"))
    arguments = [*lab.settings("data.stream=two", output=tmp_path / "out"), "--overwrite"]
    (tmp_path / "out").rmdir()
    assert cli("train", *arguments) == (0, "")
    names = files(tmp_path / "cache")
    assert {name.partition("/")[0] for name in names} >= {"corpora", "tokenizers", "tokens"}
    for name in names:
        path = tmp_path / "cache" / name
        content = path.read_bytes()
        for kind in ("pickle", "numpy"):
            path.write_bytes(evil[kind])
            status, err = cli("train", *arguments)
            assert (status, err.count("\n")) in ((0, 0), (2, 1)), (name, err)
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_a_pickle_for_an_embedder_or_a_generator_is_never_run(lab, evil, tmp_path, kind) -> None:
    folder = shutil.copytree(lab.kept(*TREE) / "docids" / "embedder", tmp_path / "embedder")
    for name in files(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(evil[kind])
        with pytest.raises(UserError):
            load_embedder(folder)
        (folder / name).write_bytes(content)
    (tmp_path / "generator").mkdir()
    for name in ("generator.json", "model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / "generator" / name).write_bytes(evil[kind])
    with pytest.raises(UserError):
        QueryGenerator.load(tmp_path / "generator")


def test_a_checkpoint_that_is_an_archive_of_pickles_is_never_run(evil, tmp_path) -> None:
    from continual.run.checkpoint import load_latest

    folder = tmp_path / "checkpoints" / "00-00000002-end"
    folder.mkdir(parents=True)
    for name in ("state.json", "manifest.json", "model.safetensors", "optimizer.safetensors"):
        (folder / name).write_bytes(evil["torch"])
    assert zipfile.is_zipfile(folder / "state.json")
    with pytest.raises(UserError):
        load_latest(folder.parent)


# what may not be in the source: a name that is called or imported, or a keyword and its value
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.fromfile"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
FALSE_ONLY = {"trust_remote_code", "allow_pickle", "shell"}


def offences(source: str) -> Iterator[str]:
    """What in a source would run something that comes with data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (n for n in names if n.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in CALLS:
            yield called
        yield from (
            f"{key}={value}"
            for key, value in keywords.items()
            if key in FALSE_ONLY and value != "False"
        )
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield called
        if called in ("np.load", "np.save") and keywords.get("allow_pickle") != "False":
            yield called
        is_auto = re.fullmatch(r"(transformers\.)?Auto\w+\.from_pretrained", called)
        if is_auto and keywords.get("trust_remote_code") != "False":
            yield called
        if called.startswith("yaml.") and called.endswith("load") and called != "yaml.safe_load":
            yield called
        if called in ("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader"):
            yield called


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_comes_with_data(path: Path) -> None:
    source = path.read_text("utf-8")
    assert list(offences(source)) == []
    # a loader of one's own is a kind of the safe one
    for base in re.findall(r"\((yaml\.\w*Loader)\)", source):
        assert base == "yaml.SafeLoader"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "AutoModel.from_pretrained(name)",
        "load(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", ".hidden", "", "a\0b", "/abs"])
def test_the_name_of_a_stream_is_no_path(tmp_path, name) -> None:
    documents = [{"_id": "d", "title": "", "text": "text"}]
    with pytest.raises(UserError, match="plain file name"):
        write_corpus(tmp_path / "corpus", documents, [], {}, {name: [["d"]]})
    assert list(tmp_path.iterdir()) == []


def test_a_figure_is_not_named_by_what_a_run_says(lab, cli, tmp_path) -> None:
    run = shutil.copytree(lab.kept(*TREE), tmp_path / "a" / "b" / "run")
    (run / "manifest.json").unlink()
    path = run / "matrix.json"
    matrix = json.loads(path.read_text())
    assert cli("report", str(run)) == (0, "")
    for key in ("metrics", "average_performance", "forgetting", "learning_performance"):
        matrix[key]["../../../escape"] = matrix[key]["hits@10"]
    path.write_text(json.dumps(matrix))
    before = files(tmp_path)
    status, err = cli("report", str(run))
    assert status == 2
    assert "../../../escape" in err
    assert files(tmp_path) == before


def test_documents_named_like_paths_become_no_paths(lab, tmp_path) -> None:
    """A whole run whose document and query ids climb: everything it writes is inside of it."""
    ids = [f"../../d{n}" for n in range(4)] + [f"/etc/d{n}" for n in range(4)]
    documents = [
        {"_id": key, "title": key, "text": f"whale number {n}"} for n, key in enumerate(ids)
    ]
    queries = [{"_id": f"../q{n}", "text": f"which whale {n}"} for n in range(8)]
    pairs = [(f"../q{n}", key, 1) for n, key in enumerate(ids)]
    qrels = {"train": pairs, "test": pairs}
    corpus = write_corpus(tmp_path / "x" / "corpus", documents, queries, qrels)
    quick = ("training.updates=1", "data.stream=null", f"data.corpus={corpus}")
    before = files(tmp_path)
    run = lab.train(*quick, output=tmp_path / "x" / "out")
    new = [name for name in files(tmp_path) if name not in before]
    assert new
    assert all(name.startswith("x/out/run/") for name in new)
    assert "../../d0" in (run / "docids" / "D0.tsv").read_text()
