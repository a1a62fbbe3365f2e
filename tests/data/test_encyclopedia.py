"""The embedded corpus: passes its strict check, is read as written, and can be made again."""

import importlib.resources
import json
from collections import Counter
from pathlib import Path

import pytest

from data import _reading, _writing, check_corpus, split_stream
from dsi.corpus.corpus import check_stream, read_corpus, read_stream

FOLDER = Path(str(importlib.resources.files("dsi"))) / "encyclopedia"


def test_passes_the_strict_check():
    report = check_corpus.check(FOLDER, strict=True)
    table = dict(report.table)
    assert report.problems == []
    assert int(table["documents"]) >= 320
    assert int(table["topics"]) >= 32
    assert table["questions per document"] == "5 to 5"
    assert 0.1 < float(table["word overlap, mean"]) < 0.35


def test_questions_are_hard_but_answerable_by_their_words():
    table = dict(check_corpus.check(FOLDER).table)
    first, tenth = map(float, table["BM25 Hits@1 / Hits@10, test"].split(" / "))
    assert 0.25 < first < 0.6
    assert first + 0.1 < tenth < 0.8


def test_reader_agrees_with_the_files(tmp_path):
    corpus = read_corpus("encyclopedia", cache=tmp_path)
    documents = list(_reading.documents(FOLDER))
    assert corpus.documents["id"].to_pylist() == [record["_id"] for record in documents]
    assert corpus.documents["text"].to_pylist() == [record["text"] for record in documents]
    sizes = {split: len(pairs) for split, pairs in corpus.qrels.items()}
    assert sizes == {"train": 3 * len(documents), "dev": len(documents), "test": len(documents)}
    for name in ("topic", "iid"):
        stream = read_stream(corpus, name)
        assert sorted(row for stage in stream for row in stage.added) == list(range(len(documents)))
        assert check_stream(corpus, stream) == []


@pytest.mark.parametrize("by", ["topic", "iid"])
def test_streams_are_what_the_recipe_cuts(by):
    made = split_stream.corpora(FOLDER, by, _writing.HALF_AND_TENTHS)
    frozen = json.loads((FOLDER / "streams" / f"{by}.json").read_text(encoding="utf-8"))
    assert list(frozen.values()) == made


def test_topics_arrive_whole_in_one_stream_and_mixed_in_the_other():
    topics = {record["_id"]: record["metadata"]["topic"] for record in _reading.documents(FOLDER)}
    homes = {}
    for name in ("topic", "iid"):
        corpora = json.loads((FOLDER / "streams" / f"{name}.json").read_text(encoding="utf-8"))
        homes[name] = Counter(
            topic for ids in corpora.values() for topic in {topics[i] for i in ids}
        )
    assert set(homes["topic"].values()) == {1}
    assert min(homes["iid"].values()) >= 2


def test_every_kind_of_question_is_in_every_split():
    kinds = {record["_id"]: record["metadata"]["kind"] for record in _reading.queries(FOLDER)}
    total = Counter(kinds.values())
    assert set(total) == set(check_corpus.KINDS)
    for split, share in (("train", 0.6), ("dev", 0.2), ("test", 0.2)):
        pairs = _reading.judgements(FOLDER)[split]
        found = Counter(kinds[query] for query, _ in pairs)
        for kind, count in total.items():
            assert found[kind] / count == pytest.approx(share, abs=0.1), (split, kind)


def test_splits_are_in_hash_order():
    split_of = {q: split for split, pairs in _reading.judgements(FOLDER).items() for q, _ in pairs}
    for record in _reading.documents(FOLDER):
        order = _writing.shuffled([f"{record['_id']}-q{n}" for n in range(1, 6)], seed=0)
        assert [split_of[key] for key in order] == ["train"] * 3 + ["dev", "test"]


def test_licence_is_beside_the_text():
    assert "CC0 1.0" in (FOLDER / "LICENSE").read_text(encoding="utf-8")
