"""Samples several texts per document from a T5 decoder, with random numbers given per document.

The document is encoded once and its cross-attention keys are kept once, however many samples are
drawn from it; samples that are finished leave the batch.

Shapes: D documents, S samples per document, R samples still being written (R <= D*S), L source
length, T tokens, H heads, E width of a head, C model width, V vocabulary, K candidates, P rows of
one matrix of logits, G groups of N values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dsi.errors import UserError
from dsi.queries.copy_bias import Copying
from dsi.search.forward import EncodedTexts, Stacks, attention
from dsi.settings import Settings

FULL = 0.75  # rows and documents are dropped when fewer than this share is left
GROUPS = 256
LOGITS = (2**22, 2**28)  # floats at once, on a processor and on a GPU


@dataclass(frozen=True)
class DecodingConfig(Settings):
    """How the next token is chosen. Default: top-k 10 as DSI-QG (Zhuang et al. 2022)."""

    top_k: Annotated[int, Ge(0)] = 10
    """Choose among the k most probable tokens; 0: among all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Choose among the fewest most probable tokens that hold this mass (nucleus; Holtzman 2020)."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the logits; GenRet samples with 0.8."""
    greedy: bool = False
    """Always the most probable token: one text per document; the other settings must be default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.greedy and (self.top_k, self.top_p, self.temperature) != (10, 1.0, 1.0):
            raise UserError("greedy: ignores top_k, top_p and temperature; leave them out")


def candidates(logits_RV: Tensor, sampling: DecodingConfig) -> tuple[Tensor, Tensor]:
    """The tokens that may come next and their probabilities: ids (R, K), float64 (R, K), sum 1.

    Filters in the order of Hugging Face's ``generate``: temperature, top-k, top-p; a dropped token
    has probability 0. Candidates are ordered by id, not by probability, so that two nearly equal
    logits cannot swap places between two batches.
    """
    if sampling.greedy:
        ids_RK = logits_RV.argmax(-1, keepdim=True)
        return ids_RK, torch.ones_like(ids_RK, dtype=torch.float64)
    vocabulary = logits_RV.shape[-1]
    kept = min(sampling.top_k or vocabulary, vocabulary)
    if kept == vocabulary and sampling.top_p == 1.0:
        ids_RK = torch.arange(vocabulary, device=logits_RV.device).expand_as(logits_RV)
        return ids_RK, torch.softmax(logits_RV.double() / sampling.temperature, -1)
    best_RK, ids_RK = largest(logits_RV, kept)
    p_RK = torch.softmax(best_RK.double() / sampling.temperature, -1)
    if sampling.top_p < 1.0:
        before_RK = p_RK.cumsum(-1) - p_RK
        outside_RK = before_RK >= sampling.top_p
        outside_RK[:, 0] = False
        p_RK = p_RK.masked_fill(outside_RK, 0.0)
        p_RK = p_RK / p_RK.sum(-1, keepdim=True)
    ids_RK, order_RK = ids_RK.sort(-1)
    return ids_RK, p_RK.gather(-1, order_RK)


def largest(values_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of a row and their places, best first.

    On a processor ``topk`` of a wide row is slow. The k largest lie in the k groups with the
    largest maxima, so only those are searched; group g is every GROUPS-th value from the g-th.
    """
    width = values_RV.shape[1]
    if values_RV.is_cuda or width < 4 * GROUPS or k > GROUPS // 8:
        return values_RV.topk(k, dim=-1)
    whole = width - width % GROUPS
    groups_RNG = values_RV[:, :whole].unflatten(1, (-1, GROUPS))
    group_RK = groups_RNG.amax(1).topk(k, dim=-1).indices
    index_RNK = group_RK[:, None].expand(-1, groups_RNG.shape[1], -1)
    some = torch.cat([groups_RNG.gather(2, index_RNK).flatten(1), values_RV[:, whole:]], 1)
    best_RK, place_RK = some.topk(k, dim=-1)
    inside = whole // GROUPS * k  # behind these, the values of no group
    place_in_RK = place_RK.clamp(max=inside - 1)
    found_RK = place_in_RK // k * GROUPS + group_RK.gather(1, place_in_RK % k)
    return best_RK, torch.where(place_RK < inside, found_RK, place_RK - inside + whole)


