"""Searching a run directory: nothing is trained here, the directory is written by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsi.corpus.corpus import read_corpus, write_corpus
from dsi.errors import UserError
from dsi.files import write_json, write_text
from dsi.index import Result, SearchIndex
from dsi.model.dsi_model import DSIModel, from_scratch
from dsi.text.tokens import padded, tokenize, train_tokenizer

FIRST = {
    "whale": ("The whale", "Whales sing in the deep sea and travel far in winter."),
    "violin": ("", "A violin has four strings."),
    "glacier": ("Glaciers", "A glacier is a slow river of ice."),
    "meadow": ("Meadow", "Cut in June."),
}
SECOND = {
    "copper": ("Copper", "Copper turns green in rain."),
    "lantern": ("Lantern", "A lantern holds a flame."),
}
QUERIES = ["Whale  song\n", "river of ice", "green roofs"]


def corpus(folder: Path, entries: dict[str, tuple[str, str]]) -> Path:
    documents = [{"_id": i, "title": t, "text": x} for i, (t, x) in entries.items()]
    return write_corpus(folder, documents, [], {})


def index_json(run: Path, **changes) -> None:
    values = {
        "schema": 1,
        "docids": "atomic",
        "corpora": [str(run.parent / "first"), str(run.parent / "second")],
        "deduplicate": "none",
        "title": True,
        "lowercase": False,
        "prompt": "",
    }
    write_json(run / "index.json", {**values, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two corpora and two stages."""
    root = tmp_path_factory.mktemp("index")
    run = root / "run"
    corpus(root / "first", FIRST)
    corpus(root / "second", SECOND)
    texts = [" ".join(entry) for entry in (*FIRST.values(), *SECOND.values())]
    tokenizer = train_tokenizer([*texts, *QUERIES, *map(str.lower, texts), "find:"], 120)
    tokenizer.save_pretrained(run / "tokenizer")
    sizes: dict[str, Any] = dict(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, embedding_std=1.0
    )
    model = from_scratch(1, vocab_size=len(tokenizer), code_sizes=[4], **sizes)
    model.save_pretrained(run / "stages" / "00" / "model")
    model.resize([6], torch.Generator().manual_seed(2))
    model.save_pretrained(run / "stages" / "01" / "model")
    # docids are given in order of arrival, whatever the order in the corpus
    write_text(run / "docids" / "D0.tsv", "violin\t0\nwhale\t1\nmeadow\t2\nglacier\t3\n")
    write_text(run / "docids" / "D1.tsv", "lantern\t4\ncopper\t5\n")
    index_json(run)
    return run


