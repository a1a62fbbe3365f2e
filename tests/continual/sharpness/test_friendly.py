"""Friendly SAM: the moving average is of the gradients themselves."""

import pytest
import torch

from continual.sharpness.friendly import FriendlySAM
from tests.continual.sharpness.quadratic import CURVATURE, Quadratic, member, tensor


def test_the_average_takes_in_the_gradient_and_not_what_is_left_of_it():
    # with the average taken off before: (0.63, 4.29)
    start = {"decoder.weight": tensor([1.0, 1.0])}
    run = Quadratic(member("friendly", rho=0.1), start).updates(5)
    (average,) = run.policy.state_dict().values()
    torch.testing.assert_close(average, tensor([0.92, 6.76]), rtol=0, atol=0.005)


def test_the_average_by_definition():
    policy = member("friendly", rho=0.1, decay=0.6)
    run, gradients = Quadratic(policy), []
    for _ in range(4):
        gradients += run.gradient()
        run.update()
    expected = gradients[0]
    for gradient in gradients[1:]:
        expected = 0.6 * expected + 0.4 * gradient
    torch.testing.assert_close(policy.state["decoder.weight"], expected)


def test_the_first_update_is_sams():
    ours = Quadratic(member("friendly", rho=0.1)).updates(1)
    theirs = Quadratic(member("sam", rho=0.1)).updates(1)
    assert torch.equal(ours.moves[0][0], theirs.moves[0][0])


def test_a_gradient_that_is_all_average_moves_nothing():
    run = Quadratic(member("friendly"), CURVATURE, rate=0.0).updates(2)
    assert run.moves[0][0].any()
    assert not run.moves[1][0].any()


def test_weights_without_a_gradient_keep_their_average():
    policy = member("friendly")
    two = {"a": tensor([1.0, 2.0]), "b": tensor([3.0])}
    Quadratic(policy, two, two).updates(2)
    kept = policy.state["b"].clone()
    Quadratic(policy, {"a": two["a"]}, {"a": two["a"]}).updates(1)
    assert torch.equal(policy.state["b"], kept)


@pytest.mark.parametrize(("key", "value"), [("sigma", -0.1), ("decay", 1.0), ("decay", -0.1)])
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        FriendlySAM.Config(**{key: value})