def draw(ids_RK: Tensor, p_RK: Tensor, uniform_R: Tensor) -> Tensor:
    """One token per row by inverting the cumulative distribution at a uniform number in [0, 1)."""
    cdf_RK = p_RK.cumsum(-1)
    target_R1 = (uniform_R * cdf_RK[:, -1]).unsqueeze(-1)
    position_R1 = (cdf_RK <= target_R1).sum(-1, keepdim=True).clamp(max=ids_RK.shape[-1] - 1)
    return ids_RK.gather(-1, position_R1).squeeze(-1)


class Writer(Stacks):
    """The weights of a T5 or mT5 of ``transformers`` made ready to write texts."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.head: Callable[[Tensor], Tensor] = model.lm_head
        is_scaled = getattr(model.config, "scale_decoder_outputs", False)
        self.scale = model.config.d_model**-0.5 if is_scaled else None  # original t5-* alone


class CachedDecoder:
    """The decoder of a T5 one token at a time, S samples per document.

    Keeps keys and values laid out once for the longest text: those of ``transformers`` grow with
    every token and hold the cross-attention keys once per sample, which for 10 samples is ten times
    the memory.

    Rows stay in the order of their documents. Cross-attention sees them as a grid, documents x the
    most rows that one of them has left, with keys and values once per document.
    """

    def __init__(self, writer: Writer, encoded: EncodedTexts, samples: int, length: int):
        self.writer, self.samples, self.time = writer, samples, 0
        documents, device = len(encoded.states), encoded.states.device
        rows = documents * samples
        self.row_R = torch.arange(rows, device=device)
        self.grid, self.owner_R = (documents, samples), self.row_R // samples
        self.place_R: Tensor | None = None  # of a row in the grid; None: every place is taken
        self.cross = [encoded.keys_and_values(layer) for layer in range(len(writer.decoder))]
        self.mask_D11L, self.bias_HTT = encoded.bias, writer.position_bias(length)
        shape = (rows, writer.self_heads, length, writer.head_width)
        empty = encoded.states.new_empty
        self.past = [(empty(shape), empty(shape)) for _ in writer.decoder]

    def step(self, token_R: Tensor) -> Tensor:
        """States (R, C) after ``token_R``, ready for the head, of the rows that are left."""
        h_R1C = self.writer.embedding[token_R][:, None]
        h_RC = self.writer.decode(h_R1C, self, self)[:, 0]
        self.time += 1
        return h_RC if self.writer.scale is None else h_RC * self.writer.scale

    @property
    def document_R(self) -> Tensor:
        """Whose text a row is."""
        return self.row_R // self.samples

    def keep(self, alive_R: Tensor) -> None:
        """Goes on with the rows where ``alive_R`` is true."""
        index, t = alive_R.nonzero().squeeze(-1), self.time
        left = len(index)
        self.row_R, self.owner_R = self.row_R[index], self.owner_R[index]
        for k, v in self.past:
            k[:left, :, :t], v[:left, :, :t] = k[index, :, :t], v[index, :, :t]
        self.past = [(k[:left], v[:left]) for k, v in self.past]
        counts_D = self.owner_R.bincount(minlength=self.grid[0])
        held_D = counts_D > 0
        if int(held_D.sum()) < FULL * self.grid[0]:  # whole documents are finished
            self.cross = [(k[held_D], v[held_D]) for k, v in self.cross]
            self.mask_D11L = self.mask_D11L[held_D]
            self.owner_R = (held_D.cumsum(0) - 1)[self.owner_R]
            counts_D = counts_D[held_D]
        self.grid = (len(counts_D), int(counts_D.max()))
        before_D = counts_D.cumsum(0) - counts_D
        rank_R = torch.arange(left, device=index.device) - before_D[self.owner_R]
        self.place_R = self.owner_R * self.grid[1] + rank_R

    def extend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`dsi.search.forward.Cache`; a row is a text of its own, (R, H, 1, E)."""
        (keys, values), t = self.past[layer], self.time
        keys[:, :, t], values[:, :, t] = k[:, :, 0], v[:, :, 0]
        bias_HT = self.bias_HTT[:, t, : t + 1]
        return attention(q, keys[:, :, : t + 1], values[:, :, : t + 1], bias_HT[None, :, None])

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """See :class:`dsi.search.forward.Reading`."""
        keys_DHLE, values_DHLE = self.cross[layer]
        documents, samples = self.grid
        rows, heads, _, width = q.shape
        flat = q.reshape(rows, heads * width)
        if self.place_R is not None:  # empty places as zeros
            flat = flat.new_zeros(documents * samples, flat.shape[1])
            flat = flat.index_copy_(0, self.place_R, q.reshape(rows, heads * width))
        q_DHSE = flat.view(documents, samples, heads, width).transpose(1, 2)
        out = attention(q_DHSE, keys_DHLE, values_DHLE, self.mask_D11L).transpose(1, 2)
        out = out.reshape(documents * samples, heads, 1, width)
        return out if self.place_R is None else out[self.place_R]


