"""Pipes and folders in the place of files: opening a pipe would wait for ever, so nobody does.

And byte-order marks, which editors and spreadsheets put in front: they are part of no id.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bad_input.conftest import GOOD, Place

TRAIN = ("train", "output=out", "data.corpus=corpus", "data.stream=two")
PAIR = "data.corpus={documents: docs.jsonl, queries: asked.jsonl}"
SEARCH, EVALUATE, REPORT = ("search", "run", "water"), ("evaluate", "run"), ("report", "run")

# what is no file -> the commands that would read it
CORPUS = {
    "corpus/corpus.jsonl": TRAIN,
    "corpus/corpus.jsonl.gz": TRAIN,
    "corpus/queries.jsonl": TRAIN,
    "corpus/qrels/train.tsv": TRAIN,
    "corpus/qrels/dev.tsv": TRAIN,
    "corpus/qrels/test.tsv": TRAIN,
    "corpus/qrels/test.tsv.gz": TRAIN,
    "corpus/streams/two.json": TRAIN,
    "stream.json": (*TRAIN[:-1], "data.stream=stream.json"),
    "docs.jsonl": ("train", "output=out", PAIR),
}
OTHERS = {
    "mine.yaml": ("train", "mine.yaml"),
    "preset.yaml": ("train", "method=preset.yaml"),
    "ids": (*SEARCH, "--documents", "ids"),
    "gone": (*SEARCH, "--without", "gone"),
    "run/config.yaml": EVALUATE,
    "run/index.json": SEARCH,
    "run/added.json": EVALUATE,
    "run/matrix.json": REPORT,
    "run/manifest.json": EVALUATE,
    "run/tokenizer/tokenizer.json": EVALUATE,
    "run/docids/D1.tsv": EVALUATE,
    "run/docids/report.json": REPORT,
    "run/stages/01/manifest.json": SEARCH,
    "run/stages/01/index.json": EVALUATE,
    "run/stages/01/docids.tsv": SEARCH,
    "run/stages/01/tokenizer/tokenizer.json": SEARCH,
    "run/stages/01/model/config.json": EVALUATE,
    "run/stages/01/model/model.safetensors": SEARCH,
}


@pytest.fixture(autouse=True)
def _not_for_ever() -> Iterator[None]:
    """A test that waits for a pipe fails after a while."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize(("name", "arguments"), CORPUS.items(), ids=CORPUS)
def test_no_file_of_a_corpus_is_one_line(place: Place, name, arguments, kind) -> None:
    path = place.folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    place.refuse(arguments, f"{name}: not a regular file", "put the file itself there")


@pytest.mark.parametrize(("name", "arguments"), OTHERS.items(), ids=OTHERS)
def test_a_pipe_is_not_waited_for(place: Place, run, name, arguments) -> None:
    path = place.folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    place.refuse(arguments, f"{name}: not a regular file", "file")


def test_a_device_is_no_list_of_ids(place: Place, run) -> None:
    place.refuse([*SEARCH, "--documents", "/dev/zero"], "/dev/zero: not a regular file", "one a")


MARK = "\ufeff"


@pytest.mark.parametrize("name", GOOD)
def test_a_mark_before_a_file_of_a_corpus_is_left_out(place: Place, name: str) -> None:
    (_, plain) = place.accept(*TRAIN)
    place.prepared.clear()
    place.write(f"corpus/{name}", MARK + GOOD[name])
    (_, marked) = place.accept(*TRAIN, "name=marked")
    assert marked.stream.fingerprint() == plain.stream.fingerprint()


def test_a_mark_before_a_list_of_ids_is_left_out(place: Place, run) -> None:
    place.write("ids", f"{MARK}d00\r\nd03\r\n")
    status, out, err = place.call(*SEARCH, "--documents", "ids")
    assert (status, err) == (0, "")
    assert sorted(line.split(":")[0].strip() for line in out.splitlines()[1::2]) == ["d00", "d03"]
