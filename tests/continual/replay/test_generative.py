"""Generative replay: pools and shares, the memory on disk, and whose texts it is made of."""

import json
from typing import Any

import numpy as np
import pytest

from continual.replay import generative
from continual.replay.generative import GenerativeReplay
from continual.run.material import prepare
from continual.stream.view import StageView
from dsi.errors import UserError
from dsi.queries.generator import GeneratorConfig, QueryGenerator
from dsi.queries.lexical import LexicalQueries
from dsi.text.tokens import LONGEST_QUERY

TINY = GeneratorConfig(
    d_model=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_ff=16, updates=3, batch_size=8
)


@pytest.fixture(scope="module")
def material(lab):
    return prepare(lab.config())


@pytest.fixture
def begin(lab, material, tmp_path, monkeypatch):
    """Begin a stage of a run folder; the list collects what is logged."""
    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "cache"))
    logged: list[dict] = []

    def begin(member, stage, folder=tmp_path / "run", seed=0):
        nothing: Any = None
        view = StageView(
            stage,
            material.stream,
            material.tokenizer,
            lab.config(f"seed={seed}"),
            folder,
            nothing,
            nothing,
            progress=False,
            log=logged.append,
        )
        member.begin_stage(view)
        return member.pools(view)

    begin.logged = logged
    begin.run = tmp_path / "run"
    return begin


def make(**settings):
    settings = {"queries_per_document": 3, "stored_queries": 0.0, "generator": TINY, **settings}
    return GenerativeReplay(GenerativeReplay.Config(**settings))


def lines(run, corpus):
    path = run / "stages" / f"{corpus:02d}" / "pseudo_queries.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("documents", "corpora"), [("initial", [0]), ("new", [2]), ("seen", [0, 1, 2])]
)
def test_whose_documents_are_rehearsed(begin, material, documents, corpora):
    (pool,) = begin(make(documents=documents), 2)
    offsets = material.stream.offsets
    expected = [n for c in corpora for n in range(offsets[c], offsets[c + 1])]
    assert np.unique(pool.documents).tolist() == expected
    assert pool.by_document and pool.weight == 1.0
    assert sorted(int(p.name) for p in (begin.run / "stages").iterdir()) == corpora


def test_what_is_written_is_what_is_rehearsed(begin, material):
    (pool,) = begin(make(), 1)
    stream, texts = material.stream, []
    for corpus in (0, 1):
        written = lines(begin.run, corpus)
        start, stop = int(stream.offsets[corpus]), int(stream.offsets[corpus + 1])
        assert [line["document"] for line in written] == stream.document_ids(start, stop)
        assert [line["number"] for line in written] == list(range(stop - start))
        assert all(1 <= len(line["queries"]) <= 3 for line in written)
        texts += [(start + line["number"], query) for line in written for query in line["queries"]]
    assert pool.documents.tolist() == [number for number, _ in texts]
    backend = material.tokenizer.backend_tokenizer
    for i, (number, query) in enumerate(texts):
        assert pool.tokens[i].tolist() == backend.encode(query, add_special_tokens=False).ids
        own = next(iter(stream.texts(number, number + 1))).split()
        assert set(query.split()) <= set(own)  # lexical queries are made of the document's words


@pytest.mark.parametrize("memory", ["lexical", "learned"])
def test_a_text_without_a_space_is_rehearsed_up_to_the_length_of_a_query(
    begin, material, monkeypatch, memory
):
    monkeypatch.setattr(
        material.stream, "texts", lambda start, stop: ["the" * 7_000] * (stop - start)
    )
    monkeypatch.setattr(material.stream, "texts_at", lambda own, _: ["the" * 7_000] * len(own))
    (pool,) = begin(make(memory=memory), 1)
    # what a generator has written may be cut into tokens otherwise when it is read
    longest = {"lexical": LONGEST_QUERY, "learned": 2 * TINY.query_length}
    assert pool.tokens.lengths.max() <= longest[memory]
    assert max(len(q) for line in lines(begin.run, 0) for q in line["queries"]) <= 2_000


@pytest.mark.parametrize(
    ("memory", "shares"),
    [
        ("lexical", {"lexical": 0.7, "queries": 0.3}),
        ("learned", {"learned": 0.7, "queries": 0.3}),
        ("both", {"lexical": 0.35, "learned": 0.35, "queries": 0.3}),
    ],
)
def test_writers_and_stored_queries_share_the_replay(begin, material, memory, shares):
    pools = begin(make(memory=memory, stored_queries=0.3), 1)
    assert {pool.name: pool.weight for pool in pools} == pytest.approx(shares)
    stored = next(pool for pool in pools if pool.name == "queries")
    tokens, documents = material.stream.train_queries(0)
    assert np.array_equal(stored.tokens.values, tokens.values)
    assert np.array_equal(stored.documents, documents) and not stored.by_document
    quality = json.loads((begin.run / "stages/00/memory_quality.json").read_text())
    assert list(quality) == [name for name in shares if name != "queries"]
    for values in quality.values():
        assert values["queries"] > 0 and 0 <= values["bm25_at_1"] <= values["bm25_at_10"] <= 1
        assert len(values["examples"]) == 18
        assert values["generation"]["read"] + values["generation"]["made"] > 0
    assert all("generation" not in line for line in begin.logged)
    assert {(e["memory"], e["corpus"]) for e in begin.logged} == {
        (writer, f"D{c}") for writer in quality for c in (0, 1)
    }


