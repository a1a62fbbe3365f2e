"""Corpora without a word in the usual sense: every command works, or says what does not."""

import json
import random
import resource
from pathlib import Path

import pytest

from continual import runs
from tests.bad_input.conftest import ORIGINAL, QUICK, Place
from tests.continual.conftest import SMALL, Lab, last

TEXTS = {
    "emoji": "🐋 🎻 🏔",
    "emoji without a space": "🐋🎻🏔",
    "letters": "a b c d",
    "stop words": "the of and to",
    "punctuation": "... -- ?!",
    "nothing to be seen": "\u200b\u2060 \u00ad",
}
LEARNED = (
    "replay.memory=both",
    "replay.generator.updates=1",
    "replay.generator.d_model=16",
    "replay.generator.num_heads=2",
    "replay.generator.d_ff=16",
)


@pytest.fixture
def train(place: Place, monkeypatch: pytest.MonkeyPatch):
    """``dsi train`` on a corpus of three documents, to the end; the settings on top."""

    def train(text: str, *settings: str) -> Path:
        for name, key in (("corpus", "d"), ("queries", "q")):
            rows = ({"_id": f"{key}{n}", "text": " ".join([text] * n)} for n in (1, 2, 3))
            place.write(f"corpus/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setattr(runs, "_run", ORIGINAL)
        own = ("data.corpus=corpus", "output=.", *settings)
        assert Lab.call(place.call, "train", *last(*SMALL, *QUICK, *own))[0] == 0
        return place.folder / "run"

    return train


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_corpus_without_words_is_trained_and_searched(place: Place, train, text: str) -> None:
    more = LEARNED if text == TEXTS["emoji"] else ()
    run = train(text, "replay=generative", "replay.round_trip=2", *more)
    assert json.loads((run / "matrix.json").read_text("utf-8"))["corpora"] == ["D0", "D1"]
    for values in json.loads((run / "stages/00/memory_quality.json").read_text("utf-8")).values():
        assert (values["bm25_at_1"] is None) == (text != TEXTS["stop words"])
    status, out, err = place.call("search", "run", text)
    assert (status, len(out.splitlines()), err) == (0, 6, "")
    status, out, err = place.call("evaluate", "run")
    assert (status, err) == (0, "") and len(out.splitlines()) == 4


def test_clusters_of_words_need_words(place: Place) -> None:
    rows = (json.dumps({"_id": f"d{n}", "text": "🐋" * n}) + "\n" for n in (1, 2, 3))
    place.write("corpus/corpus.jsonl", "".join(rows))
    arguments = ["train", "data.corpus=corpus", "data.stream=two", "output=out"]
    for docids in ("semantic", "residual", "product"):
        settings = ("method=windows", f"docids={docids}", "docids.embedding.source=tfidf")
        place.refuse(
            [*arguments, *settings],
            "docids.embedding.source: tfidf finds no words in D_0",
            "choose model",
        )


def test_a_text_without_a_space_costs_no_more_than_a_query(train) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=12_000))
    run = train(text, "replay=generative", "replay.ratio=1")
    assert (run / "matrix.json").exists()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < 500, f"{grown} MiB"  # 900 with all tokens
