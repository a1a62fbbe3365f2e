"""The loss of a docid position: cross-entropy over its codes, exact or from a sample of them.

Shape legend: B batch, D width, N codes (atomic: documents), S samples, K = B + S candidates.
"""

from typing import Any

import torch
from torch import Tensor, nn

MOST_AT_ONCE = 2**23
"""Scores (B * N) up to which all are made at once. Pieces take 1.2 times as long at 16k codes as at
100k, and save memory only where three copies of the scores (100 MB from here on) are more than the
rest of the model's gradients, which are made later and take their place."""
PIECE = 8192
"""Codes of a piece. Of 2k to 16k, 8k and 16k take least time."""


def docid_loss(
    hidden_BD: Tensor,
    rows_ND: Tensor,
    codes_B: Tensor,
    label_smoothing: float = 0.0,
    samples: int = 0,
    sparse: bool = False,
) -> Tensor:
    """Cross-entropy (B,) of codes; 0 where a code is -1.

    Exact, in pieces above ``MOST_AT_ONCE`` scores; or with ``samples`` > 0 :func:`sampled_loss`.
    """
    if samples:
        return sampled_loss(hidden_BD, rows_ND, codes_B, label_smoothing, samples, sparse)
    if len(hidden_BD) * len(rows_ND) > MOST_AT_ONCE:
        return exact_loss(hidden_BD, rows_ND, codes_B, label_smoothing)
    return loss_of_scores(hidden_BD @ rows_ND.T, codes_B, label_smoothing)


