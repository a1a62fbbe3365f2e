"""Which documents a next stage may remove and replace, and what it may not add."""

import json
from pathlib import Path

import numpy as np
import pytest

from continual.run.arrivals import check_entry
from continual.run.material import prepare, read_arrivals
from dsi.corpus.corpus import read_corpus
from dsi.errors import UserError


@pytest.fixture
def arrivals(lab, changing):
    """Of CHANGES in tests/continual/conftest.py."""
    return read_arrivals(lab.config(*changing))[0]


def corpus(folder: Path, *ids: str):
    folder.mkdir(exist_ok=True)
    rows = [{"_id": key, "text": f"new text of {key}"} for key in ids]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_corpus(folder)


def test_numbers_are_those_of_the_stream(lab, changing, arrivals):
    stream = prepare(lab.config(*changing)).stream
    ids = [f"d{n:02d}" for n in range(30)]
    expected = [n if n in stream.members(3) else -1 for n in range(30)]
    assert arrivals.present(ids).tolist() == expected
    assert arrivals.present(["t0", "nobody"]).tolist() == [-1, -1]
    gone = {"d00": -1, "d01": 1, "d03": 2, "d18": 3, "t0": -1}
    assert {key: arrivals.stage_of_removal(key) for key in gone} == gone


def test_a_stage_that_only_removes(arrivals):
    arrivals.add(None, {"remove": ["d29", "d00"]})
    part = arrivals.parts[-1]
    assert part.corpus is arrivals.parts[0].corpus
    assert (part.rows.tolist(), part.removed.tolist()) == ([], [0, 29])
    assert arrivals.present(["d00", "d29", "d28"]).tolist() == [-1, -1, 28]


def test_documents_that_are_there_are_replaced_and_the_others_arrive(arrivals, tmp_path):
    more = corpus(tmp_path / "more", "x", "d04", "y", "d02")
    arrivals.add(more, {"replace": ["d02", "d04"], "remove": ["d28"]})
    part = arrivals.parts[-1]
    assert (part.rows.tolist(), part.removed.tolist()) == ([0, 2], [28])
    assert dict(zip(part.replaced.tolist(), part.texts.tolist(), strict=True)) == {2: 3, 4: 1}
    assert arrivals.present(["x", "y", "d02"]).tolist() == [30, 31, 2]
    # what arrived with one corpus is removed and replaced with the next
    again = corpus(tmp_path / "again", "x")
    arrivals.add(again, {"replace": ["x"], "remove": ["y"]})
    assert arrivals.parts[-1].replaced.tolist() == [30]
    assert np.array_equal(arrivals.parts[-1].removed, [31])


@pytest.mark.parametrize(
    ("ids", "entry", "message"),
    [
        (["d04"], {}, "more: document 'd04' is in corpus 'changing' already; .* or --replace"),
        (["d01"], {}, "more: document 'd01' was removed in stage 1; .* give it another _id"),
        (["t0"], {}, "more: document 't0' is in corpus 'changing' already; .* another _id$"),
        (["d04"], {"replace": ["d04"], "remove": ["d04"]}, "'d04': more replaces it and --remove"),
        (["x"], {"remove": ["d01"]}, r"added\.json: removes document 'd01', which is not there"),
        (["d01"], {"replace": ["d01"]}, r"added\.json: replaces document 'd01', which is not"),
        (None, {"remove": [f"d{n:02d}" for n in range(30)]}, "added.json: removes document 'd01'"),
        (
            None,
            {"remove": [f"d{n:02d}" for n in range(30) if n not in (1, 3, 5, 18)]},
            "--remove: names all documents that are left; keep some",
        ),
    ],
)
def test_what_cannot_be_is_one_line(arrivals, tmp_path, ids, entry, message):
    before = len(arrivals.parts)
    more = None if ids is None else corpus(tmp_path / "more", *ids)
    with pytest.raises(UserError, match=message) as caught:
        arrivals.add(more, entry)
    assert "\n" not in str(caught.value)
    assert len(arrivals.parts) == before


def test_a_list_of_removals_is_checked_line_by_line(arrivals):
    arrivals.check_removed({"d00": "ids:1", "d29": "ids:2"})
    with pytest.raises(UserError, match=r"^ids:2: document 'd03' was removed in stage 2; leave"):
        arrivals.check_removed({"d00": "ids:1", "d03": "ids:2", "nobody": "ids:3"})
    with pytest.raises(UserError, match=r"^ids:7: document 't1' is not in the run; give ids"):
        arrivals.check_removed({"t1": "ids:7"})


def test_warnings_of_an_added_corpus(lab, changing, tmp_path):
    corpus(tmp_path / "more", "x", "d04")
    (tmp_path / "more/queries.jsonl").write_text('{"_id": "q", "text": "which"}\n')
    (tmp_path / "more/qrels").mkdir()
    (tmp_path / "more/qrels/test.tsv").write_text("q\td04\t1\n")
    entry = {"corpus": str(tmp_path / "more"), "replace": ["d04"]}
    warnings = prepare(lab.config(*changing), added=[entry]).warnings
    assert any("has no test query: column D4" in line for line in warnings)
    assert any("1 judgements on replaced documents are not used" in line for line in warnings)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"corpus": 5},
        {"remove": []},
        {"remove": "d1"},
        {"remove": [1]},
        {"corpus": "c", "replace": {}},
        {"corpus": None, "remove": ["d1"]},
    ],
)
def test_an_entry_that_dsi_add_does_not_write_is_refused(entry):
    with pytest.raises(UserError, match=r"^run/added\.json: .*restore the file$"):
        check_entry(Path("run/added.json"), entry)


def test_entries_that_dsi_add_writes():
    for entry in ({"corpus": "c"}, {"remove": ["d1"]}, {"corpus": {}, "replace": ["d1"]}):
        assert check_entry(Path("added.json"), entry) is None
