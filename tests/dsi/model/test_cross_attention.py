"""Reading the states gives what keys and values give, and is chosen where it multiplies less."""

import pytest
import torch
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

from dsi.model.cross_attention import read, reading_is_less


def both(asking, count, heads, head_width, batch, length, width):
    """(result, multiplications) of reading, and of attention over keys and values."""
    generator = torch.Generator().manual_seed(0)
    inner = heads * head_width
    q = torch.randn(asking, count, heads, head_width, generator=generator)
    k, v = torch.randn(2, inner, width, generator=generator) * 0.2
    source = torch.randn(batch, length, width, generator=generator)

    def attend(q_BRD):
        return torch.softmax(q_BRD @ source.transpose(1, 2), -1) @ source

    def over_keys():
        keys, values = (
            linear(source, weight).unflatten(-1, (heads, -1)).transpose(1, 2) for weight in (k, v)
        )
        q_BHTA = q.transpose(1, 2).expand(batch, -1, -1, -1)
        weights = torch.softmax(q_BHTA @ keys.transpose(2, 3), -1)
        return (weights @ values).transpose(1, 2).flatten(2)

    found = []
    for way in (lambda: read(q, k, v, source, attend), over_keys):
        with FlopCounterMode(display=False) as counter:
            result = way()
        found.append((result, counter.get_total_flops()))
    return found


@pytest.mark.parametrize("asking", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("heads", "head_width"), [(1, 8), (4, 8), (2, 3), (16, 2)])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_reading_is_chosen_where_it_multiplies_less(asking, count, heads, head_width, length):
    sizes = (asking, count, heads, head_width, 3, length, 24)
    (ours, reading), (expected, projecting) = both(*sizes)
    assert ours.shape == (3, count, heads * head_width)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert reading_is_less(sizes[:4], sizes[4:]) is (reading < projecting)