@torch.inference_mode()
def sample_tokens(
    writer: Writer,
    input_DL: Tensor,
    mask_DL: Tensor,
    uniform_DST: Tensor,
    sampling: DecodingConfig,
    *,
    forbidden_V: Tensor,
    start: int,
    end: int,
    copying: Copying | None = None,
) -> list[list[list[int]]]:
    """Token ids of S texts for each of D documents, without the end token, at most T each.

    uniform_DST: numbers in [0, 1), float64, one per document, sample and step; the only randomness.
    forbidden_V: true for tokens that are never chosen; ``end`` is never the first token.
    copying: what the documents add to the logits.
    """
    documents, samples, length = uniform_DST.shape
    device = input_DL.device
    decoder = CachedDecoder(writer, writer.encode(input_DL, mask_DL), samples, length)
    uniform_RT = uniform_DST.reshape(documents * samples, length).to(device)
    written_RT = torch.full((documents * samples, length), end, device=device)
    token_R = torch.full((documents * samples,), start, device=device)
    alive_R = torch.ones_like(token_R, dtype=torch.bool)
    never = forbidden_V.nonzero().squeeze(-1)
    never_first = torch.cat([never, never.new_tensor([end])])
    part = max(1, LOGITS[device.type == "cuda"] // len(forbidden_V))
    for t in range(length):
        h_RC, document_R, chosen = decoder.step(token_R), decoder.document_R, []
        for low in range(0, len(token_R), part):
            rows = slice(low, low + part)
            logits_PV = writer.head(h_RC[rows]).float()
            if copying is not None:
                copying.add(logits_PV, document_R[rows], token_R[rows])
            logits_PV[:, never if t else never_first] = -torch.inf
            uniform_P = uniform_RT[decoder.row_R[rows], t]
            chosen.append(draw(*candidates(logits_PV, sampling), uniform_P))
        token_R = torch.cat(chosen)
        written_RT[decoder.row_R, t] = token_R
        alive_R = alive_R & (token_R != end)
        alive = int(alive_R.sum())
        if alive == 0:
            break
        if alive < FULL * len(alive_R):  # dropping rows copies the caches, so not at every end
            decoder.keep(alive_R)
            token_R, alive_R = token_R[alive_R], alive_R[alive_R]
    rows = [row[: row.index(end)] if end in row else row for row in written_RT.tolist()]
    return [rows[d * samples : (d + 1) * samples] for d in range(documents)]
