"""One-step ranking: exact, also where scores are equal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsi.decoding import rank_rows


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
