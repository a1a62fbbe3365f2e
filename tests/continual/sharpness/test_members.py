"""What holds for every member, by name: numbers on a quadratic, equivalences, invariants."""

import copy
import math

import pytest
import torch

from continual.config.registry import available, component_class
from tests.continual.one_update import begun
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member, tensor

MEMBERS = [name for name in available("sharpness") if name != "none"]
VARIANTS = {
    "tram": [
        {"adaptive": True},
        {"reference": "previous_stage"},
        {"reference": "noise", "adaptive": True},
    ],
    "fisher_mask": [{"refresh": 2, "keep": 0.3}, {"renormalise": False}],
    "friendly": [{"sigma": 0.5, "decay": 0.6}],
    "wsam": [{"decoupled": True}, {"gamma": 0.0}],
    "gsam": [{"alpha": 0.0}, {"rho_min": 0.01}],
    "amp": [{"ascents": 3, "zeta": 0.05}],
    "functional": [{"preconditioned": True}],
    "look": [{"interval": 2}],
    "interval": [{"interval": 2}],
    "efficient": [{"weights": 0.1}, {"weights": 1.0}],
    "asam": [{"eta": 0.0}],
}
CASES = [(name, settings) for name in MEMBERS for settings in [{}, *VARIANTS.get(name, [])]]
NAMES = [" ".join([name, *(f"{k}={v}" for k, v in settings.items())]) for name, settings in CASES]
every_member = pytest.mark.parametrize(("name", "settings"), CASES, ids=NAMES)

# L = 1/2 w' diag(1, 10) w from (2, -1), learning rate 0.1: the last update's first displacement
# and the weights. Where sizes are 1, SAM and ASAM coincide, so the start has another one.
SAM = (0.01961161, -0.09805807)
GOLDEN = [
    ("none", {}, 1, None, (1.8, 0)),
    ("sam", {"rho": 0.1}, 1, SAM, (1.79803884, 0.09805807)),
    ("asam", {"rho": 0.1, "eta": 0.0}, 1, (0.07427814, -0.09284767), (1.79257219, 0.09284767)),
    ("asam", {"rho": 0.1}, 1, (0.07433062, -0.09384009), (1.79256694, 0.09384009)),
    ("fisher_mask", {"rho": 0.1, "keep": 0.5}, 1, (0, -0.1), (1.8, 0.1)),
    (
        "fisher_mask",
        {"rho": 0.1, "keep": 0.5, "renormalise": False},
        1,
        (0, -0.09805807),
        (1.8, 0.09805807),
    ),
    ("gsam", {"rho": 0.1}, 1, SAM, (1.80425814, 0.09920196)),
    ("wsam", {"rho": 0.1}, 1, SAM, (1.78234955, 0.88252261)),
    ("wsam", {"rho": 0.1, "decoupled": True}, 1, SAM, (1.78234955, 0.88252261)),
    ("gam", {}, 1, None, (1.59906225, 1.23933135)),
    ("c_flat", {}, 1, None, (1.79541878, 0.23556972)),
    ("amp", {}, 1, (0.09805807, -0.49029034), (1.79019419, 0.49029034)),
    ("awp", {}, 1, (0.00219265, -0.01096323), (1.79978074, 0.01096323)),
    ("look", {"rho": 0.1}, 1, SAM, (1.79803884, 0.09805807)),
    ("look", {"rho": 0.1}, 2, None, (1.75881399, 0.02811581)),
    ("tram", {}, 1, (0.05883484, -0.2941742), (1.79411652, 0.2941742)),
    ("friendly", {"rho": 0.1}, 2, (-0.00183895, 0.09998309), (1.61841885, -0.09998309)),
]


@pytest.mark.parametrize(("name", "settings", "updates", "move", "weights"), GOLDEN)
def test_numbers_on_a_quadratic(name, settings, updates, move, weights):
    if name == "none":
        run = Quadratic(member("none")).updates(1)
    else:
        run = Quadratic(member(name, **settings)).updates(updates)
    if move is not None:
        torch.testing.assert_close(run.moves[-1][0], tensor(move), rtol=0, atol=1e-8)
    found = run.weights["decoder.weight"].detach()
    torch.testing.assert_close(found, tensor(weights), rtol=0, atol=1e-7)


