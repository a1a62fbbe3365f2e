"""Learning rates and first steps by hand, and moments that survive growth."""

import dataclasses
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from continual import runs
from continual.config.loading import load_config
from continual.config.schema import TrainingConfig
from continual.update.optimizer import (
    clip_gradient,
    gradient_values,
    learning_rate,
    make_optimizer,
    named_state,
    restore_state,
)
from continual.update.passes import MicroBatch, Passes
from dsi.errors import UserError
from dsi.examples.batches import Batch
from dsi.model.dsi_model import from_scratch

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


def test_inverse_square_root():
    found = rates(0, 9, warmup=4, schedule="inverse_sqrt")
    assert found[:4] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    assert found[4:] == pytest.approx([(4 / u) ** 0.5 for u in range(4, 9)])
    assert rates(0, 20, warmup=4, schedule="inverse_sqrt")[:9] == found, "of any length"


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ("linear", 1 / 90),
        ("cosine", 0.5 - 0.5 * math.cos(math.pi / 90)),
        ("constant", 1),
        ("inverse_sqrt", (10 / 99) ** 0.5),
    ],
)
def test_a_schedule_at_its_ends(schedule, last):
    found = rates(0, 100, warmup=10, schedule=schedule)
    assert found[0] == pytest.approx(1 / 11)
    assert found[10] == pytest.approx(1)
    assert found[-1] == pytest.approx(last)


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
    same = rates(1, 4, warmup=0, later_learning_rate=None)
    assert same == rates(0, 4, warmup=0), "restarted at every stage"


