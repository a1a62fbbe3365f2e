"""Stream files: order, and the exact line of every mistake, however the JSON is laid out."""

import json

import numpy as np
import pytest

from dsi.corpus.corpus import check_stream, read_corpus, read_stream, write_corpus
from dsi.corpus.streams import line_of
from dsi.errors import UserError

IDS = [f"d{n}" for n in range(24)]


@pytest.fixture
def corpus(tmp_path):
    documents = [{"_id": entry, "text": f"text {n % 23}"} for n, entry in enumerate(IDS)]
    streams = {
        "two": [["d3", "d1"], ["d2"]],
        "many": [[entry] for entry in IDS[:12]],
        "last": [["d5"], ["d23", "d7"]],
        "copies": [["d5"], ["d23"]],
    }
    qrels = {"test": [("q", "d3", 1)]}
    query = [{"_id": "q", "text": "which"}]
    folder = write_corpus(tmp_path / "c", documents, query, qrels, streams)
    return read_corpus(folder, cache=tmp_path / "cache")


def test_names_paths_and_none(corpus):
    path = corpus.folder / "streams" / "two.json"
    for stream in ("two", path, str(path)):
        rows = read_stream(corpus, stream)
        assert [part.tolist() for part in rows] == [[3, 1], [2]]
        assert all(part.dtype == np.int64 for part in rows)
    assert [part.tolist() for part in read_stream(corpus, None)] == [list(range(24))]


def test_corpora_are_ordered_by_number_not_by_letter(corpus, tmp_path):
    assert [part.tolist() for part in read_stream(corpus, "many")] == [[n] for n in range(12)]
    shuffled = {f"D{n}": [IDS[n]] for n in sorted(range(12), key=str, reverse=True)}
    path = tmp_path / "shuffled.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(shuffled).encode())
    assert [part.tolist() for part in read_stream(corpus, path)] == [[n] for n in range(12)]


CASES = [
    ('{"D0": ["d1"],\n "D1": ["d2",\n  "d99"]}', 3, "D1 names the unknown document 'd99'"),
    ('{"D0": ["d1"], "D1": ["d2", "x"]}', 1, "D1 names the unknown document 'x'"),
    ('{"D1": ["d1"],\n"D0": ["D1",\n"d2"]}', 2, "D0 names the unknown document 'D1'"),
    ('{"D0": ["d1"],\n "D1": [\n  "d2",\n  "d1"]}', 4, "document 'd1' is in D0 and in D1"),
    ('{"D0": ["d1",\n"d2",\n"d1"]}', 3, "document 'd1' is in D0 twice"),
    ('{"D0": ["\\u00641",\n"d1"]}', 2, "document 'd1' is in D0 twice"),
    ('["d1"]', 1, "not a JSON object"),
    ('"d1"', 1, "not a JSON object"),
    ("{}", 1, "no corpora"),
    ('{"D0": ["d1"],\n "D2": ["d2"]}', 2, "D1 is missing before D2"),
    ('{\n"D1": ["d1"]}', 2, "D0 is missing before D1"),
    ('{"D0": ["d1"],\n"D01": ["d2"]}', 2, "key 'D01'; name the corpora D0, D1"),
    ('{"D0": ["d1"],\n"news": ["d2"]}', 2, "key 'news'"),
    ('{"D0": ["d1"],\n\n"D0": ["d2"]}', 3, "'D0' twice"),
    ('{"D0": ["d1"],\n "D1": []}', 2, "D1 is empty"),
    ('{"D0": ["d1"],\n "D1": "d2"}', 2, "D1 must be a list of document ids"),
    ('{"D0": ["d1"],\n "D1": ["d2", 3]}', 2, "D1 must be a list of document ids"),
    ('{"D0": ["d1"],\n "D1": ["d2" "d3"]}', 2, "broken JSON (Expecting ',' delimiter)"),
    ('{"D0": ' + "[" * 100_000, 1, "not a stream"),
    (b'{"D0": ["d1",\n"\xff"]}', 2, "not UTF-8"),
]


@pytest.mark.parametrize(("content", "line", "words"), CASES)
def test_every_mistake_is_one_line(corpus, tmp_path, content, line, words):
    path = tmp_path / "s.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_stream(corpus, path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message
    assert len(message.splitlines()) == 1


def test_unknown_name_lists_the_names(corpus):
    with pytest.raises(UserError) as caught:
        read_stream(corpus, "mani")
    message = str(caught.value)
    assert message.startswith(f"{corpus.folder / 'streams' / 'mani.json'}: no such stream")
    assert message.endswith("there are: copies, last, many, two; did you mean 'many'?")


def test_missing_file_and_a_corpus_without_folder(corpus, tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_stream(corpus, tmp_path / "none.json")
    path = tmp_path / "docs.jsonl"
    path.write_text('{"_id": "a", "text": "b"}')
    pair = read_corpus({"documents": str(path)}, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"'two': .* has no folder; give the path"):
        read_stream(pair, "two")


def test_removed_documents_leave_silently(corpus, tmp_path):
    deduplicated = read_corpus(corpus.folder, cache=tmp_path / "cache", deduplicate="text")
    assert deduplicated.removed.to_pylist() == [{"id": "d23", "row": 0}]
    assert [part.tolist() for part in read_stream(deduplicated, "last")] == [[5], [7]]
    with pytest.raises(UserError, match=r"copies\.json:\d+: D1 is empty after deduplication"):
        read_stream(deduplicated, "copies")


def test_check_stream(corpus, tmp_path):
    assert check_stream(corpus, read_stream(corpus, None)) == []
    first, second = check_stream(corpus, read_stream(corpus, "two"))
    assert first.startswith("D1 has no test query")
    assert second.startswith("21 of 24 documents are in no corpus")
    many = check_stream(corpus, read_stream(corpus, "many"))
    assert many[0].startswith("D0, D1, D2, D4, D5,")
    documents = tmp_path / "d.jsonl"
    documents.write_text('{"_id": "a", "text": "b"}')
    pair = read_corpus({"documents": documents}, cache=tmp_path / "cache")
    (only,) = check_stream(pair, read_stream(pair, None))
    assert "no test query" in only


def test_line_of_elements_and_keys():
    text = '{"D1": ["D0",\n"D1"],\n"D0": [\n"a"\n, "b\\"c"]}'
    assert [line_of(text, "D1", index) for index in (None, 0, 1)] == [1, 1, 2]
    assert [line_of(text, "D0", index) for index in (None, 0, 1)] == [3, 4, 5]
