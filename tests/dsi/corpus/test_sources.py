"""The same corpus from a folder, from .gz, from two files and from `datasets`; missing files."""

import gzip
import json
import shutil

import pytest

from dsi.corpus.corpus import read_corpus, write_corpus
from dsi.errors import UserError

DOCUMENTS = [
    {"_id": "d1", "title": "Ålesund", "text": "A town in Norway."},
    {"_id": "007", "title": "", "text": "An agent."},
    {"_id": "d3", "title": "Title only", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "where"}, {"_id": "q2", "text": "who"}, {"_id": "q3", "text": "-"}]
QRELS = {"train": [("q2", "007", 1)], "test": [("q1", "d3", 1), ("q1", "d1", 1)]}


@pytest.fixture
def folder(tmp_path):
    return write_corpus(tmp_path / "beir", DOCUMENTS, QUERIES, QRELS)


@pytest.fixture
def beir(folder, tmp_path):
    return read_corpus(folder, cache=tmp_path / "cache")


@pytest.fixture
def read(tmp_path):
    return lambda source: read_corpus(source, cache=tmp_path / "cache")


def assert_same(corpus, expected):
    assert corpus.documents.to_pylist() == expected.documents.to_pylist()
    assert corpus.queries.to_pylist() == expected.queries.to_pylist()
    assert {k: v.tolist() for k, v in corpus.qrels.items()} == {
        k: v.tolist() for k, v in expected.qrels.items()
    }
    assert corpus.content_hash == expected.content_hash


def test_beir_folder(beir, folder):
    assert beir.name == "beir"
    assert beir.folder == folder
    assert [row["id"] for row in beir.documents.to_pylist()] == ["d1", "007", "d3"]
    assert list(beir.qrels) == ["train", "dev", "test"]
    assert beir.qrels["test"].tolist() == [[0, 0], [0, 2]]
    assert beir.qrels["dev"].tolist() == []


