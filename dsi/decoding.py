"""From a query to ranked documents. Atomic docids: one decoding step and a chunked top-k.

Shape legend: B queries, D width, N documents, K results.
"""

import torch
from torch import Tensor

CHUNK = 65_536  # rows scored at once: B x CHUNK floats, 64 MB for 256 queries


@torch.no_grad()
def rank_rows(
    hidden_BD: Tensor, rows_ND: Tensor, k: int, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The k best rows per query by inner product: log-probabilities and row numbers (B, K).

    Rows are scored ``chunk`` at a time, so the score matrix never is N wide. Equal scores are
    ordered by row number; with fewer than k (at least 1) rows, all of them.
    """
    count = len(rows_ND)
    k = min(k, count)
    scores, numbers, total = [], [], []
    for start in range(0, count, chunk):
        part = (hidden_BD @ rows_ND[start : start + chunk].T).float()
        total.append(part.logsumexp(1))
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