def last_model(run: Path) -> DSIModel:
    return DSIModel.from_pretrained(run / "stages" / "01" / "model").eval()


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy to break."""
    for name in ("run", "first", "second"):
        shutil.copytree(made.parent / name, tmp_path / name)
    index_json(tmp_path / "run")
    return tmp_path / "run"


def test_results_are_ranked_and_carry_their_texts(made):
    index = SearchIndex.load(made)
    assert len(index) == 6
    entries = {**FIRST, **SECOND}
    found = index.search(QUERIES, k=10)
    assert [len(results) for results in found] == [6, 6, 6]
    for results in found:
        assert {result.document_id for result in results} == set(entries)
        for result in results:
            assert (result.title, result.text) == entries[result.document_id]
        scores = [result.score for result in results]
        assert scores == sorted(scores, reverse=True)
        assert sum(map(math.exp, scores)) == pytest.approx(1)


def test_scores_are_the_models(made):
    index, model = SearchIndex.load(made), last_model(made)
    tokens = tokenize(index.tokenizer, ["river of ice"])
    ids, mask = padded(tokens, np.arange(1), pad=0)
    with torch.no_grad():
        hidden = model.query_states(torch.from_numpy(ids), torch.from_numpy(mask).long())
        logp = torch.log_softmax(hidden @ model.docids.rows.T, 1)[0]
    order = logp.argsort(descending=True).tolist()
    ids_in_order = ["violin", "whale", "meadow", "glacier", "lantern", "copper"]
    (results,) = index.search(["river of ice"], k=3)
    assert [result.document_id for result in results] == [ids_in_order[i] for i in order[:3]]
    assert [r.score for r in results] == pytest.approx(
        [float(logp[i]) for i in order[:3]], abs=1e-5
    )


def test_queries_are_answered_one_by_one_as_together(made, monkeypatch):
    index = SearchIndex.load(made)
    together = index.search(QUERIES * 2, k=4)
    monkeypatch.setattr("dsi.index.BATCH", 2)
    for one, other in zip(together, index.search(QUERIES * 2, k=4), strict=True):
        assert [result.document_id for result in one] == [result.document_id for result in other]
        assert [r.score for r in one] == pytest.approx([r.score for r in other], abs=1e-5)
    assert index.search([]) == []


def test_white_space_is_nothing(made):
    index = SearchIndex.load(made)
    assert index.search([" river\n of\tice "]) == index.search(["river of ice"])


def test_one_query_has_one_list_of_results(made):
    index = SearchIndex.load(made)
    found = index.search("river of ice", k=3)
    assert len(found) == 3
    assert [found] == index.search(["river of ice"], k=3)
    whole = index.search(QUERIES, k=3)
    several = {
        "a tuple": tuple(QUERIES),
        "a generator": iter(QUERIES),
        "an array": np.array(QUERIES),
    }
    for kind, queries in several.items():
        assert index.search(queries, k=3) == whole, kind
    pandas = pytest.importorskip("pandas")
    assert index.search(pandas.Series(QUERIES, index=[7, 8, 9]), k=3) == whole


class Frame:
    """As a data frame: going over it gives the names of its columns."""

    ndim = 2

    def __iter__(self):
        return iter(["query"])


NO_QUERIES = {
    "None": (None, "queries: expected a string or a list of strings, got NoneType"),
    "bytes": (b"ice", "queries: expected a string or a list of strings, got bytes"),
    "a number": (7, "queries: expected a string or a list of strings, got int"),
    "a mapping": ({"query": "ice"}, "queries: expected a string or a list of strings, got dict"),
    "a set": ({"ice"}, "queries: expected a string or a list of strings, got set"),
    "a frame": (Frame(), "queries: expected a string or a list of strings, got Frame"),
    "a table": (
        np.array([["ice"]]),
        "queries: expected a string or a list of strings, got ndarray",
    ),
    "a path": (Path("ice"), "queries: expected a string or a list of strings, got PosixPath"),
    "a number within": (["ice", 7], r"queries\[1\]: expected a string, got 7"),
    "None within": ([None], r"queries\[0\]: expected a string, got None"),
    "a list within": ([["ice"]], r"queries\[0\]: expected a string, got \['ice'\]"),
    "bytes within": (["ice", b"ice"], r"queries\[1\]: expected a string, got b'ice'"),
}


@pytest.mark.parametrize(("queries", "line"), NO_QUERIES.values(), ids=NO_QUERIES)
def test_what_is_no_query_is_one_line(made, queries: Any, line: str):
    with pytest.raises(UserError, match=f"^{line}") as caught:
        SearchIndex.load(made).search(queries)
    assert "\n" not in str(caught.value)


NO_WORD = ["", " \n", "鯨とは何か", "🐋 🎻", "</s>", "\u200b"]


def test_nothing_is_found_without_a_known_word(made):
    index = SearchIndex.load(made)
    assert [index.search(query) for query in NO_WORD] == [[]] * len(NO_WORD)
    # the others in a batch are what they are alone
    together = index.search([NO_WORD[0], "river of ice", *NO_WORD[1:], "鯨 whale"], k=2)
    assert [len(results) for results in together] == [0, 2, 0, 0, 0, 0, 0, 2]
    assert [r.document_id for r in together[1]] == [
        r.document_id for r in index.search("river of ice", k=2)
    ]


def test_one_id_is_not_taken_letter_by_letter(made):
    index = SearchIndex.load(made)
    for restrict in (index.among, index.without):
        with pytest.raises(UserError, match="documents: expected a list of ids, got 'whale'"):
            restrict("whale")


def test_a_prompt_is_no_word_of_the_query(run):
    index_json(run, prompt="find:")
    assert SearchIndex.load(run).search(["", "鯨"]) == [[], []]


def test_a_former_stage_knows_its_documents_alone(made):
    index = SearchIndex.load(made, stage=0)
    assert len(index) == 4
    assert {result.document_id for result in index.search(["green"], k=9)[0]} == set(FIRST)
    assert SearchIndex.load(made, stage=1).search(QUERIES) == SearchIndex.load(made).search(QUERIES)


def test_the_prompt_and_letter_case_of_the_run_are_applied(run):
    plain = SearchIndex.load(run)
    index_json(run, prompt="find:", lowercase=True)
    prompted = SearchIndex.load(run)
    # the same texts typed by hand give the same scores as the run's settings
    tokens = [tokenize(plain.tokenizer, [text])[0] for text in ("find:", "whale song")]
    ids, model = torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None], last_model(run)
    with torch.no_grad():
        hidden = model.query_states(ids, torch.ones_like(ids))
        logp = torch.log_softmax(hidden @ model.docids.rows.T, 1)[0]
    (results,) = prompted.search(["Whale SONG"], k=1)
    assert results[0].score == pytest.approx(float(logp.max()), abs=1e-5)
    assert results[0].score != pytest.approx(plain.search(["Whale SONG"], k=1)[0][0].score)


def test_a_document_that_the_corpus_lost_keeps_its_id(run):
    shutil.rmtree(run.parent / "second")
    corpus(run.parent / "second", {"other": ("Other", "Another text.")})
    found = SearchIndex.load(run).search(["green"], k=6)[0]
    assert {result.document_id for result in found} == {*FIRST, *SECOND}
    assert {(r.title, r.text) for r in found if r.document_id in SECOND} == {("", "")}


@pytest.mark.parametrize("characters", [5, 10, 24, 30, 53, 60])
def test_snippets_end_between_words(characters):
    text = FIRST["whale"][1]
    snippet = Result("whale", -1.0, "", text).snippet(characters)
    assert len(snippet) <= characters
    if characters >= len(text):
        assert snippet == text
    else:
        assert snippet.endswith("…")
        assert set(snippet[:-1].split()) <= set(text.split()) | {"Whal"}  # one word is cut


def one_line(run: Path, stage: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        SearchIndex.load(run, stage)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_no_run_is_one_line(run):
    assert "index.json" in one_line(run.parent)
    assert "no stage 7; there are [0, 1]" in one_line(run, 7)
    index_json(run, schema=2)
    assert "schema 2" in one_line(run)
    write_text(run / "index.json", "{")
    assert "index.json: broken JSON" in one_line(run)
    index_json(run)
    shutil.rmtree(run / "stages")
    assert "--resume" in one_line(run)


@pytest.mark.parametrize("name", ["docids/D1.tsv", "stages/01/model/model.safetensors"])
def test_a_run_with_a_missing_file_is_one_line(run, name):
    (run / name).unlink()
    assert Path(name).name in one_line(run)


def test_a_missing_tokenizer_or_corpus_is_one_line(run):
    shutil.rmtree(run.parent / "second")
    assert "second" in one_line(run)
    shutil.rmtree(run / "tokenizer")
    assert "tokenizer" in one_line(run)


def test_asking_for_nothing_is_one_line(made):
    index = SearchIndex.load(made)
    for k in (0, -3, True, np.True_, 2.0, "2", None, np.arange(2)):
        with pytest.raises(UserError, match="k: must be a whole number, at least 1, got") as caught:
            index.search(["ice"], k=k)  # type: ignore[call-overload]
        assert "\n" not in str(caught.value)
    assert len(index.search("ice", k=np.int64(2))) == 2  # type: ignore[arg-type]
    assert len(index.search("ice", k=10**30)) == 6


def test_a_changed_file_of_the_corpus_is_shown_as_it_is_now(run):
    path = run.parent / "first" / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows[0]["title"] = "Renamed"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    assert read_corpus(path.parent).documents["title"][0].as_py() == "Renamed"
    found = SearchIndex.load(run).search(["whale"], k=6)[0]
    assert [r.title for r in found if r.document_id == "whale"] == ["Renamed"]
