"""Searching a run directory: nothing is trained here, the directory is written by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging

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


IDS = ["violin", "whale", "meadow", "glacier", "lantern", "copper"]


def index_json(run: Path, stage: int = 1, **changes) -> None:
    """The settings of a stage's index."""
    places = [run.parent / "first", run.parent / "second"][: stage + 1]
    values = {
        "schema": 2,
        "docids": "atomic",
        "documents": [4, 6][stage],
        "corpora": [str(place) for place in places],
        "part_hashes": [dict(read_corpus(place).part_hashes) for place in places],
        "deduplicate": "none",
        "beams": 10,
        "length_penalty": 0.0,
        "title": True,
        "lowercase": False,
        "prompt": "",
    }
    write_json(run / "stages" / f"0{stage}" / "index.json", {**values, **changes})


def point(run: Path, index: Any) -> None:
    write_json(run / "index.json", {"schema": 2, "index": index})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two corpora and two stages."""
    root = tmp_path_factory.mktemp("index")
    run = root / "run"
    corpus(root / "first", FIRST)
    corpus(root / "second", SECOND)
    texts = [" ".join(entry) for entry in (*FIRST.values(), *SECOND.values())]
    tokenizer = train_tokenizer([*texts, *QUERIES, *map(str.lower, texts), "find:"], 120)
    sizes: dict[str, Any] = dict(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, embedding_std=1.0
    )
    model = from_scratch(1, vocab_size=len(tokenizer), code_sizes=[4], **sizes)
    # docids are given in order of arrival, whatever the order in the corpus
    lines = [f"{key}\t{n}\tD{n // 4}\n" for n, key in enumerate(IDS)]
    for stage, count in enumerate((4, 6)):
        if stage:
            model.resize([6], torch.Generator().manual_seed(2))
        folder = run / "stages" / f"0{stage}"
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "tokenizer")
        write_text(folder / "docids.tsv", "".join(lines[:count]))
        index_json(run, stage)
    point(run, "stages/01")
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
    (results,) = index.search(["river of ice"], k=3)
    assert [result.document_id for result in results] == [IDS[i] for i in order[:3]]
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
    index = SearchIndex.load(made / "stages" / "00")
    assert len(index) == 4
    assert {result.document_id for result in index.search(["green"], k=9)[0]} == set(FIRST)
    last = SearchIndex.load(made / "stages" / "01")
    assert last.search(QUERIES) == SearchIndex.load(made).search(QUERIES)


def test_the_folder_of_an_index_is_whole(made, tmp_path):
    copy = shutil.copytree(made / "stages" / "01", tmp_path / "copy")
    assert SearchIndex.load(str(copy)).search(QUERIES) == SearchIndex.load(made).search(QUERIES)


def test_opening_an_index_prints_nothing(made, capfd):
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        SearchIndex.load(made)
        assert logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar() if before else logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")


def test_corpora_are_chosen_by_their_names(made):
    index = SearchIndex.load(made)
    assert index.corpus_names == ["D0", "D1"]
    for names, expected in ((["D1"], SECOND), (["D0"], FIRST), (["D1", "D0"], FIRST | SECOND)):
        part = index.among(corpora=names)
        assert {result.document_id for result in part.search("green", k=9)} == set(expected)
    for wrong, said in ((["D2"], "corpora: no 'D2' in this index; it has 'D0', 'D1'"), ("D1", "a")):
        with pytest.raises(UserError, match=said):
            index.among(corpora=wrong)


def test_rows_that_are_nobodys_are_never_found(run):
    whole = SearchIndex.load(run)
    write_text(
        run / "stages/01/docids.tsv",
        "".join(f"{key}\t{n}\tD{n // 4}\n" for n, key in enumerate(IDS) if key != "whale"),
    )
    index_json(run, documents=5)
    index = SearchIndex.load(run)
    assert len(index) == 5
    assert index.search(QUERIES, k=9) == whole.without(["whale"]).search(QUERIES, k=9)
    for restrict in ("among", "without"):
        part, other = (getattr(i, restrict)(["glacier", "copper"]) for i in (index, whole))
        expected = [
            [r for r in found if r.document_id != "whale"] for found in other.search(QUERIES)
        ]
        assert part.search(QUERIES) == expected
    with pytest.raises(UserError, match="no document 'whale'"):
        index.without(["whale"])


OUTSIDE = ["..", "../first", "/", ".", "", "stages/..", "stages/../../run", "a\0b", 3, None]


@pytest.mark.parametrize("index", OUTSIDE)
def test_an_index_outside_of_its_folder_is_not_opened(run, index):
    point(run, index)
    assert one_line(run).startswith(f"{run}/index.json: index must name a folder below")


def test_a_link_out_of_the_folder_is_not_followed(run):
    (run / "link").symlink_to(run.parent / "elsewhere")
    shutil.move(run / "stages", run.parent / "elsewhere")
    point(run, "link/01")
    assert "must name a folder below" in one_line(run)


def test_a_folder_may_name_one_that_names_another(run):
    write_json(run / "stages" / "index.json", {"schema": 2, "index": "01"})
    point(run, "stages")
    assert len(SearchIndex.load(run)) == 6
    (run / "stages" / "again").symlink_to(run / "stages")  # a circle
    write_json(run / "stages" / "index.json", {"schema": 2, "index": "again"})
    assert "must name a folder below" in one_line(run)


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


def one_line(run: Path) -> str:
    with pytest.raises(UserError) as caught:
        SearchIndex.load(run)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_no_index_is_one_line(run):
    assert "no index here (index.json is missing)" in one_line(run.parent)
    write_json(run / "index.json", {"schema": 1, "docids": "atomic"})  # as runs had it
    assert "schema 1, this version reads 2" in one_line(run)
    write_text(run / "index.json", "{")
    assert "index.json: broken JSON" in one_line(run)
    point(run, "stages/01")
    (run / "stages/01/index.json").unlink()  # as a stage that was stopped half-way
    assert one_line(run).startswith(f"{run}/stages/01: no index here")


@pytest.mark.parametrize("name", ["docids.tsv", "model/model.safetensors"])
def test_an_index_with_a_missing_file_is_one_line(run, name):
    (run / "stages" / "01" / name).unlink()
    assert Path(name).name in one_line(run)


def test_a_missing_tokenizer_or_corpus_is_one_line(run):
    shutil.rmtree(run.parent / "second")
    assert "second" in one_line(run)
    shutil.rmtree(run / "stages" / "01" / "tokenizer")
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
