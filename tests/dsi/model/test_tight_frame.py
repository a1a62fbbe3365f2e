"""The directions of tokens: as even as float64 would make them."""

import numpy as np
import pytest
import torch

from dsi.model.lexical import tight_frame


@pytest.mark.parametrize(("skew", "error"), [(0.0, 1e-5), (1.0, 1e-5), (2.0, 1e-4)])
def test_rounds_are_those_of_exact_roots(skew, error):
    energy = (np.arange(300) + 1.0) ** -skew
    given = tight_frame(energy, 40, 0, torch.Generator().manual_seed(1)).double()
    weights = torch.from_numpy(energy + 1e-3 * energy.mean())[:, None]
    for _ in range(3):
        values, vectors = torch.linalg.eigh(given.T @ (given * weights))
        values = values.clamp(min=1e-3 * float(values.mean()))
        given = given @ (vectors * values.rsqrt()) @ vectors.T
        given = torch.nn.functional.normalize(given)
    found = tight_frame(energy, 40, 3, torch.Generator().manual_seed(1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), given, rtol=0, atol=error)


def test_rounds_lower_the_frame_potential():
    energy = (np.arange(300) + 1.0) ** -1.0

    def potential(rounds):
        frame = tight_frame(energy, 40, rounds, torch.Generator().manual_seed(1)).double()
        return float((frame.T @ (frame * torch.from_numpy(energy)[:, None])).square().sum())

    least = energy.sum() ** 2 / 40
    assert least <= potential(3) < potential(1) < potential(0)
