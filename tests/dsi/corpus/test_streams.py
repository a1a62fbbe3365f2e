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
        assert [stage.added.tolist() for stage in rows] == [[3, 1], [2]]
        for stage in rows:
            parts = (stage.added, stage.removed, stage.replaced, stage.texts)
            assert [len(part) for part in parts[1:]] == [0, 0, 0]
            assert all(part.dtype == np.int64 for part in parts)
    assert [stage.added.tolist() for stage in read_stream(corpus, None)] == [list(range(24))]


def test_corpora_are_ordered_by_number_not_by_letter(corpus, tmp_path):
    expected = [[n] for n in range(12)]
    assert [stage.added.tolist() for stage in read_stream(corpus, "many")] == expected
    shuffled = {f"D{n}": [IDS[n]] for n in sorted(range(12), key=str, reverse=True)}
    path = tmp_path / "shuffled.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(shuffled).encode())
    assert [stage.added.tolist() for stage in read_stream(corpus, path)] == expected


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
    # what a stage removes and replaces; d3 is judged
    ('{"D0": ["d1"],\n "D1": {"add": ["d2"],\n"removes": []}}', 3, "D1 has the key 'removes'"),
    ('{"D0": ["d1"],\n "D1": {"add": "d2"}}', 2, "D1 add must be a list of document ids"),
    ('{"D0": ["d1"], "D1": {"remove":\n["d1", 2]}}', 1, "D1 remove must be a list"),
    ('{"D0": ["d1"],\n "D1": {"replace":\n["d1"]}}', 2, "D1 replace must be {"),
    ('{"D0": ["d1"], "D1":\n{"replace": {"d1": 1}}}', 2, "D1 replace must be {"),
    ('{"D0": {"add": ["d1"],\n"remove": ["d1"]}}', 2, "D0 cannot remove: nothing has arrived"),
    ('{"D0": {"add": ["d1"],\n"replace": {"d1": "d2"}}}', 2, "D0 cannot replace"),
    ('{"D0": ["d1"],\n "D1": {}}', 2, "D1 is empty"),
    ('{"D0": ["d1"],\n "D1": {"add": [], "remove": []}}', 2, "D1 is empty"),
    ('{"D0": ["d1"], "D1": {"remove": [\n"x"]}}', 2, "D1 removes the unknown document 'x'"),
    ('{"D0": ["d1"], "D1": {"remove": ["d1"],\n"add": ["x"]}}', 2, "unknown document 'x'"),
    ('{"D0": ["d1", "d2"], "D1": {"remove": ["d1",\n"d1"]}}', 2, "D1 removes 'd1' twice"),
    (
        '{"D0": ["d1", "d2"],\n"D1": {"remove": ["d1"]},\n"D2": {"remove": ["d1"]}}',
        3,
        "D2 removes 'd1', which is removed in D1",
    ),
    (
        '{"D0": ["d1"],\n"D1": {"remove": ["d2"]}, "D2": ["d2"]}',
        2,
        "D1 removes 'd2', which has not arrived in an earlier stage",
    ),
    (
        '{"D0": ["d1"], "D1": {"add": ["d2"],\n"remove": [\n"d2"]}}',
        3,
        "D1 removes 'd2', which has not arrived in an earlier stage",
    ),
    (
        '{"D0": ["d1", "d2"], "D1": {"remove": ["d1"]},\n"D2": ["d1"]}',
        2,
        "document 'd1' was removed in D1 and is in D2; a removed document cannot arrive again",
    ),
    ('{"D0": ["d1"],\n"D1": {"remove": ["d1"]}}', 2, "D1 removes all that is left"),
    (
        '{"D0": ["d1", "d2"], "D1": {"remove": ["d1"],\n"replace": {\n"d1": "d5"}}}',
        3,
        "D1 replaces 'd1', which D1 removes as well",
    ),
    (
        '{"D0": ["d1", "d2"], "D1": {"remove": ["d1"]},\n"D2": {"replace": {"d1": "d5"}}}',
        2,
        "D2 replaces 'd1', which is removed in D1",
    ),
    (
        '{"D0": ["d1"], "D1":\n{"replace": {"d2": "d5"}}, "D2": ["d2"]}',
        2,
        "D1 replaces 'd2', which has not arrived in an earlier stage",
    ),
    ('{"D0": ["d1"], "D1": {"replace":\n{"x": "d5"}}}', 2, "D1 replaces the unknown document 'x'"),
    ('{"D0": ["d1"], "D1": {"replace":\n{"d1": "x"}}}', 2, "D1 replaces 'd1' by the unknown row"),
    (
        '{"D0": ["d1"], "D1":\n{"replace": {"d1": "d3"}}}',
        2,
        "'d3' is only the new text of 'd1', but queries are judged on it",
    ),
    (
        '{"D0": ["d1",\n"d5"], "D1": {"replace": {"d1": "d5"}}}',
        2,
        "D0 names 'd5', which D1 has as a document's new text",
    ),
    ('{"D0": ["d1"], "D1": {"replace": {"d1": "d5",\n"d1": "d6"}}}', 2, "'d1' twice"),
    ('{"D0": ["d1"], "D1": {"add": ["d2"],\n"add": []}, "D2": {\n"add": []}}', 2, "'add' twice"),
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
    assert [stage.added.tolist() for stage in read_stream(deduplicated, "last")] == [[5], [7]]
    with pytest.raises(UserError, match=r"copies\.json:\d+: D1 is empty after deduplication"):
        read_stream(deduplicated, "copies")


def test_a_stage_adds_removes_and_replaces(corpus, tmp_path):
    path = tmp_path / "s.json"
    stages = [
        ["d3", "d1"],
        {"add": ["d2"], "remove": ["d1"], "replace": {"d3": "d9"}},
        {"replace": {"d3": "d4", "d2": "d4"}},
        {"remove": ["d2"]},
    ]
    path.write_text(json.dumps({f"D{n}": stage for n, stage in enumerate(stages)}))
    found = read_stream(corpus, path)
    rows = [
        [part.tolist() for part in (stage.added, stage.removed, stage.replaced, stage.texts)]
        for stage in found
    ]
    assert rows == [
        [[3, 1], [], [], []],
        [[2], [1], [3], [9]],
        [[], [], [3, 2], [4, 4]],
        [[], [2], [], []],
    ]
    warnings = check_stream(corpus, found)
    assert warnings[0].startswith("D1, D2, D3 have no test query: columns")
    assert warnings[1].startswith("19 of 24 documents are in no corpus"), "d4 and d9 are in use"


def test_what_deduplication_took_out_is_neither_removed_nor_replaced(corpus, tmp_path):
    deduplicated = read_corpus(corpus.folder, cache=tmp_path / "cache", deduplicate="text")
    path = tmp_path / "s.json"
    stages = {"D0": ["d5", "d23"], "D1": {"remove": ["d23"], "replace": {"d5": "d6", "d23": "d7"}}}
    path.write_text(json.dumps(stages))
    last = read_stream(deduplicated, path)[1]
    assert (last.removed.tolist(), last.replaced.tolist(), last.texts.tolist()) == ([], [5], [6])
    path.write_text('{"D0": ["d5"],\n"D1": {"replace": {"d5": "d23"}}}')
    with pytest.raises(UserError, match=r":2: D1 replaces 'd5' by 'd23', which data\.deduplicate"):
        read_stream(deduplicated, path)


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
    assert [line_of(text, "D1", *at) for at in ((), ("add", 0), ("add", 1))] == [1, 1, 2]
    assert [line_of(text, "D0", *at) for at in ((), ("add", 0), ("add", 1))] == [3, 4, 5]
