"""A tiny corpus in a stream D0, D1, D2, and runs on it that take about a second."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from continual import runs, trainer
from continual.config.loading import load_config
from continual.config.schema import RunConfig
from dsi.corpus.corpus import write_corpus

SIZES = (18, 6, 6)
NUMBERS = ("zero", "one", "two", "three")
SMALL = (
    "name=run",
    "method=cl_seen",
    "data.stream=three",
    "tokenizer.vocabulary_size=200",
    "model.d_model=16",
    "model.num_heads=2",
    "model.d_ff=32",
    "training.updates=10",
    "training.updates_per_stage=8",
    "training.batch_size=8",
    "training.window=4",
    "training.ratio=1",
    "training.learning_rate=0.01",
    "tracking.log_every=3",
)


def word(number: int) -> str:
    """One of 8,000 pronounceable words of two syllables and an ending."""
    first, second, end = number % 20, number // 20 % 20, number // 400 % 20
    syllables = [c + v for c in "bdkl" for v in "aeiou"]
    return syllables[first] + syllables[second] + "nrstmpgvhfcjwxyzdklb"[end]


def marker(split: str, corpus: int) -> str:
    """The word that every query of a split and corpus contains, and nothing else does."""
    return f"{split}query{NUMBERS[corpus]}"


def write_stream(folder: Path, sizes: tuple[int, ...] = SIZES, first: int = 0) -> Path:
    """A BEIR folder of documents d00, d01, ... in a stream "three", ``sizes`` per corpus.

    Two train queries, one dev and one test query per document; ``first`` numbers the documents.
    """
    rng = np.random.default_rng(7)
    ids = [f"d{first + i:02d}" for i in range(sum(sizes))]
    corpus_of = np.repeat(np.arange(len(sizes)), sizes)
    documents, queries = [], []
    qrels: dict[str, list[tuple[str, str, int]]] = {"train": [], "dev": [], "test": []}
    for i, (key, corpus) in enumerate(zip(ids, corpus_of.tolist(), strict=True)):
        own = [word(37 * (first + i) + j) for j in range(10)]
        text = rng.choice([*own, *(word(5000 + j) for j in range(30))], 8 + i % 7)
        # every letter is known to a tokenizer of D_0, so that markers can be read in its tokens
        pangram = "the quick brown fox jumps over the lazy dog" if i == 0 else ""
        documents.append(
            {"_id": key, "title": f"{own[0]} {own[1]}", "text": f"{pangram} {' '.join(text)}"}
        )
        for split, count in {"train": 2, "dev": 1, "test": 1}.items():
            for k in range(count):
                words = rng.choice(own, 3)
                text_ = f"{' '.join(words)} {marker(split, corpus)} {own[k]}"
                queries.append({"_id": f"{split}-{key}-{k}", "text": text_})
                qrels[split].append((f"{split}-{key}-{k}", key, 1))
    if len(sizes) > 1:
        # a query with two answers in D0 and one in D1
        qrels["test"] += [
            (f"test-{ids[0]}-0", ids[1], 1),
            (f"test-{ids[0]}-0", ids[sizes[0]], 1),
        ]
    corpora = [part.tolist() for part in np.split(np.array(ids), np.cumsum(sizes)[:-1])]
    streams = {"three": corpora, "two": corpora[:2], "one": [ids]}
    return write_corpus(folder, documents, queries, qrels, streams)


CHANGES: list[dict[str, Any]] = [
    {"add": [f"d{n:02d}" for n in range(18)]},
    {
        "add": [f"d{n:02d}" for n in range(18, 24)],
        "remove": ["d01", "d05"],
        "replace": {"d02": "t0"},
    },
    {"remove": ["d03"]},
    {
        "add": [f"d{n:02d}" for n in range(24, 30)],
        "remove": ["d18"],
        "replace": {"d19": "t2", "d02": "t1"},
    },
]
"""A stream in which documents go and change; t0, t1 and t2 are texts that no query is judged on."""


def write_changing(folder: Path) -> Path:
    """The folder of :func:`write_stream` with a stream "changing" of :data:`CHANGES`."""
    write_stream(folder)
    with open(folder / "corpus.jsonl", "a", encoding="utf-8") as file:
        for i in range(3):
            text = " ".join(word(3000 + 11 * i + j) for j in range(9 + i))
            file.write(json.dumps({"_id": f"t{i}", "title": f"text {i}", "text": text}) + "\n")
    stages = {f"D{n}": stage for n, stage in enumerate(CHANGES)}
    (folder / "streams" / "changing.json").write_text(json.dumps(stages), "utf-8")
    return folder


@contextmanager
def in_double() -> Iterator[None]:
    """Runs train float64 weights, so that sums in another order differ by 1e-16 and not by 1e-7.

    AdamW divides by the gradient's own size: where that is nearly zero it is all rounding, and the
    weight takes whole steps of it, on one processor this weight and on another that.
    """
    make = trainer.make_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_model", lambda *a, **k: make(*a, **k).double())
        yield


def last(*settings: str) -> list[str]:
    """Settings in which no key stands twice: the last one holds."""
    return list({text.partition("=")[0]: text for text in settings}.values())


class Lab:
    """Makes configurations and runs; runs asked for twice are made once."""

    marker = staticmethod(marker)
    in_double = staticmethod(in_double)
    write_stream = staticmethod(write_stream)
    sizes = SIZES
    small = SMALL

    def __init__(self, folder: Path):
        self.folder = folder
        self.corpus = write_stream(folder / "corpus")
        self._kept: dict[tuple[str, ...], Path] = {}

    def settings(self, *settings: str, output: Path | None = None) -> list[str]:
        """Arguments of ``dsi train`` for a tiny run; of a setting given twice the last holds."""
        where = output or self.folder / f"output-{len(list(self.folder.iterdir()))}"
        where.mkdir(parents=True, exist_ok=True)
        return last(f"output={where}", f"data.corpus={self.corpus}", *SMALL, *settings)

    def config(self, *settings: str, output: Path | None = None) -> RunConfig:
        """The configuration of a tiny run."""
        return load_config(None, self.settings(*settings, output=output))

    def train(self, *settings: str, output: Path | None = None, **options: Any) -> Path:
        """A run of its own, without figures."""
        return self.call(runs.train, self.config(*settings, output=output), **options)

    def kept(self, *settings: str, double: bool = False) -> Path:
        """A finished run that is shared by tests: not to be changed. See :func:`in_double`."""
        key = (*settings, "double") if double else settings
        if key not in self._kept:
            with in_double() if double else nullcontext():
                self._kept[key] = self.train(*settings)
        return self._kept[key]

    def train_quietly(self, output: Path, *settings: str) -> None:
        """A run in a process of a launcher, which has made its state."""
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr(runs, "_show", lambda folder: None)
            runs.train(self.config(*settings, output=output))

    @staticmethod
    def call(function: Any, *arguments: Any, **options: Any) -> Any:
        """Call something in ``continual.runs`` as in a fresh process, without figures."""
        AcceleratorState._reset_state(True)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr(runs, "_show", lambda folder: None)
            return function(*arguments, **options)

    @staticmethod
    def matrix(run: Path) -> dict[str, Any]:
        """matrix.json."""
        return json.loads((run / "matrix.json").read_text("utf-8"))

    @staticmethod
    def metrics(run: Path) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    @staticmethod
    def per_query(run: Path, stage: int) -> list[dict[str, Any]]:
        """per_query.jsonl of a stage."""
        path = run / "stages" / f"{stage:02d}" / "per_query.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    @staticmethod
    def weights(run: Path, stage: int) -> dict[str, torch.Tensor]:
        """The model after a stage."""
        return load_file(run / "stages" / f"{stage:02d}" / "model" / "model.safetensors")

    @staticmethod
    def results(run: Path, *without: str) -> dict[str, bytes]:
        """Every file that equal runs have in common byte for byte, by relative path."""
        names = ["matrix.json", "metrics.jsonl", "forgetting_events.json", "docids/*.tsv"]
        names += ["stages/*/*.trec", "stages/*/*.jsonl", "stages/*/model/*", "tokenizer/*"]
        found = {
            str(path.relative_to(run)): path.read_bytes()
            for name in names
            if name not in without
            for path in sorted(run.glob(name))
        }
        assert len(found) >= 10
        return found


@pytest.fixture
def accelerator() -> Accelerator:
    """A fresh single-process Accelerator."""
    AcceleratorState._reset_state(True)
    return Accelerator()


@pytest.fixture(scope="session")
def changing(lab: Lab) -> tuple[str, str]:
    """Settings that give a run the stream of :data:`CHANGES`."""
    folder = lab.folder / "changing"
    if not folder.exists():
        write_changing(folder)
    return f"data.corpus={folder}", "data.stream=changing"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The shared laboratory."""
    return Lab(tmp_path_factory.mktemp("lab"))
