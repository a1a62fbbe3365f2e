"""Docids of every scheme in whole runs: assigned once, written, read, and resumed with."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from continual import runs
from continual.run import directory
from continual.run.docids import Assignment
from continual.run.material import prepare
from continual.update.update import Update
from dsi.docids import codes_from_text
from dsi.embeddings import load_embedder
from dsi.errors import UserError
from dsi.index import SearchIndex
from dsi.search.trie import Trie
from tests.continual.test_resume import interrupt, resume

CLUSTERS = ("docids.embedding.source=model", "docids.embedding.updates=4")
SCHEMES = {
    "naive": ("docids=naive", "docids.base=4"),
    "title": ("docids=title",),
    "keywords": ("docids=keywords", "docids.keywords=2"),
    "semantic": ("docids=semantic", "docids.k=3", "docids.c=4", *CLUSTERS),
    "residual": ("docids=residual", "docids.positions=2", "docids.codes=4", *CLUSTERS),
    "product": ("docids=product", "docids.groups=2", "docids.codes=4", *CLUSTERS),
    "tfidf": ("docids=semantic", "docids.k=3", "docids.c=4", "docids.embedding.source=tfidf"),
}


def docids(run, corpora=3):
    lines = []
    for n in range(corpora):
        lines += (run / "docids" / f"D{n}.tsv").read_text("utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_whole_run(lab, name):
    run = lab.kept(*SCHEMES[name], "evaluation.unconstrained=true")
    found = docids(run)
    assert len(found) == len(set(found.values())) == sum(lab.sizes)
    matrix, decoding = lab.matrix(run), json.loads((run / "stages/02/decoding.json").read_text())
    assert matrix["num_updates"] == [10, 8, 8]
    assert decoding["invalid_rate"] == decoding["repeat_rate"] == 0.0
    assert 0 <= decoding["unconstrained"]["invalid_rate"] <= 1
    report = json.loads((run / "docids/report.json").read_text())
    assert [part["documents"] for part in report["corpora"]] == list(np.cumsum(lab.sizes))
    # the row is computed again from the files alone
    lines = lab.call(runs.evaluate, run, 2)
    for o, line in enumerate(lines[1:4]):
        written = [round(100 * P[2][o], 2) for P in matrix["metrics"].values()]
        assert [float(cell) for cell in line.split()[1:]] == written
    assert "unconstrained" in lines[-1]


@pytest.mark.parametrize("name", SCHEMES)
def test_searching_a_run(lab, name):
    run = lab.kept(*SCHEMES[name], "evaluation.unconstrained=true")
    index = SearchIndex.load(run)
    lines = [line for line in lab.per_query(run, 2) if line["corpus"] == "D0"][:5]
    texts = [line["text"] for line in lines]
    for line, results in zip(lines, index.search(texts), strict=True):
        assert [result.document_id for result in results] == line["top"]
    ids = list(docids(run))
    own = index.among(corpora=["D1"])
    assert len(own) == lab.sizes[1]
    of_corpus = set(ids[lab.sizes[0] : lab.sizes[0] + lab.sizes[1]])
    full = index.search(texts, k=len(ids))
    for whole, part in zip(full, own.search(texts, k=len(ids)), strict=True):
        expected = [r.document_id for r in whole if r.document_id in of_corpus]
        if name == "naive":  # short and long docids compete for the beams of a full search
            assert {r.document_id for r in part} == set(expected) == of_corpus
        assert [r.document_id for r in part] == expected
    gone = index.without(ids[:7])
    assert {r.document_id for r in gone.search(texts[:1], k=99)[0]} == set(ids[7:])
    early = SearchIndex.load(run / "stages" / "00")
    assert len(early) == lab.sizes[0]
    with pytest.raises(UserError, match="no 'D9'"):
        index.among(corpora=["D9"])
    with pytest.raises(UserError, match="no document 'x'"):
        index.without(["x"])
    with pytest.raises(UserError, match="none is left"):
        own.among(corpora=["D0"])


def test_the_trie_of_a_stage_holds_its_documents(lab):
    run = lab.kept(*SCHEMES["semantic"], "evaluation.unconstrained=true")
    codes_NT = codes_from_text(list(docids(run).values()))
    for stage, count in enumerate(np.cumsum(lab.sizes).tolist()):
        trie = Trie.load(run / "stages" / f"{stage:02d}" / "trie")
        assert (len(trie), trie.version) == (count, stage)
        assert trie.find(codes_NT[:count]).tolist() == list(range(count))
        assert (trie.find(codes_NT[count:]) == -1).all()


def test_docids_of_earlier_corpora_stay_when_later_ones_come(lab):
    for name in ("semantic", "product"):
        run = lab.kept(*SCHEMES[name], "evaluation.unconstrained=true")
        first = lab.kept(*SCHEMES[name], "data.stream=two")
        assert docids(first, 2).items() <= docids(run).items()
        assert (run / "docids/D0.tsv").read_bytes() == (first / "docids/D0.tsv").read_bytes()


def test_the_encoder_that_embedded_d0_is_kept(lab):
    run = lab.kept(*SCHEMES["semantic"], "evaluation.unconstrained=true")
    embedder = load_embedder(run / "docids/embedder")
    vectors = embedder.embed(["lokal lokal", "another text"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


WHERE = {
    "within the updates with atomic docids": (Update, "take", 3, True),
    "at their end": (Update, "take", 4, False),
    "while D0 gets its docids": (directory, "write_docids", 1, False),
    "after them": (Update, "take", 7, False),
    "while D1 gets its docids": (directory, "write_docids", 2, False),
    "within stage 1": (Update, "take", 15, True),
}


@pytest.mark.parametrize("where", WHERE)
def test_going_on_is_never_having_stopped(lab, tmp_path, where):
    settings = (*SCHEMES["semantic"], "checkpoint.every=2", "regularizer.name=l2")
    run = interrupt(lab, tmp_path, *WHERE[where], settings=settings)
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*settings))


def test_a_corpus_can_be_added(lab, tmp_path):
    run = lab.train(*SCHEMES["product"], output=tmp_path)
    before = docids(run)
    more = lab.write_stream(tmp_path / "more", sizes=(5,), first=60)
    lab.call(runs.add, run, str(more))
    after = docids(run, 4)
    assert before.items() < after.items()
    assert len(set(after.values())) == sum(lab.sizes) + 5


@pytest.mark.parametrize(
    "settings",
    [
        ("docids.embedding.updates=10",),
        ("docids.embedding.updates=4", "training.restart=true", "training.stages=last"),
    ],
)
def test_the_updates_before_the_docids_must_fit(lab, settings):
    with pytest.raises(UserError, match=r"docids\.embedding\.updates"):
        lab.config("docids=semantic", "docids.embedding.source=model", *settings)


def test_re_training_from_scratch_uses_other_embeddings(lab, tmp_path):
    scratch = ("training.restart=true", "training.stages=last")
    run = lab.train(*SCHEMES["tfidf"], *scratch, output=tmp_path)
    assert len(set(docids(run).values())) == sum(lab.sizes)


def test_other_processes_read_what_the_first_wrote(lab, tmp_path):
    run = lab.kept(*SCHEMES["product"], "evaluation.unconstrained=true")
    config = lab.config(*SCHEMES["product"])
    from continual.run.material import prepare

    stream = prepare(config, run / "tokenizer").stream
    second: Any = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: None)
    other = Assignment(config, stream, run, second)
    assert other.corpora == 0
    other.extend(1)
    assert other.corpora == 2
    lines = list(docids(run, 2).values())
    assert np.array_equal(other.scheme.codes_NT, codes_from_text(lines))
    assert set(other.scheme.state_dict()) >= {"centroids.0", "near.0"}


@pytest.fixture
def assigned(lab, changing, tmp_path):
    """Makes the assignment of the stream of CHANGES in tests/continual/conftest.py."""

    def make(*settings):
        config = lab.config(*changing, *settings)
        stream = prepare(config).stream
        folder = tmp_path / "run"
        return Assignment(config, stream, folder, Accelerator()), stream

    return make


def test_atomic_codes_are_places_among_what_is_there(assigned):
    assignment, stream = assigned()
    assert assignment.codes(0).tolist() == [[n] for n in range(18)], "before there are any"
    for stage in range(4):
        assignment.extend(stage)
        assert assignment.corpora == stage + 1
        codes_NT, members = assignment.codes(stage), stream.members(stage)
        assert codes_NT.dtype == np.int32 and codes_NT.shape == (stream.count(stage), 1)
        assert codes_NT[members, 0].tolist() == list(range(len(members)))
        assert (np.delete(codes_NT, members, 0) == -1).all()
        assert assignment.code_sizes(stage) == [len(members)]
        kept = assignment.kept_rows(stage)
        if stage in (1, 2, 3):
            # what was row r in the stage before is row kept.index(r) in this one
            before = stream.members(stage - 1)
            assert kept is not None
            assert before[kept].tolist() == [n for n in before if n in members]
        else:
            assert kept is None
    assert assignment.codes(0).tolist() == [[n] for n in range(18)], "of an earlier stage"
    # what was assigned at arrival is in the files, also of what has gone
    lines = (assignment.folder / "docids/D0.tsv").read_text().splitlines()
    assert lines == [f"d{n:02d}\t{n}" for n in range(18)]
    assert (assignment.folder / "docids/D2.tsv").read_bytes() == b""
    again, _ = assigned()
    again.read(4)
    assert again.corpora == 4
    assert np.array_equal(again.codes(3), assignment.codes(3))


def test_string_docids_of_removed_documents_go(assigned):
    assignment, stream = assigned("docids=naive", "docids.base=4")
    assignment.extend(3)
    own, codes_NT = assignment.scheme.codes_NT, assignment.codes(3)
    members = stream.members(3)
    assert np.array_equal(codes_NT[members], own[members])
    assert (np.delete(codes_NT, members, 0) == -1).all()
    assert assignment.kept_rows(3) is None
    assert assignment.code_sizes(3) == assignment.scheme.code_sizes
    trie = Trie.build(codes_NT)
    assert sorted(trie.documents.tolist()) == members.tolist()
    assert (trie.find(np.delete(own, members, 0)) == -1).all()


def test_without_removals_codes_are_the_schemes_own(lab, tmp_path):
    config = lab.config("docids=naive")
    assignment = Assignment(config, prepare(config).stream, tmp_path, Accelerator())
    assignment.extend(2)
    assert np.shares_memory(assignment.codes(2), assignment.scheme.codes_NT), "no copy"
    assert np.array_equal(assignment.codes(2), assignment.scheme.codes_NT)
    assert [assignment.kept_rows(stage) for stage in range(3)] == [None] * 3


@pytest.mark.parametrize("content", ["", "d18"])
def test_a_file_of_docids_that_is_empty_must_be_of_an_empty_corpus(assigned, content):
    assignment, _ = assigned()
    assignment.extend(3)
    (assignment.folder / "manifest.json").unlink()
    (assignment.folder / "docids/D1.tsv").write_text(content)
    with pytest.raises(UserError, match=r"D1\.tsv.*restore the file"):
        assigned()[0].read(4)
