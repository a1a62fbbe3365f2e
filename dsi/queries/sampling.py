"""Sampling several texts per document from a T5 decoder, with random numbers of the document.

The document is encoded once and its cross-attention keys are kept once, however many samples are
drawn from it; samples that are finished leave the batch.

Shapes: D documents, S samples per document, R samples still being written (R <= D*S), L source
length, T tokens, H heads, E width of a head, C model width, V vocabulary, K candidates, P rows of
one matrix of logits, G groups of N values.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dsi.errors import UserError
from dsi.queries.copy_bias import Copying
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


class CachedDecoder:
    """The decoder of a T5 one token at a time, S samples per document.

    Reads the weights of ``transformers``' T5 or mT5 blocks but keeps its own caches, laid out once
    for the longest text: theirs grow with every token and hold the cross-attention keys once per
    sample, which for 10 samples is ten times the memory.

    Rows stay in the order of their documents. Cross-attention sees them as a grid, documents x the
    most rows that one of them has left, with keys and values once per document.
    """

    def __init__(self, model, states_DLC: Tensor, mask_DL: Tensor, samples: int, length: int):
        self.model, self.samples, self.time = model, samples, 0
        documents, device = len(states_DLC), states_DLC.device
        rows = documents * samples
        self.row_R = torch.arange(rows, device=device)
        self.grid, self.owner_R = (documents, samples), self.row_R // samples
        self.place_R: Tensor | None = None  # of a row in the grid; None: every place is taken
        self.mask_D11L = torch.zeros(mask_DL.shape, dtype=states_DLC.dtype, device=device)
        self.mask_D11L.masked_fill_(mask_DL == 0, torch.finfo(states_DLC.dtype).min)
        self.mask_D11L = self.mask_D11L[:, None, None]
        self.cross, self.past = [], []
        for block in model.decoder.block:
            attention = block.layer[1].EncDecAttention
            shape = (documents, -1, attention.n_heads, attention.key_value_proj_dim)
            keys, values = (f(states_DLC).view(shape) for f in (attention.k, attention.v))
            # contiguous as the products read them, or every step would copy them
            keys_DHEL = keys.permute(0, 2, 3, 1).contiguous()
            self.cross.append((keys_DHEL, values.transpose(1, 2).contiguous()))
            own = block.layer[0].SelfAttention
            empty = states_DLC.new_empty(rows, own.n_heads, length, own.key_value_proj_dim)
            self.past.append((empty, torch.empty_like(empty)))

    def step(self, token_R: Tensor) -> Tensor:
        """States (R, C) after ``token_R``, ready for the head, of the rows that are left."""
        decoder, config, t = self.model.decoder, self.model.config, self.time
        h_RC = decoder.embed_tokens(token_R)
        first = decoder.block[0].layer[0].SelfAttention
        bias_1H1T = first.compute_bias(1, t + 1, device=h_RC.device, past_seen_tokens=t)
        for block, past, cross in zip(decoder.block, self.past, self.cross, strict=True):
            h_RC = h_RC + self._self_attention(block.layer[0], h_RC, past, bias_1H1T)
            h_RC = h_RC + self._cross_attention(block.layer[1], h_RC, cross)
            h_RC = block.layer[2](h_RC)
        h_RC = decoder.final_layer_norm(h_RC)
        if getattr(config, "scale_decoder_outputs", False):  # original t5-*, not v1.1 nor mT5
            h_RC = h_RC * config.d_model**-0.5
        self.time += 1
        return h_RC

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

    def _self_attention(self, layer, h_RC: Tensor, past, bias_1H1T: Tensor) -> Tensor:
        attention, t = layer.SelfAttention, self.time
        x_RC, rows = layer.layer_norm(h_RC), h_RC.shape[0]
        heads = (rows, attention.n_heads, attention.key_value_proj_dim)
        past[0][:, :, t] = attention.k(x_RC).view(heads)
        past[1][:, :, t] = attention.v(x_RC).view(heads)
        keys, values = past[0][:, :, : t + 1], past[1][:, :, : t + 1]
        q_RH1E = attention.q(x_RC).view(heads).unsqueeze(2)
        weights = torch.softmax(q_RH1E @ keys.transpose(2, 3) + bias_1H1T, -1)
        return attention.o((weights @ values).reshape(rows, -1))

    def _cross_attention(self, layer, h_RC: Tensor, cross) -> Tensor:
        attention, (keys_DHEL, values_DHLE) = layer.EncDecAttention, cross
        documents, samples = self.grid
        _, heads, _, width = values_DHLE.shape
        q = attention.q(layer.layer_norm(h_RC))
        if self.place_R is not None:  # empty places as zeros
            q = q.new_zeros(documents * samples, q.shape[1]).index_copy_(0, self.place_R, q)
        q_DHSE = q.view(documents, samples, heads, width).transpose(1, 2)
        weights_DHSL = torch.softmax(q_DHSE @ keys_DHEL + self.mask_D11L, -1)
        out = (weights_DHSL @ values_DHLE).transpose(1, 2).reshape(documents * samples, -1)
        return attention.o(out if self.place_R is None else out[self.place_R])


@torch.inference_mode()
def sample_tokens(
    model,
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
    states_DLC = model.encoder(input_ids=input_DL, attention_mask=mask_DL).last_hidden_state
    decoder = CachedDecoder(model, states_DLC, mask_DL, samples, length)
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
            logits_PV = model.lm_head(h_RC[rows]).float()
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
