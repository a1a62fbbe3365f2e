"""A model written as a lexical index: weights and directions by hand, states as the formula's."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from dsi.model import lexical
from dsi.model.dsi_model import DSIModel, from_scratch
from dsi.model.lexical import TermStatistics
from dsi.text.tokens import Tokens

VOCABULARY = 40


def made(width: int, layers: int = 1, feed: str = "relu") -> DSIModel:
    model = from_scratch(
        0,
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=width // 4,
        d_ff=8,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=4,
        embedding_std=0.02,
        feed_forward_proj=feed,
        code_sizes=[3],
    )
    return model.eval()


def written(width: int, layers: int = 1, feed: str = "relu"):
    """A model, and the directions and weights that were written into it, as doubles."""
    rng = np.random.default_rng(width + layers)
    weights = np.exp(rng.uniform(math.log(0.02), math.log(12), VOCABULARY))
    generator = torch.Generator().manual_seed(1)
    directions = lexical.tight_frame(rng.random(VOCABULARY), width - 2, 2, generator)
    model = made(width, layers, feed)
    lexical.write_index(model, directions, weights)
    return model, directions.double().numpy(), weights


def expected_state(query: list[int], directions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sqrt(D) times the unit vector of sum_t w_t g_t, behind two numbers that are nothing."""
    total = sum(weights[t] * directions[t] for t in query)
    width = directions.shape[1] + 2
    return np.concatenate([[0, 0], total / np.linalg.norm(total)]) * width**0.5


# --- what documents and queries say of a token ----------------------------------------------------


@pytest.fixture
def statistics():
    """Token 0 in three of four documents, 1 in one, 2 in none, 3 in all; three queries."""
    documents = Tokens.from_lists([[0, 3, 0], [1, 3], [0, 3], [3, 0]])
    queries = Tokens.from_lists([[1], [1, 0], [0, 0]])
    return TermStatistics.of(documents, queries, np.array([1, 2, 0]), 4)


def test_counts_of_documents_and_queries(statistics):
    assert statistics.share_V.tolist() == pytest.approx([0.7, 0.3, 0.1, 0.9])  # (df + 0.5) / 5
    assert statistics.asked_V.tolist() == [2, 2, 0, 0], "a word that is repeated counts once"
    assert statistics.matched_V.tolist() == [2, 1, 0, 0]
    assert statistics.length == 9 / 4


def test_inverse_document_frequency_by_hand(statistics):
    found = statistics.inverse_frequency().tolist()
    assert found == pytest.approx([0.02, math.log(7 / 3), math.log(9), 0.02])


@pytest.mark.parametrize(
    ("prior", "strength", "expected"),
    [
        # p = (2 + 3) / 6 and (1 + 3) / 6 of those asked for, 3/4 of the others
        (0.75, 4, [math.log(5 * 3 / 7), math.log(2 * 7 / 3), math.log(3 * 9), 0.02]),
        # every query with token 0 had a match: p is 0.98 at most
        (0.5, 0, [math.log(49 * 3 / 7), math.log(7 / 3), math.log(9), 0.02]),
        (0.9, 0, [math.log(49 * 3 / 7), math.log(7 / 3), math.log(81), 0.02]),
        # documents alone: log(9) more for each, and for token 3 log(9 * 1 / 9), which is nothing
        (0.9, 1e12, [math.log(27 / 7), math.log(21), math.log(81), 0.02]),
    ],
)
def test_relevance_weights_by_hand(statistics, prior, strength, expected):
    assert statistics.relevance(prior, strength).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_word_no_query_has_weighs_its_inverse_document_frequency(statistics):
    asked, found = statistics.relevance(0.5, 1), statistics.inverse_frequency()
    assert np.allclose(asked[2:], found[2:], rtol=1e-12)
    assert not np.isclose(asked[0], found[0])


@pytest.mark.parametrize("strength", [0, 5])
def test_without_queries_the_prior_is_all(strength):
    none = Tokens.from_lists([])
    documents = Tokens.from_lists([[0, 1], [1]])
    found = TermStatistics.of(documents, none, np.zeros(0, np.int64), 3)
    assert np.allclose(found.relevance(0.5, strength), found.inverse_frequency())
    # (df + 0.5) / 3 is 1/2, 5/6, 1/6, and 0.8 / 0.2 is 4
    expected = [math.log(4), 0.02, math.log(20)]
    assert found.relevance(0.8, strength).tolist() == pytest.approx(expected)


