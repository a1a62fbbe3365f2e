"""From a query to ranked documents. Atomic docids: one decoding step and a chunked top-k. Docids of
several codes: beam search over the trie of the valid ones.

Shape legend: B queries, D width, N documents, K beams or results, T docid length, C codes of a
position, W candidates of a query in one step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dsi.model.docid_loss import at_least_float32
from dsi.search.forward import EncodedQueries, Inference
from dsi.search.trie import Trie

CHUNK = 65_536  # rows scored at once: B x CHUNK floats, 64 MB for 256 queries


@torch.no_grad()
def rank_rows(
    hidden_BD: Tensor,
    rows_ND: Tensor,
    k: int,
    chunk: int = CHUNK,
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best rows per query by inner product: log-probabilities and row numbers (B, K).

    Rows are scored ``chunk`` at a time, so the score matrix never is N wide; in float32, whatever
    the states and rows are in. Equal scores are ordered by row number; with fewer than k (at least
    1) rows, all of them. ``among``: bool (N,), the rows that may be found; the others still count
    in the probabilities.
    """
    count = len(rows_ND)
    k = min(k, count if among is None else int(among.sum()))
    hidden_BD = hidden_BD.to(at_least_float32(hidden_BD))
    scores, numbers, total = [], [], []
    for start in range(0, count, chunk):
        part = (hidden_BD @ rows_ND[start : start + chunk].to(hidden_BD.dtype).T).float()
        total.append(part.logsumexp(1))
        if among is not None:
            part = part.masked_fill(~among[start : start + chunk], -torch.inf)
        best, where = _top(part, min(k, part.shape[1]))
        scores.append(best)
        numbers.append(where + start)
    score, number = torch.cat(scores, 1), torch.cat(numbers, 1)
    # rank by (-score, number): topk promises no order among equal scores
    by_number = number.argsort(dim=1)
    score, number = score.gather(1, by_number), number.gather(1, by_number)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :k]
    normaliser = torch.stack(total).logsumexp(0)
    return score.gather(1, order) - normaliser[:, None], number.gather(1, order)


def _top(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores per row and their columns, in any order; of equals the first columns."""
    best, where = scores_BC.topk(k, dim=1)
    last = best[:, -1:]
    # topk keeps any of the scores that equal the k-th: mend the rows where there are too many
    crowded = ((scores_BC >= last).sum(1) > k).nonzero()[:, 0]
    if len(crowded):
        scores, last = scores_BC[crowded], last[crowded]
        above, equal = scores > last, scores == last
        room = k - above.sum(1, keepdim=True)
        kept = above | (equal & (equal.cumsum(1) <= room))
        where[crowded] = kept.nonzero()[:, 1].view(len(crowded), k)
        best = scores_BC.gather(1, where)
    return best, where


@dataclass
class Found:
    """The best docids of each query, best first.

    ``documents`` int64 (B, K): document numbers, -1 where there are no more results and where a
    docid is invalid (unconstrained search alone); ``scores`` float32 (B, K): natural-log
    probabilities, divided by length^penalty if asked, -inf where there are no more results;
    ``codes`` (B, K, T): the docids themselves, for unconstrained search.
    """

    documents: Tensor
    scores: Tensor
    codes: Tensor | None = None

    @property
    def invalid(self) -> int:
        """Results that are no document's docid."""
        return int(((self.documents < 0) & self.scores.isfinite()).sum())

    @property
    def repeats(self) -> int:
        """Results that name a document which the same query has found before."""
        ordered = self.documents.sort(dim=1).values
        return int(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).sum())


