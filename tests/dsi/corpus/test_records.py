"""Every mistake in the files is one line: file, line, what is wrong, what to do."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from dsi.corpus.corpus import read_corpus
from dsi.corpus.records import judgements_from_rows, lines, problem, show
from dsi.errors import UserError

GOOD = {
    "corpus.jsonl": '{"_id": "d1", "title": "A", "text": "one"}\n{"_id": "d2", "text": "two"}\n',
    "queries.jsonl": '{"_id": "q1", "text": "uno"}\n{"_id": "q2", "text": "due"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n",
}


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


D, Q, T = GOOD["corpus.jsonl"], GOOD["queries.jsonl"], "q1\td1\t1\n"
CUT_OFF = gzip.compress(D.encode(), mtime=0)[:-4]  # no time of writing: it names a test
CASES = [
    # file, content, line, words of the message
    ("corpus.jsonl", D + '{"_id": "d1", "text": "x"}', 3, "document id 'd1' is already on line 1"),
    (
        "corpus.jsonl",
        D + '{"title": "x", "text": "x"}',
        3,
        "\"_id\" is missing (the row has 'title'",
    ),
    ("corpus.jsonl", D + '{"_id": "d3", "title": "x"}', 3, '"text" is missing'),
    ("corpus.jsonl", D + '{"_id": "d3", "text": null}', 3, '"text" is missing'),
    ("corpus.jsonl", D + '{"_id": "d3", "text": ["x"]}', 3, '"text" is a list'),
    ("corpus.jsonl", D + '{"_id": "d3", "text": "x", "title": 7}', 3, '"title" is a number'),
    ("corpus.jsonl", D + '{"_id": 12, "text": "x"}', 3, 'write it as a string: "_id": "12"'),
    ("corpus.jsonl", D + '{"_id": true, "text": "x"}', 3, '"_id" is true or false'),
    ("corpus.jsonl", D + '{"_id": "", "text": "x"}', 3, "is empty"),
    ("corpus.jsonl", D + '{"_id": "d 3", "text": "x"}', 3, "contains whitespace"),
    ("corpus.jsonl", D + '{"_id": "d\\n\\u20283", "text": "x"}', 3, r"'d\n\u20283' contains"),
    ("corpus.jsonl", D + '{"_id": "d3", "text": " \\t"}', 3, "'d3' has neither title nor text"),
    ("corpus.jsonl", D + '{"_id": "d3", "title": "", "text": ""}', 3, "neither title nor text"),
    ("corpus.jsonl", D + '{"_id": "d3", "text": "\\ud800"}', 3, "half a surrogate pair (\\ud800)"),
    ("corpus.jsonl", D + '{"_id": "d3", "text": "x"', 3, "broken JSON (Expecting ',' delimiter at"),
    ("corpus.jsonl", D + "[" * 100_000, 3, "cannot be read"),
    ("corpus.jsonl", D + '["d3", "x"]', 3, "a list, not a JSON object"),
    ("corpus.jsonl", D + '"d3"', 3, "a string, not a JSON object"),
    ("corpus.jsonl", D + "null", 3, "null, not a JSON object"),
    ("corpus.jsonl", "{\n" + D, 1, "one JSON object per line"),
    ("corpus.jsonl", D + '\n{"_id": "d3", "text": "x"}', 3, "a blank line between others"),
    ("corpus.jsonl", D.encode() + b'{"_id": "d3", "text": "caf\xe9"}', 3, "not UTF-8 at byte 27"),
    ("corpus.jsonl", D.encode("utf-16"), 1, "not UTF-8 at byte 1"),
    ("corpus.jsonl", "", 1, "no documents"),
    ("corpus.jsonl", "\n \n", 1, "no documents"),
    ("corpus.jsonl.gz", D, 1, "bad gzip (Not a gzipped file"),
    ("corpus.jsonl.gz", CUT_OFF, 3, "bad gzip (Compressed file ended"),
    ("queries.jsonl", Q + '{"_id": "q2", "text": "x"}', 3, "query id 'q2' is already on line 2"),
    ("queries.jsonl", Q + '{"_id": "q3", "text": ""}', 3, "query 'q3' has an empty text"),
    ("queries.jsonl", Q + '{"_id": "q3", "text": {}}', 3, '"text" is an object'),
    ("queries.jsonl", Q + '{"_id": "q3", "query": "x"}', 3, "the row has '_id', 'query'"),
    ("queries.jsonl", Q + '{"_id": 3, "text": "x"}', 3, 'write it as a string: "_id": "3"'),
    ("qrels/test.tsv", T + "q1\td9\t1\n", 2, "document 'd9' is not in"),
    ("qrels/train.tsv", T + "q1\td9\t0\n", 2, "document 'd9' is not in"),
    ("qrels/dev.tsv", T + "q9\td1\t1\n", 2, "query 'q9' is not in"),
    ("qrels/test.tsv", T + "q1\td2\t1.0\n", 2, "score '1.0' is not an integer"),
    ("qrels/test.tsv", T + "q1\td2\t1_0\n", 2, "score '1_0' is not an integer"),
    ("qrels/test.tsv", T + "q1\td2\tyes\n", 2, "score 'yes' is not an integer"),
    ("qrels/test.tsv", "qid\tdid\tlabel\n" + T, 1, "score 'label' is not an integer"),
    ("qrels/test.tsv", T + "q1 0 d2 1\n", 2, "1 tab-separated fields"),
    ("qrels/test.tsv", T + "q1\t0\td2\t1\n", 2, "4 tab-separated fields"),
    ("qrels/test.tsv", T + "\n" + T, 2, "a blank line between others"),
    ("qrels/test.tsv", T.encode() + b"\xff\td2\t1\n", 2, "not UTF-8 at byte 1"),
]


@pytest.mark.parametrize(("name", "content", "line", "words"), CASES)
def test_every_mistake_is_one_line(tmp_path, name, content, line, words):
    folder = write(tmp_path / "corpus", GOOD | {name: content})
    if name.endswith(".gz"):
        (folder / name.removesuffix(".gz")).unlink()
    with pytest.raises(UserError) as caught:
        read_corpus(folder, cache=tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith(f"{folder / name}:{line}: ")
    assert words in message
    assert len(message.splitlines()) == 1
    assert not list((tmp_path / "cache").rglob("*.arrow")), "nothing of it may stay behind"


def test_byte_order_mark_crlf_and_blank_lines_at_the_end(tmp_path):
    windows = {
        name: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n \n"
        for name, text in GOOD.items()
    }
    plain = read_corpus(write(tmp_path / "unix", GOOD), cache=tmp_path / "cache")
    other = read_corpus(write(tmp_path / "windows", windows), cache=tmp_path / "cache")
    assert other.content_hash == plain.content_hash
    assert other.documents.to_pylist() == plain.documents.to_pylist()


def test_header_zero_scores_and_repeated_judgements(tmp_path):
    files = GOOD | {
        "qrels/test.tsv": T + T + "q2\td1\t0\nq2\td2\t-1\n",
        "qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t2\nq1\td2\t+1",
    }
    corpus = read_corpus(write(tmp_path / "c", files), cache=tmp_path / "cache")
    assert corpus.qrels["test"].tolist() == [[0, 0]]
    assert corpus.qrels["dev"].tolist() == [[0, 1], [1, 1]]
    assert corpus.qrels["train"].shape == (0, 2)


def test_a_line_separator_within_a_text_is_no_line_end(tmp_path):
    text = "one\u2028two\x85three"
    files = {"corpus.jsonl": json.dumps({"_id": "d", "text": text}, ensure_ascii=False)}
    corpus = read_corpus(write(tmp_path / "c", files), cache=tmp_path / "cache")
    assert corpus.documents["text"].to_pylist() == [text]


def test_lines_numbers_and_compression(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfx\r\ny"))
    assert list(lines(tmp_path / "a.gz")) == ["x", "y"]
    with pytest.raises(UserError, match="cannot be read"):
        list(lines(tmp_path / "missing"))


@pytest.mark.parametrize("score", [0.5, float("nan"), float("inf"), True, "1"])
def test_scores_of_datasets_are_integers(score):
    row = {"query-id": "q", "corpus-id": "d", "score": score}
    with pytest.raises(UserError, match=r"^set\[x\]:1: score .* is not an integer"):
        list(judgements_from_rows([row], "set[x]", "test"))


def test_ids_of_dataset_judgements_may_be_integers():
    row = {"query-id": 3, "corpus-id": "d", "score": 2.0}
    assert next(judgements_from_rows([row], "set", "dev"))[2:] == ("dev", "3", "d", 2)
    with pytest.raises(UserError, match='"query-id" is a number; make it a string'):
        list(judgements_from_rows([row | {"query-id": 3.5}], "set", "dev"))


def test_messages_stay_on_one_line():
    assert str(problem("a", 3, "x\ny\u2028z")) == "a:3: x y z"
    assert len(show("x" * 1000)) == 80