# --- vectors --------------------------------------------------------------------------------------


def test_counts_of_repeated_tokens():
    tokens = Tokens.from_lists([[2, 0, 2, 2], [1]])
    found = lexical.term_counts(tokens, 4)
    assert found.toarray().tolist() == [[1, 0, 3, 0], [0, 1, 0, 0]]
    assert [tokens[0].tolist(), tokens[1].tolist()] == [[2, 0, 2, 2], [1]], "they stay"


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (0.0, 0.5), (2.0, 0.0), (0.5, 1.0)])
def test_saturated_counts_are_those_of_bm25(k1, b):
    counts = [[2, 1, 0], [0, 5, 0]]
    found = lexical.saturated(sparse.csr_matrix(np.array(counts, np.float32)), k1, b, 4.0)
    for line, own in zip(counts, found.toarray().tolist(), strict=True):
        near = k1 * (1 - b + b * sum(line) / 4.0)
        assert own == pytest.approx([tf / (tf + near) if tf else 0 for tf in line])


def test_one_count_worked_out():
    # 2 / (2 + 0.9 (0.6 + 0.4 * 3 / 4)) = 2 / 2.81
    found = lexical.saturated(sparse.csr_matrix(np.array([[2.0, 1.0]])), 0.9, 0.4, 4.0)
    assert found.toarray()[0].tolist() == pytest.approx([2 / 2.81, 1 / 1.81])


def test_energies_are_mean_shares_of_squared_lengths():
    counts = sparse.csr_matrix(np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]]))
    # (3, 2): 9 and 4 of 13; (0, 1): all is token 1's
    found = lexical.energies(counts, np.array([3.0, 1.0, 7.0]))
    assert found.tolist() == pytest.approx([9 / 26, (4 / 13 + 1) / 2, 0])


def test_without_texts_there_is_no_energy():
    counts = lexical.term_counts(Tokens.from_lists([]), 3)
    assert lexical.energies(counts, np.ones(3)).tolist() == [0, 0, 0]


WEIGHTS = [[1.0, 2.0, 0.0], [0.0, 0.5, 0.0], [3.0, 0.0, 4.0]]


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("at_once", [2, 4096])
def test_document_vectors_are_sums_of_states_and_as_long_as_asked(monkeypatch, norm, at_once):
    monkeypatch.setattr(lexical, "AT_ONCE", at_once)
    states = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = lexical.document_vectors(sparse.csr_matrix(np.array(WEIGHTS)), states, norm).numpy()
    sums = np.array([[1, 2], [0, 0.5], [5.4, 3.2]])
    lengths = np.linalg.norm(sums, axis=1)
    assert np.allclose(found, sums / lengths[:, None] ** norm)
    assert np.allclose(np.linalg.norm(found, axis=1), lengths ** (1 - norm))


def test_of_no_documents_there_are_no_vectors():
    found = lexical.document_vectors(sparse.csr_matrix((0, 3)), np.ones((3, 5)), 0.5)
    assert found.shape == (0, 5)


# --- directions -----------------------------------------------------------------------------------


def potential(energy: np.ndarray, directions: torch.Tensor) -> float:
    """sum e_s e_t (g_s . g_t)^2."""
    products = directions.double().numpy() @ directions.double().numpy().T
    return float(energy @ products**2 @ energy)


def frames(energy: np.ndarray, width: int, rounds: int) -> list[torch.Tensor]:
    return [
        lexical.tight_frame(energy, width, n, torch.Generator().manual_seed(3))
        for n in range(rounds + 1)
    ]


@pytest.mark.parametrize(("tokens", "width"), [(200, 30), (30, 30), (12, 30)])
def test_rounds_spread_the_directions(tokens, width):
    energy = np.random.default_rng(0).pareto(1.5, tokens)
    found = frames(energy, width, 4)
    for directions in found:
        assert directions.shape == (tokens, width)
        assert torch.allclose(directions.norm(dim=1), torch.ones(tokens), atol=1e-5)
    potentials = [potential(energy, directions) for directions in found]
    assert potentials[1] < potentials[0]
    assert all(after < 1.00001 * before for before, after in pairwise(potentials))
    # Welch's bound, and that of each token with itself
    least = max(energy.sum() ** 2 / width, (energy**2).sum())
    assert least < 1.00001 * potentials[-1]
    assert potentials[-1] - least < (potentials[0] - least) / 2