@torch.inference_mode()
def beam_search(
    inference: Inference,
    trie: Trie,
    input_ids: Tensor,
    attention_mask: Tensor,
    beams: int,
    length_penalty: float = 0.0,
    encoded: EncodedQueries | None = None,
) -> Found:
    """The docids of ``trie`` that beam search finds for queries (B, L), K = ``beams``.

    A docid's score is the sum of its codes' log-probabilities, each over all codes of its position
    (of the model, also of those that the trie does not allow). With ``length_penalty`` p it is
    divided by length^p. The rules are those of transformers' ``generate`` with ``length_penalty=p``
    and ``early_stopping="never"``: of the K best continuations of a step those that end a docid are
    results, and the K best that do not end one go on. Equal scores are ordered by docid, shorter
    ones first, then code by code. Fewer than K documents: all of them, -1 behind. ``encoded``: the
    queries encoded before.
    """
    if beams < 1:
        raise ValueError(f"beams: must be at least 1, got {beams}")
    batch, device, depth = len(input_ids), input_ids.device, len(trie.fan_out)
    beams = max(1, min(beams, len(trie)))
    pool = _Pool(batch, beams, device, length_penalty)
    encoded = encoded or inference.encode(input_ids, attention_mask)
    past = inference.past(batch, beams, depth)
    nodes_BK = torch.zeros(batch, 1, dtype=torch.long, device=device)
    scores_BK = torch.zeros(batch, 1, device=device)
    codes_BK = None
    for position in range(depth if len(trie) else 0):
        hidden = inference.step(codes_BK, encoded, past)
        log_BKC = inference.logits(hidden, position).float().log_softmax(-1)
        # the children of every beam's node, in rows as wide as the widest node of this depth
        width = trie.fan_out[position]
        children, codes, allowed = trie.candidates(nodes_BK, width)
        scores = scores_BK[..., None] + log_BKC.gather(2, codes)
        scores = scores.masked_fill(~allowed, -torch.inf).flatten(1)
        children, codes = children.flatten(1), codes.flatten(1)
        ends = trie.is_leaf(children) if trie.ends[position] else None
        kept = pool.take(scores, children, ends, position + 1)
        if kept is None:
            break
        scores_BK, chosen_BK = kept
        # a beam that nothing is left for stands on a leaf, so it has no candidates either
        nodes_BK = children.gather(1, chosen_BK)
        nodes_BK = torch.where(scores_BK == -torch.inf, trie.leaves[0].long(), nodes_BK)
        codes_BK = codes.gather(1, chosen_BK)
        past.choose(chosen_BK // width)
    numbers = trie.documents_of(pool.tags.clamp(min=0))
    return Found(numbers.masked_fill(pool.scores == -torch.inf, -1), pool.scores)


@torch.inference_mode()
def unconstrained_search(
    inference: Inference,
    trie: Trie,
    input_ids: Tensor,
    attention_mask: Tensor,
    beams: int,
    encoded: EncodedQueries | None = None,
) -> Found:
    """The same search over all code sequences: what the model writes when nothing holds it.

    A sequence ends with a code that ends some docid at its position, or at the last position. What
    is no docid of ``trie`` is reported with document -1.
    """
    # as long as the model writes: a trie without its longest docids is shorter
    batch, device, depth = len(input_ids), input_ids.device, len(inference.code_sizes)
    pool = _Pool(batch, beams, device, 0.0)
    encoded = encoded or inference.encode(input_ids, attention_mask)
    past = inference.past(batch, beams, depth)
    scores_BK, codes_BK = torch.zeros(batch, 1, device=device), None
    written_BKT = torch.full((batch, 1, depth), -1, device=device)
    results_BKT = torch.full((batch, beams, depth), -1, device=device)
    for position in range(depth):
        hidden = inference.step(codes_BK, encoded, past)
        log_BKC = inference.logits(hidden, position).float().log_softmax(-1)
        size = log_BKC.shape[-1]
        scores = (scores_BK[..., None] + log_BKC).flatten(1)
        ends_C = trie.end_codes(position, size).to(device)
        if position + 1 == depth:
            ends_C = torch.ones_like(ends_C)
        ends = ends_C.repeat(scores.shape[1] // size).expand_as(scores)
        # results are told apart by where they come from: 1 + beam x codes + code, 0 = held before
        tags = 1 + torch.arange(scores.shape[1], device=device).expand_as(scores)
        pool.tags = torch.arange(1 - beams, 1, device=device).expand(batch, beams)
        kept = pool.take(scores, tags, ends, position + 1)
        fresh = pool.tags > 0
        origin = (pool.tags - 1).clamp(min=0)
        new = _gather_rows(written_BKT, origin // size)
        new[:, :, position] = origin % size
        old = _gather_rows(results_BKT, (pool.tags + beams - 1).clamp(max=beams - 1))
        results_BKT = torch.where(fresh[..., None], new, old)
        if kept is None:
            break
        scores_BK, chosen_BK = kept
        written_BKT = _gather_rows(written_BKT, chosen_BK // size)
        codes_BK = chosen_BK % size
        written_BKT[:, :, position] = codes_BK
        past.choose(chosen_BK // size)
    gone = pool.scores == -torch.inf
    results_BKT = results_BKT.masked_fill(gone[..., None], -1)
    numbers = torch.as_tensor(trie.find(results_BKT.flatten(0, 1))).view(batch, beams)
    return Found(numbers.masked_fill(gone, -1), pool.scores, results_BKT)


class _Pool:
    """The K best docids that have ended so far, best first; ``tags`` say which."""

    def __init__(self, batch: int, beams: int, device: torch.device, length_penalty: float):
        self.beams, self.penalty = beams, length_penalty
        self.tags = torch.full((batch, beams), -1, device=device)
        self.scores = torch.full((batch, beams), -torch.inf, device=device)

    def take(
        self, scores_BW: Tensor, tags_BW: Tensor, ends_BW: Tensor | None, length: int
    ) -> tuple[Tensor, Tensor] | None:
        """Keep the candidates that end; scores (B, K) and columns (B, K) of those that go on.

        None: nothing that goes on can be among the results. Columns past the candidates (there are
        fewer than K) have the score -inf.
        """
        best = _best(scores_BW, tags_BW, self.beams)
        if ends_BW is None:
            return _pick(scores_BW, best, self.beams)
        ended = scores_BW.gather(1, best).masked_fill(~ends_BW.gather(1, best), -torch.inf)
        scores = torch.cat([self.scores, ended / length**self.penalty], 1)
        tags = torch.cat([self.tags, tags_BW.gather(1, best)], 1)
        order = _best(scores, tags, self.beams)
        self.scores, self.tags = scores.gather(1, order), tags.gather(1, order)
        going = scores_BW.masked_fill(ends_BW, -torch.inf)
        kept = _pick(going, _best(going, tags_BW, self.beams), self.beams)
        # scores only fall; only a length penalty can lift a longer docid above a shorter one
        hopeless = kept[0][:, 0] <= (self.scores[:, -1] if self.penalty == 0 else -torch.inf)
        return None if bool(hopeless.all()) else kept


def _best(scores_BW: Tensor, tags_BW: Tensor, k: int) -> Tensor:
    """Columns of the k best, best first; equal scores by tag (topk alone promises no order)."""
    k = min(k, scores_BW.shape[1])
    if scores_BW.is_cuda:  # no look at the values, so nothing waits for the device
        return _keys(scores_BW, tags_BW).topk(k, dim=1).indices
    best, where = scores_BW.topk(k, dim=1)
    last = best[:, -1:]
    crowded = ((scores_BW >= last) & (last > -torch.inf)).sum(1) > k
    if bool(crowded.any()):  # topk took any of those that equal the k-th
        keys = _keys(scores_BW[crowded], tags_BW[crowded])
        where[crowded] = keys.topk(k, dim=1).indices
        best = scores_BW.gather(1, where)
    order = _keys(best, tags_BW.gather(1, where)).argsort(dim=1, descending=True)
    return where.gather(1, order)


def _keys(scores_BW: Tensor, tags_BW: Tensor) -> Tensor:
    """One integer for both: the bits of the float, made ascending, above 2^31 - tag."""
    bits = scores_BW.contiguous().view(torch.int32).long()
    ascending = torch.where(bits < 0, -(2**31) - bits, bits)
    return ascending * 2**32 + (2**31 - tags_BW)


def _pick(scores_BW: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores (B, k) and columns (B, k); what is missing has the score -inf and column 0."""
    scores = scores_BW.gather(1, columns)
    missing = k - columns.shape[1]
    return pad(scores, (0, missing), value=-torch.inf), pad(columns, (0, missing))


def _gather_rows(values_BKT: Tensor, rows_BK: Tensor) -> Tensor:
    return values_BKT.gather(1, rows_BK[..., None].expand(-1, -1, values_BKT.shape[2]))