def test_only_stored_queries_need_no_writer(begin):
    (pool,) = begin(make(stored_queries=1.0), 1)
    assert pool.name == "queries" and pool.weight == 1.0
    assert not begin.run.exists()


@pytest.mark.parametrize(("weight", "count"), [(0.0, 0), (0.5, 1)])
def test_the_first_stage(begin, weight, count):
    pools = begin(make(first_stage=weight, documents="new"), 0)
    assert [(pool.name, pool.weight) for pool in pools] == [("lexical", 0.5)] * count


def test_an_infinite_ratio_writes_nothing(begin):
    assert begin(make(ratio=float("inf")), 1) == []
    assert not begin.run.exists()


def test_the_generator_learns_once_from_the_first_corpus(begin, material, monkeypatch):
    calls, train = [], QueryGenerator.train.__func__  # type: ignore[attr-defined]

    def spy(cls, texts, queries, *rest, **more):
        calls.append((list(texts), list(queries)))
        return train(cls, texts, queries, *rest, **more)

    monkeypatch.setattr(QueryGenerator, "train", classmethod(spy))
    member = make(memory="learned")
    begin(member, 1)
    begin(member, 2)
    stream = material.stream
    queries, documents = stream.train_pairs(0)
    texts = list(stream.texts(0, stream.count(0)))
    assert calls == [([texts[d] for d in documents], queries)]
    assert (begin.run / "generator" / "generator.json").exists()
    # an equal run takes it from the cache, another seed does not
    begin(make(memory="learned"), 1, folder=begin.run.with_name("equal"))
    assert len(calls) == 1
    begin(make(memory="learned"), 1, folder=begin.run.with_name("other"), seed=1)
    assert len(calls) == 2


def test_the_memory_is_read_back_without_a_generator(begin, monkeypatch):
    before = begin(make(memory="both"), 1)

    def unwanted(*arguments, **options):
        raise AssertionError("the memory is on disk")

    monkeypatch.setattr(generative, "cached_generate", unwanted)
    monkeypatch.setattr(QueryGenerator, "train", unwanted)
    monkeypatch.setattr(QueryGenerator, "load", unwanted)
    logged = len(begin.logged)
    after = begin(make(memory="both"), 1)
    for one, other in zip(before, after, strict=True):
        assert one.name == other.name and one.weight == other.weight
        assert np.array_equal(one.tokens.values, other.tokens.values)
        assert np.array_equal(one.documents, other.documents)
    # the stage that wrote says so again when it begins again, a later one does not
    assert begin.logged[logged:] == begin.logged[:logged]
    monkeypatch.undo()
    begin(make(memory="both"), 2)
    assert {event["corpus"] for event in begin.logged[2 * logged :]} == {"D2"}


def test_what_a_corpus_is_given_does_not_depend_on_later_ones(begin):
    one, other = begin.run.with_name("one"), begin.run.with_name("other")
    begin(make(memory="both"), 0 + 1, folder=one)
    begin(make(memory="both"), 2, folder=other)
    assert lines(one, 0) == lines(other, 0) and lines(one, 1) == lines(other, 1)


def test_a_round_trip_keeps_queries_that_find_their_document(begin, material):
    words = LexicalQueries.Config(share_terms=0, span_min=1, span_max=1)
    begin(make(queries_per_document=8, lexical=words), 1)
    filtered = begin.run.with_name("filtered")
    begin(make(queries_per_document=8, lexical=words, round_trip=1), 1, folder=filtered)
    before, after = lines(begin.run, 0), lines(filtered, 0)
    counts = [sum(len(line["queries"]) for line in found) for found in (before, after)]
    assert 0 < counts[1] < counts[0]
    stream = material.stream
    texts = list(stream.texts(0, stream.count(0)))
    kept = [(q, line["number"]) for line in after for q in line["queries"]]
    ranks = generative.bm25_ranks([q for q, _ in kept], np.array([d for _, d in kept]), texts, 1)
    assert (ranks == 1).mean() > 0.9  # but for documents that would have none left
    for one, other in zip(before, after, strict=True):
        assert other["queries"] and set(other["queries"]) <= set(one["queries"])


def test_a_document_never_loses_all_its_queries():
    texts = ["apple pear plum", "apple pear plum fig", "kiwi"]
    queries = [["apple"], ["fig", "pear"], ["mango"]]
    # "apple" finds the shorter document, "pear" too, "mango" none
    assert generative._filtered(queries, texts, 1) == [["apple"], ["fig"], ["mango"]]