@settings(max_examples=60)
@given(
    updates=st.integers(1, 60),
    warmup=st.floats(0, 70),
    schedule=st.sampled_from(["linear", "cosine", "constant", "inverse_sqrt"]),
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
ADAFACTOR = dataclasses.replace(CONFIG, optimizer="adafactor")


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
    restore_state(optimizer, large, moments, origins(old, count))
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


def origins(places: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Of a table of ``count`` rows whose old ones are at ``places``, as they were in order."""
    origin = torch.full((count,), -1)
    origin[places] = torch.arange(len(places))
    return {"rows": origin}


def grown(small: Table, optimizer: torch.optim.Optimizer, config: TrainingConfig):
    """The table with three rows of one half behind its own, and its optimizer."""
    count = len(small.rows)
    large = Table(torch.cat([small.rows.detach(), torch.full((3, WIDTH), 0.5)]))
    large.matrix, large.scale = small.matrix, small.scale
    after = make_optimizer(large, config)
    restore_state(
        after, large, named_state(optimizer, small), origins(torch.arange(count), count + 3)
    )
    return large, after


@pytest.mark.parametrize("kind", ["all", "touched"])
def test_a_new_row_is_one_that_was_always_there_without_a_gradient(kind):
    config, step = (CONFIG, Table.step) if kind == "all" else (TOUCHED, sparse_step)
    config = dataclasses.replace(config, weight_decay=0.0)  # which moves rows without a gradient
    always = Table(torch.cat([torch.ones(3, WIDTH), torch.full((3, WIDTH), 0.5)]))
    model = Table(torch.ones(3, WIDTH))
    reference, optimizer = make_optimizer(always, config), make_optimizer(model, config)
    for seed in range(20):
        step(always, reference, seed, torch.arange(3))
        step(model, optimizer, seed, torch.arange(3))
    model, optimizer = grown(model, optimizer, config)
    for seed in range(20, 40):
        step(always, reference, seed, torch.arange(6))
        step(model, optimizer, seed, torch.arange(6))
        assert torch.equal(model.rows, always.rows)
    assert not (model.rows[3:] == 0.5).any()


def test_how_long_the_first_steps_of_new_rows_are():
    config, before = dataclasses.replace(CONFIG, weight_decay=0.0), 1000
    model = Table(torch.ones(3, WIDTH))
    optimizer = make_optimizer(model, config)
    for seed in range(before):
        model.step(optimizer, seed, torch.arange(3))
    model, optimizer = grown(model, optimizer, config)
    steps, rows = [], model.rows.detach().clone()
    for _ in range(60):
        model.rows.grad = torch.ones_like(model.rows)
        optimizer.step()
        steps.append(float((rows - model.rows.detach())[3:].mean()) / 0.01)
        rows = model.rows.detach().clone()
    expected = [
        (1 - 0.9**k) / ((1 - 0.999**k) / (1 - 0.999 ** (before + k))) ** 0.5 for k in range(1, 61)
    ]
    assert steps == pytest.approx(expected, rel=1e-3)
    assert steps[0] == pytest.approx((1 - 0.999**1001) ** 0.5 * 10**0.5, rel=1e-3)
    assert max(expected) == expected[11] < 6.6


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
    grown = model.resize([5], torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, CONFIG)
    restore_state(optimizer, model, moments, grown)
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


def first_step(weight: torch.Tensor, gradient: torch.Tensor, rate: float, decay: float):
    """Adafactor's, in float64: at the first step the running averages are this gradient's."""
    squares = gradient**2 + 1e-30
    if gradient.dim() > 1:
        rows, columns = squares.mean(1, keepdim=True), squares.mean(0, keepdim=True)
        squares = rows * columns / rows.mean()
    update = gradient / squares.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()))
    step = rate * max(1e-3, float(weight.square().mean().sqrt()))
    return weight * (1 - decay * step) - step * update


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_the_first_step_of_adafactor(size):
    model = Table(size * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2)))
    before = {name: value.detach().double() for name, value in model.named_parameters()}
    model.step(make_optimizer(model, ADAFACTOR), 0, torch.arange(5))
    for name, value in model.named_parameters():
        decay = 0.1 if value.dim() > 1 else 0.0
        expected = first_step(before[name], value.grad.double(), 0.01, decay)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6 * size)
        assert not torch.equal(value.double(), before[name])


def test_adafactor_takes_the_rate_it_is_given():
    """However many updates there were: torch's own would cut it to 1 / sqrt(updates)."""
    moved = []
    for count in (1, 10_000):
        model = Table(torch.ones(3, WIDTH))
        optimizer = make_optimizer(model, ADAFACTOR)
        model.step(optimizer, 0, torch.arange(3))
        for state in optimizer.state.values():
            state["step"] = count
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        before = model.scale.detach().clone()
        model.step(optimizer, 0, torch.arange(3))
        moved.append(float((model.scale - before).abs().mean().detach()))
    assert moved[1] == pytest.approx(moved[0], rel=1e-3)


def test_adafactor_leaves_alone_what_has_no_gradient():
    model = Table(torch.ones(4, WIDTH))
    optimizer = make_optimizer(model, dataclasses.replace(ADAFACTOR, weight_decay=0.0))
    for seed in range(3):
        model.step(optimizer, seed, torch.arange(2))
    assert torch.equal(model.rows[2:], torch.ones(2, WIDTH))
    assert not torch.isnan(model.rows).any()


@pytest.mark.parametrize("places", [[0, 1, 2], [3, 4, 5], list(range(WIDTH))])
def test_a_factored_moment_under_grown_rows(places):
    """Old rows' estimate, row * column / mean of rows, is what it was; also of a square table."""
    old, count = torch.tensor(places), len(places) + 3
    small = Table(torch.randn(len(places), WIDTH, generator=torch.Generator().manual_seed(1)))
    optimizer = make_optimizer(small, ADAFACTOR)
    for seed in range(5):
        small.step(optimizer, seed, torch.arange(len(places)))
    before = named_state(optimizer, small)
    large = Table(torch.ones(count, WIDTH))
    optimizer = make_optimizer(large, ADAFACTOR)
    restore_state(optimizer, large, before, origins(old, count))
    after = named_state(optimizer, large)
    assert set(after) == set(before)
    row = "rows/exp_avg_sq_row"
    assert after[row].shape == (count,)
    assert torch.equal(after[row][old], before[row])
    new = torch.ones(count, dtype=torch.bool)
    new[old] = False
    assert torch.equal(after[row][new], before[row].mean().expand(3))
    assert float(after[row].mean()) == pytest.approx(float(before[row].mean()))
    for key in set(before) - {row}:
        assert torch.equal(after[key], before[key]), key
    large.step(optimizer, 7, old)
    assert torch.isfinite(large.rows).all()


@pytest.mark.parametrize("config", [CONFIG, ADAFACTOR], ids=["adamw", "adafactor"])
def test_three_and_three_updates_are_six(config, tmp_path):
    places = torch.arange(4)
    start = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    whole = Table(start)
    optimizer = make_optimizer(whole, config)
    for seed in range(6):
        whole.step(optimizer, seed, places)
    expected = named_state(optimizer, whole)

    half = Table(start)
    optimizer = make_optimizer(half, config)
    for seed in range(3):
        half.step(optimizer, seed, places)
    save_file(named_state(optimizer, half), tmp_path / "optimizer.safetensors")
    rest = Table(start)
    rest.load_state_dict(half.state_dict())
    other = make_optimizer(rest, config)
    restore_state(other, rest, load_file(tmp_path / "optimizer.safetensors"))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert {k: type(v) for k, v in mine.items()} == {k: type(v) for k, v in theirs.items()}
    for seed in range(3, 6):
        rest.step(other, seed, places)
    found = named_state(other, rest)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert value.dtype == found[key].dtype and torch.equal(value, found[key]), key
    for name, value in whole.named_parameters():
        assert torch.equal(value, rest.get_parameter(name)), name


def test_the_state_of_another_optimizer_is_refused():
    model = Table(torch.ones(2, WIDTH))
    optimizer = make_optimizer(model, CONFIG)
    model.step(optimizer, 0, torch.arange(2))
    state = named_state(optimizer, model)
    with pytest.raises(UserError, match=r"^training\.optimizer: .*'exp_avg'") as caught:
        restore_state(make_optimizer(model, ADAFACTOR), model, state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "start"),
    [
        ("training.optimizer=adam", "training.optimizer: 'adam' is not one of: adamw, adafactor"),
        ("training.schedule=step", "training.schedule: 'step' is not one of"),
        ("training.docid_learning_rate_scale=0", "training.docid_learning_rate_scale: must be"),
    ],
)
def test_what_is_unknown_is_one_line(setting, start):
    with pytest.raises(UserError) as caught:
        load_config(None, [setting])
    assert str(caught.value).startswith(start) and "\n" not in str(caught.value)


SIZES = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_docids_have_a_rate_of_their_own(optimizer):
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    moved = {}
    for scale in (1.0, 4.0):
        model = from_scratch(0, **SIZES, num_decoder_layers=1, code_sizes=[3, 2])
        scaled = dataclasses.replace(config, docid_learning_rate_scale=scale)
        groups = make_optimizer(model, scaled)
        names = {id(p): name for name, p in model.named_parameters()}
        for group in groups.param_groups:
            for parameter in group["params"]:
                own = scale if names[id(parameter)].startswith("docids.") else 1.0
                assert group["scale"] == own
                assert group["lr"] == own * config.learning_rate
                assert bool(group["weight_decay"]) == (parameter.dim() > 1)
        assert len(groups.param_groups) == (2 if scale == 1 else 4)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        groups.step()
        moved[scale] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    assert any(name.startswith("docids.") for name in moved[1.0])
    for name, step in moved[1.0].items():
        own = 4 if name.startswith("docids.") else 1
        torch.testing.assert_close(moved[4.0][name], own * step, rtol=1e-4, atol=1e-6)


# --- rows that are touched ------------------------------------------------------------------------

TOUCHED = dataclasses.replace(
    CONFIG, docid_softmax="sampled", docid_samples=4, docid_update="touched"
)


def sparse_step(model: Table, optimizer: torch.optim.Optimizer, seed: int, places: torch.Tensor):
    """:meth:`Table.step` with a sparse gradient of the rows, in two parts."""
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    for parameter in (model.matrix, model.scale):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    values = torch.randn(len(places), WIDTH, generator=generator)
    twice = torch.cat([places, places])[None]
    halves = torch.cat([values / 2, values / 2])
    model.rows.grad = torch.sparse_coo_tensor(
        twice, halves, model.rows.shape, check_invariants=True
    )
    optimizer.step()


@pytest.mark.parametrize("share", [1.0, 0.3, 0.05])
def test_it_is_dense_adamw_whose_rows_have_no_momentum(share):
    start, everything = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)), range(5)
    whole, rows = Table(start), Table(start)
    groups = [
        {"params": [whole.matrix], "weight_decay": 0.1},
        {"params": [whole.scale], "weight_decay": 0.0},
        {"params": [whole.rows], "weight_decay": 0.1, "betas": (0.0, 0.999)},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, fused=True)
    optimizer = make_optimizer(rows, TOUCHED)
    chance = torch.Generator().manual_seed(2)
    for seed in range(100):
        touched = torch.rand(5, generator=chance) < share
        # the last update makes up for what the dense one did to the others meanwhile
        places = touched.nonzero()[:, 0] if 0 < seed < 99 else torch.tensor(everything)
        whole.step(reference, seed, places)
        sparse_step(rows, optimizer, seed, places)
    torch.testing.assert_close(rows.rows, whole.rows, rtol=1e-5, atol=1e-6)
    assert torch.equal(rows.matrix, whole.matrix) and torch.equal(rows.scale, whole.scale)
    ours, theirs = named_state(optimizer, rows), named_state(reference, whole)
    torch.testing.assert_close(ours["rows/exp_avg_sq"], theirs["rows/exp_avg_sq"])
    assert ours["rows/row_step"].tolist() == [100] * 5


def test_a_rare_row_moves_in_all_as_far_as_with_momentum():
    whole, rows = Table(torch.zeros(2, WIDTH)), Table(torch.zeros(2, WIDTH))
    plain = dataclasses.replace(CONFIG, weight_decay=0.0)
    reference = make_optimizer(whole, plain)
    optimizer = make_optimizer(rows, dataclasses.replace(TOUCHED, weight_decay=0.0))
    for seed in range(300):
        places = torch.tensor([1] if seed == 100 else [0])
        whole.step(reference, seed, places)
        sparse_step(rows, optimizer, seed, places)
    torch.testing.assert_close(rows.rows[1], whole.rows[1], rtol=0.05, atol=0)


def test_rows_that_are_not_touched_stay_bit_for_bit():
    start = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    model = Table(start)
    optimizer = make_optimizer(model, TOUCHED)
    sparse_step(model, optimizer, 0, torch.arange(6))
    before, moments = model.rows.detach().clone(), named_state(optimizer, model)
    moments = {key: value.clone() for key, value in moments.items()}
    sparse_step(model, optimizer, 1, torch.tensor([4, 1]))
    after, others = named_state(optimizer, model), torch.tensor([0, 2, 3, 5])
    assert torch.equal(model.rows[others], before[others])
    assert not (model.rows[[1, 4]] == before[[1, 4]]).all(1).any()
    for key in ("rows/exp_avg_sq", "rows/row_step"):
        assert torch.equal(after[key][others], moments[key][others])
    assert after["rows/row_step"].tolist() == [1, 2, 1, 1, 2, 1]
    assert model.rows.grad is not None and model.rows.grad.is_sparse, "left as it was"


