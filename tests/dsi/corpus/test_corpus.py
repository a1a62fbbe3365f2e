"""What is written is what is read; texts; options."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsi.corpus.corpus import document_texts, read_corpus, read_stream, write_corpus
from dsi.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FILLED = TEXT.filter(str.strip)
ID = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
IDS = st.lists(ID.filter(lambda s: s.split() == [s]), min_size=1, max_size=8, unique=True)


@st.composite
def corpora(draw):
    """Arbitrary documents, queries, judgements and a stream."""
    ids, query_ids = draw(IDS), draw(IDS)
    documents = [{"_id": d, "title": draw(TEXT), "text": draw(FILLED)} for d in ids]
    queries = [{"_id": q, "text": draw(FILLED)} for q in query_ids]
    triples = st.tuples(st.sampled_from(query_ids), st.sampled_from(ids), st.integers(-1, 3))
    qrels = {
        split: draw(st.lists(triples, max_size=8, unique_by=lambda t: t[:2]))
        for split in ("train", "dev", "test")
    }
    cut = draw(st.integers(1, len(ids)))
    stream = [part for part in (ids[:cut], ids[cut:]) if part]
    return documents, queries, qrels, stream


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(corpora())
def test_what_is_written_is_what_is_read(tmp_path_factory, content):
    documents, queries, qrels, stream = content
    root = tmp_path_factory.mktemp("trip")
    folder = write_corpus(root / "c", iter(documents), iter(queries), qrels, {"s": stream})
    corpus = read_corpus(folder, cache=root / "cache")
    rows = [d | {"_id": d["id"]} for d in corpus.documents.to_pylist()]
    assert [{key: row[key] for key in ("_id", "title", "text")} for row in rows] == documents
    assert [{"_id": q["id"], "text": q["text"]} for q in corpus.queries.to_pylist()] == queries
    for split, judgements in qrels.items():
        pairs = [
            (queries[query]["_id"], documents[row]["_id"])
            for query, row in corpus.qrels[split].tolist()
        ]
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == {(query, row) for query, row, score in judgements if score > 0}
    found = read_stream(corpus, "s")
    assert [[documents[row]["_id"] for row in stage.added] for stage in found] == stream


@pytest.fixture
def corpus(tmp_path):
    documents = [
        {"_id": "a", "title": " The\tTitle ", "text": " Some  Text\n"},
        {"_id": "b", "text": "no title"},
        {"_id": "c", "title": "Only Title", "text": "  "},
    ]
    folder = write_corpus(tmp_path / "c", documents, [], {})
    return read_corpus(folder, cache=tmp_path / "cache")


def test_document_texts(corpus):
    def texts(**options):
        return list(document_texts(corpus.documents, **options))

    expected = ["The Title Some Text", "no title", "Only Title"]
    assert texts(title=True, lowercase=False) == expected
    assert texts(title=True, lowercase=True) == [text.lower() for text in expected]
    assert texts(title=False, lowercase=False) == ["Some Text", *expected[1:]]
    assert texts(title=True, lowercase=False, batch_size=1) == expected
    rows = np.array([2, 0, 0])
    chosen = texts(title=True, lowercase=False, batch_size=2, rows=rows)
    assert chosen == [expected[row] for row in rows]
    assert texts(title=True, lowercase=False, rows=rows[:0]) == []


def test_tables_are_never_optional(corpus):
    assert corpus.documents.schema.names == ["id", "title", "text"]
    assert corpus.queries.schema.names == ["id", "text"]
    assert corpus.removed.num_rows == 0
    assert {split: pairs.dtype for split, pairs in corpus.qrels.items()} == dict.fromkeys(
        ["train", "dev", "test"], np.dtype(np.int64)
    )


def test_unknown_deduplication(corpus):
    with pytest.raises(UserError, match="one of none, text, title, prefix; did you mean 'title'"):
        read_corpus(corpus.folder, deduplicate="titel")


def test_write_refuses_what_could_not_be_read(tmp_path):
    good = [{"_id": "a", "text": "x"}]
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: \"_id\" 'b c' contains whitespace"):
        write_corpus(tmp_path / "1", [*good, {"_id": "b c", "text": "x"}], [], {})
    assert not (tmp_path / "1" / "corpus.jsonl").exists()
    with pytest.raises(UserError, match=r"queries\.jsonl:1: query 'q' has an empty text"):
        write_corpus(tmp_path / "2", good, [{"_id": "q", "text": ""}], {})
    assert not (tmp_path / "2" / "corpus.jsonl").exists()
    with pytest.raises(UserError, match="split 'valid'; choose of train, dev, test"):
        write_corpus(tmp_path / "3", good, [], {"valid": []})
    write_corpus(tmp_path / "4", good, [], {})
    with pytest.raises(UserError, match=r"corpus\.jsonl: there is a corpus already"):
        write_corpus(tmp_path / "4", good, [], {})


def test_written_bytes(tmp_path):
    folder = write_corpus(
        tmp_path / "c",
        [{"_id": "a", "title": "É", "text": "x"}],
        [{"_id": "q", "text": "?"}],
        {"test": [("q", "a", 1)]},
        {"one": [["a"]]},
    )
    content = {path.name: path.read_text("utf-8") for path in folder.rglob("*.*")}
    assert content == {
        "corpus.jsonl": '{"_id": "a", "title": "É", "text": "x"}\n',
        "queries.jsonl": '{"_id": "q", "text": "?"}\n',
        "test.tsv": "query-id\tcorpus-id\tscore\nq\ta\t1\n",
        "one.json": '{\n "D0": [\n  "a"\n ]\n}\n',
    }


def test_a_corpus_read_before_is_opened_without_what_takes_long_to_import(tmp_path):
    read_corpus("encyclopedia", cache=tmp_path)
    code = f"""
import sys
from pathlib import Path
from dsi.corpus.corpus import read_corpus
from dsi.corpus.ids import id_rows
documents = read_corpus("encyclopedia", cache=Path({str(tmp_path)!r})).documents
row = int(id_rows(documents["id"]).rows(["ragnarok"])[0])
print(documents.slice(row, 1)["id"][0].as_py(), {{"pandas", "pyarrow.compute"}} & {{*sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ragnarok set()\n"
