"""Cross-attention that reads the encoder's states themselves instead of keys and values of them.

Projections of keys and values cost a product per token of the source. A few positions that ask pay
less when the projections are moved to them: (q (S K)') (S V) = (((q K') S') S) V for states S.

Shape legend: B batch, L keys, T queries of attention, D width, H heads, A width of a head, R = H x
T, I = H x A.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def reading_is_less(q_BTHA: Sequence[int], source_BLD: Sequence[int]) -> bool:
    """Whether :func:`read` has fewer multiplications than attention over keys and values.

    Of the shapes of queries and states; queries with B = 1 are asked of every text.
    """
    asking, count, heads, head_width = q_BTHA
    batch, length, width = source_BLD
    inner = heads * head_width
    reading = (asking + batch) * count * inner * width + 2 * batch * heads * count * length * width
    return reading < 2 * batch * length * inner * (width + count)


def read(
    q_BTHA: Tensor,
    k_ID: Tensor,
    v_ID: Tensor,
    source_BLD: Tensor,
    attend: Callable[[Tensor], Tensor],
) -> Tensor:
    """What queries find in the states: (B, T, I). Queries with B = 1 are asked of every text.

    ``k_ID`` and ``v_ID`` are the weights of the two projections. ``attend``: from queries that are
    as wide as the states, (B, R, D), to the states mixed by the weights of attention, (B, R, D).
    """
    asking, count, heads, _ = q_BTHA.shape
    batch, _, width = source_BLD.shape
    k_HAD = k_ID.unflatten(0, (heads, -1))
    v_HDA = v_ID.unflatten(0, (heads, -1)).transpose(1, 2)
    # heads first: a product per head, then one per example
    q_HRA = q_BTHA.reshape(asking * count, heads, -1).transpose(0, 1)
    q_HBTD = torch.matmul(q_HRA, k_HAD).view(heads, asking, count, width)
    q_BRD = q_HBTD.permute(1, 0, 2, 3).reshape(asking, heads * count, width)
    mixed = attend(q_BRD.expand(batch, -1, -1)).view(batch, heads, count, width)
    mixed_HRD = mixed.transpose(0, 1).reshape(heads, batch * count, width)
    mixed_HRA = torch.matmul(mixed_HRD, v_HDA)
    return mixed_HRA.transpose(0, 1).reshape(batch, count, -1)