RELATIONS = [
    ("gsam", {"alpha": 0.0}, "sam", {}),
    ("wsam", {"gamma": 0.5}, "sam", {}),
    ("fisher", {"eta": 0.0}, "sam", {}),
    ("fisher_mask", {"keep": 1.0, "refresh": 2}, "sam", {}),
    ("fisher_mask", {"keep": 1.0, "renormalise": False}, "sam", {}),
    ("friendly", {"sigma": 0.0}, "sam", {}),
    ("efficient", {"weights": 1.0, "examples": 1.0}, "sam", {}),
    ("micro", {"share": 1.0}, "sam", {}),
    ("interval", {"interval": 1}, "sam", {}),
    ("look", {"interval": 1}, "sam", {}),
    ("look", {"interval": 3, "alpha": 0.0}, "interval", {"interval": 3}),
    ("c_flat", {"lam": 0.0}, "sam", {}),
    ("gam", {"b3": 0.0, "gamma": 0.0, "inner": 0.1}, "sam", {}),
    ("tram", {}, "sam", {}),
    ("tram", {"adaptive": True}, "asam", {"eta": 0.0}),
    ("functional", {}, "sam", {}),
    ("wsam", {"gamma": 0.0}, "none", None),
]


@pytest.mark.parametrize(("name", "settings", "other", "others"), RELATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_members_that_are_equal_are_equal_bit_for_bit(name, settings, other, others, dtype):
    ours = Quadratic(member(name, rho=0.1, **settings), WIDE, STEEP, dtype=dtype).updates(7)
    radius = {} if others is None else {"rho": 0.1, **others}
    theirs = Quadratic(member(other, **radius), WIDE, STEEP, dtype=dtype).updates(7)
    assert same(ours.weights, theirs.weights)


@every_member
def test_radius_zero_is_never_active(name, settings):
    assert not member(name, **{**settings, "rho": 0.0}).active(0)
    assert member(name, **settings).active(0)


FADING = {
    "amp": "adds the gradient itself and only then limits the length",
    "fisher": "weighs squared gradients against a constant 1",
}


@every_member
def test_the_scale_of_the_loss_does_not_change_the_perturbation(name, settings):
    # gradients so small that AMP does not reach its radius
    small = {key: weight / 1000 for key, weight in WIDE.items()}
    ours = Quadratic(member(name, **settings), small, STEEP).updates(3)
    theirs = Quadratic(member(name, **settings), small, STEEP, scale=1e4, rate=1e-5).updates(3)
    equal = [
        (a is None and b is None) or (a is not None and torch.allclose(a, b, rtol=1e-6, atol=0))
        for one, other in zip(ours.moves, theirs.moves, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    assert all(equal) is (name not in FADING)


@every_member
def test_a_zero_gradient_moves_nothing(name, settings):
    flat = {key: torch.zeros_like(weight) for key, weight in WIDE.items()}
    run = Quadratic(member(name, **settings), flat, STEEP).updates(3)
    assert run.moves
    assert all(e is None or not e.any() for moves in run.moves for e in moves)
    assert all(not weight.any() for weight in run.weights.values())


@every_member
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_can_be_seen(name, settings, value):
    """In a displacement, or in what is descended: the engine looks there."""
    for number in range(3):
        for bad in range(member(name, **settings).passes(0)):
            run = Quadratic(member(name, **settings), WIDE, STEEP).updates(number)
            if bad >= run.policy.passes(number):
                continue
            run.moves, run.descents = [], []
            run.update(poison=(bad, value), skip=True)
            seen = [t for group in (*run.moves, *run.descents) for t in group if t is not None]
            assert not all(bool(torch.isfinite(t).all()) for t in seen)


@every_member
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_shapes_and_precision_are_kept(name, settings, dtype):
    run = Quadratic(member(name, **settings), WIDE, STEEP, dtype=dtype).updates(3)
    for group in (*run.moves, *run.descents):
        for found, weight in zip(group, run.weights.values(), strict=True):
            assert found is None or (found.shape, found.dtype) == (weight.shape, dtype)
            # no graph through the weights is held
            assert found is None or not found.requires_grad


@every_member
def test_inputs_are_not_changed(name, settings):
    policy = member(name, **settings)
    run = Quadratic(policy, WIDE, STEEP).updates(1)
    step = run.step()
    given = {key: w.detach().clone() for key, w in run.weights.items()}
    while len(step.gradients) < policy.passes(1):
        before = copy.deepcopy(step.gradients)
        held = None if step.displacement is None else copy.deepcopy(step.displacement)
        moves = policy.perturbation(step)
        assert not policy.keeps or equal_lists(step.gradients, before)
        assert held is None or equal_lists([step.displacement], [held])
        step.displacement = list(moves)
        step.gradients.append([g * 0.7 for g in run.gradient()])
    before = copy.deepcopy(step.gradients)
    policy.combine(step)
    policy.decoupled(step)
    policy.after_update(step)
    assert equal_lists(step.gradients, before)
    assert same(run.weights, given)


@every_member
def test_a_stopped_run_goes_on_bit_for_bit(name, settings):
    straight = Quadratic(member(name, **settings), WIDE, STEEP)
    straight.policy.begin_stage(begun(1, straight.weights))
    straight.updates(6)
    first = Quadratic(member(name, **settings), WIDE, STEEP)
    first.policy.begin_stage(begun(1, first.weights))
    first.updates(3)
    saved = {key: value.clone() for key, value in first.policy.state_dict().items()}
    second = Quadratic(member(name, **settings), first.weights, STEEP)
    second.policy.load_state_dict(saved)
    second.number = 3
    second.updates(3)
    assert same(straight.weights, second.weights)
    assert same(straight.policy.state_dict(), second.policy.state_dict())


@every_member
def test_what_is_remembered_is_said_to_be(name, settings):
    run = Quadratic(member(name, **settings), WIDE, STEEP)
    run.policy.begin_stage(begun(1, run.weights))
    run.updates(2)
    assert run.policy.remembers or not run.policy.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in run.policy.state_dict().values())


@every_member
def test_a_stage_starts_anew(name, settings):
    run = Quadratic(member(name, **settings), WIDE, STEEP).updates(3)
    run.update(skip=True)  # may have left something behind
    run.policy.begin_stage(begun(2, run.weights))
    fresh = Quadratic(member(name, **settings), run.weights, STEEP)
    fresh.policy.begin_stage(begun(2, fresh.weights))
    assert same(run.policy.state_dict(), fresh.policy.state_dict())
    run.number = 0
    assert same(run.updates(4).weights, fresh.updates(4).weights)


@every_member
def test_a_skipped_update_leaves_no_trace(name, settings):
    run = Quadratic(member(name, **settings), WIDE, STEEP).updates(2)
    other = copy.deepcopy(run)
    before = {key: value.clone() for key, value in run.policy.state_dict().items()}
    run.update(poison=(0, math.nan), skip=True)
    assert same(run.policy.state_dict(), before)
    other.number += 1
    assert same(run.updates(3).weights, other.updates(3).weights)
    assert same(run.policy.state_dict(), other.policy.state_dict())


@every_member
def test_clipping_and_penalties_do_not_reach_what_is_remembered(name, settings):
    """The engine changes the gradient to descend in place, and the weights have moved by then."""

    def spoil(gradients):
        for gradient in gradients:
            gradient.mul_(0.1).add_(7)

    run = Quadratic(member(name, **settings), WIDE, STEEP).updates(1)
    other = copy.deepcopy(run)
    run.update()
    other.update(spoil=spoil)
    assert same(run.policy.state_dict(), other.policy.state_dict())


@every_member
def test_it_says_what_it_costs_and_what_it_equals(name, settings):
    said = component_class("sharpness", name).__doc__ or ""
    words = " ".join(said.split())
    assert all(part in words for part in ("Passes: ", "Extra memory: ", "Relations: "))


def same(ours, theirs):
    """Whether two mappings of tensors agree bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def equal_lists(ours, theirs):
    """Whether two lists of lists of tensors agree bit for bit."""
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )
