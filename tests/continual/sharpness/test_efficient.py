"""Efficient SAM: which tensors are drawn, and that they stand for all."""

import pytest
import torch

from continual.sharpness.efficient import EfficientSAM
from tests.continual.sharpness.quadratic import Quadratic, member

MANY = {f"decoder.{i}.weight": torch.full((2, 2), 1.0 + i).double() for i in range(20)}


def draw(seed, **settings):
    """The perturbation of one update."""
    run = Quadratic(member("efficient", **settings), MANY, MANY)
    step = run.step()
    step.seed = seed
    return run.policy.perturbation(step)


def test_the_draw_belongs_to_the_update():
    def chosen(seed):
        return [move is not None for move in draw(seed)]

    assert chosen(5) == chosen(5)
    assert len({tuple(chosen(seed)) for seed in range(20)}) > 10


def test_on_average_it_is_sams():
    run = Quadratic(member("sam"), MANY, MANY)
    expected = run.policy.perturbation(run.step())
    draws = [draw(seed, weights=0.6) for seed in range(500)]
    for i, sams in enumerate(expected):
        found = [moves[i] for moves in draws if moves[i] is not None]
        assert len(found) / 500 == pytest.approx(0.6, abs=0.1)
        for move in found[:3]:
            torch.testing.assert_close(move, sams / 0.6)


def test_something_is_always_perturbed():
    counts = [sum(move is not None for move in draw(seed, weights=1e-6)) for seed in range(20)]
    assert counts == [1] * 20


def test_the_examples_that_are_descended():
    assert member("efficient").descent_share() == 0.5
    assert member("sam").descent_share() == 1


@pytest.mark.parametrize("key", ["weights", "examples"])
@pytest.mark.parametrize("value", [0.0, 1.1])
def test_impossible_shares_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        EfficientSAM.Config(**{key: value})
