"""Every member of sharpness in the trainer's hands: what holds for all of them."""

import dataclasses

import pytest
import torch
from torch import nn

from continual.config.registry import available, component_class
from continual.config.schema import TrainingConfig
from continual.sharpness.sam import SAM
from continual.update.optimizer import make_optimizer
from dsi.errors import UserError
from dsi.examples.batches import Batch
from dsi.model.dsi_model import from_scratch
from tests.continual.one_update import Penalty, begun, take

MEMBERS = [name for name in available("sharpness") if name != "none"]
# with radius zero they are plain training even when their passes are made; the others are plain
# because `active` is False
PLAIN_AT_ZERO = (
    "amp",
    "asam",
    "awp",
    "fisher",
    "fisher_mask",
    "friendly",
    "functional",
    "interval",
    "sam",
    "tram",
    "wsam",
)
# forward and backward passes over the whole batch in four updates
PASSES = {
    "gam": (16, 16),
    "c_flat": (16, 16),
    "look": (5, 5),
    "interval": (5, 5),
    "tram": (11, 8),  # the first update of a stage has no reference
    "efficient": (10, 6),
    "micro": (5, 5),
}
CODES = torch.tensor([[i % 4, i // 4] for i in range(12)])


def member(name, **settings):
    cls = component_class("sharpness", name)
    return cls(cls.Config(**settings))


def small(dropout=0.0, dtype=torch.float64):
    sizes = dict(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2)
    model = from_scratch(
        3, vocab_size=30, dropout_rate=dropout, code_sizes=[4, 3], embedding_std=0.5, **sizes
    )
    return model.to(dtype).train()


def batch(seed=0, size=8, labels=False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 30, (size, 5), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 3:] = 0
    words = None
    if labels:
        words = torch.randint(2, 30, (size, 4), generator=generator)
        words[::2, 1:] = -100
    return Batch(ids, mask, torch.randint(0, 12, (size,), generator=generator), words)


def step(model, accelerator, policy, *, given=None, optimizer=None, **changes):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    given = batch() if given is None else given
    return take(model, optimizer, given, CODES, accelerator, sharpness=policy, **changes)


def begin(policy, model):
    policy.begin_stage(begun(0, dict(model.named_parameters())))
    return policy


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def furthest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", MEMBERS)
def test_radius_zero_is_off(name):
    policy = member(name, rho=0.0)
    assert not policy.active(0) and not policy.active(3)
    assert member(name).active(0)


@pytest.mark.parametrize(
    ("phase", "stages"),
    [("off", []), ("first", [0]), ("later", [1, 2]), ("all", [0, 1, 2])],
)
def test_phases(phase, stages):
    policy = member("sam", phase=phase)
    assert [stage for stage in range(3) if policy.active(stage)] == stages


@pytest.mark.parametrize("name", PLAIN_AT_ZERO)
def test_no_radius_is_the_plain_step_bit_for_bit(name, accelerator):
    plain, sharp = small(dropout=0.2), small(dropout=0.2)
    policy = begin(member(name, rho=0.0), sharp)
    for update in range(3):
        step(plain, accelerator, policy, sharp=False, given=batch(update), seed=update)
        state = torch.get_rng_state()
        step(sharp, accelerator, policy, given=batch(update), seed=update, update=update)
        assert torch.equal(torch.get_rng_state(), state)
    assert same(weights(plain), weights(sharp))


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_are_back_bit_for_bit(name, accelerator):
    model = small(dropout=0.1, dtype=torch.float32)
    policy, before = begin(member(name), model), weights(model)
    for update in range(3):
        step(model, accelerator, policy, update=update, optimizer=still(model))
        assert same(weights(model), before)


def still(model):
    return torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_are_back_when_a_pass_raises(name, accelerator):
    for fails_at in range(1, 5):
        model = small(dtype=torch.float32)
        policy, before, calls = begin(member(name), model), weights(model), []
        decode = model.decode_docid

        def broken(*inputs, calls=calls, decode=decode, fails_at=fails_at):
            calls.append(1)
            if len(calls) > fails_at:
                raise RuntimeError("out of memory")
            return decode(*inputs)

        model.decode_docid = broken
        try:
            # an update that perturbs something also where a first one cannot
            step(model, accelerator, policy, update=0, optimizer=still(model))
        except RuntimeError:
            assert len(calls) == fails_at + 1
        assert same(weights(model), before)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", MEMBERS)
def test_micro_batches_are_one_batch(name, labels, accelerator):
    moved = []
    for parts in (1, 2, 4):
        model = small()
        policy = begin(member(name), model)
        for update in range(3):
            given = batch(update, labels=labels)
            step(model, accelerator, policy, given=given, micro_batches=parts, update=update)
        moved.append(weights(model))
    if name == "tram":  # noise would differ; its default compares with the step before
        assert policy.config.reference == "previous_step"
    # the losses are float32, and a divergence is a small difference of large sums
    limit = 1e-6 if name == "tram" else 1e-9
    assert furthest(moved[0], moved[1]) < limit
    assert furthest(moved[0], moved[2]) < limit


@pytest.mark.parametrize("name", MEMBERS)
def test_members_differ_from_plain_steps(name, accelerator):
    plain, sharp = small(), small()
    policy = begin(member(name, rho=0.2), sharp)
    for update in range(2):
        step(plain, accelerator, policy, sharp=False)
        step(sharp, accelerator, policy, update=update)
    assert 1e-9 < furthest(weights(plain), weights(sharp)) < 10


@pytest.mark.parametrize("name", MEMBERS)
def test_an_update_that_is_not_finite_leaves_no_trace(name, accelerator):
    model = small(dtype=torch.float32)
    optimizer = make_optimizer(model, TrainingConfig())
    policy = begin(member(name), model)
    for update in range(2):
        assert step(model, accelerator, policy, optimizer=optimizer, update=update).made
    before, moments = weights(model), {p: dict(s) for p, s in optimizer.state.items()}
    kept = {key: value.clone() for key, value in policy.state_dict().items()}
    decode = model.decode_docid
    for bad_pass in (0, 1):
        calls = []

        def spoilt(*inputs, calls=calls, bad_pass=bad_pass):
            calls.append(1)
            return decode(*inputs) * (float("nan") if len(calls) == bad_pass + 1 else 1.0)

        model.decode_docid = spoilt
        made = step(model, accelerator, policy, optimizer=optimizer, update=5)
        assert len(calls) > bad_pass
        assert not made.made
        assert same(weights(model), before)
        assert all(p.grad is None for p in model.parameters())
        for parameter, held in moments.items():
            now = optimizer.state[parameter]
            assert all(torch.equal(value, now[key]) for key, value in held.items())
        assert kept.keys() == policy.state_dict().keys()
        assert all(torch.equal(value, policy.state_dict()[key]) for key, value in kept.items())
    model.decode_docid = decode
    assert step(model, accelerator, policy, optimizer=optimizer, update=6).made


@pytest.mark.parametrize("name", MEMBERS)
def test_going_on_from_a_checkpoint_is_going_on(name, accelerator):
    """3 + 3 updates are 6, bit for bit, with Adam and with what the policy carries along."""
    ends = []
    for stop in (6, 3):
        model = small(dropout=0.1, dtype=torch.float32)
        optimizer = make_optimizer(model, TrainingConfig())
        policy = begin(member(name), model)
        for update in range(6):
            if update == stop:
                kept = policy.state_dict()
                policy = member(name)
                policy.load_state_dict({key: value.clone() for key, value in kept.items()})
            step(
                model,
                accelerator,
                policy,
                given=batch(update),
                optimizer=optimizer,
                seed=update,
                update=update,
            )
        ends.append(weights(model))
    assert same(*ends)


@pytest.mark.parametrize("name", MEMBERS)
def test_passes_are_as_many_as_the_member_says(name, accelerator):
    """In examples, over four updates: what the docstrings give as cost."""
    model = small()
    policy, forward, backward = begin(member(name), model), [], []
    decode = model.decode_docid

    def counted(states, mask, codes):
        hidden = decode(states, mask, codes)
        forward.append(len(codes))
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: backward.append(len(gradient)))
        return hidden

    model.decode_docid = counted
    for update in range(4):
        step(model, accelerator, policy, given=batch(update), update=update)
    expected = PASSES.get(name, (8, 8))
    assert (sum(forward) / 8, sum(backward) / 8) == expected
    told = " ".join(type(policy).__doc__.split())
    assert all(f"{word}:" in told for word in ("Source", "Passes", "Extra memory", "Relations"))


def test_the_encoder_runs_once_where_the_decoder_is_perturbed(accelerator):
    model, runs = small(), []
    policy = begin(member("decoder_only"), model)
    model.encoder.register_forward_hook(lambda *_: runs.append(1))
    step(model, accelerator, policy)
    assert len(runs) == 1
    plain, sharp = small(), small()
    step(plain, accelerator, policy, sharp=False)
    step(sharp, accelerator, begin(member("decoder_only", rho=1e-9), sharp))
    assert furthest(weights(plain), weights(sharp)) < 1e-8


def test_a_tied_weight_is_perturbed_once(accelerator):
    model, seen = small(), []

    class Look(SAM):
        def perturbation(self, step):
            seen.extend(step.names)
            found = super().perturbation(step)
            assert float(torch.cat([e.flatten() for e in found]).norm()) == pytest.approx(0.1)
            return found

    step(model, accelerator, Look(SAM.Config(rho=0.1)), given=batch(labels=True))
    assert len(seen) == len(set(seen)) and "encoder.embed_tokens.weight" in seen
    assert "decoder.embed_tokens.weight" not in seen


def test_frozen_weights_are_left_alone(accelerator):
    model = small()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    before, policy = weights(model), member("asam")
    step(model, accelerator, policy)
    after = weights(model)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("encoder"), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_too_coarse_for_a_perturbation_are_refused(dtype, accelerator):
    model = small(dtype=dtype)
    with pytest.raises(UserError, match=r"keep float32 weights and set training\.precision: bf16"):
        step(model, accelerator, member("sam"))


def test_under_autocast_the_second_pass_sees_the_perturbed_weights(accelerator):
    """Autocast keeps its casts of the weights within a region: one around both passes is no SAM."""
    model = small(dtype=torch.float32)
    accelerator.state._mixed_precision = "bf16"
    accelerator.native_amp = True
    seen = []
    decode = model.decode_docid

    def noted(*inputs):
        hidden = decode(*inputs)
        seen.append(hidden.detach().clone())
        return hidden

    model.decode_docid = noted
    step(model, accelerator, member("sam", rho=2.0))
    assert not torch.equal(seen[0], seen[1])
    assert torch.is_autocast_enabled("cpu") is False


def test_the_perturbation_is_made_from_all_micro_batches(accelerator):
    model, seen = small(), []

    class Look(SAM):
        def perturbation(self, step):
            seen.append([g.clone() for g in step.gradients[-1]])
            return super().perturbation(step)

    step(model, accelerator, Look(SAM.Config()), micro_batches=4)
    other = small()
    step(other, accelerator, Look(SAM.Config()), micro_batches=1)
    assert len(seen) == 2
    for one, other_one in zip(*seen, strict=True):
        torch.testing.assert_close(one, other_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["sam", "decoder_only"])
def test_a_penalty_enters_the_ascent_only_if_asked(name, inside, accelerator):
    model, seen, asked = small(), [], []
    kind = component_class("sharpness", name)

    class Look(kind):
        def perturbation(self, step):
            seen.append(dict(zip(step.names, [g.clone() for g in step.gradients[-1]], strict=True)))
            return super().perturbation(step)

    def penalty(of):
        asked.append(1)
        return 3.0 * of.docids.rows.sum()

    policy = Look(kind.Config(ascent_penalty=inside))
    regularizer = Penalty(penalty)
    step(model, accelerator, policy, regularizer=regularizer)
    step(small(), accelerator, policy)
    added = seen[0]["docids.rows"] - seen[1]["docids.rows"]
    torch.testing.assert_close(added, torch.full_like(added, 3.0 if inside else 0.0))
    assert len(asked) == (2 if inside else 1)


def test_a_penalty_is_descended_once_either_way(accelerator):
    ends = []
    for inside in (False, True):
        model = small()
        regularizer = Penalty(lambda of: 0.3 * of.docids.start.sum())
        policy = member("sam", rho=1e-12, ascent_penalty=inside)
        step(model, accelerator, policy, regularizer=regularizer)
        ends.append(weights(model))
    assert furthest(*ends) < 1e-9


@pytest.mark.parametrize("name", ["sam", "asam", "gsam", "amp", "micro", "wsam"])
@pytest.mark.parametrize("labels", [False, True])
def test_local_steps_average_the_shards_own(name, labels, accelerator):
    """``m`` examples per perturbation: the update is the shards' updates, weighted by targets."""
    given = batch(labels=labels)
    model = small()
    before = weights(model)
    step(model, accelerator, begin(member(name, sync="local", m=2), model), given=given)
    expected = {key: torch.zeros_like(value) for key, value in before.items()}
    for shard in range(4):
        alone, part = small(), given.part(shard, 4)
        step(alone, accelerator, begin(member(name), alone), given=part)
        share = part.targets() / given.targets()
        for key, value in weights(alone).items():
            expected[key] += share * (value - before[key])
    moved = {key: value - before[key] for key, value in weights(model).items()}
    assert furthest(moved, expected) < 1e-12
    again = small()
    step(again, accelerator, member(name, sync="local", m=2), given=given, micro_batches=8)
    assert furthest(weights(again), weights(model)) < 1e-9
    whole = small()
    step(whole, accelerator, member(name), given=given)
    assert furthest(weights(whole), weights(model)) > 1e-6
    alone = small()
    step(alone, accelerator, member(name, sync="local"), given=given)
    assert same(weights(alone), weights(whole))


def test_functional_steps_take_the_clean_gradient_of_the_outputs(accelerator):
    """J(w + eps)' dL/df(w), by autograd on one linear layer with a softmax on top."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(2)
            self.w = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
            self.v = nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64))

        def outputs(self, ids):
            return torch.tanh(self.w @ nn.functional.one_hot(ids % 4, 4).double().T).T @ self.v.T

        def forward(
            self, input_ids, attention_mask, codes, labels, label_smoothing, return_logits=False
        ):
            logits = self.outputs(input_ids[:, 0])
            losses = nn.functional.cross_entropy(logits, codes[:, 0], reduction="none")
            return (losses, [logits]) if return_logits else losses

    given = batch()
    model = Linear()
    step(model, accelerator, member("functional", rho=0.3), given=given)
    hand = Linear()
    logits = hand.outputs(given.input_ids[:, 0])
    loss = nn.functional.cross_entropy(logits, CODES[given.documents][:, 0])
    gw, gv, gf = torch.autograd.grad(loss, [hand.w, hand.v, logits])
    scale = 0.3 / (gw.square().sum() + gv.square().sum()).sqrt()
    before = [hand.w.detach().clone(), hand.v.detach().clone()]
    with torch.no_grad():
        hand.w += scale * gw
        hand.v += scale * gv
    final = torch.autograd.grad((hand.outputs(given.input_ids[:, 0]) * gf).sum(), [hand.w, hand.v])
    for value, start, gradient in zip((model.w, model.v), before, final, strict=True):
        torch.testing.assert_close(value.detach(), start - 0.1 * gradient, rtol=0, atol=1e-12)


def test_efficient_steps_descend_the_examples_whose_loss_rose_most(accelerator):
    model = small()
    start = weights(model)
    policy = begin(member("efficient", weights=1.0, examples=0.25, rho=0.5), model)
    given = batch()
    step(model, accelerator, policy, given=given)
    other = small()

    class Note(SAM):
        def perturbation(self, step):
            found = super().perturbation(step)
            self.found = dict(zip(step.names, [e.clone() for e in found], strict=True))
            return found

    note = Note(SAM.Config(rho=0.5))
    step(other, accelerator, note, given=given, optimizer=still(other))

    def losses(of):
        codes = CODES[given.documents]
        return of(given.input_ids, given.attention_mask, codes)

    other.zero_grad()
    clean = losses(other)
    with torch.no_grad():
        for key, value in other.named_parameters():
            value += note.found[key]
    raised = losses(other)
    worst = torch.topk(raised.detach() - clean.detach(), 2).indices
    raised[worst].mean().backward()
    for key, value in other.named_parameters():
        expected = start[key] - 0.1 * value.grad
        torch.testing.assert_close(dict(model.named_parameters())[key].detach(), expected)


@pytest.mark.parametrize("reference", ["previous_step", "previous_stage", "noise"])
def test_the_trust_region_is_the_divergence_from_its_reference(reference, accelerator):
    model, seen = small(), []
    kind = component_class("sharpness", "tram")

    class Note(kind):
        def perturbation(self, step):
            seen.append(step.divergence)
            return super().perturbation(step)

    policy = Note(kind.Config(reference=reference))
    begin(policy, model)
    start = small()
    for update in range(2):
        step(model, accelerator, policy, update=update)
    first, second = seen
    if reference == "previous_step":
        assert first is None
    elif reference == "previous_stage":
        assert float(first) == 0.0
    else:
        assert float(first) > 0
    if reference == "noise":
        return
    given, moved = batch(), small()
    step(moved, accelerator, member("sam"), sharp=False)
    codes = CODES[given.documents]
    inputs = (given.input_ids, given.attention_mask, codes)
    with torch.no_grad():
        before, now = (of(*inputs, return_logits=True)[1] for of in (start, moved))
    total = sum(
        nn.functional.kl_div(
            new.log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="sum"
        )
        for old, new in zip(before, now, strict=True)
    )
    assert float(second) == pytest.approx(float(total) / 8, rel=1e-5)


def test_every_member_is_listed():
    assert len(MEMBERS) >= 18
    for name in MEMBERS:
        cls = component_class("sharpness", name)
        assert dataclasses.is_dataclass(cls.Config)
