"""Every recipe against small local files; what it writes is read by the library's own reader."""

import gzip
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from data import _reading, _writing, beir, msmarco, natural_questions, split_stream, squad
from dsi.corpus.corpus import read_corpus, read_stream
from dsi.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = ["0.5", "2x0.25"]


def _call(recipe, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
    importlib.import_module(f"data.{recipe}").main()


def _read(folder, tmp_path):
    return read_corpus(folder, cache=tmp_path / "cache")


def _ids(corpus):
    return corpus.documents["id"].to_pylist()


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# what the recipes share


def test_sizes():
    assert _writing.parse_sizes(["50000", "5x10000"], 109_739) == [50_000] + [10_000] * 5
    assert _writing.parse_sizes(["0.5", "5x0.1"], 336) == [168, 34, 33, 34, 33, 34]
    for total in range(20, 60):
        assert sum(_writing.parse_sizes(_writing.HALF_AND_TENTHS, total)) == total
    for words in (["ten"], ["0.5", "10"], ["0.8", "0.3"], ["60"], ["0"], ["-1"], ["nan"], ["2x"]):
        with pytest.raises(UserError, match="--sizes"):
            _writing.parse_sizes(words, 50)


def test_random_order_depends_on_seed_and_ids_only():
    keys = [f"d{n}" for n in range(200)]
    order = _writing.shuffled(keys, 1)
    assert sorted(order) == sorted(keys) and order != keys
    assert _writing.shuffled(reversed(keys), 1) == order
    assert _writing.shuffled(keys, 2) != order
    # golden: the same on every machine and with every version
    assert _writing.shuffled(["a", "b", "c", "d", "e"], 0) == GOLDEN_ORDER


GOLDEN_ORDER = ["c", "d", "a", "b", "e"]


def test_splits_have_the_shares_asked_for():
    found = Counter(_writing.split_of(f"q{n}", 0, (0.8, 0.1, 0.1)) for n in range(5000))
    assert found["train"] / 5000 == pytest.approx(0.8, abs=0.02)
    assert found["dev"] / 5000 == pytest.approx(0.1, abs=0.02)


def test_groups_stay_whole_and_sizes_are_met_to_half_a_group():
    groups = [[f"{n}-{m}" for m in range(1 + n % 4)] for n in range(40)]
    sizes = [50, 20, 20, 10]
    made = _writing.cut_groups(groups, sizes)
    assert [key for corpus in made for key in corpus] == [key for group in groups for key in group]
    for corpus, size in zip(made, sizes, strict=True):
        assert abs(len(corpus) - size) <= 4
    with pytest.raises(UserError, match="D1 would be empty"):
        _writing.cut_groups([["a", "b"], ["c"]], [1, 1, 1])


def test_complete_splits_moves_whole_queries_and_keeps_what_is_there():
    alone = {"test": [(f"q{n // 2}", f"d{n}") for n in range(400)]}
    made = _writing.complete_splits(alone, 0)
    assert sorted(pair for pairs in made.values() for pair in pairs) == sorted(alone["test"])
    queries = [{q for q, _ in pairs} for pairs in made.values()]
    assert all(queries) and sum(map(len, queries)) == 200
    both = {"train": alone["test"], "test": [("t", "d1")]}
    made = _writing.complete_splits(both, 0)
    assert made["test"] == [("t", "d1")] and made["train"] and made["dev"]


def test_writer_leaves_nothing_behind_after_an_error(tmp_path):
    with pytest.raises(UserError, match="whitespace"), _writing.BeirWriter(tmp_path / "x") as made:
        made.document("d1", "", "text")
        made.document("d 2", "", "text")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        _writing.BeirWriter(tmp_path / "x")


@pytest.mark.parametrize(
    "recipe", ["squad", "natural_questions", "msmarco", "beir", "split_stream", "check_corpus"]
)
def test_runs_as_a_module(recipe):
    command = [sys.executable, "-m", f"data.{recipe}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m data.{recipe}" in done.stdout


def test_marks_in_front_and_what_is_no_file(tmp_path):
    for name, pack in (("t.tsv", bytes), ("t.tsv.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbfq1\ttext\n"))
        assert list(_reading.read_table(tmp_path / name, 2)) == [(1, ["q1", "text"])]
    qrels = tmp_path / "q.tsv"
    qrels.write_bytes(b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert list(_reading.read_qrels(qrels)) == [(2, "q1", "d1", 1)]
    os.mkfifo(tmp_path / "pipe.jsonl")  # opened, it would be waited for
    for name in ("pipe.jsonl", "."):
        with pytest.raises(UserError, match="not a regular file"):
            list(_reading.read_json_lines(tmp_path / name))


def test_mistakes_are_one_line_and_exit_status_two(tmp_path):
    command = [sys.executable, "-m", "data.beir", "--out", str(tmp_path / "x"), "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "nowhere" in done.stderr


def test_missing_library_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(UserError, match="pip install ir_datasets"):
        msmarco.downloaded("msmarco-passage")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        list(squad.from_dataset("rajpurkar/squad"))


# SQuAD

ARTICLES = {f"Article_{a}": [f"Paragraph {p} of {a}." for p in range(3)] for a in range(8)}


def _squad_file(path):
    data = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": text,
                    "qas": [
                        {"id": f"{title}-{p}-{q}", "question": f" What {q} of {text}?"}
                        for q in range(6)
                    ],
                }
                for p, text in enumerate([*texts, texts[0]])
            ],
        }
        for title, texts in ARTICLES.items()
    ]
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return path


