"""LookSAM: when it looks, what it remembers, and that it costs one pass in between."""

import pytest
import torch

from continual.sharpness.look import LookSAM
from tests.continual.one_update import begun
from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member


def flat(tensors):
    """All entries in a row."""
    return torch.cat([t.flatten() for t in tensors])


def test_it_looks_once_per_interval():
    policy = member("look", interval=4)
    run = Quadratic(policy, WIDE, STEEP)
    passes = []
    for number in range(9):
        passes.append(policy.passes(number))
        run.update()
    assert passes == [2, 1, 1, 1, 2, 1, 1, 1, 2]
    assert len(run.moves) == 3


def test_it_looks_while_there_is_nothing_to_reuse():
    policy = member("look")
    run = Quadratic(policy, WIDE, STEEP)
    run.update(skip=True)
    assert policy.passes(1) == 2
    run.update()
    assert policy.passes(2) == 1
    policy.begin_stage(begun(1, run.weights))
    assert policy.passes(2) == 2


def test_what_is_remembered_is_orthogonal_over_all_weights_together():
    run = Quadratic(member("look", rho=0.5), WIDE, STEEP)
    clean = run.gradient()
    kept = list(run.updates(1).policy.state_dict().values())
    assert float(flat(kept) @ flat(clean)) == pytest.approx(0, abs=1e-9)
    # not tensor by tensor
    assert any(abs(float((k * g).sum())) > 1e-3 for k, g in zip(kept, clean, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_in_between_it_is_added_at_a_share_of_the_gradients_length(alpha):
    run = Quadratic(member("look", alpha=alpha), WIDE, STEEP).updates(1)
    clean, kept = flat(run.gradient()), flat(run.policy.state_dict().values())
    run.update()
    added = flat(run.descents[-1]) - clean
    assert float(added.norm()) == pytest.approx(alpha * float(clean.norm()), abs=1e-12)
    torch.testing.assert_close(added, alpha * clean.norm() * kept / kept.norm())


def test_weights_without_a_memory_descend_their_gradient():
    run = Quadratic(member("look"), WIDE, STEEP).updates(1)
    del run.policy.state["docids.weight"]
    position = list(WIDE).index("docids.weight")
    clean = run.gradient()[position]
    run.update()
    assert torch.equal(run.descents[-1][position], clean)


@pytest.mark.parametrize(("key", "value"), [("interval", 0), ("alpha", -0.1)])
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        LookSAM.Config(**{key: value})