def loss_of_scores(scores_BN: Tensor, codes_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The same from the whole scores, in at least float32."""
    return nn.functional.cross_entropy(
        scores_BN.to(at_least_float32(scores_BN)),
        codes_B,
        reduction="none",
        ignore_index=-1,
        label_smoothing=label_smoothing,
    )


def exact_loss(
    hidden_BD: Tensor,
    rows_ND: Tensor,
    codes_B: Tensor,
    label_smoothing: float = 0.0,
    piece: int = PIECE,
) -> Tensor:
    """The exact loss, of which no more than (B, ``piece``) scores exist at a time.

    The backward pass makes each piece's scores again: one matrix product more, B * N numbers fewer.
    Matrix products are in autocast's dtype, sums in float32. A second derivative is right, but made
    from the whole scores.
    """
    device = hidden_BD.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return _Pieces.apply(hidden_BD, rows_ND, codes_B, label_smoothing, piece, narrow)  # type: ignore[return-value]


class _Pieces(torch.autograd.Function):
    # scores with codes as rows: with few examples the product is 1.2 times as fast that way round

    @staticmethod
    def forward(
        ctx: Any,
        hidden_BD: Tensor,
        rows_ND: Tensor,
        codes_B: Tensor,
        label_smoothing: float,
        piece: int,
        narrow: torch.dtype | None,
    ) -> Tensor:
        wide, count = at_least_float32(hidden_BD), len(rows_ND)
        total = hidden_BD.new_full((len(hidden_BD),), -torch.inf, dtype=wide)
        own, sums = torch.zeros_like(total), torch.zeros_like(total)
        with torch.autocast(hidden_BD.device.type, enabled=False):
            read_DB = hidden_BD.to(narrow or hidden_BD.dtype).T.contiguous()
            for start in range(0, count, piece):
                scores_CB = (rows_ND[start : start + piece].to(read_DB.dtype) @ read_DB).to(wide)
                total = torch.logaddexp(total, scores_CB.logsumexp(0))
                place, inside = _in_piece(codes_B, start, len(scores_CB))
                own = torch.where(inside, scores_CB.gather(0, place)[0], own)
                if label_smoothing:
                    sums += scores_CB.sum(0)
        losses = total - (1 - label_smoothing) * own - label_smoothing / count * sums
        ctx.save_for_backward(hidden_BD, rows_ND, codes_B, total)
        ctx.settings = label_smoothing, piece, narrow
        return losses.masked_fill(codes_B < 0, 0.0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden_BD, rows_ND, codes_B, total = ctx.saved_tensors
        label_smoothing, piece, narrow = ctx.settings
        if torch.is_grad_enabled():  # to be differentiated once more
            return _differentiable(hidden_BD, rows_ND, codes_B, slopes[0], label_smoothing, narrow)
        wide, count = total.dtype, len(rows_ND)
        slope_B = slopes[0].to(wide).masked_fill(codes_B < 0, 0.0)
        of_hidden = torch.zeros_like(hidden_BD, dtype=wide) if ctx.needs_input_grad[0] else None
        of_rows = torch.empty_like(rows_ND) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden_BD.device.type, enabled=False):
            read_BD = hidden_BD.to(narrow or hidden_BD.dtype)
            read_DB = read_BD.T.contiguous()
            for start in range(0, count, piece):
                rows = rows_ND[start : start + piece].to(read_BD.dtype)
                scores_CB = (rows @ read_DB).to(wide)
                scores_CB.sub_(total).exp_()
                if label_smoothing:
                    scores_CB -= label_smoothing / count
                place, inside = _in_piece(codes_B, start, len(rows))
                scores_CB.scatter_add_(0, place, inside.to(wide)[None] * (label_smoothing - 1))
                slope_CB = scores_CB.mul_(slope_B).to(read_BD.dtype)
                if of_hidden is not None:
                    of_hidden += slope_CB.T @ rows
                if of_rows is not None:
                    _product_into(of_rows[start : start + piece], slope_CB, read_BD)
        found = None if of_hidden is None else of_hidden.to(hidden_BD.dtype)
        return found, of_rows, None, None, None, None


def _product_into(target: Tensor, ours: Tensor, theirs: Tensor) -> None:
    if target.dtype is ours.dtype:
        torch.mm(ours, theirs, out=target)
    else:
        target.copy_(ours @ theirs)


def _in_piece(codes_B: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Where codes lie in a piece, (1, B), and whether they do, (B,)."""
    here = codes_B - start
    return here.clamp(0, size - 1)[None], (here >= 0) & (here < size)


def _differentiable(
    hidden_BD: Tensor,
    rows_ND: Tensor,
    codes_B: Tensor,
    slope_B: Tensor,
    label_smoothing: float,
    narrow: torch.dtype | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of :class:`_Pieces` with a graph of their own, from the whole scores."""
    with torch.autocast(hidden_BD.device.type, dtype=narrow, enabled=narrow is not None):
        losses = loss_of_scores(hidden_BD @ rows_ND.T, codes_B, label_smoothing)
    asked = [t for t in (hidden_BD, rows_ND) if t.requires_grad]
    made = iter(torch.autograd.grad(losses, asked, slope_B, create_graph=True))
    both = [next(made) if t.requires_grad else None for t in (hidden_BD, rows_ND)]
    return *both, None, None, None, None


def sampled_loss(
    hidden_BD: Tensor,
    rows_ND: Tensor,
    codes_B: Tensor,
    label_smoothing: float,
    samples: int,
    sparse: bool = False,
) -> Tensor:
    """The loss with the sum over all codes estimated from the batch's own and ``samples`` others.

    The batch's codes count as they are; of the others one is drawn from each of S strata of
    neighbours, and stands for its stratum: its score is less the logarithm of the probability that
    it is drawn, so the estimated sum is right on average (importance sampling: Bengio and Senecal,
    AISTATS 2003; the correction of scores: Jean et al., ACL 2015). Draws that are in the batch are
    left out. Not log-uniform, as for words: docids are numbered by arrival, not by frequency. With
    ``samples`` >= N this is the exact loss.

    Draws from torch's global generator, which training seeds for every pass. ``sparse``: the
    gradient of the rows is a sparse tensor, of candidates alone.
    """
    drawn, strata = draw(len(rows_ND), samples, rows_ND.device)
    ordered = codes_B.sort().values.contiguous()
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    place = torch.searchsorted(ordered, drawn).clamp(max=len(ordered) - 1)
    known = ordered[place] == drawn
    candidates = torch.cat([ordered.clamp(min=0), drawn])
    used = torch.cat([first & (ordered >= 0), ~known])
    rows_KD = nn.functional.embedding(candidates, rows_ND, sparse=sparse)
    scores_BK = hidden_BD @ rows_KD.T
    scores_BK = scores_BK.to(at_least_float32(scores_BK))
    weight = torch.cat([torch.ones_like(ordered), strata]).to(scores_BK.dtype)
    total = (scores_BK + weight.log()).masked_fill(~used, -torch.inf).logsumexp(1)
    own = scores_BK.gather(1, torch.searchsorted(ordered, codes_B)[:, None])[:, 0]
    losses = total - (1 - label_smoothing) * own
    if label_smoothing:
        losses = losses - label_smoothing / len(rows_ND) * (scores_BK * (weight * used)).sum(1)
    return losses.masked_fill(codes_B < 0, 0.0)


def draw(count: int, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One of each of ``samples`` strata of 0 .. ``count`` - 1, and the size of its stratum.

    All are different, without a permutation of all codes. Where strata begin is drawn as well, so
    that neighbours are not always apart.
    """
    samples = min(samples, count)
    edges = torch.arange(samples + 1, device=device) * count // samples
    sizes = edges[1:] - edges[:-1]
    numbers = torch.randint(1 << 62, (samples + 1,), device=device)
    return (edges[:-1] + numbers[1:] % sizes + numbers[0] % count) % count, sizes


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """What sums over codes are made in."""
    return torch.promote_types(tensor.dtype, torch.float32)