def test_directions_are_drawn_by_the_generator_alone():
    one, other = (frames(np.ones(9), 5, 2)[2] for _ in range(2))
    assert torch.equal(one, other)
    another = lexical.tight_frame(np.ones(9), 5, 2, torch.Generator().manual_seed(4))
    assert not torch.allclose(one, another)


def test_tokens_that_were_never_seen_have_directions():
    energy = np.zeros(9)
    energy[:2] = 1.0
    for found in (frames(energy, 5, 3)[3], frames(np.zeros(9), 5, 3)[3]):
        assert torch.allclose(found.norm(dim=1), torch.ones(9), atol=1e-5)


# --- the model ------------------------------------------------------------------------------------

SHAPES = [
    (width, layers, feed)
    for width in (128, 256, 512, 1024)
    for layers, feed in ((1, "relu"), (2, "gated-gelu"))
]
QUERIES = [[5], [5, 9, 5, 5], list(range(3, 30)), [7, 8]]


@pytest.mark.parametrize(("width", "layers", "feed"), SHAPES)
def test_a_state_is_the_weighted_sum_of_directions(width, layers, feed):
    model, directions, weights = written(width, layers, feed)
    tokens = Tokens.from_lists(QUERIES)
    length = int(tokens.lengths.max())
    ids = torch.zeros(len(QUERIES), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, query in enumerate(QUERIES):
        ids[row, : len(query)], mask[row, : len(query)] = torch.tensor(query), 1
    with torch.no_grad():
        together = model.query_states(ids, mask).double().numpy()
    for found, query in zip(together, QUERIES, strict=True):
        expected = expected_state(query, directions, weights)
        assert np.linalg.norm(found - expected) < 1e-4 * width**0.5, query


def test_the_order_of_words_is_nothing():
    model, _, _ = written(128)
    one, other = torch.tensor([[5, 9, 12]]), torch.tensor([[12, 5, 9]])
    with torch.no_grad():
        states = [model.query_states(ids, torch.ones_like(ids)) for ids in (one, other)]
    torch.testing.assert_close(*states)


def test_states_of_tokens_alone_are_their_directions(monkeypatch):
    monkeypatch.setattr(lexical, "AT_ONCE", 16)
    model, directions, _ = written(128)
    found = lexical.token_states(model, VOCABULARY)
    assert np.allclose(found[:, 2:], directions, atol=1e-5)
    assert np.allclose(found[:, :2], 0, atol=1e-5)


def test_states_of_tokens_are_those_of_the_model_as_it_is():
    model, directions, _ = written(128)
    with torch.no_grad():
        model.encoder.embed_tokens.weight[7] = model.encoder.embed_tokens.weight[8]
    found = lexical.token_states(model, VOCABULARY)
    assert np.allclose(found[7, 2:], directions[8], atol=1e-5)
    assert np.allclose(found[9, 2:], directions[9], atol=1e-5)


def test_layers_that_add_nothing_learn_at_the_first_update():
    model, _, _ = written(128, 2)
    ids = torch.tensor([[5, 9, 12]])
    loss: Any = model(ids, torch.ones_like(ids), torch.tensor([[1]]))
    loss.sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for name in ("layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"):
        gradient = gradients[f"encoder.block.1.{name}.weight"]
        assert gradient is not None and float(gradient.abs().max()) > 0, name


# --- the temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.7, 0.9, 0.99])
@pytest.mark.parametrize("size", [0.01, 1.0, 50.0])
def test_the_scale_is_where_the_cross_entropy_is_least(share, size):
    """Of two documents, 2 size apart: least where sigmoid(2 size scale) is the share right."""
    scores = torch.tensor([[size, -size]]).expand(100, 2)
    answers = (torch.arange(100) >= round(100 * share)).long()
    best = math.log(share / (1 - share)) / (2 * size)
    found = lexical.fitted_scale(scores, answers)
    assert abs(math.log10(found / best)) <= 0.025 + 1e-9, "no other of a grid of 0.05 is nearer"


@pytest.mark.parametrize(
    "scores", [[[3.0], [2.0]], [[1.0, 1.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]]
)
def test_where_nothing_is_told_apart_the_scale_stays(scores):
    assert lexical.fitted_scale(torch.tensor(scores), torch.zeros(2, dtype=torch.long)) == 1.0
