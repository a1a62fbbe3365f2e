"""A stage keeps of its training what ranks D_0's dev queries best, and no more."""

import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from continual.merging import guard
from continual.merging.guard import Guard, between
from continual.starts.lexical import Lexical
from dsi.errors import UserError
from tests.continual.starts.test_lexical import CONFIG, born, grown, view_of

ROWS = "docids.rows"
EASY = ("model.d_model=128", "model.num_heads=4", "model.embedding_std=0.02")


def weights(view):
    return {name: value.clone() for name, value in view.model.state_dict().items()}


def same(view, expected):
    return all(torch.equal(value, expected[n]) for n, value in view.model.state_dict().items())


def ended(view, train, **settings):
    """The weights before and after ``train(view)``, and what was logged when the stage ended."""
    lines: list[dict[str, float]] = []
    view = replace(view, log=lines.append)
    member = Guard(Guard.Config(**settings))
    member.begin_stage(view)
    begun = weights(view)
    train(view)
    trained = weights(view)
    member.end_stage(view)
    assert not member.state
    return begun, trained, lines


def harm(view):
    """What was first is last; a quarter of the way rows are half as long and rank the same."""
    with torch.no_grad():
        view.model.docids.rows.neg_()


def help_(view):
    Lexical(CONFIG).begin(view, {})


# --- what is kept ---------------------------------------------------------------------------------


def test_training_that_harmed_is_undone_bit_for_bit(lab):
    view = born(lab)
    begun, trained, lines = ended(view, harm, newcomers=0)
    assert same(view, begun) and not same(view, trained)
    (line,) = lines
    assert line["guard/share"] == 0 and line["guard/mrr"] == line["guard/mrr_begun"] > 0.5


def test_training_that_helped_stays_bit_for_bit(lab):
    view = view_of(lab.config(*EASY))
    begun, trained, lines = ended(view, help_, newcomers=0)
    assert same(view, trained) and not same(view, begun)
    (line,) = lines
    assert line["guard/share"] == 1 and line["guard/mrr"] > line["guard/mrr_begun"] + 0.3


def test_a_grown_stage_ends_with_its_new_rows_as_they_were_written(lab):
    view = grown(born(lab), 1)
    Lexical(CONFIG).begin(view, {})
    begun, _, lines = ended(view, harm, steps=1)
    assert len(begun[ROWS]) == 24 and lines[0]["guard/share"] == 0
    assert same(view, begun)


