"""Corpora, queries, judgements and streams: what cannot be meant is one line, what can be loads."""

import gzip
import json
from typing import NamedTuple

import pytest

from dsi.corpus.corpus import read_corpus, read_stream
from dsi.text.tokens import LONGEST_QUERY
from tests.bad_input.conftest import GOOD, Place

TRAIN = ("train", "output=out", "name=x", "data.corpus=corpus", "data.stream=two", "threads=1")
C, Q, S = GOOD["corpus.jsonl"], GOOD["queries.jsonl"], GOOD["streams/two.json"]
R = GOOD["qrels/test.tsv"]
PACKED = gzip.compress((C * 50).encode(), mtime=0)
FLIPPED = PACKED[:40] + bytes([PACKED[40] ^ 0x10]) + PACKED[41:]


def row(**fields: object) -> str:
    return json.dumps(fields) + "\n"


class Bad(NamedTuple):
    """A file of the corpus, its content, where the line says the mistake is, and the fix."""

    name: str
    content: str | bytes
    line: int | None
    fix: str


BAD = {
    # documents
    "a text that is a number": Bad("corpus.jsonl", C + row(_id="d4", text=7), 4, "as a string"),
    "a text that is an object": Bad("corpus.jsonl", C + row(_id="d4", text={}), 4, "as a string"),
    "a title that is a list": Bad(
        "corpus.jsonl", C + row(_id="d4", text="x", title=["x"]), 4, "as a string"
    ),
    "an id that is null": Bad("corpus.jsonl", C + row(_id=None, text="x"), 4, "add or rename"),
    "an id that is infinite": Bad("corpus.jsonl", C + '{"_id": Infinity, "text": "x"}', 4, '"_id"'),
    "an id that is an object": Bad("corpus.jsonl", C + row(_id={}, text="x"), 4, "as a string"),
    "a misspelt id": Bad("corpus.jsonl", C + row(id="d4", text="x"), 4, "add or rename it"),
    "a misspelt text": Bad("corpus.jsonl", C + row(_id="d4", txt="x"), 4, "add or rename it"),
    "a key in capitals": Bad("corpus.jsonl", C + row(_ID="d4", text="x"), 4, "add or rename it"),
    "an id given twice in a row": Bad(
        "corpus.jsonl", C + '{"_id": "d4", "_id": "d5", "text": "x"}', 4, "keep one"
    ),
    "a text given twice in a row": Bad(
        "corpus.jsonl", C + '{"_id": "d4", "text": "x", "text": "y"}', 4, "keep one"
    ),
    "a repeated document": Bad("corpus.jsonl", C + C, 4, "remove or rename one of the two"),
    "an id of spaces": Bad("corpus.jsonl", C + row(_id="  ", text="x"), 4, "rename it"),
    "an id with a tab": Bad("corpus.jsonl", C + row(_id="d\t4", text="x"), 4, "rename it"),
    "an id with a NUL": Bad("corpus.jsonl", C + row(_id="d\0", text="x"), 4, "rename it"),
    "an id with an escape": Bad("corpus.jsonl", C + row(_id="\x1b[2J", text="x"), 4, "rename it"),
    "an id with half a surrogate pair": Bad(
        "corpus.jsonl", C + '{"_id": "d\\udc00", "text": "x"}', 4, "remove it"
    ),
    "a title with half a surrogate pair": Bad(
        "corpus.jsonl", C + '{"_id": "d4", "text": "x", "title": "\\ud83d"}', 4, "remove it"
    ),
    "a gigantic id": Bad("corpus.jsonl", C + row(_id="d" * 5000, text="x"), 4, "shorter"),
    "a NUL between the lines": Bad("corpus.jsonl", C + "\0\n", 4, "one JSON object per line"),
    "a raw control character": Bad(
        "corpus.jsonl", C + '{"_id": "d4", "text": "\x01"}', 4, "one JSON object per line"
    ),
    "a number of five thousand digits": Bad(
        "corpus.jsonl", C + '{"_id": "d4", "text": ' + "1" * 5000 + "}", 4, "correct the line"
    ),
    "a deep nest": Bad(
        "corpus.jsonl",
        C + '{"_id": "d4", "text": "x", "more": ' + "[" * 90_000,
        4,
        "correct the line",
    ),
    "one array instead of lines": Bad(
        "corpus.jsonl", json.dumps([json.loads(line) for line in C.splitlines()]), 1, "per line"
    ),
    "latin-1": Bad("corpus.jsonl", C.encode() + b'{"_id": "d4", "text": "\xe4"}', 4, "UTF-8"),
    "utf-16": Bad("corpus.jsonl", C.encode("utf-16"), 1, "convert the file to UTF-8"),
    "utf-32": Bad("corpus.jsonl", C.encode("utf-32-le"), 1, "one JSON object per line"),
    "overlong utf-8": Bad("corpus.jsonl", C.encode() + b'{"_id": "\xc0\xaf"}', 4, "UTF-8"),
    "a surrogate in utf-8": Bad(
        "corpus.jsonl", C.encode() + b'{"_id": "d4", "text": "\xed\xa0\x80"}', 4, "UTF-8"
    ),
    "no byte": Bad("corpus.jsonl", b"", 1, "at least one"),
    "a byte-order mark alone": Bad("corpus.jsonl", b"\xef\xbb\xbf", 1, "at least one"),
    "a page of HTML": Bad("corpus.jsonl", "<!doctype html>\n<html>\n", 1, "one JSON object"),
    "a pickle": Bad("corpus.jsonl", b"\x80\x04\x95\x0b\x00\x00\x00.", 1, "UTF-8"),
    "gz that is not": Bad("corpus.jsonl.gz", C.encode(), 1, "compress the file again"),
    "gz cut off": Bad("corpus.jsonl.gz", PACKED[:-9], None, "compress the file again"),
    "gz with a flipped bit": Bad("corpus.jsonl.gz", FLIPPED, None, "compress the file again"),
    "gz of nothing": Bad("corpus.jsonl.gz", gzip.compress(b"", mtime=0), 1, "at least one"),
    "gz with rubbish behind": Bad("corpus.jsonl.gz", PACKED + b"rubbish", None, "compress"),
    # queries
    "a query twice": Bad("queries.jsonl", Q + row(_id="q1", text="x"), 4, "remove or rename"),
    "a query without words": Bad("queries.jsonl", Q + row(_id="q4", text=" \n"), 4, "remove it"),
    "a query without text": Bad("queries.jsonl", Q + row(_id="q4"), 4, "add or rename it"),
    "a query of a number": Bad("queries.jsonl", Q + row(_id="q4", text=1.5), 4, "as a string"),
    "a query with half a surrogate pair": Bad(
        "queries.jsonl", Q + '{"_id": "q4", "text": "\\udfff"}', 4, "remove it"
    ),
    "queries as text": Bad("queries.jsonl", "which whale\n", 1, "one JSON object per line"),
    "queries that are not gz": Bad("queries.jsonl.gz", Q.encode(), 1, "compress the file again"),
    # judgements
    "a judged query that is unknown": Bad("qrels/test.tsv", R + "q9\td1\t1\n", 3, "add it there"),
    "a judged document that is unknown": Bad(
        "qrels/test.tsv", R + "q1\td9\t1\n", 3, "remove the judgement"
    ),
    "columns exchanged": Bad("qrels/test.tsv", R + "d1\tq1\t1\n", 3, "remove the judgement"),
    "commas for tabs": Bad("qrels/test.tsv", R + "q1,d1,1\n", 3, "query-id<TAB>corpus-id<TAB>"),
    "trec's four columns": Bad("qrels/test.tsv", R + "q1\t0\td1\t1\n", 3, "query-id<TAB>"),
    "a missing column": Bad("qrels/test.tsv", R + "q1\td1\n", 3, "query-id<TAB>"),
    "a score of half": Bad("qrels/test.tsv", R + "q1\td1\t0.5\n", 3, "write 1 for a relevant"),
    "a score not a number": Bad("qrels/test.tsv", R + "q1\td1\tNaN\n", 3, "write 1 for"),
    "a score out of range": Bad("qrels/test.tsv", R + f"q1\td1\t{10**40}\n", 3, "write 1 for"),
    "a score in other digits": Bad("qrels/test.tsv", R + "q1\td1\t١\n", 3, "write 1 for"),
    "no score": Bad("qrels/test.tsv", R + "q1\td1\t\n", 3, "write 1 for"),
    "a header further down": Bad("qrels/test.tsv", R + R, 3, "write 1 for"),
    "conflicting judgements": Bad(
        "qrels/test.tsv", R + "q3\td3\t0\n", 3, "keep one of the two judgements"
    ),
    "a judgement with a NUL": Bad("qrels/test.tsv", R + "q1\0\td1\t1\n", 3, "remove the"),
    "judgements in latin-1": Bad("qrels/test.tsv", R.encode() + b"\xe9\td1\t1\n", 3, "UTF-8"),
    "judgements that are not gz": Bad("qrels/test.tsv.gz", R.encode(), 1, "compress"),
    # streams
    "an unknown document": Bad("streams/two.json", '{"D0": ["d1"],\n"D1": ["d9"]}', 2, "add it to"),
    "a document in two corpora": Bad(
        "streams/two.json", '{"D0": ["d1"],\n"D1": ["d2",\n"d1"]}', 3, "keep it once"
    ),
    "an empty corpus": Bad("streams/two.json", '{"D0": ["d1"],\n"D1": []}', 2, "give it documents"),
    "no corpora": Bad("streams/two.json", "{}", 1, '{"D0": [document ids]'),
    "a list of corpora": Bad("streams/two.json", '[["d1"], ["d2"]]', 1, '{"D0": [document ids]'),
    "a gap": Bad("streams/two.json", '{"D0": ["d1"],\n"D2": ["d2"]}', 2, "without gaps"),
    "corpora that begin with 1": Bad("streams/two.json", '{"D1": ["d1"]}', 1, "without gaps"),
    "a negative corpus": Bad("streams/two.json", '{"D-1": ["d1"]}', 1, "name the corpora D0"),
    "a small letter": Bad("streams/two.json", '{"d0": ["d1"]}', 1, "name the corpora D0"),
    "a corpus of a huge number": Bad(
        "streams/two.json", '{"D0": ["d1"],\n"D' + "9" * 40 + '": ["d2"]}', 2, "name the corpora"
    ),
    "a corpus twice": Bad("streams/two.json", '{"D0": ["d1"],\n"D0": ["d2"]}', 2, "merge them"),
    "ids that are numbers": Bad("streams/two.json", '{"D0": [1, 2]}', 1, "(strings); fix it"),
    "one id for a list": Bad("streams/two.json", '{"D0": "d1"}', 1, "(strings); fix it"),
    "a nest for a list": Bad("streams/two.json", '{"D0": [["d1"]]}', 1, "(strings); fix it"),
    "a stream cut off": Bad("streams/two.json", S[:-9], 2, '{"D0": [document ids]'),
    "a stream in latin-1": Bad("streams/two.json", b'{"D0": ["\xe9"]}', 1, "UTF-8"),
    "a stream with half a surrogate pair": Bad(
        "streams/two.json", '{"D0": ["d1"],\n "D1": ["\\ud800"]}', 2, "add it to the corpus"
    ),
    "a stream that nests": Bad("streams/two.json", '{"D0": ' + "[" * 90_000, 1, "write"),
    "an empty stream": Bad("streams/two.json", "", 1, '{"D0": [document ids]'),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_bad_file_of_a_corpus_is_one_line(place: Place, case: Bad) -> None:
    place.write(f"corpus/{case.name}", case.content)
    if case.name.endswith(".gz"):
        (place.folder / "corpus" / case.name.removesuffix(".gz")).unlink()
    where = f"corpus/{case.name}:" + (f"{case.line}: " if case.line else "")
    place.refuse(TRAIN, where, case.fix)


# setting in place of the good one -> how the line begins, the fix
SETTINGS = {
    "an absent folder": ("data.corpus=absent", "absent: no such folder", "give a folder"),
    "a file": ("data.corpus=corpus/corpus.jsonl", "corpus/corpus.jsonl: is a file", "{documents:"),
    "a device": ("data.corpus=/dev/null", "/dev/null: is a file", "{documents:"),
    "an empty name": ("data.corpus=''", "corpus: an empty name", "'encyclopedia'"),
    "a path with a NUL": ('data.corpus="a\\0b"', "a\\x00b: no such folder", "give a folder"),
    "a path too long": (f"data.corpus={'a' * 300}", "aaa", "no such folder"),
    "a mapping without documents": (
        "data.corpus={queries: q}",
        "corpus.documents: missing",
        "keys",
    ),
    "a mapping with another key": (
        "data.corpus={documents: corpus/corpus.jsonl, querys: q}",
        "corpus.querys: unknown",
        "did you mean 'queries'",
    ),
    "a mapping of a list": (
        "data.corpus={documents: [a]}",
        "data.corpus.documents: expected text",
        "['a']",
    ),
    "a mapping with a NUL": (
        'data.corpus={documents: "a\\0b"}',
        "a\\x00b: no such file",
        "must name a JSONL file",
    ),
    "a mapping with a number for a key": (
        "data.corpus={5: a}",
        "data.corpus.5: a key is text",
        "quotes",
    ),
    "a dataset that is nowhere": (
        "data.corpus={dataset: absent, documents: a/b}",
        "absent[a/b]: cannot be loaded",
        "CONFIG/SPLIT",
    ),
    "an unknown stream": ("data.stream=tow", "corpus/streams/tow.json: no such", "mean 'two'"),
    "a stream that climbs": ("data.stream=../../etc/x", "../../etc/x: no such file", "give JSON"),
    "a stream with a NUL": (
        'data.stream="a\\0b"',
        "corpus/streams/a\\x00b.json: no such",
        "there are: two",
    ),
    "a stream too long": (f"data.stream={'a' * 300}", "corpus/streams/aaa", "there are: two"),
    "a stream path too long": (f"data.stream={'a' * 300}/b.json", "aaa", "give JSON"),
    "a stream that is a folder": ("data.stream=corpus/", "corpus/: not a regular file", "put"),
    "an empty stream name": ("data.stream=''", "", "there are: two"),
}


@pytest.mark.parametrize(("setting", "start", "fix"), SETTINGS.values(), ids=SETTINGS)
def test_a_bad_source_is_one_line(place: Place, setting: str, start: str, fix: str) -> None:
    key = setting.partition("=")[0]
    others = [word for word in TRAIN if not word.startswith(f"{key}=")]
    place.refuse([*others, setting], start, fix)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_file_beside_its_compressed_self_is_one_line(place: Place, name: str) -> None:
    place.write(f"corpus/{name}.gz", GOOD[name])
    place.refuse(TRAIN, f"corpus/{name}: stands beside", "remove one of the two")


@pytest.mark.parametrize("name", ["corpus.jsonl", "streams/two.json"])
def test_a_loop_of_links_is_one_line(place: Place, name: str) -> None:
    path = place.folder / "corpus" / name
    path.unlink()
    path.symlink_to(path)
    place.refuse(TRAIN, f"corpus/{name}: ", "")


def test_a_folder_that_is_a_loop_of_links_is_one_line(place: Place) -> None:
    (place.folder / "loop").symlink_to(place.folder / "loop")
    arguments = [word.replace("=corpus", "=loop") for word in TRAIN]
    place.refuse(arguments, "loop: no such folder", "give a folder")


def test_a_folder_where_a_file_should_be_is_one_line(place: Place) -> None:
    for name in ("corpus.jsonl", "streams/two.json"):
        path = place.folder / "corpus" / name
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        place.refuse(TRAIN, f"corpus/{name}: ", "")
        path.rmdir()
        path.write_bytes(content)


def test_judgements_without_queries_are_one_line(place: Place) -> None:
    (place.folder / "corpus" / "queries.jsonl").unlink()
    place.refuse(TRAIN, "corpus/queries.jsonl: missing", "add the file")


def test_the_same_document_in_an_added_corpus_is_one_line(run, place: Place, lab) -> None:
    place.refuse(["add", "run", str(lab.corpus)], "corpus: document 'd00' is in", "another _id")
    place.refuse(["add", "run", str(lab.corpus)], "corpus: document 'd00' is in", "or --replace")


def test_a_document_that_was_removed_cannot_arrive_again(run, place: Place, lab) -> None:
    place.write("run/added.json", '[{"remove": ["d00", "d20"]}]')
    # as if the stage that removes had been trained
    matrix = json.loads((place.folder / "run/matrix.json").read_text())
    for key in ("corpora", "num_queries", "num_documents", "num_updates"):
        matrix[key].append("D2" if key == "corpora" else 0)
    for P in matrix["metrics"].values():
        P[:] = [[*row, None] for row in [*P, [None] * 2]]
    for key in ("average_performance", "forgetting", "learning_performance"):
        matrix[key] = {metric: [*values, None] for metric, values in matrix[key].items()}
    place.write("run/matrix.json", json.dumps(matrix))
    place.write("gone", "d01\n\nd20\n")
    place.refuse(["add", "run", "--remove", "gone"], "gone:3: document 'd20' was removed in", "out")
    place.write("more/corpus.jsonl", row(_id="d01", text="new") + row(_id="d00", text="new"))
    for flags in ([], ["--replace"]):
        start = "more: document 'd01' is" if not flags else "more: document 'd00' was removed in"
        place.refuse(["add", "run", "more", *flags], start, "give it another _id")


ODD: dict[str, dict[str, str | bytes]] = {
    "byte-order marks": {name: b"\xef\xbb\xbf" + text.encode() for name, text in GOOD.items()},
    "CRLF": {name: text.replace("\n", "\r\n") for name, text in GOOD.items()},
    "blank lines at the end": {
        name: text + "\n \n\t\n" for name, text in GOOD.items() if not name.endswith(".json")
    },
    "no line end at the end": {name: text.rstrip("\n") for name, text in GOOD.items()},
    "further keys": {
        "corpus.jsonl": "".join(
            row(**json.loads(line), metadata={"url": "x", "_id": 5}) for line in C.splitlines()
        )
    },
    "escapes in JSON": {"corpus.jsonl": C.replace("whale", "wh\\u0061le")},
    "no header": {"qrels/test.tsv": "q3\td3\t1\n", "qrels/train.tsv": "q1\td1\t1\nq2\td2\t1\n"},
    "a judgement twice": {"qrels/test.tsv": R + "q3\td3\t1\n"},
    "a judgement of zero": {"qrels/test.tsv": R + "q3\td1\t0\nq3\td2\t-1\n"},
    "spaces around the columns": {"qrels/test.tsv": "q3 \t d3\t 1 \n"},
}


@pytest.mark.parametrize("files", ODD.values(), ids=ODD)
def test_what_is_odd_but_meant_loads_as_the_plain_files(place: Place, files) -> None:
    plain = read_corpus(place.folder / "corpus")
    for name, content in files.items():
        place.write(f"corpus/{name}", content)
    _, material = place.accept(*TRAIN)
    (first, second) = material.stream.parts
    assert first.corpus.content_hash == plain.content_hash
    assert [first.rows.tolist(), second.rows.tolist()] == [[0, 1], [2]]


def test_compressed_files_load_as_the_plain_files(place: Place) -> None:
    plain = read_corpus(place.folder / "corpus")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/train.tsv"):
        # two members, as of `cat a.gz b.gz`, are one file
        half = len(GOOD[name]) // 2
        parts = GOOD[name][:half], GOOD[name][half:]
        place.write(f"corpus/{name}.gz", b"".join(gzip.compress(part.encode()) for part in parts))
        (place.folder / "corpus" / name).unlink()
    _, material = place.accept(*TRAIN)
    assert material.stream.parts[0].corpus.content_hash == plain.content_hash


def test_ids_that_look_like_paths_are_ids(place: Place) -> None:
    ids = ["../../../escape", "/etc/passwd", "C:\\x", "D0.tsv", "..", "nul", "-", "$HOME", "%00"]
    rows = [row(_id=entry, text=f"text number {n}") for n, entry in enumerate(ids)]
    place.write("corpus/corpus.jsonl", "".join(rows))
    place.write("corpus/qrels/test.tsv", f"q3\t{ids[0]}\t1\n")
    place.write("corpus/qrels/train.tsv", f"q1\t{ids[1]}\t1\n")
    place.write("corpus/streams/two.json", json.dumps({"D0": ids[:5], "D1": ids[5:]}))
    before = place.snapshot()
    _, material = place.accept(*TRAIN)
    assert material.stream.document_ids(0, len(ids)) == ids
    new = set(place.snapshot()) - set(before)
    assert new == {"out", "out/x", "out/x/config.yaml", "out/x/manifest.json"}


def test_control_characters_in_a_text_are_text(place: Place) -> None:
    text = "a\x00b\x1b[31mc\x7f\u202e\u2028d"
    place.write("corpus/corpus.jsonl", C + row(_id="d4", text=text, title="\x07"))
    _, material = place.accept(*TRAIN)
    assert material.stream.parts[0].corpus.documents["text"][3].as_py() == text


@pytest.mark.parametrize("streams", [None, {"D0": ["d1"]}])
def test_a_corpus_of_one_document(place: Place, streams) -> None:
    place.write("corpus/corpus.jsonl", C.splitlines()[0])
    place.write("corpus/qrels/test.tsv", "q3\td1\t1\n")
    place.write("corpus/qrels/train.tsv", "q1\td1\t1\n")
    place.write("corpus/streams/two.json", json.dumps(streams or {"D0": ["d1"]}))
    stream = "null" if streams is None else "two"
    train = [text for text in TRAIN if not text.startswith("data.stream=")]
    _, material = place.accept(*train, f"data.stream={stream}")
    assert material.stream.count(0) == 1


def test_a_query_and_a_text_of_ten_thousand_words(place: Place) -> None:
    words = " ".join(f"word{n % 97}" for n in range(10_000))
    place.write("corpus/queries.jsonl", Q + row(_id="q4", text=words))
    place.write("corpus/corpus.jsonl", C + row(_id="d4", text=words * 20))
    place.write("corpus/qrels/test.tsv", "q4\td3\t1\n")
    place.write("corpus/streams/two.json", '{"D0": ["d1", "d2", "d4"], "D1": ["d3"]}')
    _, material = place.accept(*TRAIN)
    judged = material.stream.judged_queries("test", 1)
    assert judged.texts == [words]
    assert len(judged.tokens[0]) == LONGEST_QUERY


def test_a_stream_named_by_its_path(place: Place) -> None:
    corpus = read_corpus(place.folder / "corpus")
    path = place.write("else/where.json", '{"D0": ["d3"]}')
    assert [stage.added.tolist() for stage in read_stream(corpus, str(path))] == [[2]]