def test_squad(tmp_path, monkeypatch):
    source = _squad_file(tmp_path / "train-v1.1.json")
    _call("squad", monkeypatch, "--out", tmp_path / "one", source, "--sizes", *SMALL)
    _call("squad", monkeypatch, "--out", tmp_path / "two", source, "--sizes", *SMALL)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    corpus = _read(tmp_path / "one", tmp_path)
    assert corpus.documents.num_rows == 24  # the repeated paragraph is one document
    assert corpus.queries.num_rows == 8 * 4 * 6
    assert all(len(pairs) > 0 for pairs in corpus.qrels.values())
    texts, asked = corpus.documents["text"].to_pylist(), corpus.queries["text"].to_pylist()
    for pairs in corpus.qrels.values():
        assert all(texts[document] in asked[query] for query, document in pairs)
    assert [len(stage.added) for stage in read_stream(corpus, "iid")] == [12, 6, 6]
    titles = corpus.documents["title"].to_pylist()
    homes = [{titles[row] for row in stage.added} for stage in read_stream(corpus, "topic")]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 8


def test_squad_rows_of_a_dataset_give_the_same(tmp_path, monkeypatch):
    source = _squad_file(tmp_path / "train-v1.1.json")
    _call("squad", monkeypatch, "--out", tmp_path / "files", source, "--sizes", *SMALL)
    (tmp_path / "hub").mkdir()
    questions = list(squad.from_files([source]))
    for name, part in (("train", questions[:120]), ("validation", questions[120:])):
        rows = (
            {"id": q.key, "title": q.title, "context": q.paragraph, "question": q.text}
            for q in part
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "hub" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    hub = ["--dataset", tmp_path / "hub", "--sizes", *SMALL]
    _call("squad", monkeypatch, "--out", tmp_path / "rows", *hub)
    assert _files(tmp_path / "files") == _files(tmp_path / "rows")


def test_squad_refuses_other_json(tmp_path):
    (tmp_path / "x.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"x\.json: not a SQuAD v1\.1 file"):
        list(squad.from_files([tmp_path / "x.json"]))


# Natural Questions


def _nq(shape, key, title, body, question):
    tokens = [("<P>", True), *((word, False) for word in body.split()), ("</P>", True)]
    if shape == "hub":
        names = {"token": [t for t, _ in tokens], "is_html": [h for _, h in tokens]}
        page = {"title": title, "tokens": names}
        return {"id": str(key), "document": page, "question": {"text": question}}
    record = {"example_id": key, "question_text": question}
    if shape == "original":
        listed = [{"token": t, "html_token": h} for t, h in tokens]
        return {**record, "document_title": title, "document_tokens": listed}
    address = "https://en.wikipedia.org//w/index.php?title=" + title.replace(" ", "_") + "&oldid=1"
    return {**record, "document_text": " ".join(t for t, _ in tokens), "document_url": address}


@pytest.mark.parametrize("shape", ["hub", "original", "simplified"])
def test_natural_questions_record_in_every_shape(shape):
    body = "word " * 3000
    made = natural_questions.example(_nq(shape, 7, "Sea of Marmara", body, "where is it "))
    assert made[:3] == ("7", "where is it", "Sea of Marmara")
    assert made.text == ("word " * 800).strip()[:4000]
    assert "<" not in made.text


def _nq_files(tmp_path):
    """60 articles; each is asked about twice in train, every third once more in validation."""
    train = [
        _nq("original", 1000 + n, f"Page {n % 60}", f"body of {n % 60}", f"question {n}")
        for n in range(120)
    ]
    test = [
        _nq("simplified", 5000 + n, f"Page {n}", f"later version of {n}", f"test question {n}")
        for n in range(0, 60, 3)
    ]
    with gzip.open(tmp_path / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in train)
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in test))
    return ["--train", tmp_path / "train.jsonl.gz", "--test", tmp_path / "dev.jsonl"]


