"""A T5 whose first weights are a lexical index: TF-IDF retrieval through a projection of words.

The state that ranks documents is the unit vector of ``sum_t w_t g_t`` over a query's tokens t, and
the row of a document that of ``sum_t b_t tf'_t g_t``: so a score is the sparse product of both, but
for the noise of packing V directions g_t into D numbers. :func:`write_index` puts directions and
weights w_t into a model in which every layer but the first cross-attention is the identity until it
is trained; :func:`token_states` reads the directions back from whatever the model has become.

Shape legend: V tokens of the vocabulary, D width, N documents, Q queries, H heads, A head width.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from dsi.model.dsi_model import DSIModel
from dsi.search.forward import Inference
from dsi.text.tokens import Tokens

LEAST = 0.02  # weight of a token that tells nothing: small, but its logarithm is finite
START = 0.01  # size of the decoder's first input, which what it reads from the query outweighs
AT_ONCE = 4096  # documents or tokens of one matrix product


@dataclass(frozen=True)
class TermStatistics:
    """What documents and their judged queries say of every token.

    ``share_V``: the share of documents with the token, (df + 0.5) / (N + 1). ``asked_V``: queries
    with it, ``matched_V``: those of them whose document has it, too. ``length``: mean tokens of a
    document.
    """

    share_V: np.ndarray
    asked_V: np.ndarray
    matched_V: np.ndarray
    length: float

    @classmethod
    def of(
        cls, documents: Tokens, queries: Tokens, answers: np.ndarray, vocabulary: int
    ) -> "TermStatistics":
        """``answers`` (Q,): the place in ``documents`` of the one that each query asks for."""
        counts, asked = term_counts(documents, vocabulary), term_counts(queries, vocabulary)
        has, asks = cast(Any, counts.astype(bool)), asked.astype(bool)
        frequency = _sums(has)
        matched = _sums(asks.multiply(has[answers])) if len(answers) else np.zeros(vocabulary)
        return cls(
            (frequency + 0.5) / (len(documents) + 1),
            _sums(asks),
            matched,
            float(counts.sum()) / max(len(documents), 1),
        )

    def inverse_frequency(self) -> np.ndarray:
        """log((1 - n) / n) (V,) of the share n of documents with the token; at least 0.02."""
        return np.maximum(np.log((1 - self.share_V) / self.share_V), LEAST)

    def relevance(self, prior: float, strength: float) -> np.ndarray:
        """Relevance weights (V,): log(p (1 - n) / (n (1 - p))), at least 0.02.

        p: the chance that a document that answers has the token that is asked for: of the queries
        with it, and of ``strength`` more queries of which a share ``prior`` had a match. With
        ``prior`` 0.5 a token that no query has weighs its inverse document frequency.

        Source: Robertson and Sparck Jones (1976), formula F4.
        """
        p = (self.matched_V + strength * prior) / np.maximum(self.asked_V + strength, 1e-9)
        p = np.where(self.asked_V + strength > 0, np.clip(p, 0.02, 0.98), prior)
        n = self.share_V
        return np.maximum(np.log(p / (1 - p) * (1 - n) / n), LEAST)


def term_counts(tokens: Tokens, vocabulary: int) -> sparse.csr_matrix:
    """How often every text has every token: (texts, V)."""
    ones = np.ones(int(tokens.offsets[-1]), np.float32)
    shape = (len(tokens), vocabulary)
    # copies: duplicates are summed in place
    values, offsets = np.array(tokens.values), np.array(tokens.offsets)
    matrix = sparse.csr_matrix((ones, values, offsets), shape=shape)
    matrix.sum_duplicates()
    return matrix


def saturated(counts: sparse.csr_matrix, k1: float, b: float, length: float) -> sparse.csr_matrix:
    """BM25's tf / (tf + k1 (1 - b + b * own length / mean length)) of every count."""
    own = np.asarray(counts.sum(1)).ravel()
    found = counts.copy()
    rows = np.repeat(np.arange(len(own)), np.diff(counts.indptr))
    found.data = counts.data / (counts.data + k1 * (1 - b + b * own[rows] / max(length, 1e-9)))
    return found