def test_gz_equals_plain(beir, folder, tmp_path, read):
    compressed = tmp_path / "gz"
    for path in folder.rglob("*.*"):
        target = compressed / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name(target.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    assert_same(read(compressed), beir)


def jsonl_pair(tmp_path):
    relevant = {"q2": (["007"], "train"), "q1": (["d3", "d1"], "test"), "q3": ([], "dev")}
    rows = [q | dict(zip(("relevant", "split"), relevant[q["_id"]], strict=True)) for q in QUERIES]
    for name, content in (("docs.jsonl", DOCUMENTS), ("queries.jsonl", rows)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return {"documents": str(tmp_path / "docs.jsonl"), "queries": str(tmp_path / "queries.jsonl")}


def test_two_jsonl_files_equal_beir(beir, tmp_path, read):
    corpus = read(jsonl_pair(tmp_path))
    assert_same(corpus, beir)
    assert (corpus.name, corpus.folder) == ("docs", None)
    only = read({"documents": tmp_path / "docs.jsonl"})
    assert only.documents.num_rows == 3
    assert only.queries.num_rows == 0
    assert only.queries.column_names == ["id", "text"]


PAIR_CASES = [
    ({"_id": "q1", "text": "x", "split": "test"}, 'field "relevant" is missing'),
    ({"_id": "q1", "text": "x", "relevant": ["d1"]}, 'field "split" is missing'),
    ({"_id": "q1", "text": "x", "relevant": "d1", "split": "test"}, '"relevant" must be a list'),
    ({"_id": "q1", "text": "x", "relevant": [1], "split": "test"}, '"relevant" must be a list'),
    ({"_id": "q1", "text": "x", "relevant": [], "split": "valid"}, "one of train, dev, test"),
    ({"_id": "q1", "text": "x", "relevant": ["d9"], "split": "dev"}, "document 'd9' is not in"),
    ({"_id": "q0", "text": "x", "relevant": [], "split": "dev"}, "'q0' is already on line 1"),
]


@pytest.mark.parametrize(("row", "words"), PAIR_CASES)
def test_mistakes_in_query_rows(tmp_path, read, row, words):
    source = jsonl_pair(tmp_path)
    first = {"_id": "q0", "text": "x", "relevant": ["d1"], "split": "train"}
    (tmp_path / "queries.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(row)}\n")
    with pytest.raises(UserError) as caught:
        read(source)
    assert str(caught.value).startswith(f"{tmp_path / 'queries.jsonl'}:2: ")
    assert words in str(caught.value)


def test_queries_or_judgements_may_be_absent(folder, read):
    shutil.rmtree(folder / "qrels")
    assert read(folder).queries.num_rows == 3
    (folder / "queries.jsonl").unlink()
    corpus = read(folder)
    assert corpus.queries.num_rows == 0
    assert all(pairs.shape == (0, 2) for pairs in corpus.qrels.values())


def test_missing_and_ambiguous_files(folder, read):
    def message(source):
        with pytest.raises(UserError) as caught:
            read(source)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    missing = folder / "nowhere"
    assert message(missing).startswith(f"{missing}: no such folder; give a folder with corpus.json")
    assert "is a file; for JSONL files give" in message(folder / "corpus.jsonl")
    assert "no such file; corpus.documents must name" in message({"documents": "nowhere.jsonl"})
    assert "corpus: 3 is neither" in message(3)
    assert read(folder).warnings == ()
    (folder / "qrels" / "valid.tsv").write_text("")
    (warning,) = read(folder).warnings
    assert warning == "qrels/valid.tsv is not read; the splits are train.tsv, dev.tsv, test.tsv"
    (folder / "corpus.jsonl.gz").write_bytes(b"")
    assert "stands beside corpus.jsonl.gz; remove one" in message(folder)
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "queries.jsonl").unlink()
    assert message(folder).startswith(f"{folder / 'queries.jsonl'}: missing, but ")
    (folder / "corpus.jsonl").unlink()
    assert message(folder).startswith(f"{folder / 'corpus.jsonl'}: missing; a corpus folder holds")


MAPPINGS = [
    ({}, "corpus.documents: missing; the keys are documents, queries"),
    ({"document": "x"}, "corpus.document: unknown; .* did you mean 'documents'"),
    ({"documents": 3}, "corpus.documents: 3 is not a string"),
    ({"dataset": "x"}, "corpus.documents: missing"),
    ({"dataset": "x", "documents": "a", "split": "b"}, "corpus.split: unknown"),
    ({"dataset": "x", "documents": "a", "test": "b"}, "corpus.queries: missing beside judgements"),
]


@pytest.mark.parametrize(("mapping", "message"), MAPPINGS)
def test_keys_of_mappings(read, mapping, message):
    with pytest.raises(UserError, match=message):
        read(mapping)


# ---- datasets


@pytest.fixture
def jsonl_dataset(folder, tmp_path, monkeypatch):
    """A local folder whose README declares configurations, as on the hub: JSONL and Parquet."""
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet

    root = tmp_path / "set"
    shutil.copytree(folder, root)
    columns = ("query-id", "corpus-id", "score")
    for split, judgements in QRELS.items():
        table = pa.table(dict(zip(columns, map(list, zip(*judgements, strict=True)), strict=True)))
        pyarrow.parquet.write_table(table, root / "qrels" / f"{split}.parquet")
        rows = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        (root / "qrels" / f"{split}.jsonl").write_text(rows)
    (root / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: corpus, data_files: [{split: corpus, path: corpus.jsonl}]}\n"
        "- {config_name: queries, data_files: [{split: queries, path: queries.jsonl}]}\n"
        "- {config_name: default, data_files: [{split: train, path: qrels/train.jsonl},"
        " {split: test, path: qrels/test.jsonl}]}\n---\n"
    )
    return root


CONFIGS = {"documents": "corpus/corpus", "queries": "queries/queries"}
FILES = {"documents": "corpus.jsonl", "queries": "queries.jsonl"}