def test_the_first_update_of_touched_rows_is_the_dense_one():
    start, places = torch.ones(6, WIDTH), torch.tensor([0, 3])
    whole, rows = Table(start), Table(start)
    whole.step(make_optimizer(whole, CONFIG), 7, places)
    sparse_step(rows, make_optimizer(rows, TOUCHED), 7, places)
    torch.testing.assert_close(rows.rows[places], whole.rows[places], rtol=1e-6, atol=1e-7)
    assert torch.equal(rows.rows[[1, 2, 4, 5]], start[:4])


def test_moments_of_touched_rows_grow_and_are_kept(tmp_path):
    small = Table(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)))
    optimizer = make_optimizer(small, TOUCHED)
    for seed, places in enumerate(([0, 1, 2], [0, 2], [2])):
        sparse_step(small, optimizer, seed, torch.tensor(places))
    save_file(named_state(optimizer, small), tmp_path / "optimizer.safetensors")
    moments = load_file(tmp_path / "optimizer.safetensors")

    again = Table(small.rows.detach())
    again.load_state_dict(small.state_dict())
    other = make_optimizer(again, TOUCHED)
    restore_state(other, again, moments)
    sparse_step(small, optimizer, 9, torch.tensor([1]))
    sparse_step(again, other, 9, torch.tensor([1]))
    assert torch.equal(again.rows, small.rows)

    old = torch.tensor([1, 3, 4])
    large = Table(torch.zeros(6, WIDTH))
    optimizer = make_optimizer(large, TOUCHED)
    restore_state(optimizer, large, moments, origins(old, 6))
    after = named_state(optimizer, large)
    assert after["rows/row_step"].tolist() == [0, 2, 0, 1, 3, 0]
    assert torch.equal(after["rows/exp_avg_sq"][old], moments["rows/exp_avg_sq"])
    with pytest.raises(UserError, match="row_step"):
        restore_state(make_optimizer(large, CONFIG), large, moments, origins(old, 6))


def test_the_norm_that_is_clipped_is_of_all_gradients(accelerator):
    start, places = torch.ones(6, WIDTH), torch.tensor([0, 3])
    whole, rows = Table(start), Table(start)
    whole.step(make_optimizer(whole, CONFIG), 7, places)
    sparse_step(rows, make_optimizer(rows, TOUCHED), 7, places)
    expected = accelerator.clip_grad_norm_(whole.parameters(), 0.5)
    found = clip_gradient(accelerator, rows.parameters(), 0.5)
    torch.testing.assert_close(found, expected)
    assert rows.rows.grad is not None and rows.rows.grad.is_sparse
    torch.testing.assert_close(rows.rows.grad.to_dense(), whole.rows.grad)
    torch.testing.assert_close(rows.matrix.grad, whole.matrix.grad)
    again = clip_gradient(accelerator, whole.parameters(), 0.5)
    assert float(again) == pytest.approx(0.5, rel=1e-4)
    norms = [value.norm() for value in gradient_values(rows.parameters())]
    assert float(torch.stack(norms).norm()) == pytest.approx(0.5, rel=1e-4)