def test_natural_questions(tmp_path, monkeypatch):
    files = _nq_files(tmp_path)
    sizes = ["--sizes", "20", "5x5"]
    _call("natural_questions", monkeypatch, "--out", tmp_path / "nq", *files, *sizes)
    corpus = _read(tmp_path / "nq", tmp_path)
    assert [len(stage.added) for stage in read_stream(corpus, "iid")] == [20] + [5] * 5
    assert corpus.documents.num_rows == 45 == len(set(_ids(corpus)))
    titles = corpus.documents["title"].to_pylist()
    assert _ids(corpus) == [title.replace(" ", "_") for title in titles]
    # the first version of an article stays; test queries are the official validation set
    assert not any("later" in text for text in corpus.documents["text"].to_pylist())
    asked = corpus.queries["text"].to_pylist()
    is_test = {asked[query].startswith("test") for query, _ in corpus.qrels["test"]}
    is_train = {asked[q].startswith("test") for s in ("train", "dev") for q, _ in corpus.qrels[s]}
    assert is_test == {True} and is_train == {False}
    assert len(corpus.qrels["train"]) + len(corpus.qrels["dev"]) == 90
    assert 5 <= len(corpus.qrels["dev"]) <= 35
    for split in ("train", "dev"):
        for query, document in corpus.qrels[split]:
            number = int(asked[query].split()[-1]) % 60
            assert titles[document] == f"Page {number}"


def test_natural_questions_unique_by_text_keeps_other_versions(tmp_path, monkeypatch):
    rest = ["--unique", "text", "--sizes", "80"]
    files = _nq_files(tmp_path)
    _call("natural_questions", monkeypatch, "--out", tmp_path / "nq", *files, *rest)
    corpus = _read(tmp_path / "nq", tmp_path)
    assert corpus.documents.num_rows == 80
    assert sum("later" in text for text in corpus.documents["text"].to_pylist()) == 20