def test_local_dataset_with_configurations_equals_beir(jsonl_dataset, beir, read):
    source = {"dataset": str(jsonl_dataset), "train": "default/train", "test": "test", **CONFIGS}
    assert_same(read(source), beir)


def test_local_dataset_files_equal_beir(jsonl_dataset, beir, read):
    splits = {split: f"qrels/{split}.parquet" for split in QRELS}
    corpus = read({"dataset": str(jsonl_dataset), **FILES, **splits})
    assert_same(corpus, beir)
    assert corpus.name == "set"


def test_saved_datasets_equal_beir(beir, read, tmp_path):
    datasets = pytest.importorskip("datasets")
    root = tmp_path / "saved"
    datasets.Dataset.from_list(DOCUMENTS).save_to_disk(root / "corpus")
    datasets.Dataset.from_list(QUERIES).save_to_disk(root / "queries")
    rows = {
        split: [{"query-id": q, "corpus-id": d, "score": float(s)} for q, d, s in judgements]
        for split, judgements in QRELS.items()
    }
    splits = {split: datasets.Dataset.from_list(part) for split, part in rows.items()}
    datasets.DatasetDict(splits).save_to_disk(root / "qrels")
    source = {"dataset": str(root), "documents": "corpus", "queries": "queries"}
    assert_same(read(source | {"train": "qrels/train", "test": "qrels/test"}), beir)
    other = {"qrels": str(root / "qrels"), "train": "train", "test": "test"}
    assert_same(read(source | other), beir)


def test_dataset_cache_notices_a_changed_file(jsonl_dataset, read, monkeypatch):
    from dsi.corpus import sources as corpus_sources

    source = {"dataset": str(jsonl_dataset), **FILES}
    before = read(source)
    path = jsonl_dataset / "corpus.jsonl"
    path.write_bytes(path.read_bytes().replace(b"town", b"city"))
    after = read(source)
    assert after.documents["text"].to_pylist()[0] == "A city in Norway."
    assert after.content_hash != before.content_hash
    monkeypatch.setattr(corpus_sources, "_load", None)  # unchanged: nothing may be loaded
    assert_same(read(source), after)


def test_hub_dataset_is_keyed_by_the_fetched_files(
    jsonl_dataset, beir, read, tmp_path, monkeypatch
):
    import datasets

    load, asked = datasets.load_dataset, []

    def hub(name, config=None, *, revision=None, **options):
        asked.append((name, config, revision))
        options["cache_dir"] = str(tmp_path / "hub")
        return load(str(jsonl_dataset), config, **options)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    source = {"dataset": "some/name", "revision": "v1", "train": "train", "test": "test"}
    for _ in range(2):
        assert_same(read(source | CONFIGS), beir)
    assert asked[:4] == [
        ("some/name", "corpus", "v1"),
        ("some/name", "queries", "v1"),
        ("some/name", None, "v1"),
        ("some/name", None, "v1"),
    ]


def test_mistakes_in_datasets(jsonl_dataset, read):
    def message(**keys):
        with pytest.raises(UserError) as caught:
            read({"dataset": str(jsonl_dataset), **FILES, **keys})
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert f"{jsonl_dataset}[corpus/nothing]: cannot be loaded" in message(
        documents="corpus/nothing"
    )
    assert f"{jsonl_dataset}[README.md]: not a file of .jsonl" in message(documents="README.md")
    (jsonl_dataset / "numbers.csv").write_text("_id,text\n1,x\n")
    assert f'{jsonl_dataset}[numbers.csv]:1: "_id" is the number 1' in message(
        documents="numbers.csv"
    )
    (jsonl_dataset / "test.csv").write_text("query-id,corpus-id,score\nq1,d1,1\nq1,d9,1\n")
    assert f"{jsonl_dataset}[test.csv]:2: document 'd9' is not in" in message(test="test.csv")
    (jsonl_dataset / "broken.jsonl").write_text('{"_id": "1"')
    assert "[broken.jsonl]: cannot be loaded (JSON parse error" in message(documents="broken.jsonl")