def test_a_model_is_told_which_loss_it_is_trained_with():
    model = from_scratch(0, **SIZES, num_decoder_layers=1, code_sizes=[30])
    make_optimizer(model, TOUCHED)
    assert (model.docids.samples, model.docids.sparse) == (4, True)
    make_optimizer(model, CONFIG)
    assert (model.docids.samples, model.docids.sparse) == (0, False)


SAMPLED = ("training.docid_softmax=sampled", "training.docid_samples=4")
EVERY_KEY = (*SAMPLED, "training.docid_update=touched")


@pytest.mark.parametrize(
    ("settings_", "start"),
    [
        (SAMPLED[:1], "training.docid_samples: above zero"),
        (SAMPLED[1:], "training.docid_samples: above zero"),
        ((*SAMPLED, "docids=semantic"), "training.docid_softmax: sampled is for one row"),
        ((*SAMPLED, "sharpness=functional"), "training.docid_softmax: 'functional' compares"),
        (("training.docid_update=touched",), "training.docid_update: touched: needs"),
        ((*EVERY_KEY, "training.optimizer=adafactor"), "training.docid_update: touched: Adafactor"),
        ((*EVERY_KEY, "sharpness=sam"), "training.docid_update: touched: 'sam' perturbs"),
        ((*EVERY_KEY, "regularizer=l2"), "training.docid_update: touched: 'l2' pulls"),
        ((*EVERY_KEY, "direction=bidirectional"), "training.docid_update: touched: text"),
    ],
)
def test_what_does_not_go_with_sampled_or_touched_rows(settings_, start):
    with pytest.raises(UserError) as caught:
        load_config(None, ["method=windows", *settings_])
    assert str(caught.value).startswith(start) and "\n" not in str(caught.value)


def test_what_goes_with_them():
    load_config(None, ("method=windows", *SAMPLED, "sharpness=sam"))
    load_config(None, ("method=windows", *EVERY_KEY, "sharpness=sam", "sharpness.rho=0"))


def test_as_many_samples_as_documents_train_as_the_exact_loss_does(lab):
    sampled = lab.train("training.docid_softmax=sampled", "training.docid_samples=30")
    ours, exact = (
        [line["loss"] for line in lab.metrics(run) if "loss" in line]
        for run in (sampled, lab.kept())
    )
    assert len(ours) > 6 and ours == pytest.approx(exact, rel=1e-3)


def test_a_run_that_touches_few_rows_is_resumed_bit_for_bit(lab, tmp_path):
    few = (SAMPLED[0], "training.docid_samples=3", EVERY_KEY[-1], "checkpoint.every=3")
    whole = lab.train(*few, "checkpoint.keep=9")
    part = tmp_path / "run"
    shutil.copytree(whole, part)
    for folder in sorted((part / "checkpoints").iterdir())[3:]:
        shutil.rmtree(folder)
    config = load_config(part / "config.yaml", [f"output={tmp_path}"])
    lab.call(runs.train, config, resume=True)
    assert lab.results(part, "metrics.jsonl") == lab.results(whole, "metrics.jsonl")


def test_both_passes_of_an_update_draw_the_same_documents(accelerator):
    model = from_scratch(0, **SIZES, num_decoder_layers=1, code_sizes=[900], dropout_rate=0.1)
    make_optimizer(model, dataclasses.replace(TOUCHED, docid_update="all"))
    model.train()
    codes = torch.arange(900)[:, None]
    ids = torch.randint(2, 20, (8, 5), generator=torch.Generator().manual_seed(0))
    parts = [
        MicroBatch(Batch(ids, torch.ones_like(ids), torch.arange(i, i + 8), None), i)
        for i in (0, 1)
    ]
    passes = Passes(model, accelerator, codes, 5, 0.0)
    one, other = passes.look(parts).losses, passes.look(parts).losses
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    later = Passes(model, accelerator, codes, 6, 0.0).look(parts).losses
    assert not any(torch.equal(a, b) for a, b in zip(one, later, strict=True))
