"""The cache: reused, invalidated by content, mended where damaged, mapped and not read."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dsi import files
from dsi.corpus import cache as corpus_cache
from dsi.corpus.corpus import read_corpus, write_corpus
from dsi.errors import UserError

STATUS = Path("/proc/self/status")


@pytest.fixture
def folder(tmp_path):
    documents = [
        {"_id": "a", "title": "One", "text": "The  Cafe\u0301 is open."},
        {"_id": "b", "title": "Two", "text": "something else"},
        {"_id": "c", "title": " One ", "text": "the caf\u00e9\nis OPEN."},
        {"_id": "d", "title": "", "text": "x" * 4000 + "d"},
        {"_id": "e", "title": "", "text": "x" * 4000 + "e"},
        {"_id": "f", "title": "no text", "text": ""},
        {"_id": "g", "title": "no text either", "text": ""},
    ]
    queries = [{"_id": "q1", "text": "coffee"}, {"_id": "q2", "text": "x"}]
    qrels = {"test": [("q1", "a", 1), ("q1", "c", 1), ("q2", "e", 1)]}
    return write_corpus(tmp_path / "corpus", documents, queries, qrels)


@pytest.fixture
def builds(monkeypatch):
    """The number of times that source files were parsed."""
    calls = []
    build = corpus_cache._build
    monkeypatch.setattr(corpus_cache, "_build", lambda *args: (calls.append(1), build(*args)))
    return calls


def test_second_read_uses_the_cache(folder, tmp_path, builds):
    first = read_corpus(folder, cache=tmp_path / "cache")
    second = read_corpus(folder, cache=tmp_path / "cache")
    assert len(builds) == 1
    assert first.documents.equals(second.documents)
    assert first.queries.equals(second.queries)
    assert first.content_hash == second.content_hash
    assert first.qrels["test"].tolist() == second.qrels["test"].tolist()


def test_a_copy_of_the_folder_shares_the_entry(folder, tmp_path, builds):
    read_corpus(folder, cache=tmp_path / "cache")
    folder.rename(tmp_path / "moved")
    assert read_corpus(tmp_path / "moved", cache=tmp_path / "cache").name == "moved"
    assert len(builds) == 1


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_changed_byte_is_noticed_whatever_the_time_stamp(folder, tmp_path, builds, name):
    before = read_corpus(folder, cache=tmp_path / "cache")
    path = folder / name
    times = path.stat()
    changed = {"corpus.jsonl": (b"else", b"elsa"), "queries.jsonl": (b"coffee", b"toffee")}
    old, new = changed.get(name, (b"q2\te", b"q2\td"))
    path.write_bytes(path.read_bytes().replace(old, new))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = read_corpus(folder, cache=tmp_path / "cache")
    assert len(builds) == 2
    assert after.content_hash != before.content_hash


def test_options_have_entries_of_their_own(folder, tmp_path, builds):
    for deduplicate in (*corpus_cache.KEYS, *corpus_cache.KEYS):
        read_corpus(folder, cache=tmp_path / "cache", deduplicate=deduplicate)
    assert len(builds) == len(corpus_cache.KEYS)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "remove", "meta"])
@pytest.mark.parametrize("name", ["documents", "removed"])
def test_a_damaged_entry_is_rebuilt(folder, tmp_path, builds, damage, name):
    expected = read_corpus(folder, cache=tmp_path / "cache").documents.to_pylist()
    (path,) = (tmp_path / "cache").rglob(f"{name}.arrow")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        path.write_bytes(content.replace(b"string", b"strinh").replace(b"else", b"elsa") + b" ")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "remove":
        path.unlink()
    else:
        path.with_name("meta.json").write_text("{")
    assert read_corpus(folder, cache=tmp_path / "cache").documents.to_pylist() == expected
    assert len(builds) == 2
    read_corpus(folder, cache=tmp_path / "cache")
    assert len(builds) == 2


def test_no_temporary_file_stays(folder, tmp_path):
    read_corpus(folder, cache=tmp_path / "cache", deduplicate="text")
    (entry,) = (tmp_path / "cache" / "corpora").iterdir()
    names = {"meta.json", *(f"{name}.arrow" for name in corpus_cache.NAMES)}
    assert {path.name for path in entry.iterdir()} == names


def test_default_cache_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DSI_CACHE", str(tmp_path / "elsewhere"))
    read_corpus(folder)
    assert list((tmp_path / "elsewhere").rglob("meta.json"))
    assert files.cache_folder() == tmp_path / "elsewhere"


def test_an_unwritable_cache_names_the_fix(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*; set DSI_CACHE") as caught:
        read_corpus(folder, cache=tmp_path / "file")
    assert len(str(caught.value).splitlines()) == 1


EXPECTED = {
    "none": ("abcdefg", {}),
    "text": ("abdefg", {"c": "a"}),
    "title": ("abdefg", {"c": "a"}),
    "prefix": ("abcdfg", {"e": "d"}),
}


@pytest.mark.parametrize("deduplicate", EXPECTED)
@pytest.mark.parametrize("collide", [False, True])
def test_deduplication(folder, tmp_path, monkeypatch, deduplicate, collide):
    if collide:  # with every hash equal the real strings must decide
        monkeypatch.setattr(corpus_cache, "hashes", lambda s: np.zeros(len(list(s)), np.int64))
    corpus = read_corpus(folder, cache=tmp_path / "cache", deduplicate=deduplicate)
    kept, moved = EXPECTED[deduplicate]
    ids = corpus.documents["id"].to_pylist()
    assert ids == list(kept)
    removed = {row["id"]: ids[row["row"]] for row in corpus.removed.to_pylist()}
    assert removed == moved
    judged = {("q1", "a"), ("q1", moved.get("c", "c")), ("q2", moved.get("e", "e"))}
    queries = corpus.queries["id"].to_pylist()
    pairs = [(queries[query], ids[row]) for query, row in corpus.qrels["test"].tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == judged
    warning = f"1 of 7 documents removed as duplicates (deduplicate: {deduplicate})"
    assert [w[: len(warning)] for w in corpus.warnings] == ([warning] if moved else [])


def test_the_hash_is_of_the_content_not_of_batches(folder, tmp_path, monkeypatch):
    whole = read_corpus(folder, cache=tmp_path / "1", deduplicate="text")
    monkeypatch.setattr(corpus_cache, "BATCH_ROWS", 2)
    parts = read_corpus(folder, cache=tmp_path / "2", deduplicate="text")
    assert whole.documents["id"].num_chunks == 1
    assert parts.documents["id"].num_chunks == 4
    assert parts.content_hash == whole.content_hash
    assert parts.documents.to_pylist() == whole.documents.to_pylist()
    assert read_corpus(folder, cache=tmp_path / "1").content_hash != whole.content_hash


EDITS = {
    "a text": ("corpus.jsonl", "something else", "something new", {"documents"}),
    "a title": ("corpus.jsonl", '"Two"', '"Too"', {"documents"}),
    "the id of a document": ("corpus.jsonl", '"f"', '"f2"', {"documents"}),
    "a query of one split": ("queries.jsonl", "coffee", "toffee", {"test"}),
    "a query of two splits": ("queries.jsonl", '"x"', '"y"', {"dev", "test"}),
    "a query that nothing judges": ("queries.jsonl", "nobody", "noone", set()),
    "a judgement": ("qrels/test.tsv", "q2\te", "q2\td", {"test"}),
    "one judgement less": ("qrels/dev.tsv", "q2\tb\t1\n", "", {"dev"}),
    "a judgement that says no": ("qrels/dev.tsv", "q2\tc\t0\n", "", set()),
}


@pytest.mark.parametrize(("name", "old", "new", "changed"), EDITS.values(), ids=EDITS)
def test_the_hashes_of_the_parts_say_what_has_changed(folder, tmp_path, name, old, new, changed):
    with open(folder / "queries.jsonl", "a") as file:
        file.write('{"_id": "q3", "text": "nobody"}\n')
    (folder / "qrels/dev.tsv").write_text("q2\tb\t1\nq2\tc\t0\n")
    before = read_corpus(folder, cache=tmp_path / "cache")
    assert sorted(before.part_hashes) == ["dev", "documents", "test", "train"]
    assert before.part_hashes["train"] is None
    assert before.part_hashes == read_corpus(folder, cache=tmp_path / "cache").part_hashes
    path = folder / name
    content = path.read_text("utf-8")
    assert old in content
    path.write_text(content.replace(old, new), "utf-8")
    after = read_corpus(folder, cache=tmp_path / "cache").part_hashes
    assert {part for part in after if after[part] != before.part_hashes[part]} == changed


def test_queries_in_train_and_test_are_a_warning(tmp_path):
    documents = [{"_id": "a", "text": "x"}, {"_id": "b", "text": "y"}]
    qrels = {"train": [("q", "a", 1)], "test": [("q", "b", 1)]}
    folder = write_corpus(tmp_path / "c", documents, [{"_id": "q", "text": "z"}], qrels)
    (warning,) = read_corpus(folder, cache=tmp_path / "cache").warnings
    assert warning.startswith("1 queries are judged in both train and test")


def synthetic(folder: Path, count: int) -> int:
    """A corpus of ``count`` documents of some 600 bytes; returns the size in bytes."""
    folder.mkdir()
    body = "abcdefghi " * 55
    with open(folder / "corpus.jsonl", "w") as file:
        for number in range(count):
            file.write(f'{{"_id": "d{number}", "title": "t{number}", "text": "{body}"}}\n')
        return file.tell()


def anonymous_memory() -> int:
    """Memory of this process that no file backs, in bytes (mapped pages do not count)."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    "count", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["200k", "1M"]
)
def test_a_corpus_does_not_live_in_memory(tmp_path, count):
    size = synthetic(tmp_path / "c", count)
    before = anonymous_memory()
    corpus = read_corpus(tmp_path / "c", cache=tmp_path / "cache")
    grown = anonymous_memory() - before
    assert corpus.documents.num_rows == count
    assert grown < 0.4 * size, f"building took {grown >> 20} MiB for {size >> 20} MiB"

    del corpus
    before, allocated = anonymous_memory(), pa.total_allocated_bytes()
    corpus = read_corpus(tmp_path / "c", cache=tmp_path / "cache")
    assert corpus.documents.nbytes > 0.8 * size
    assert corpus.documents["text"][count - 1].as_py().startswith("abc")
    assert pa.total_allocated_bytes() - allocated < 1 << 20
    assert anonymous_memory() - before < 16 << 20