def energies(counts: sparse.csr_matrix, weights_V: np.ndarray) -> np.ndarray:
    """The mean share (V,) of every token in the squared length of the texts' weighted vectors."""
    weighted = counts.multiply(weights_V[None]).tocsr()
    squares = weighted.multiply(weighted).tocsr()
    totals = np.asarray(squares.sum(1)).ravel()
    return _sums(sparse.diags(1 / np.maximum(totals, 1e-12)) @ squares) / max(len(totals), 1)


def tight_frame(
    energy_V: np.ndarray, width: int, rounds: int, generator: torch.Generator
) -> Tensor:
    """Unit directions (V, ``width``), of which those with much energy disturb each other least.

    Random ones, drawn by ``generator``, which each round spreads evenly: with M = sum_t e_t g_t
    g_t', every g_t becomes the unit vector of M^(-1/2) g_t. At a fixed point M is a multiple of the
    identity, and sum e_s e_t (g_s . g_t)^2, the frame potential, least (Benedetto and Fickus 2003).
    """
    directions = torch.randn(len(energy_V), width, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions.float())
    energy = torch.from_numpy(energy_V).float()
    energy = energy + 1e-3 * energy.mean().clamp(min=1e-12)  # of tokens that were never seen
    for _ in range(rounds):
        spread = directions.T @ (directions * energy[:, None])
        # in float32, three times as fast: no value is used below a thousandth of the mean
        values, vectors = torch.linalg.eigh(spread)
        values = values.clamp(min=1e-3 * float(values.mean())).rsqrt()
        directions = directions @ ((vectors * values) @ vectors.T)
        directions = torch.nn.functional.normalize(directions)
    return directions


@torch.no_grad()
def write_index(model: DSIModel, directions_VD: Tensor, weights_V: np.ndarray) -> None:
    """Make a from-scratch model's state before the first code the unit vector of sum_t w_t g_t.

    ``directions_VD`` (V, D - 2): unit vectors. Of the D numbers of a state the first holds log w_t,
    which the cross-attention's softmax turns into weights, and the second what takes the decoder's
    first input away again; neither reaches what is scored. Attention and feed-forward layers keep
    random first weights and get outputs of zero, so that they add nothing until they are trained.
    """
    width = model.config.d_model
    inner = model.config.d_kv * model.config.num_heads
    assert directions_VD.shape[1] == width - 2 and inner == width
    for stack in (model.encoder, model.decoder):
        for block in cast(Any, stack.block):
            for layer in block.layer:
                _output_of(layer).weight.zero_()
    _write_embedding(model, directions_VD, weights_V)
    model.docids.start.zero_()
    model.docids.start[1] = START * width**0.5
    if len(model.code_sizes) > 1:
        model.docids.inputs[:] = model.docids.start
    attention = cast(Any, model.decoder.block[0]).layer[1].EncDecAttention
    heads, head_width = attention.n_heads, attention.key_value_proj_dim
    q_HAD, k_HAD = (
        projection.weight.view(heads, head_width, width)
        for projection in (attention.q, attention.k)
    )
    # the normed decoder input is sqrt(D) in its second number, but for the norm's epsilon: 1 in
    # every head's first query number
    q_HAD[:, :, 1] = 0.0
    q_HAD[:, 0] = 0.0
    q_HAD[:, 0, 1] = width**-0.5 / _shrunk(model, START)
    k_HAD[:, 0] = 0.0
    k_HAD[:, 0, 0] = 1.0
    passed = torch.eye(width).to(attention.v.weight)
    passed[0] = 0.0
    attention.v.weight.copy_(passed)
    # every token's second number is the same, and the weights of a softmax sum to 1
    std = float(model.config.embedding_std)
    passed[1, 1] = -START * width**0.5 / _shrunk(model, std)
    attention.o.weight.copy_(passed)


