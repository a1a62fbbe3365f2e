"""Learning rates by hand, and moments that survive growth."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from continual.config import TrainingConfig
from continual.optimization import learning_rate, make_optimizer, named_state, restore_state
from dsi.model import from_scratch, grown_rows

WIDTH = 16  # whole vectors of the processor: a row is computed alike wherever it lies in the table


def rates(stage: int, updates: int, **values) -> list[float]:
    """The rates of every update of a stage."""
    config = TrainingConfig(**{"learning_rate": 1.0, **values})
    return [learning_rate(config, stage, update, updates) for update in range(updates)]


def test_linear():
    assert rates(0, 10, warmup=0.2) == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_cosine():
    found = rates(0, 8, warmup=0, schedule="cosine")
    assert found == pytest.approx([0.5 - 0.5 * math.cos(math.pi * (8 - i) / 8) for i in range(8)])
    assert (found[0], found[4]) == pytest.approx((1, 0.5))


def test_constant():
    assert rates(0, 5, warmup=2, schedule="constant") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


@pytest.mark.parametrize(
    ("warmup", "updates", "first"),
    [
        (0, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
        (1, 4, [1 / 2, 1, 2 / 3, 1 / 3]),  # from 1 on: a count, not a share
        (3, 4, [1 / 4, 2 / 4, 3 / 4, 1]),
        (10, 4, [1 / 11, 2 / 11, 3 / 11, 4 / 11]),  # longer than the stage
        (0.1, 15, [1 / 2, 1, 13 / 13.5]),  # one and a half updates
    ],
)
def test_warmup(warmup, updates, first):
    assert rates(0, updates, warmup=warmup)[: len(first)] == pytest.approx(first)


def test_later_stages_have_their_own_peak():
    assert rates(1, 4, warmup=0, later_learning_rate=0.1)[0] == pytest.approx(0.1)
    assert rates(0, 4, warmup=0, later_learning_rate=0.1)[0] == 1
    assert rates(1, 4, warmup=0) == rates(0, 4, warmup=0), "restarted at every stage"


@settings(max_examples=60)
@given(
    updates=st.integers(1, 60),
    warmup=st.floats(0, 70),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_a_rate_rises_then_falls_and_is_never_zero(updates, warmup, schedule):
    found = rates(0, updates, warmup=warmup, schedule=schedule)
    assert all(0 < rate <= 1 for rate in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


class Table(nn.Module):
    """A table that grows, a matrix and a vector; the rows do not influence each other."""

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows.clone())
        self.matrix = nn.Parameter(torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH))
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def step(self, optimizer: torch.optim.Optimizer, seed: int, places: torch.Tensor) -> None:
        """Gradients drawn from ``seed``; those of the rows are for the rows at ``places``."""
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        for parameter in (self.matrix, self.scale):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.rows.grad = torch.zeros_like(self.rows)
        self.rows.grad[places] = torch.randn(len(places), WIDTH, generator=generator)
        optimizer.step()


CONFIG = TrainingConfig(learning_rate=0.01, weight_decay=0.1)


@pytest.mark.parametrize("places", [[0, 1, 2], [0, 2, 4], [3, 4, 5]])
def test_old_rows_go_on_as_if_the_new_ones_had_always_been_there(places):
    old, count = torch.tensor(places), 6
    start = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    whole = torch.zeros(count, WIDTH)
    whole[old] = start
    always = Table(whole)
    reference = make_optimizer(always, CONFIG)
    small = Table(start)
    optimizer = make_optimizer(small, CONFIG)
    for seed in range(5):
        always.step(reference, seed, old)
        small.step(optimizer, seed, torch.arange(3))

    moments = {key: value.clone() for key, value in named_state(optimizer, small).items()}
    grown = torch.full((count, WIDTH), 0.5)
    grown[old] = small.rows.detach()
    large = Table(grown)
    large.matrix, large.scale = small.matrix, small.scale
    optimizer = make_optimizer(large, CONFIG)
    restore_state(optimizer, large, moments, {"rows": old})
    restored = named_state(optimizer, large)
    assert set(restored) == set(moments)
    new = torch.tensor([i for i in range(count) if i not in places])
    for key in ("rows/exp_avg", "rows/exp_avg_sq"):
        assert torch.equal(restored[key][old], moments[key])
        assert not restored[key][new].any()
        assert moments[key].any()
    for key in set(moments) - {"rows/exp_avg", "rows/exp_avg_sq"}:
        assert torch.equal(restored[key], moments[key])

    for seed in range(5, 9):
        always.step(reference, seed, old)
        large.step(optimizer, seed, old)
    assert torch.equal(large.rows[old], always.rows[old])
    assert torch.equal(large.matrix, always.matrix)
    after, expected = named_state(optimizer, large), named_state(reference, always)
    assert all(torch.equal(after[key][old], expected[key][old]) for key in ("rows/exp_avg",))
    assert torch.equal(after["rows/step"], expected["rows/step"])


def test_a_restored_optimizer_goes_on_bit_for_bit():
    start = torch.ones(4, WIDTH)
    one, other, places = Table(start), Table(start), torch.arange(4)
    first, second = make_optimizer(one, CONFIG), make_optimizer(other, CONFIG)
    for seed in range(3):
        one.step(first, seed, places)
    other.load_state_dict(one.state_dict())
    kept = {key: value.clone() for key, value in named_state(first, one).items()}
    restore_state(second, other, named_state(first, one))
    one.step(first, 9, places)
    # what was restored is a copy: the first optimizer's step does not reach it
    assert all(torch.equal(value, kept[key]) for key, value in named_state(second, other).items())
    other.step(second, 9, places)
    assert torch.equal(one.rows, other.rows)
    fresh = Table(start)
    fresh.load_state_dict(one.state_dict())
    fresh.step(make_optimizer(fresh, CONFIG), 9, places)
    one.step(first, 9, places)
    assert not torch.equal(one.rows, fresh.rows), "moments matter"


def test_a_model_that_grew_keeps_its_moments_by_name():
    sizes = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = from_scratch(0, **sizes, num_decoder_layers=1, code_sizes=[3])
    optimizer = make_optimizer(model, CONFIG)
    ids = torch.tensor([[3, 4, 5]])
    model(ids, torch.ones_like(ids), torch.tensor([[1]])).sum().backward()
    optimizer.step()
    moments = named_state(optimizer, model)
    assert moments["docids.rows/exp_avg"].shape == (3, 8)
    assert not any("decoder.embed_tokens" in key for key in moments), "tied: once"
    model.grow([5], torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, CONFIG)
    restore_state(optimizer, model, moments, {"docids.rows": grown_rows([3], [5])})
    restored = named_state(optimizer, model)
    assert set(restored) == set(moments)
    assert torch.equal(restored["docids.rows/exp_avg"][:3], moments["docids.rows/exp_avg"])
    assert not restored["docids.rows/exp_avg"][3:].any()


def test_what_is_frozen_has_no_state():
    model = Table(torch.ones(2, WIDTH))
    optimizer = make_optimizer(model, CONFIG)
    model.step(optimizer, 0, torch.arange(2))
    moments = named_state(optimizer, model)
    model.matrix.requires_grad_(False)
    optimizer = make_optimizer(model, CONFIG)
    restore_state(optimizer, model, moments)
    assert {key.split("/")[0] for key in named_state(optimizer, model)} == {"rows", "scale"}


def test_vectors_are_not_decayed():
    model = Table(torch.ones(2, WIDTH))
    groups = make_optimizer(model, CONFIG).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {id(model.rows): 0.1, id(model.matrix): 0.1, id(model.scale): 0.0}
    model.scale.requires_grad_(False)
    assert len(make_optimizer(model, CONFIG).param_groups) == 1