@pytest.mark.parametrize(
    ("found", "share"),
    [([0.5, 0.7, 0.7], 0.5), ([0.5, 0.5, 0.5], 0), ([0.1, 0.2, 0.3], 1), ([0.2, 0.1, 0.2], 0)],
)
def test_of_equals_the_smallest_share_counts(lab, monkeypatch, found, share):
    answers = iter(found)
    monkeypatch.setattr(Guard, "_rank", lambda *_: next(answers))
    view = view_of(lab.config())
    begun, trained, lines = ended(view, harm, steps=2)
    assert lines == [
        {"guard/share": share, "guard/mrr_begun": found[0], "guard/mrr": found[int(2 * share)]}
    ]
    for name, value in view.model.state_dict().items():
        expected = share * trained[name].double() + (1 - share) * begun[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


def test_weights_of_no_training_are_not_tried(lab, monkeypatch):
    monkeypatch.delattr(Guard, "_rank")
    view = view_of(lab.config())
    begun, _, lines = ended(view, lambda view: None)
    assert lines == [] and same(view, begun)


def test_without_dev_queries_the_trained_weights_stay(lab, tmp_path):
    corpus = shutil.copytree(lab.corpus, tmp_path / "corpus")
    (corpus / "qrels" / "dev.tsv").unlink()
    view = view_of(lab.config(f"data.corpus={corpus}"))
    _, trained, lines = ended(view, harm)
    assert lines == [] and same(view, trained)


def test_without_steps_nothing_is_kept_or_tried(lab, monkeypatch):
    monkeypatch.delattr(Guard, "_rank")
    assert not Guard(Guard.Config(steps=0)).needs_previous
    assert Guard(Guard.Config()).needs_previous
    view = view_of(lab.config())
    _, trained, lines = ended(view, harm, steps=0)
    assert lines == [] and same(view, trained)


def test_shares_between_two_weights():
    begun = {"w": torch.tensor([1.0, 3.0]), "count": torch.tensor(2)}
    trained = {"w": torch.tensor([5.0, -1.0]), "count": torch.tensor(7)}
    assert between(begun, trained, 0.25)["w"].tolist() == [2.0, 2.0]
    assert between(begun, trained, 0.25)["count"].item() == 7
    assert between(begun, trained, 0.0) == begun and between(begun, trained, 1.0) == trained


# --- how a trial is ranked ------------------------------------------------------------------------


class Line:
    """Documents are numbers and every query is 1, so a score is the row itself."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.rows = model.rows

    def query_states(self, ids, mask):
        return torch.ones(len(ids), 1)


def ranked(monkeypatch, begun, trained, golds, newcomers, draws=None):
    """What a trial of ``trained`` rows says, of queries whose answers are at ``golds``."""
    monkeypatch.setattr(guard, "Inference", Line)
    if draws is not None:
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(draws))
    begun, trained = (torch.tensor(rows)[:, None] for rows in (begun, trained))
    numbers = np.arange(len(begun))
    view: Any = SimpleNamespace(
        model=SimpleNamespace(rows=trained),
        codes_NT=numbers[:, None],
        documents=numbers,
        seed=3,
        stage=1,
    )
    ids = torch.zeros(len(golds), 1, dtype=torch.long)
    queries = [(ids, ids, [np.array(gold) for gold in golds])]
    return Guard(Guard.Config(newcomers=newcomers))._rank(view, begun, queries)


BEGUN, TRAINED = [25.0, 5.0, 15.0, 35.0], [10.0, 20.0, 30.0, 40.0]
DRAWS = [0.1, 0.9, 0.2, 0.8]  # at one half, documents 0 and 2 are newcomers, then 1 and 3


@pytest.mark.parametrize(
    ("newcomers", "golds", "expected"),
    [
        # all as trained: document 0 is fourth, 1 is third
        (0.0, [[0], [1]], (1 / 4 + 1 / 3) / 2),
        # 25 20 15 40, then 10 5 30 35: document 0 is second and third, 1 third and fourth
        (0.5, [[0], [1]], (1 / 2 + 1 / 3 + 1 / 3 + 1 / 4) / 4),
        # of two answers the better one counts: 1 (20), then 2 (30)
        (0.5, [[1, 2]], (1 / 3 + 1 / 2) / 2),
        # document 0 alone, then 1 alone: 25 20 30 40, then 10 5 30 40
        (0.15, [[0], [1]], (1 / 3 + 1 / 4 + 1 / 3 + 1 / 4) / 4),
        # all as they began
        (1.0, [[0], [1]], (1 / 2 + 1 / 4) / 2),
    ],
)
def test_newcomers_have_the_rows_they_began_with(monkeypatch, newcomers, golds, expected):
    found = ranked(monkeypatch, BEGUN, TRAINED, golds, newcomers, DRAWS)
    assert found == pytest.approx(expected)


def test_each_document_is_a_newcomer_once(monkeypatch):
    """Rows that are 1 as they began and 0 as trained: who is new is above who is not."""
    rows = ([1.0] * 40, [0.0] * 40)
    golds = [[i] for i in range(40)]
    one, again = (ranked(monkeypatch, *rows, golds, 0.5) for _ in range(2))
    assert one == again
    # n are new at first and share place n, the others place 40; then the 40 - n others are new.
    # n / n + (40 - n) / 40 + (40 - n) / (40 - n) + n / 40 is 3 whatever n is
    assert one == pytest.approx(3 / 80)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_rows_that_have_collapsed_are_no_find(monkeypatch, value):
    """An answer that nothing tells from the others is behind them, as is one without a score."""
    collapsed = [value] * 4
    assert ranked(monkeypatch, collapsed, collapsed, [[0], [2]], 0.0) == pytest.approx(1 / 4)


# --- in a run -------------------------------------------------------------------------------------


def test_a_run_logs_what_every_stage_kept(lab):
    run = lab.kept("merging=guard", "merging.steps=2")
    lines = [line for line in lab.metrics(run) if "guard/share" in line]
    assert [line["stage"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["guard/share"] in (0, 0.5, 1)
        assert 0 < line["guard/mrr_begun"] <= line["guard/mrr"] <= 1


def test_documents_that_went_and_changed_are_no_answers(lab, changing):
    run = lab.train(*changing, "merging=guard")
    lines = [line for line in lab.metrics(run) if "guard/share" in line]
    assert [line["stage"] for line in lines] == [0, 1, 3]  # stage 2 only removes and trains nothing


def test_docids_of_several_codes_are_refused(lab):
    with pytest.raises(UserError, match=r"^docids\.name: merging: guard needs one row per doc"):
        lab.config("merging=guard", "docids=naive")
