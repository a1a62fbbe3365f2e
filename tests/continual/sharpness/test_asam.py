"""ASAM: which weights move, and the change of coordinates it does not notice."""

import pytest
import torch

from continual.sharpness.asam import ASAM
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


@pytest.mark.parametrize(
    ("name", "settings"), [("asam", {"eta": 0.0}), ("tram", {"adaptive": True})]
)
def test_other_units_of_the_weights_change_nothing(name, settings):
    """w -> B w, and so g -> g / B, gives B eps."""
    units = {key: torch.linspace(0.5, 9, w.numel()).double().view_as(w) for key, w in WIDE.items()}
    ours = Quadratic(member(name, **settings), WIDE, STEEP)
    scaled = {key: units[key] * w for key, w in WIDE.items()}
    flatter = {key: a / units[key] ** 2 for key, a in STEEP.items()}
    theirs = Quadratic(member(name, **settings), scaled, flatter)
    moves, others = (run.policy.perturbation(run.step()) for run in (ours, theirs))
    for unit, move, other in zip(units.values(), moves, others, strict=True):
        torch.testing.assert_close(other, unit * move, rtol=1e-12, atol=0)


def test_every_weight_is_scaled_by_its_size_vectors_too():
    run = Quadratic(member("asam", eta=0.0), WIDE, STEEP)
    moves, gradient = run.policy.perturbation(run.step()), run.gradient()
    shares = torch.cat(
        [
            (e / (g * w.detach() ** 2)).flatten()
            for e, g, w in zip(moves, gradient, run.weights.values(), strict=True)
        ]
    )
    torch.testing.assert_close(shares, shares[:1].expand_as(shares))


def test_weights_at_zero_move_only_with_eta():
    start = {"decoder.weight": torch.tensor([0.0, 2.0])}
    slope = [torch.tensor([1.0, 1.0])]
    for eta, moved in ((0.0, False), (0.01, True)):
        run = Quadratic(member("asam", eta=eta), start, start)
        step = run.step()
        step.gradients = [slope]
        (move,) = run.policy.perturbation(step)
        assert bool(move[0]) is moved


def test_where_all_sizes_are_one_it_is_sam():
    start = {"decoder.weight": torch.tensor([1.0, -1.0])}
    steep = {"decoder.weight": torch.tensor([1.0, 10.0])}
    ours = Quadratic(member("asam", rho=0.1, eta=0.0), start, steep).updates(1)
    theirs = Quadratic(member("sam", rho=0.1), start, steep).updates(1)
    torch.testing.assert_close(ours.moves[0][0], theirs.moves[0][0])


def test_a_negative_eta_is_refused():
    with pytest.raises(ValueError, match=r"^eta: "):
        ASAM.Config(eta=-0.1)
