"""Rows that are solved for: small problems by hand, and what a run changes and leaves alone."""

import pytest
import torch

from continual import runs, trainer
from continual.cli import main
from continual.parameters import incremental_rows
from continual.parameters.incremental_rows import IncrementalRows, solve
from tests.continual.test_resume import interrupt, resume

Config = IncrementalRows.Config
PARAMETERS = "parameters=incremental_rows"
# stage 0 long enough to know its documents, and queries for new ones
FOUND = (PARAMETERS, "training.updates=150", "replay=generative", "replay.ratio=1")


def solved(queries, owners, rows, means, **settings):
    found = [torch.tensor(v, dtype=torch.float64) for v in (queries, rows, means)]
    return solve(Config(**settings), found[0], torch.tensor(owners), found[1], found[2])


def close(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_one_row_by_hand():
    old = dict(rows=[[1.0, 0.0]], means=[[1.0, 0.0]], l2=1.0)
    # q = (0, 1) has nothing to do with the old one: (1 - b)^2 / 2 + b^2 / 2 is least at b = 1/2
    close(solved([[0.0, 1.0]], [0], **old), [0.0, 0.5])
    # q = (1, 1): (1 + 1 - a - b)^2 / 2 + a^2 / 2 + |x|^2, as |q|^2 is 2: b = a + a / 2
    # and 2 - a - b = 2 b, so a = 4 / 11
    close(solved([[1.0, 1.0]], [0], **old), [4 / 11, 6 / 11])
    # with all the weight on what is new a = b, and (2 - 2 a)^2 + 2 a^2 is least at 2/3
    close(solved([[1.0, 1.0]], [0], **old, new=1.0), [2 / 3, 2 / 3])


def test_margins_move_where_it_ends():
    old = dict(rows=[[1.0, 0.0]], means=[[1.0, 0.0]], l2=1.0)
    close(solved([[0.0, 1.0]], [0], **old, new_margin=3.0), [0.0, 1.5])
    # the old answer's score, 1, is to stay 2 above: a^2 of the penalty is (a + 1)^2 now
    close(solved([[0.0, 1.0]], [0], **old, old_margin=2.0), [-0.5, 0.5])


def test_new_documents_make_room_for_each_other():
    """A margin from each other, not from the old rows alone: those would allow 0.8."""
    found = solved([[1.0, 0.5], [-1.0, 0.5]], [0, 1], [[0.0, -1.0]], [[0.0, -1.0]], l2=1e-9)
    scores = torch.tensor([[1.0, 0.5], [-1.0, 0.5]]).double() @ found.T
    assert scores[0, 0] >= scores[0, 1] + 1 - 1e-3 and scores[1, 1] >= scores[1, 0] + 1 - 1e-3


def test_texts_of_one_document_count_as_one():
    old = dict(rows=[[1.0, 0.0, 0.0]], means=[[1.0, 0.0, 0.0]], l2=0.5)
    once = solved([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0, 1], **old)
    twice = solved([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0, 0, 1], **old)
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-6)


def test_nothing_but_new_rows_changes(lab):
    run, full = lab.kept(PARAMETERS), lab.kept()
    assert all(torch.equal(v, lab.weights(full, 0)[n]) for n, v in lab.weights(run, 0).items())
    for stage in (1, 2):
        before, after = lab.weights(run, stage - 1), lab.weights(run, stage)
        assert len(after["docids.rows"]) == sum(lab.sizes[: stage + 1])
        assert all(torch.equal(after[name][: len(v)], v) for name, v in before.items())
    assert lab.matrix(run)["num_updates"] == [10, 0, 0]


def test_new_documents_are_found_by_their_own_texts(lab):
    run = lab.kept(*FOUND)
    matrix = lab.matrix(run)["metrics"]
    plain = lab.kept(*FOUND, "parameters=full", "training.updates_per_stage=0")
    random = lab.matrix(plain)["metrics"]
    for stage in (1, 2):
        assert matrix["indexing_accuracy"][stage][stage] > 0.8
    assert random["indexing_accuracy"][1][1] < 0.5
    found, by_chance = (m["hits@10"][1][1] + m["hits@10"][2][2] for m in (matrix, random))
    print(f"Hits@10 of new documents, stages 1 and 2 together: {found}, random rows {by_chance}")
    assert found > by_chance + 0.3
    assert matrix["indexing_accuracy"][1][0] >= 0.9


def test_some_at_a_time_are_told_apart_from_those_before(lab, monkeypatch):
    """Two and then two: the later ones are new, the earlier ones are old to them."""
    monkeypatch.setattr(incremental_rows, "AT_ONCE", 2)
    matrix = lab.matrix(lab.train(*FOUND))["metrics"]
    assert min(matrix["indexing_accuracy"][stage][stage] for stage in (1, 2)) > 0.8


WHERE = {
    "while it is solved": (trainer, "Evaluator", 2, True),
    "after the checkpoint of stage 1": (trainer.checkpoints, "save", 2, False),
}


@pytest.mark.parametrize("where", WHERE)
def test_going_on_is_never_having_stopped(lab, tmp_path, where):
    run = interrupt(lab, tmp_path, *WHERE[where], settings=(PARAMETERS,))
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(PARAMETERS))


def test_a_corpus_is_added_without_an_update(lab, tmp_path):
    run = lab.train(PARAMETERS, output=tmp_path)
    corpus = lab.write_stream(tmp_path / "more", (5,), first=60)
    lab.call(runs.add, run, str(corpus))
    before, after = lab.weights(run, 2), lab.weights(run, 3)
    assert len(after["docids.rows"]) == sum(lab.sizes) + 5
    assert all(torch.equal(after[name][: len(v)], v) for name, v in before.items())


@pytest.mark.parametrize(
    "settings, line",
    [
        (("docids=naive",), "docids.name: parameters: incremental_rows needs one row per document"),
        (("training.restart=true",), "no earlier ones to compare with; set parameters: full"),
        (("regularizer=l2",), "incremental_rows trains nothing there; set regularizer: none"),
        (("merging=average",), "merging.name: acts on what later stages train"),
        (("parameters.new=2",), "parameters.new: must be at most 1"),
        (("parameters.queries=0",), "parameters.queries: must be at least 1"),
        (("parameters.l2=-1",), "parameters.l2: must be at least 0"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(lab, capsys, settings, line):
    assert main(["train", *lab.settings(PARAMETERS, *settings)]) == 2
    assert line in capsys.readouterr().err