def test_natural_questions_names_the_line_of_another_record(tmp_path):
    path = tmp_path / "x.jsonl"
    record = _nq("original", 1, "Page", "body", "question")
    path.write_text(json.dumps(record) + "\n" + '{"question": "what"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: not a Natural Questions record"):
        list(natural_questions.from_files([path]))


def test_natural_questions_asks_for_fewer_articles_than_there_are(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="100000 documents are asked for, the source has 60"):
        _call("natural_questions", monkeypatch, "--out", tmp_path / "nq", *_nq_files(tmp_path))
    assert not (tmp_path / "nq").exists()


# MS MARCO


def _msmarco_files(folder):
    """200 passages; train queries ask about 0..59, dev queries about 50..69."""
    folder.mkdir()
    rows = [f'{n}\tpassage "{n}  text\n' for n in range(200)]
    with gzip.open(folder / "collection.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(rows)
    for name, first, documents in (("train", 1000, range(60)), ("dev.small", 5000, range(50, 70))):
        texts = "".join(f"{first + n}\tabout {n}\n" for n in documents)
        (folder / f"queries.{name}.tsv").write_text(texts)
        lines = "".join(f"{first + n}\t0\t{n}\t1\n" for n in documents)
        (folder / f"qrels.{name}.tsv").write_text(lines)
    return folder


def test_msmarco_subset_takes_judged_passages_first(tmp_path, monkeypatch):
    source = _msmarco_files(tmp_path / "source")
    sizes = ["--sizes", "40", "5x8"]
    _call("msmarco", monkeypatch, "--out", tmp_path / "ms", "--local", source, *sizes)
    corpus = _read(tmp_path / "ms", tmp_path)
    assert [len(stage.added) for stage in read_stream(corpus, "iid")] == [40] + [8] * 5
    assert set(map(str, range(70))) <= set(_ids(corpus))  # all judged ones, and ten to fill up
    assert {split: len(pairs) for split, pairs in corpus.qrels.items()}["test"] == 20
    assert len(corpus.qrels["train"]) + len(corpus.qrels["dev"]) == 60
    assert len(corpus.qrels["dev"]) > 0
    texts, asked = corpus.documents["text"].to_pylist(), corpus.queries["text"].to_pylist()
    for pairs in corpus.qrels.values():
        for query, document in pairs:
            assert texts[document] == f'passage "{asked[query].split()[1]} text'


def test_msmarco_full_and_plain_names(tmp_path, monkeypatch):
    source = _msmarco_files(tmp_path / "source")
    for kind in ("queries", "qrels"):
        (source / f"{kind}.train.tsv").rename(source / f"{kind}.tsv")
        (source / f"{kind}.dev.small.tsv").unlink()
    _call("msmarco", monkeypatch, "--out", tmp_path / "ms", "--local", source, "--full")
    corpus = _read(tmp_path / "ms", tmp_path)
    assert _ids(corpus) == [str(n) for n in range(200)]
    assert [len(stage.added) for stage in read_stream(corpus, "iid")] == [100] + [20] * 5
    assert all(len(pairs) > 0 for pairs in corpus.qrels.values())


def test_msmarco_names_the_line_with_a_missing_column(tmp_path):
    source = _msmarco_files(tmp_path / "source")
    (source / "queries.train.tsv").write_text("1000\tabout 0\n1001 about 1\n")
    with pytest.raises(UserError, match=r"queries\.train\.tsv:2: 1 columns, 2 are needed"):
        list(msmarco.local(source).queries())
    with pytest.raises(UserError, match="put the official files there"):
        msmarco.local(tmp_path)


# any BEIR folder, any name of ir_datasets


def _beir_folder(folder, documents=40):
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        for n in range(documents):
            metadata = {"year": 2000 + n % 7, "url": f"http://{n}"}
            record = {"_id": f"d{n}", "title": f"T{n}", "text": f"text {n}", "metadata": metadata}
            file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"_id": "empty", "title": "", "text": "  "}) + "\n")
    queries = [json.dumps({"_id": f"q{n}", "text": f"ask {n}"}) + "\n" for n in range(30)]
    (folder / "queries.jsonl").write_text("".join(queries))
    lines = [f"q{n}\td{n}\t{n % 3}\n" for n in range(30)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def test_beir_folder_with_test_queries_only(tmp_path, monkeypatch):
    source = _beir_folder(tmp_path / "source")
    _call("beir", monkeypatch, "--out", tmp_path / "made", source)
    corpus = _read(tmp_path / "made", tmp_path)
    assert _ids(corpus) == [f"d{n}" for n in range(40)]
    assert [len(stage.added) for stage in read_stream(corpus, "iid")] == [20] + [4] * 5
    pairs = [pair for found in corpus.qrels.values() for pair in found.tolist()]
    assert all(len(found) for found in corpus.qrels.values())
    asked = corpus.queries["text"].to_pylist()
    kept = {int(asked[query].split()[1]) for query, _ in pairs}
    assert kept == {n for n in range(30) if n % 3 > 0}  # judged as irrelevant: no question left
    records = list(_reading.documents(tmp_path / "made"))
    assert records[3]["metadata"] == {"year": 2003, "url": "http://3"}


def test_beir_subset_and_refusals(tmp_path, monkeypatch):
    source = _beir_folder(tmp_path / "source")
    _call("beir", monkeypatch, "--out", tmp_path / "made", source, "--sizes", "10", "2x5")
    judged = {f"d{n}" for n in range(30) if n % 3 > 0}
    assert len(judged) == 20 and set(_ids(_read(tmp_path / "made", tmp_path))) == judged
    with pytest.raises(UserError, match="exists and is not empty"):
        _call("beir", monkeypatch, "--out", tmp_path / "made", source)
    (source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\tyes\n")
    with pytest.raises(UserError, match=r"test\.tsv:2: .* is not a judgement"):
        beir.from_folder(source)


class _Set:
    """What the recipes use of an ir_datasets dataset."""

    def __init__(self, documents=(), queries=(), qrels=()):
        self._parts = documents, queries, qrels

    def has_qrels(self):
        return bool(self._parts[2])

    def docs_iter(self):
        return iter([SimpleNamespace(doc_id=k, text=t) for k, t in self._parts[0]])

    def queries_iter(self):
        return iter([SimpleNamespace(query_id=k, text=t) for k, t in self._parts[1]])

    def qrels_iter(self):
        named = [SimpleNamespace(query_id=q, doc_id=d, relevance=r) for q, d, r in self._parts[2]]
        return iter(named)


def test_names_of_ir_datasets(tmp_path, monkeypatch):
    documents = [(f"d{n}", f"text {n}") for n in range(40)]
    train = [(f"a{n}", f"ask {n}") for n in range(20)], [(f"a{n}", f"d{n}", 1) for n in range(20)]
    test = [(f"b{n}", f"ask {n}") for n in range(9)], [(f"b{n}", f"d{30 + n}", 1) for n in range(9)]
    sets = {"toy": _Set(documents), "toy/train": _Set(documents, *train)}
    sets |= {"toy/test": _Set(documents, *test), "toy/dev/small": _Set(documents, *test)}
    stub = ModuleType("ir_datasets")
    monkeypatch.setattr(stub, "load", sets.__getitem__, raising=False)
    monkeypatch.setitem(sys.modules, "ir_datasets", stub)
    _call("beir", monkeypatch, "--out", tmp_path / "made", "--ir-datasets", "toy")
    corpus = _read(tmp_path / "made", tmp_path)
    assert corpus.documents.num_rows == 40 and len(corpus.qrels["test"]) == 9
    assert len(corpus.qrels["train"]) + len(corpus.qrels["dev"]) == 20
    msmarco.write(msmarco.downloaded("toy"), tmp_path / "ms", ["20", "9"], seed=0)
    corpus = _read(tmp_path / "ms", tmp_path)
    assert set(_ids(corpus)) == {f"d{n}" for n in (*range(20), *range(30, 39))}
    with pytest.raises(UserError, match="ir_datasets has no 'other'"):
        beir.from_ir_datasets("other")


# streams


def test_split_stream_by_id_field_and_file(tmp_path, monkeypatch):
    folder = _beir_folder(tmp_path / "source", documents=70)
    text = gzip.decompress((folder / "corpus.jsonl.gz").read_bytes()).decode()
    lines = text.splitlines()[:-1]
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "corpus.jsonl").write_text("".join(f"{line}\n" for line in lines))
    cut = ["--sizes", "4x0.25"]
    _call("split_stream", monkeypatch, folder, "--by", "year", "--sorted", "--name", "time", *cut)
    _call("split_stream", monkeypatch, folder, *cut)
    _call("split_stream", monkeypatch, folder, "--by", "id", "--out", tmp_path / "out", *cut)
    corpus = _read(folder, tmp_path)
    years = [
        [2000 + int(_ids(corpus)[row][1:]) % 7 for row in stage.added]
        for stage in read_stream(corpus, "time")
    ]
    assert [sorted(set(found)) for found in years] == [
        [2000, 2001],
        [2002, 2003],
        [2004],
        [2005, 2006],
    ]
    assert sum(len(stage.added) for stage in read_stream(corpus, "iid")) == 70
    by_id = read_stream(corpus, tmp_path / "out" / "id.json")
    names = [_ids(corpus)[row] for stage in by_id for row in stage.added]
    assert names == sorted(names)
    by_file = split_stream.corpora(folder, "file", ["1"])
    assert by_file == [_ids(corpus)]


def test_split_stream_keeps_a_stream_that_is_there(tmp_path, monkeypatch):
    folder = _beir_folder(tmp_path / "source")
    path = folder / "streams" / "mine.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("of hours of work")
    with pytest.raises(UserError) as caught:
        _call("split_stream", monkeypatch, folder, "--name", "mine")
    assert str(caught.value) == f"{path}: is there already; give another --name, or --overwrite"
    assert path.read_text() == "of hours of work"
    _call("split_stream", monkeypatch, folder, "--name", "mine", "--overwrite")
    assert list(json.loads(path.read_text())) == [f"D{n}" for n in range(6)]
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.json"]


def test_split_stream_ids_that_are_numbers_count_as_numbers(tmp_path):
    with open(tmp_path / "corpus.jsonl", "w") as file:
        for n in (10, 9, 100, 1):
            file.write(json.dumps({"_id": str(n), "text": "x"}) + "\n")
    assert split_stream.corpora(tmp_path, "id", ["2", "1"]) == [["1", "9"], ["10"]]


def test_split_stream_refusals(tmp_path):
    folder = _beir_folder(tmp_path / "source")
    with pytest.raises(UserError, match=r"'d0' has no text or number under metadata\.color"):
        split_stream.corpora(folder, "color", SMALL)
    with pytest.raises(UserError, match="leave --sorted out"):
        split_stream.corpora(folder, "iid", SMALL, in_order=True)
