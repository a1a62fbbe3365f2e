"""Inputs that nobody plans for, some 300: each is answered, or refused in one line, and a command
that is refused has changed nothing. All of them share one finished run.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from continual import runs
from continual.cli import main
from dsi.errors import UserError
from dsi.index import SearchIndex
from tests.bad_input.conftest import GOOD, LENGTH, ORIGINAL, QUICK, Place
from tests.continual.conftest import SMALL, Lab, last

PIPE, FOLDER = object(), object()
TRAIN = ("train", "data.corpus=corpus", "data.stream=two", "output=out")
SEARCH, EVALUATE = ("search", "run"), ("evaluate", "run")
BOM = b"\xef\xbb\xbf"


@dataclass
class Input:
    """A command line, what stands in files meanwhile (by name), and the status it must have."""

    arguments: tuple[str, ...]
    status: int | None = None
    """None: 0 or 2."""
    files: dict[str, Any] = field(default_factory=dict)


# --- queries --------------------------------------------------------------------------------------

QUERIES = [
    "", " ", "\t\n", "\x00", "\x1b[2J", "\udcff", "\u200b", "\ufeff", "\u202e", "\u0301", "🐋",
    "🐋🎻", "🏴\u200d☠️", "鯨とは何か", "кит", "الحوت", "▁", "▁▁ ▁", "<unk>", "</s>", "<pad>",
    "<extra_id_0>", "a", "?", "...", "--", "-", "'", '"', "%s %d {0}", "$HOME", "~", "../..", "NaN",
    "0", "9" * 400, "whale", "WHALE", "ｗｈａｌｅ", "whale\x00ice", "whale " * 3000, "w" * 20_000,
    "🐋" * 20_000, "\ufdfa" * 2_000, "a\u0301" * 5_000, "\n".join(["whale"] * 500),
]  # fmt: skip


def made_up(count: int) -> Iterator[str]:
    """Queries of pieces of everything, the same in every run."""
    rng = random.Random(13)
    for _ in range(count):
        pieces = rng.choices(
            [*QUERIES[:40], "ice", "the", " ", "  ", "\u00a0"], k=rng.randint(1, 6)
        )
        yield rng.choice(["", " ", "\u2028"]).join(pieces)


def queries() -> Iterator[Input]:
    for query in [*QUERIES, *made_up(30)]:
        if query != "--":  # argparse takes the second one for the first
            yield Input((*SEARCH, "--", query), 0)


# --- the command line of a search and of an evaluation --------------------------------------------


def options() -> Iterator[Input]:
    for k in ("0", "-1", "1.5", "1e3", "true", "", " ", "x", "0x10", "NaN", "9" * 5000):
        yield Input((*SEARCH, "whale", f"--k={k}"), 2)
    for k in ("1", "１", "1_0", " 3 ", str(10**30)):
        yield Input((*SEARCH, "whale", f"--k={k}"), 0)
    for stage in ("-1", "7", "0.5", "", "D0", "9" * 5000):
        yield Input((*SEARCH, "whale", f"--stage={stage}"), 2)
        yield Input((*EVALUATE, f"--stage={stage}"), 2)
    for corpus in ("D9", "D-1", "d0", "D", "", "D０", "D0\n", "00000000000"):
        yield Input((*SEARCH, "whale", "--corpus", corpus), 2)
    yield Input((*SEARCH, "whale", "--corpus", "0"), 0)
    for split in ("tests", "", "test\x00", "../test"):
        yield Input((*EVALUATE, f"--split={split}"), 2)
    for run in ("", ".", "corpus", "absent", "run/config.yaml", "a\x00b", "x" * 300, "/dev/zero"):
        yield Input(("search", run, "whale"), 2)
        yield Input(("evaluate", run), 2)
        # a file is a configuration, and this one's run is there
        yield Input(("train", "--resume", run), None if run == "run/config.yaml" else 2)


# --- lists of ids ---------------------------------------------------------------------------------


def ids() -> Iterator[Input]:
    bad: dict[str, Any] = {
        "a pipe": PIPE,
        "a folder": FOLDER,
        "nothing": b"",
        "blank lines": b"\n\n \n",
        "UTF-16": "d1\n".encode("utf-16"),
        "latin-1": b"d1\n\xe9\n",
        "an unknown id": b"d1\nd77\n",
        "a NUL": b"d1\0\n",
        "JSON": b'["d1"]\n',
        "a gigantic id": b"d" * 100_000,
        "a mark within": b"d1\n" + BOM + b"d2\n",
    }
    for content in bad.values():
        yield Input((*SEARCH, "whale", "--documents", "ids"), 2, {"ids": content})
    for content in (b"d1", BOM + b"d1\r\nd2\r\n", b"d1\nd1\n d3 \n"):
        yield Input((*SEARCH, "whale", "--documents", "ids"), 0, {"ids": content})
        yield Input((*SEARCH, "whale", "--without", "ids"), 0, {"ids": content})
    yield Input((*SEARCH, "whale", "--without", "ids"), 2, {"ids": b"d1\nd2\nd3\n"})
    yield Input((*SEARCH, "whale", "--without", "ids"), 0, {"ids": b""})
    yield Input((*SEARCH, "whale", "--documents", "/dev/zero"), 2)


# --- configurations -------------------------------------------------------------------------------


def configurations() -> Iterator[Input]:
    axes = ("docids", "replay", "regularizer", "sharpness", "parameters", "merging")
    for axis in axes:
        for name in (
            "unittest.__main__",
            "os.path",
            "continual.train",
            "a..b",
            ".a",
            "a.b-c",
            "a.\x00",
        ):
            yield Input((*TRAIN, f'{axis}="{name}"' if "\x00" not in name else f"{axis}={name}"), 2)
    evil = "regularizer: {name: unittest.__main__}\n"
    yield Input((*TRAIN[:1], "mine.yaml"), 2, {"mine.yaml": evil})
    yield Input((*TRAIN, "method=mine.yaml"), 2, {"mine.yaml": evil})
    for plugin in ("", ".", "os.", "a b", "no_such_package", "x" * 5000, "\x1b"):
        yield Input((*TRAIN, f"--plugin={plugin}"), 2)
    yield Input((*TRAIN, "--plugin=json"), 0)
    yield Input((*TRAIN, "--plugin=json", "regularizer=json.decoder"), 2)
    for content in (PIPE, FOLDER, "seed: 1\n".encode("utf-16"), b"\0", b"\xff"):
        yield Input(("train", "mine.yaml"), 2, {"mine.yaml": content})
    yield Input((*TRAIN[:1], "mine.yaml", *TRAIN[1:]), 0, {"mine.yaml": BOM + b"seed: 1\n"})
    for task in ("indexing", "retrieval"):
        for prompt in ("w" * 20_000, "鯨" * 20_000, "whale " * 2_000):
            yield Input((*TRAIN, f"prompts.{task}={prompt}"))
        yield Input((*TRAIN, f"prompts.{task}={'whale ' * 2_000}"), 2)
        yield Input((*TRAIN, f"prompts.{task}=find"), 0)


# --- corpora --------------------------------------------------------------------------------------


def texts(text: str) -> dict[str, Any]:
    rows = "".join(f'{{"_id": "d{n}", "text": "{text}"}}\n' for n in (1, 2, 3))
    return {"corpus/corpus.jsonl": rows}


def corpora() -> Iterator[Input]:
    for name in GOOD:
        path = f"corpus/{name}"
        for content in (PIPE, FOLDER, b"\0", GOOD[name].encode("utf-16"), b"\xff\n"):
            yield Input(TRAIN, 2, {path: content})
        yield Input(TRAIN, 0, {path: BOM + GOOD[name].encode()})
        yield Input(TRAIN, None, {path: b""})
    for text in ("🐋", "a b", "...", "the of", "鯨", "\u200b", "x" * 20_000, "1 2"):
        has_words = text in ("the of", "x" * 20_000)
        yield Input(TRAIN, 0, texts(text))
        tfidf = ("method=windows", "docids=semantic", "docids.embedding.source=tfidf")
        yield Input((*TRAIN, *tfidf), 0 if has_words else 2, texts(text))
    for folder in ("absent", "", "run", "corpus/corpus.jsonl", "\x00"):
        yield Input(("add", "run", folder), 2)


# --- a corpus that is edited after the training ---------------------------------------------------

EDITS = {
    "documents": ("corpus.jsonl", "lives in the sea", "lives on the land"),
    "queries": ("queries.jsonl", "who lives", "what lives"),
    "judgements": ("qrels/test.tsv", "q3\td3", "q3\td1"),
    "a judgement more": ("qrels/test.tsv", "q3\td3\t1\n", "q3\td3\t1\nq1\td1\t1\n"),
    "an id": ("corpus.jsonl", '"d3"', '"d4"'),
    "a stream": ("streams/two.json", '["d1", "d2"]', '["d2", "d1"]'),
}


def edits() -> Iterator[Input]:
    for name, old, new in EDITS.values():
        assert old in GOOD[name]
        files = {f"corpus/{name}": GOOD[name].replace(old, new)}
        yield Input(EVALUATE, 2, files)
        yield Input((*EVALUATE, "--stage", "0"), 2, files)
        # without its documents a judgement is a mistake
        yield Input((*SEARCH, "whale"), 2 if old == '"d3"' else 0, files)
    train = {"corpus/qrels/train.tsv": "q1\td1\t1\n"}
    yield Input((*EVALUATE, "--split", "train"), 2, train)
    yield Input((*EVALUATE, "--split", "test"), 0, train)


KINDS = (queries, options, ids, configurations, corpora, edits)
INPUTS = [
    pytest.param(one, id=f"{kind.__name__}-{number}")
    for kind in KINDS
    for number, one in enumerate(kind())
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a finished run on it."""
    folder = tmp_path_factory.mktemp("odd")
    place = Place(folder, lambda: ("", ""), [])
    for name, content in GOOD.items():
        place.write(f"corpus/{name}", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(runs, "_run", ORIGINAL)
        own = ("data.corpus=corpus", "output=.", "tokenizer.vocabulary_size=300")
        assert Lab.call(main, ["train", *last(*SMALL, *QUICK, *own)]) == 0
    return folder


@pytest.fixture
def shared(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    """That folder as a place to call commands in, for 20 seconds at most."""

    def stop(*_: Any) -> None:
        raise TimeoutError("waits for something")

    monkeypatch.chdir(made)
    monkeypatch.setattr(runs, "_run", lambda config, folder, *_: folder)
    monkeypatch.setattr("continual.run.directory.create", lambda config, overwrite: None)
    monkeypatch.setattr("continual.config.registry._allowed", set())
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield Place(made, capfd.readouterr, [])
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, content: Any) -> Callable[[], object]:
    """Something in the place of a file; returns what undoes it."""
    old = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if content is PIPE:
        os.mkfifo(path)
    elif content is FOLDER:
        path.mkdir()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def undo() -> None:
        path.rmdir() if content is FOLDER else path.unlink()
        if old is not None:
            path.write_bytes(old)

    return undo


@pytest.mark.parametrize("one", INPUTS)
def test_an_odd_input_is_answered_or_refused_in_one_line(shared: Place, one: Input) -> None:
    undo = [put(shared.folder / name, content) for name, content in one.files.items()]
    try:
        before = shared.snapshot()
        status, out, err = shared.call(*one.arguments)
        if status == 0:  # a run that is taken has made its folder
            shutil.rmtree(shared.folder / "out", ignore_errors=True)
        assert shared.snapshot() == before, "nothing is written"
    finally:
        for again in undo:
            again()
    assert status in ((0, 2) if one.status is None else (one.status,)), err
    assert "Traceback" not in out + err
    assert err.count("\n") <= 1
    assert all(line.isprintable() for line in (out + err).splitlines())
    if status == 2:
        assert (out, err[:12], err[-1:]) == ("", "dsi: error: ", "\n")
        assert len(err) < LENGTH


CALLS = [
    None, -7, 0.5, True, b"whale", bytearray(b"x"), {"query": "x"}, {"x"}, object(), [None],
    SimpleNamespace(), [7], ["whale", 7], [b"whale"], [["whale"]], [("whale",)], [True],
    Path("whale"), str, memoryview(b"whale"), range(3), len, [{}], ["whale", None],
]  # fmt: skip


@pytest.fixture(scope="module")
def index(made: Path) -> SearchIndex:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        return SearchIndex.load("run")


@pytest.mark.parametrize("given", CALLS, ids=lambda given: type(given).__name__)
def test_what_is_no_query_and_no_number_is_refused_in_one_line(index: SearchIndex, given) -> None:
    for call in (lambda: index.search(given), lambda: index.search(["whale"], k=given)):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).isprintable() and len(str(caught.value)) < LENGTH


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: ascii(query)[:20])
def test_a_query_alone_is_one_of_many(index: SearchIndex, query: str) -> None:
    alone, (first, known) = index.search(query, k=3), index.search([query, "whale"], k=3)
    scores = {result.document_id: result.score for result in first}
    assert {r.document_id: r.score for r in alone} == pytest.approx(scores, abs=1e-4)
    assert (len(alone) in (0, 3), len(known)) == (True, 3)
