"""Sharpness on two processes: global is one big batch, local the mean of the ranks' own."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from continual.config.registry import component_class
from continual.config.schema import TrainingConfig
from continual.devices.sharding import gather, shard
from continual.update.optimizer import make_optimizer
from dsi.examples.batches import Batch
from dsi.model.dsi_model import from_scratch
from tests.continual.one_update import begun, take
from tests.ranks import on_two_ranks

CODES = torch.arange(12)[:, None]
TRAINING = TrainingConfig(learning_rate=1e-3, warmup=0)
RULES = {"sam": {"rho": 0.1}, "asam": {"rho": 0.5}, "gsam": {"rho": 0.1}}
SHARDED = ("sam", "asam", "gsam", "functional", "micro")
OTHERS = ("functional", "look", "friendly", "efficient", "micro", "tram", "decoder_only", "gam")
UPDATES = 5
SAME = 1e-10  # in float64: in float32 AdamW blows rounding up


def small():
    sizes = dict(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=1, num_heads=2)
    return from_scratch(
        3, vocab_size=30, dropout_rate=0.0, code_sizes=[12], embedding_std=0.5, **sizes
    ).double()


def batch(update, size=8) -> Batch:
    generator = torch.Generator().manual_seed(update)
    ids = torch.randint(2, 30, (size, 5), generator=generator)
    mask = torch.ones_like(ids)
    mask[::3, 3:] = 0
    return Batch(ids, mask, torch.randint(0, 12, (size,), generator=generator), None)


def train(name, accelerator, *, updates=UPDATES, micro_batches=1, sharded=False, sgd=False, **more):
    """The weights after some updates."""
    cls = component_class("sharpness", name)
    policy, whole = cls(cls.Config(**{**RULES.get(name, {}), **more})), small()
    optimizer = make_optimizer(whole, TRAINING)
    if sgd:
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    model, stepper = whole, optimizer
    if sharded:
        model, stepper = shard(whole, optimizer, TRAINING)
    elif accelerator.num_processes > 1:
        model = accelerator.prepare_model(whole)
    model.train()
    policy.begin_stage(begun(0, dict(whole.named_parameters())))
    for update in range(updates):
        taken = take(
            model,
            stepper,
            batch(update),
            CODES,
            accelerator,
            micro_batches=micro_batches,
            seed=update,
            clip=1.0,
            sharpness=policy,
            update=update,
        )
        assert taken.made
    if sharded:
        gather(model, stepper, whole, optimizer)
    return {key: value.detach().clone() for key, value in whole.named_parameters()}


def cases():
    for name in RULES:
        yield f"ddp-{name}", dict(name=name)
        yield f"ddp-{name}-micro", dict(name=name, micro_batches=2)
        yield f"local-{name}", dict(name=name, sync="local")
        yield f"local-{name}-m", dict(name=name, sync="local", m=2)
        yield f"local-{name}-sgd", dict(name=name, sync="local", sgd=True, updates=1)
    for name in OTHERS:
        yield f"ddp-{name}", dict(name=name)
    for name in SHARDED:
        yield f"fsdp-{name}", dict(name=name, sharded=True)
    yield "fsdp-sam-micro", dict(name="sam", sharded=True, micro_batches=2)


def train_all(folder):
    accelerator = Accelerator(cpu=True)
    for label, case in cases():
        found = train(accelerator=accelerator, **case)
        save_file(found, folder / f"{label}-{accelerator.process_index}.safetensors")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """For every case the weights of rank 0 and rank 1."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(train_all, folder)
    return {
        label: [load_file(folder / f"{label}-{rank}.safetensors") for rank in (0, 1)]
        for label, _ in cases()
    }


def furthest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_ranks_stay_the_same_bit_for_bit(ranks):
    for label, (one, other) in ranks.items():
        assert all(torch.equal(one[name], other[name]) for name in one), label


@pytest.mark.parametrize("name", [*RULES, *OTHERS])
def test_a_global_step_is_that_of_one_big_batch(name, ranks, accelerator):
    alone = train(name, accelerator)
    assert furthest(alone, ranks[f"ddp-{name}"][0]) < SAME
    if name in RULES:
        assert furthest(alone, ranks[f"ddp-{name}-micro"][0]) < SAME
        # and it matters: plain training ends elsewhere
        assert furthest(alone, train("sam", accelerator, rho=1e-9)) > 1e-3


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_step_is_that_of_one_big_batch(name, ranks, accelerator):
    alone = train(name, accelerator)
    assert furthest(alone, ranks[f"fsdp-{name}"][0]) < SAME
    if name == "sam":
        assert furthest(alone, ranks["fsdp-sam-micro"][0]) < SAME


@pytest.mark.parametrize("name", RULES)
def test_a_local_step_averages_the_ranks_own(name, ranks, accelerator):
    start = dict(small().named_parameters())
    expected = {key: value.detach().clone() for key, value in start.items()}
    # what a rank would do alone, with a clip that does nothing to the mean
    gradients = []
    for rank in (0, 1):
        alone = alone_step(name, accelerator, batch(0).part(rank, 2))
        gradients.append({key: (start[key] - alone[key]).detach() / 0.1 for key in alone})
    mean = {key: (gradients[0][key] + gradients[1][key]) / 2 for key in start}
    size = torch.stack([value.norm() for value in mean.values()]).norm()
    for key, value in mean.items():
        expected[key] -= 0.1 * value * min(1.0, 1.0 / (float(size) + 1e-6))  # as torch clips
    assert furthest(expected, ranks[f"local-{name}-sgd"][0]) < SAME
    # with a number of examples per perturbation, the number of ranks does not matter
    alone = train(name, accelerator, sync="local", m=2)
    assert furthest(alone, ranks[f"local-{name}-m"][0]) < SAME
    assert furthest(alone, ranks[f"local-{name}"][0]) > 1e-4


def alone_step(name, accelerator, part):
    cls = component_class("sharpness", name)
    model = small().train()
    policy = cls(cls.Config(**RULES[name]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    take(model, optimizer, part, CODES, accelerator, seed=0, sharpness=policy)
    return dict(model.named_parameters())