def test_without_train_queries_nothing_can_be_learned(begin, material, monkeypatch):
    monkeypatch.setattr(material.stream, "train_pairs", lambda corpus: ([], np.zeros(0, np.int64)))
    with pytest.raises(UserError, match=r"replay\.memory.*lexical"):
        begin(make(memory="learned"), 1)


@pytest.mark.parametrize(
    "setting",
    [
        "ratio=-1",
        "queries_per_document=0",
        "stored_queries=1.5",
        "first_stage=-0.1",
        "round_trip=-1",
        "lexical.span_min=0",
        "memory=psychic",
        "generator.source=5",
    ],
)
def test_impossible_settings_are_one_line(lab, setting):
    with pytest.raises(UserError, match="replay") as caught:
        lab.config("replay.name=generative", f"replay.{setting}")
    assert "\n" not in str(caught.value)


def test_with_an_infinite_ratio_it_is_no_replay(lab):
    run = lab.train("replay.name=generative", "replay.ratio=.inf", "replay.first_stage=0")
    assert lab.results(run) == lab.results(lab.kept())


@pytest.fixture
def stages(lab, changing, tmp_path, monkeypatch):
    """Begin stages of the stream of CHANGES in tests/continual/conftest.py."""
    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "cache"))
    found = prepare(lab.config(*changing))

    def begin(member, stage):
        folder, config = tmp_path / "run", lab.config(*changing)
        nothing: Any = None
        view = StageView(stage, found.stream, found.tokenizer, config, folder, nothing, nothing)
        member.begin_stage(view)
        return member.pools(view)

    begin.stream, begin.run = found.stream, tmp_path / "run"
    return begin


@pytest.mark.parametrize("memory", ["lexical", "both"])
def test_pseudo_queries_are_of_what_is_there_in_its_newest_text(stages, memory):
    member, stream = make(memory=memory), stages.stream
    for stage in range(1, 4):
        pools = stages(member, stage)
        for pool in pools:
            assert np.unique(pool.documents).tolist() == stream.members(stage).tolist()
        # lexical queries are made of the words of the text that the document has now
        (own,) = stream.texts_at(np.array([2]), stage)
        (line, *_) = lines(stages.run, {1: 1, 2: 1, 3: 3}[stage])
        assert line["document"] == "d02" and line["queries"]
        assert all(set(query.split()) <= set(own.split()) for query in line["queries"])
        backend = stream.tokenizer.backend_tokenizer
        expected = [backend.encode(q, add_special_tokens=False).ids for q in line["queries"]]
        rehearsed = np.flatnonzero(pools[0].documents == 2)
        assert [pools[0].tokens[i].tolist() for i in rehearsed] == expected
    # the file of a stage has what was new in it, replaced documents first
    written = {n: [line["document"] for line in lines(stages.run, n)] for n in (0, 1, 3)}
    assert written[1][:7] == ["d02", *(f"d{n}" for n in range(18, 24))]
    assert written[3][:8] == ["d02", "d19", *(f"d{n}" for n in range(24, 30))]
    assert lines(stages.run, 1)[0]["corpus"] == "D0" and "corpus" not in lines(stages.run, 1)[1]
    # D_0's was written in stage 1: what had gone by then was not worth a query
    assert set(written[0]) == {f"d{n:02d}" for n in range(18)} - {"d01", "d02", "d05"}
    assert not (stages.run / "stages/02").exists(), "a stage that only removes writes nothing"
    # a run that goes on reads the same
    again = stages(make(memory=memory), 3)
    for one, other in zip(again, stages(member, 3), strict=True):
        assert np.array_equal(one.documents, other.documents)
        assert np.array_equal(one.tokens.values, other.tokens.values)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("initial", [n for n in range(18) if n not in (1, 3, 5)]),
        ("new", [2, 19, *range(24, 30)]),
    ],
)
def test_whose_documents_are_rehearsed_when_documents_change(stages, documents, expected):
    (pool,) = stages(make(documents=documents), 3)
    assert np.unique(pool.documents).tolist() == expected


def test_stored_queries_of_removed_documents_are_not_rehearsed(stages):
    stored = stages(make(stored_queries=1.0), 3)[-1]
    gone = {1, 3, 5}
    assert set(stored.documents.tolist()) == set(range(18)) - gone
    assert len(stored.tokens) == 2 * 15


def test_a_line_of_a_corpus_that_is_not_there_is_refused(stages):
    stages(make(), 1)
    path = stages.run / "stages/01/pseudo_queries.jsonl"
    path.write_text(path.read_text("utf-8").replace('"corpus": "D0"', '"corpus": "D9"'), "utf-8")
    with pytest.raises(UserError, match=r"pseudo_queries\.jsonl: not what was written"):
        stages(make(), 1)