def _write_embedding(model: DSIModel, directions_VD: Tensor, weights_V: np.ndarray) -> None:
    """Rows of one length, whose normed first number c_t makes exp(c_t) |rest| proportional to w_t:
    the less is left for the direction, the more its weight must make up for it. The second is 1."""
    width = model.config.d_model
    embedding = model.encoder.embed_tokens.weight
    logs = np.log(weights_V.astype(np.float64))
    wanted = logs - logs.mean()
    std = float(model.config.embedding_std)
    shrunk = _shrunk(model, std)
    number = np.clip(wanted / shrunk, -(width**0.5) / 2, width**0.5 / 2)
    for _ in range(50):  # a contraction: the correction is small and changes slowly
        number = (wanted - 0.5 * np.log(1 - (1 + number**2) / width)) / shrunk
        number = np.clip(number, -(width**0.5) / 2, width**0.5 / 2)
    rows = torch.zeros(len(directions_VD), width, dtype=torch.float64)
    rows[:, 0] = torch.from_numpy(number)
    rows[:, 1] = 1.0
    rows[:, 2:] = directions_VD.double() * (width - 1 - rows[:, :1].square()).sqrt()
    embedding[: len(rows)] = (std * rows).to(embedding)


def _shrunk(model: DSIModel, spread: float) -> float:
    """What T5's norm makes of the size 1 of a vector whose numbers have this root mean square."""
    return (1 + model.config.layer_norm_epsilon / spread**2) ** -0.5


def _output_of(layer: Any) -> Any:
    """The last projection of a layer of a block."""
    for name in ("SelfAttention", "EncDecAttention"):
        if hasattr(layer, name):
            return getattr(layer, name).o
    return layer.DenseReluDense.wo


@torch.no_grad()
def token_states(model: DSIModel, vocabulary: int) -> np.ndarray:
    """The model's state for a query of each token alone, as unit vectors (V, D)."""
    inference, found = Inference(model), []
    for start in range(0, vocabulary, AT_ONCE):
        ids = torch.arange(start, min(start + AT_ONCE, vocabulary), device=inference.device)
        found.append(inference.query_states(ids[:, None], torch.ones_like(ids)[:, None]).cpu())
    states = torch.cat(found)
    return (states / states.norm(dim=1, keepdim=True)).numpy()


def document_vectors(weights_NV: sparse.csr_matrix, states_VD: np.ndarray, norm: float) -> Tensor:
    """Rows (N, D): r / |r|^norm for r = the weighted sum of a document's token states.

    ``norm`` 0: as BM25 leaves it, long documents have long rows; 1: unit vectors.
    """
    found = [np.zeros((0, states_VD.shape[1]), states_VD.dtype)]  # of a stage that only removes
    for start in range(0, cast(Any, weights_NV).shape[0], AT_ONCE):
        sums = weights_NV[start : start + AT_ONCE] @ states_VD
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found.append(sums / np.maximum(lengths, 1e-12) ** norm)
    return torch.from_numpy(np.concatenate(found))


def fitted_scale(scores_QN: Tensor, answers: Tensor) -> float:
    """The factor on scores at which the cross-entropy of ``answers`` (Q,) is least; 1 where all
    documents score the same, or there is only one."""
    spread = float(scores_QN.std(1).mean()) if scores_QN.shape[1] > 1 else 0.0
    if spread <= 1e-6 * float(scores_QN.abs().mean()):
        return 1.0
    factors = torch.logspace(-1.5, 2, 71, dtype=torch.float64) / spread
    losses = [
        float(torch.nn.functional.cross_entropy(scores_QN * float(factor), answers))
        for factor in factors
    ]
    return float(factors[int(np.argmin(losses))])


def _sums(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.sum(0), np.float64).ravel()
