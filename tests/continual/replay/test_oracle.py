"""The oracle: it rehearses the true queries of all corpora, and every run of it says so."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from continual import cli, runs
from continual.replay.oracle import Oracle
from dsi.errors import UserError
from tests.continual.replay.test_episodic import Queries, view


def test_the_queries_of_every_corpus_so_far(tmp_path):
    stream = Queries()
    member = Oracle(Oracle.Config(ratio=2.0))
    (pool,) = member.pools(view(stream, 1, tmp_path))
    assert stream.asked == [0, 1]
    assert pool.tokens.values.tolist() == [1, 2, 11, 12, 13]
    assert pool.documents.tolist() == [0, 1, 100, 101, 102]
    assert not pool.by_document and member.ratio == 2.0


def test_the_first_stage_has_its_own_queries_already(tmp_path):
    stream = Queries()
    assert Oracle(Oracle.Config()).pools(view(stream, 0, tmp_path)) == [] and stream.asked == []


def test_with_an_infinite_ratio_it_is_no_replay(lab):
    run = lab.train("replay=oracle", "replay.ratio=.inf")
    assert lab.results(run) == lab.results(lab.kept("replay=none"))


@pytest.mark.parametrize(
    ("settings", "is_oracle"),
    [
        (["replay=oracle"], True),
        (["replay=episodic", "replay.documents=new"], True),
        (["replay=episodic"], False),
        (["replay=oracle", "replay.ratio=.inf"], False),
    ],
)
def test_a_run_and_its_report_say_that_it_is_one(lab, capsys, monkeypatch, settings, is_oracle):
    monkeypatch.setattr(runs, "_show", lambda folder: None)
    AcceleratorState._reset_state(True)
    few = ("training.updates=1", "training.updates_per_stage=1")
    config = lab.config(*few, *settings)
    assert cli.main(["train", *lab.settings(*few, *settings, output=Path(config.output))]) == 0
    assert f"warning: {runs.ORACLE}\n" * is_oracle == capsys.readouterr().out
    assert (runs.ORACLE in runs.report([config.folder])) is is_oracle


def test_a_negative_ratio_is_refused(lab):
    with pytest.raises(UserError, match=r"replay\.ratio"):
        lab.config("replay=oracle", "replay.ratio=-1")
