"""One-step ranking and beam search: exact, also where scores are equal."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.model.dsi_model import from_scratch
from dsi.search.beam_search import beam_search, rank_rows, unconstrained_search
from dsi.search.forward import Inference
from dsi.search.trie import Trie


def brute_force(hidden: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[list, torch.Tensor]:
    logp = torch.log_softmax(hidden @ rows.T, dim=1)
    numbers = [
        sorted(range(len(rows)), key=lambda n: (-scores[n], n))[:k] for scores in logp.tolist()
    ]
    return numbers, logp.gather(1, torch.tensor(numbers, dtype=torch.long))


@pytest.mark.parametrize("chunk", [1, 3, 7, 50, 51, 1000])
@pytest.mark.parametrize("k", [1, 5, 49, 50, 80])
def test_equal_to_topk_of_all_scores_for_any_chunk(k, chunk):
    hidden, rows = torch.randn(6, 8), torch.randn(50, 8)
    scores, numbers = rank_rows(hidden, rows, k, chunk)
    values, expected = torch.log_softmax(hidden @ rows.T, 1).topk(min(k, 50))
    assert scores.shape == (6, min(k, 50))
    assert torch.equal(numbers, expected)
    torch.testing.assert_close(scores, values)


@given(
    st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(1, 4), st.integers(0, 9)
)
def test_equal_scores_are_ordered_by_number(count, k, chunk, levels, seed):
    # few whole numbers as scores: ties everywhere, also at the end of a chunk and of the list
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.integers(0, levels, (count, 1))).float()
    hidden = torch.tensor([[1.0], [-1.0], [0.0]])
    scores, numbers = rank_rows(hidden, rows, k, chunk)
    expected, values = brute_force(hidden, rows, k)
    assert numbers.tolist() == expected
    torch.testing.assert_close(scores, values)


def test_of_many_equal_rows_the_first_are_kept():
    # wide enough that topk takes its own choice of the ties
    rows = torch.ones(5000, 2)
    rows[4321] = 2
    scores, numbers = rank_rows(torch.ones(2, 2), rows, 4, chunk=2048)
    assert numbers.tolist() == [[4321, 0, 1, 2]] * 2
    assert scores[0, 0] > scores[0, 1] == scores[0, 3]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_probabilities_of_all_rows_add_up_to_one(chunk):
    hidden, rows = 5 * torch.randn(4, 3), 5 * torch.randn(33, 3)
    scores, numbers = rank_rows(hidden, rows, 33, chunk)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4))
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert torch.equal(numbers.sort(1).values, torch.arange(33).expand(4, -1))


def test_half_precision_is_scored_in_single():
    hidden, rows = torch.randn(2, 4).bfloat16(), torch.randn(9, 4).bfloat16()
    scores, _ = rank_rows(hidden, rows, 9, chunk=4)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))


def test_no_query_and_no_gradient():
    rows = torch.randn(5, 3, requires_grad=True)
    scores, numbers = rank_rows(torch.randn(0, 3), rows, 2)
    assert scores.shape == numbers.shape == (0, 2)
    assert not rank_rows(torch.randn(2, 3), rows, 3)[0].requires_grad


# --- docids of several codes ----------------------------------------------------------------------

FIXED, ENDED = "fixed length", "an end code"


def make_docids(kind, count, seed):
    """Random valid docids (N, T): 3 codes of 4, or up to 3 codes of 1..4 and an end code 0."""
    rng = np.random.default_rng(seed)
    every = list(itertools.product(range(4), repeat=3))
    if kind is ENDED:
        bodies = [b for n in (1, 2, 3) for b in itertools.product(range(1, 5), repeat=n)]
        every = [(*body, 0, *[-1] * (3 - len(body))) for body in bodies]
    chosen = rng.permutation(len(every))[:count]
    return np.array([every[i] for i in chosen], np.int32)


def string_model(codes_NT, seed=0, sharp=3.0, shared=False):
    """A small model for such docids, with scores far enough apart to be told."""
    sizes = [5] * codes_NT.shape[1]
    shape = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    layers = {"num_layers": 1, "num_decoder_layers": 2}
    model = from_scratch(seed, code_sizes=sizes, shared_codes=shared, **shape, **layers)
    with torch.no_grad():
        model.docids.rows.mul_(sharp)
    return model.eval()


def queries(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (count, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    return ids, mask


@torch.inference_mode()
def every_score(model, codes_NT, ids, mask):
    """The log-probability of every docid by teacher forcing: (B, N)."""
    states, mask = model.encode(ids, mask)
    columns = []
    for codes in torch.from_numpy(codes_NT).long():
        codes = codes[codes >= 0].expand(len(ids), -1)
        hidden = model.decode_docid(states, mask, codes)
        logs = [
            model.docid_logits(hidden[:, t], t).log_softmax(-1).gather(1, codes[:, t : t + 1])
            for t in range(codes.shape[1])
        ]
        columns.append(torch.cat(logs, 1).sum(1))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", [FIXED, ENDED])
@pytest.mark.parametrize("count", [1, 2, 17, 60])
def test_a_beam_as_wide_as_the_corpus_scores_every_docid(kind, count, shared):
    codes_NT = make_docids(kind, count, seed=count)
    model = string_model(codes_NT, shared=shared)
    ids, mask = queries(5)
    expected = every_score(model, codes_NT, ids, mask)
    for beams in (count, count + 7):
        found = beam_search(Inference(model), Trie.build(codes_NT), ids, mask, beams)
        assert found.documents.shape == (5, count)
        assert torch.equal(found.documents.sort(1).values, torch.arange(count).expand(5, -1))
        scores = expected.gather(1, found.documents)
        torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-4)
        assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()
        assert found.invalid == found.repeats == 0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([FIXED, ENDED]), st.integers(1, 60), st.integers(1, 12), st.integers(0, 99))
def test_results_are_valid_unique_and_scored_rightly(kind, count, beams, seed):
    codes_NT = make_docids(kind, count, seed)
    model = string_model(codes_NT, seed)
    ids, mask = queries(3, seed)
    found = beam_search(Inference(model), Trie.build(codes_NT), ids, mask, beams)
    expected = every_score(model, codes_NT, ids, mask)
    for row, scores, true in zip(found.documents, found.scores, expected, strict=True):
        real = row[row >= 0]
        assert len(real) == len(set(real.tolist()))
        assert torch.equal(row >= 0, scores.isfinite())
        torch.testing.assert_close(scores[row >= 0], true[real], atol=1e-4, rtol=1e-4)
        assert len(real) == min(count, beams) if kind is FIXED else len(real) >= 1


def test_equal_scores_come_in_the_order_of_docids():
    codes_NT = make_docids(FIXED, 40, seed=3)
    model = string_model(codes_NT)
    with torch.no_grad():
        model.docids.rows.zero_()
    order = np.lexsort(codes_NT.T[::-1])
    for beams in (1, 3, 10, 40):
        found = beam_search(Inference(model), Trie.build(codes_NT), *queries(4), beams)
        assert found.documents.tolist() == [order[:beams].tolist()] * 4


@pytest.mark.parametrize("penalty", [-1.0, 0.5, 1.0, 2.0])
def test_length_penalty_divides_by_the_length(penalty):
    codes_NT = make_docids(ENDED, 30, seed=5)
    model = string_model(codes_NT)
    ids, mask = queries(4)
    found = beam_search(Inference(model), Trie.build(codes_NT), ids, mask, 30, penalty)
    lengths = torch.from_numpy((codes_NT >= 0).sum(1))
    expected = every_score(model, codes_NT, ids, mask) / lengths**penalty
    torch.testing.assert_close(found.scores, expected.sort(1, descending=True).values)


def test_a_restricted_search_is_the_full_one_without_the_others():
    codes_NT = make_docids(FIXED, 50, seed=6)
    model, part = string_model(codes_NT), [3, 8, 9, 20, 44]
    ids, mask = queries(6)
    full = beam_search(Inference(model), Trie.build(codes_NT), ids, mask, 50)
    trie = Trie.build(codes_NT).restrict(np.array(part))
    found = beam_search(Inference(model), trie, ids, mask, 50)
    for row, score, all_rows, all_scores in zip(
        found.documents, found.scores, full.documents, full.scores, strict=True
    ):
        kept = torch.isin(all_rows, torch.tensor(part))
        assert torch.equal(row, all_rows[kept])
        torch.testing.assert_close(score, all_scores[kept])


def test_without_constraint_the_search_is_over_all_sequences():
    every = np.array(list(itertools.product(range(5), repeat=3)), np.int32)
    model = string_model(every)
    ids, mask = queries(4)
    inference, trie = Inference(model), Trie.build(every)
    free = unconstrained_search(inference, trie, ids, mask, 7)
    held = beam_search(inference, trie, ids, mask, 7)
    assert torch.equal(free.documents, held.documents)
    torch.testing.assert_close(free.scores, held.scores)
    assert free.invalid == free.repeats == 0
    # with half of them gone, exactly the others are invalid
    gone = trie.restrict(np.arange(1, 125, 2))
    half = unconstrained_search(inference, gone, ids, mask, 7)
    expected = torch.where(held.documents % 2 == 0, -1, held.documents)
    assert torch.equal(half.documents, expected)
    assert half.invalid == int((expected < 0).sum()) > 0
    assert half.codes is not None
    assert np.array_equal(half.codes.numpy(), every[held.documents.numpy()])


def test_without_constraint_the_model_writes_as_far_as_it_can():
    """Whatever has been removed, also when no docid of full length is left."""
    codes_NT = make_docids(ENDED, 80, seed=1)
    inference, trie = Inference(string_model(codes_NT)), Trie.build(codes_NT)
    shorter = trie.restrict(np.flatnonzero((codes_NT >= 0).sum(1) < codes_NT.shape[1]))
    assert len(shorter.fan_out) < len(trie.fan_out)
    ids, mask = queries(4)
    full = unconstrained_search(inference, trie, ids, mask, 10)
    found = unconstrained_search(inference, shorter, ids, mask, 10)
    assert found.codes.shape == full.codes.shape
    assert (found.codes[..., -1] >= 0).any()


@pytest.mark.slow
def test_the_whole_search_compiles():
    codes_NT = make_docids(ENDED, 80, seed=1)
    inference, trie = Inference(string_model(codes_NT)), Trie.build(codes_NT)
    ids, mask = queries(3)
    compiled = torch.compile(beam_search, backend="aot_eager")
    ours = compiled(inference, trie, ids, mask, 4)
    theirs = beam_search(inference, trie, ids, mask, 4)
    assert torch.equal(ours.documents, theirs.documents)
    torch.testing.assert_close(ours.scores, theirs.scores)


def test_unconstrained_sequences_end_where_docids_do():
    codes_NT = make_docids(ENDED, 80, seed=1)
    model = string_model(codes_NT)
    found = unconstrained_search(Inference(model), Trie.build(codes_NT), *queries(4), 10)
    assert found.codes is not None
    for codes, document in zip(
        found.codes.flatten(0, 1).tolist(), found.documents.flatten().tolist(), strict=True
    ):
        body = [code for code in codes if code >= 0]
        assert 0 not in body[1:-1]  # no docid ends at its first code
        assert body[-1] == 0 or len(body) == codes_NT.shape[1]
        if document >= 0:
            assert codes == codes_NT[document].tolist()
        else:
            assert codes not in codes_NT.tolist()


def test_a_beam_that_nothing_is_left_for_stays_where_it_is():
    """Most docids end early here, and the codes near the root exceed those further down."""
    codes_NT = np.array([[c, -1, -1, -1] for c in range(3, 9)] + [[0, 1, 1, c] for c in range(2)])
    model = from_scratch(
        0, code_sizes=[9, 2, 2, 2], vocab_size=40, d_model=16, d_kv=8, d_ff=8, num_heads=2
    ).eval()
    found = beam_search(Inference(model), Trie.build(codes_NT), *queries(4), 8)
    assert torch.equal(found.documents.sort(1).values, torch.arange(8).expand(4, -1))


def test_an_empty_set_finds_nothing():
    codes_NT = make_docids(FIXED, 3, seed=1)
    model, trie = string_model(codes_NT), Trie.build(codes_NT).restrict([])
    found = beam_search(Inference(model), trie, *queries(2), 5)
    assert (found.documents == -1).all()
    assert found.invalid == found.repeats == 0


def test_rows_among_some():
    generator = torch.Generator().manual_seed(0)
    hidden, rows = torch.randn(3, 8, generator=generator), torch.randn(50, 8, generator=generator)
    among = torch.zeros(50, dtype=torch.bool)
    among[[4, 7, 30, 49]] = True
    full_scores, full = rank_rows(hidden, rows, 50)
    for chunk in (5, 64):
        scores, found = rank_rows(hidden, rows, 10, chunk=chunk, among=among)
        assert found.shape == (3, 4)
        kept = torch.isin(full, torch.tensor([4, 7, 30, 49]))
        assert torch.equal(found, full[kept].view(3, 4))
        torch.testing.assert_close(scores, full_scores[kept].view(3, 4))
