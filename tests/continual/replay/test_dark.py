"""Dark replay: what is stored, the loss by hand, and codes that follow their rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from continual.replay.dark import DarkReplay
from continual.run.material import prepare
from continual.stream.view import StageView, true_queries
from dsi.errors import UserError
from dsi.examples.batches import Batch
from dsi.model.dsi_model import from_scratch
from dsi.text.tokens import prompt_ids

NOTHING: Any = None


@pytest.fixture(scope="module")
def stream(lab):
    return prepare(lab.config()).stream


def view(lab, stream, stage, sizes=(18,), codes=None, *settings) -> StageView:
    shape = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)
    model = from_scratch(0, vocab_size=200, code_sizes=list(sizes), **shape).double().eval()
    codes = np.arange(stream.count(stage))[:, None] if codes is None else codes
    config, nothing = lab.config(*settings), NOTHING
    return StageView(stage, stream, stream.tokenizer, config, nothing, model, codes)


def stored(**settings):
    return DarkReplay(DarkReplay.Config(ratio=2.0, **settings))


def batch(rows):
    count = len(rows)
    ids = torch.ones(count, 2, dtype=torch.long)
    return Batch(ids, ids, torch.arange(count), None, extras={"dark": torch.tensor(rows)})


def test_the_loss_of_one_example_by_hand():
    member = stored(alpha=0.5)
    member.load_state_dict(
        {
            # query 1: codes 2 and 0 of the first position; one code alone of the second
            "scores": torch.tensor([[[9.0, 9.0], [9.0, 9.0]], [[3.0, 1.0], [-1.0, 0.0]]]),
            "codes": torch.tensor([[[0, 1], [0, -1]], [[2, 0], [0, -1]]], dtype=torch.int32),
        }
    )
    first = torch.tensor([[5.0, 6.0, 7.0], [2.0, 6.0, 1.0]], requires_grad=True)
    second = torch.tensor([[8.0, 8.0], [1.0, 4.0]], requires_grad=True)
    third = torch.zeros(2, 4)  # a position that docids have got since
    losses = member.example_loss(batch([-1, 1]), [first, second, third])
    # ((1 - 3)^2 + (2 - 1)^2) / 2 + (1 - -1)^2 / 1
    assert losses.tolist() == [0.0, 0.5 * (2.5 + 4.0)]
    losses.sum().backward()
    assert first.grad is not None and second.grad is not None
    assert first.grad.tolist() == [[0.0] * 3, [0.5 * (2.0 - 1.0), 0.0, 0.5 * (1.0 - 3.0)]]
    assert second.grad.tolist() == [[0.0] * 2, [0.5 * 2 * 2.0, 0.0]]


def test_a_batch_without_such_queries_has_no_such_loss():
    found = stored().example_loss(replace(batch([0, 1]), extras={}), [torch.randn(2, 3)])
    assert found.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("top_k", [3, 500])
def test_what_is_stored_is_what_the_model_answers(lab, stream, top_k):
    prompt = "find a leaf"
    member = stored(top_k=top_k)
    given = view(lab, stream, 0, (18,), None, f"prompts.retrieval={prompt}")
    member.end_stage(given)
    queries = true_queries(stream)
    assert queries is not None
    before = prompt_ids(stream.tokenizer, prompt).tolist()
    assert before
    k = min(top_k, 18)
    assert member.state["scores"].shape == member.state["codes"].shape == (36, 1, k)
    for row in (0, 35):
        ids = torch.tensor([before + queries.tokens[row].tolist()])
        codes = torch.zeros(1, 1, dtype=torch.long)
        with torch.no_grad():
            _, (scores,) = given.model(ids, torch.ones_like(ids), codes, return_logits=True)
        best = scores[0].topk(k)
        torch.testing.assert_close(member.state["scores"][row, 0], best.values)
        assert member.state["codes"][row, 0].tolist() == best.indices.tolist()
    # at the same weights nothing has moved away
    (pool,) = member.pools(replace(given, stage=1))
    for part in given.examples(pool.tokens, pool.documents, 36, prompt):
        _, scores = given.model(**given.inputs(part), return_logits=True)
        held = replace(part, extras={"dark": torch.arange(36)})
        assert float(member.example_loss(held, scores).detach().max()) < 1e-20
    # and a later stage stores nothing anew
    kept = dict(member.state)
    member.end_stage(replace(given, stage=1))
    assert member.state == kept


def test_positions_with_fewer_codes_and_beyond_the_end_of_a_docid(lab, stream):
    codes = np.stack([np.arange(18) % 5, np.arange(18) % 2 - 1], 1)  # every other one ends early
    member = stored(top_k=4)
    member.end_stage(view(lab, stream, 0, (5, 2), codes))
    found, queries = member.state["codes"], true_queries(stream)
    assert queries is not None
    assert found.shape == (36, 2, 4) and bool((found[:, 0] >= 0).all())
    ended = torch.from_numpy(queries.documents % 2 == 0)
    assert bool((found[ended, 1] == -1).all())
    assert found[~ended, 1].sort(1).values.tolist() == [[-1, -1, 0, 1]] * int((~ended).sum())


def test_codes_follow_rows_that_come_and_go(lab, stream):
    member, given = stored(top_k=3), view(lab, stream, 1)
    codes = torch.tensor([[[0, 4, 2]], [[3, 1, -1]]], dtype=torch.int32)
    member.load_state_dict({"scores": torch.zeros(2, 1, 3), "codes": codes})
    grown = {"docids.rows": torch.tensor([0, 1, 2, 3, 4, -1, -1])}
    member.begin_stage(replace(given, origins=grown))
    assert torch.equal(member.state["codes"], codes)
    shrunk = {"docids.rows": torch.tensor([0, 2, 3, -1])}  # rows 1, 4, 5 and 6 are gone
    member.begin_stage(replace(given, origins=shrunk))
    assert member.state["codes"].tolist() == [[[0, -1, 1]], [[2, -1, -1]]]
    assert member.state["codes"].dtype == torch.int32


def test_codes_of_several_positions_stay(lab, stream):
    member, given = stored(top_k=1), view(lab, stream, 1)
    codes = torch.tensor([[[3], [1]]], dtype=torch.int32)
    member.load_state_dict({"scores": torch.zeros(1, 2, 1), "codes": codes})
    # one more code of the first position: rows of the second are one further down
    member.begin_stage(replace(given, origins={"docids.rows": torch.tensor([0, 1, 2, 3, -1, 4])}))
    assert torch.equal(member.state["codes"], codes)


def test_the_pool(lab, stream):
    given = view(lab, stream, 1)
    assert stored().pools(replace(given, stage=0)) == []
    (plain,) = stored(alpha=0.0).pools(given)
    assert (plain.name, plain.by_document, dict(plain.extras)) == ("episodic", False, {})
    member = stored(beta=0.25)
    with pytest.raises(UserError, match=r"replay\.alpha: .*training\.stages"):
        member.pools(given)
    member.end_stage(view(lab, stream, 0))
    (pool,) = member.pools(given)
    assert pool.extras["dark"].tolist() == list(range(36))
    assert pool.extras["weight"].tolist() == [0.25] * 36


def test_all_scores_are_asked_for_only_where_they_are_used():
    assert stored().reads_outputs and not stored(alpha=0.0).reads_outputs
    off = DarkReplay(DarkReplay.Config(ratio=float("inf")))
    assert not off.reads_outputs


def test_without_replay_it_is_no_replay(lab):
    few = ("training.updates=5", "training.updates_per_stage=4")
    off = lab.train("replay=dark", "replay.ratio=.inf", *few)
    assert lab.results(off) == lab.results(lab.kept(*few))


@pytest.mark.parametrize("key", ["ratio", "alpha", "beta", "top_k"])
def test_mistakes_are_one_line(lab, key):
    with pytest.raises(UserError, match=rf"replay\.{key}"):
        lab.config("replay=dark", f"replay.{key}=-1")


def test_it_is_refused_with_a_sampled_softmax_and_without_stage_0(lab):
    with pytest.raises(UserError, match=r"docid_softmax"):
        lab.config("replay=dark", "training.docid_softmax=sampled")
    with pytest.raises(UserError, match=r"replay\.alpha: .*training\.stages"):
        lab.train("replay=dark", "training.restart=true", "training.stages=last")
