"""Episodic replay: whose queries come back, and that an infinite ratio is no replay."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from continual.replay.episodic import EpisodicReplay
from continual.run.material import prepare
from continual.stream.view import StageView
from dsi.errors import UserError
from dsi.text.tokens import Tokens


@dataclass
class Queries:
    """A stream of three corpora with 2, 3 and 1 train queries; notes who is asked."""

    asked: list[int] = field(default_factory=list)
    sizes: tuple[int, ...] = (2, 3, 1)

    def train_queries(self, corpus, stage=None):
        self.asked.append(corpus)
        count = self.sizes[corpus]
        lists = [[10 * corpus + i + 1] for i in range(count)]
        return Tokens.from_lists(lists), np.arange(count) + 100 * corpus


def view(stream, stage, tmp_path):
    nothing: Any = None
    return StageView(stage, stream, nothing, nothing, tmp_path, nothing, nothing)


@pytest.mark.parametrize(
    ("documents", "corpora", "words"),
    [
        ("initial", [0], [1, 2]),
        ("new", [2], [21]),
        ("seen", [0, 1, 2], [1, 2, 11, 12, 13, 21]),
    ],
)
def test_whose_queries_are_rehearsed(documents, corpora, words, tmp_path):
    stream = Queries()
    member = EpisodicReplay(EpisodicReplay.Config(documents=documents, ratio=2.0))
    (pool,) = member.pools(view(stream, 2, tmp_path))
    assert stream.asked == corpora
    assert pool.tokens.values.tolist() == words
    assert pool.documents.tolist() == [d for c in corpora for d in stream.train_queries(c)[1]]
    assert not pool.by_document  # each query equally often: DSI++'s epsmem
    assert member.ratio == 2.0


def test_the_first_stage_asks_nobody(tmp_path):
    stream = Queries()
    assert EpisodicReplay(EpisodicReplay.Config("seen")).pools(view(stream, 0, tmp_path)) == []
    assert stream.asked == []


def test_without_train_queries_there_is_no_pool(tmp_path):
    member = EpisodicReplay(EpisodicReplay.Config())
    assert member.pools(view(Queries(sizes=(0, 3, 1)), 1, tmp_path)) == []


def test_a_negative_ratio_is_refused(lab):
    with pytest.raises(UserError, match=r"replay\.ratio"):
        lab.config("replay.name=episodic", "replay.ratio=-1")


@pytest.mark.parametrize("more", [(), ("training.restart=true",)])
def test_with_an_infinite_ratio_it_is_no_replay(lab, more):
    episodic = lab.train("replay.name=episodic", "replay.ratio=.inf", *more)
    assert lab.results(episodic) == lab.results(lab.kept("replay=none", *more))
    finite = lab.train("replay.name=episodic", "replay.ratio=1", *more)
    assert lab.matrix(finite) != lab.matrix(episodic)


@pytest.mark.parametrize("documents", ["initial", "seen"])
def test_queries_of_removed_documents_are_not_rehearsed(lab, changing, tmp_path, documents):
    stream = prepare(lab.config(*changing)).stream
    member = EpisodicReplay(EpisodicReplay.Config(documents=documents))
    (pool,) = member.pools(view(stream, 3, tmp_path))
    members = stream.members(3)
    expected = members[members < 18] if documents == "initial" else members
    assert np.unique(pool.documents).tolist() == expected.tolist()
