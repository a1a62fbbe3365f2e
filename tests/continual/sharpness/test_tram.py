"""TRAM: the radius is the divergence, the direction the gradient's, the reference what it says."""

import pytest
import torch

from continual.sharpness.tram import TRAM
from tests.continual.one_update import begun
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def flat(tensors):
    """All entries in a row."""
    return torch.cat([t.flatten() for t in tensors])


def held(policy):
    """The reference weights by name."""
    return {key.removeprefix("reference/"): value for key, value in policy.state_dict().items()}


def same(ours, theirs):
    """Whether two mappings of tensors agree bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_it_goes_along_the_gradient():
    """The authors' code adds the same number to every weight."""
    run = Quadratic(member("tram"), WIDE, STEEP)
    gradient = flat(run.gradient())
    move = flat(run.updates(1).moves[0])
    torch.testing.assert_close(move, 0.3 * gradient / gradient.norm())


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("divergence", "radius"), [(0.0, 0.0), (0.2, 0.2), (0.5, 0.5), (7.0, 0.5), (-1e-9, 0.0)]
)
def test_the_radius_is_the_divergence_up_to_rho(divergence, radius, adaptive):
    run = Quadratic(member("tram", adaptive=adaptive), WIDE, STEEP, divergence=divergence)
    move = flat(run.policy.perturbation(run.step()))
    sizes = flat(WIDE.values()).abs() if adaptive else torch.ones_like(move)
    assert float((move / sizes).norm()) == pytest.approx(radius)


def test_without_a_reference_it_is_plain():
    ours = Quadratic(member("tram"), WIDE, STEEP, divergence=None).updates(2)
    assert same(ours.weights, Quadratic(member("none"), WIDE, STEEP).updates(2).weights)
    assert not flat(ours.moves[0]).any()
    ours.update(poison=(0, float("nan")), skip=True)
    assert bool(flat(ours.moves[-1]).isnan().any())


def test_a_divergence_that_is_not_finite_shows():
    run = Quadratic(member("tram"), WIDE, STEEP, divergence=float("nan"))
    assert bool(flat(run.policy.perturbation(run.step())).isnan().all())


def test_the_reference_of_an_update_ago_is_where_that_one_began():
    run = Quadratic(member("tram"), WIDE, STEEP)
    run.policy.begin_stage(begun(0, run.weights))
    assert held(run.policy) == {}
    for _ in range(3):
        before = {name: weight.detach().clone() for name, weight in run.weights.items()}
        run.update()
        assert same(held(run.policy), before)
        assert not same(held(run.policy), run.weights)


def test_the_reference_of_the_stage_before_stays():
    run = Quadratic(member("tram", reference="previous_stage"), WIDE, STEEP)
    run.policy.begin_stage(begun(0, run.weights))
    run.updates(3)
    assert same(held(run.policy), WIDE)
    run.policy.begin_stage(begun(1, run.weights))
    expected = {name: weight.detach().clone() for name, weight in run.weights.items()}
    assert same(held(run.updates(2).policy), expected)


def test_noise_needs_no_copy():
    run = Quadratic(member("tram", reference="noise"), WIDE, STEEP)
    run.policy.begin_stage(begun(0, run.weights))
    assert held(run.updates(2).policy) == {}


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"^noise: "):
        TRAM.Config(noise=0.0)
