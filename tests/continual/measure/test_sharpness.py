"""Rise and eigenvalue against closed forms and dense Hessians, and a run that does not notice."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from continual.config.loading import load_config
from continual.config.schema import SharpnessMeasurement
from continual.measure.sharpness import hessian_times, measure, measure_stage, sample
from continual.run.directory import stage_folder
from continual.run.material import prepare
from dsi.errors import UserError
from dsi.model.dsi_model import DSIModel, from_scratch

SETTINGS = SharpnessMeasurement(examples=1)
CURVATURE = torch.diag(torch.tensor([1.0, 10.0, -3.0, 0.5], dtype=torch.float64))
STAGE = 2


class Quadratic:
    """``1/2 w' A w + b' w`` over two weights of two numbers each, in two parts."""

    def __init__(self, curvature=CURVATURE, slope=0.0, start=(0.3, -0.2, 0.5, 0.1)):
        generator = torch.Generator().manual_seed(3)
        turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
        self.A = turn @ curvature @ turn.T
        self.b = slope * torch.ones(4, dtype=torch.float64)
        place = torch.tensor(start, dtype=torch.float64)
        self.weights = [nn.Parameter(place[:2].clone()), nn.Parameter(place[2:].view(1, 2).clone())]

    def value(self, w):
        return w @ self.A @ w / 2 + self.b @ w

    def flat(self):
        return torch.cat([weight.flatten() for weight in self.weights])

    def losses(self):
        for share in (0.25, 0.75):
            yield share * self.value(self.flat())


def worst_rise(A, g, rho):
    """The largest ``g'e + 1/2 e'Ae`` with ``||e|| <= rho``, by the secular equation."""
    values, vectors = np.linalg.eigh(A)
    part = vectors.T @ g
    length = lambda shift: np.linalg.norm(part / (shift - values))  # noqa: E731
    low = max(0.0, values[-1]) + 1e-12
    high = low + np.linalg.norm(g) / rho + 1
    assert length(low) > rho, "the constraint holds"
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) > rho else (low, middle)
    e = part / (high - values)
    return float(part @ e + e @ (values * e) / 2)


@pytest.mark.parametrize("rho", [0.01, 0.05, 1.0])
def test_rises_of_a_quadratic(rho):
    """One step has a closed form; the search comes close to the worst place and not beyond it."""
    problem = Quadratic()
    settings = dataclasses.replace(SETTINGS, rho=rho, ascents=60)
    found = measure(problem.losses, problem.weights, settings, seed=0)
    w = problem.flat().detach()
    g = problem.A @ w
    step = g / g.norm()
    first = rho * g.norm() + rho**2 / 2 * step @ problem.A @ step
    assert found["loss"] == pytest.approx(float(problem.value(w)), abs=1e-12)
    assert found["gradient_norm"] == pytest.approx(float(g.norm()), abs=1e-12)
    assert found["rise_first"] == pytest.approx(float(first), abs=1e-12)
    worst = worst_rise(problem.A.numpy(), g.numpy(), rho)
    assert found["rise_first"] < found["rise"] <= worst + 1e-12
    assert found["rise"] == pytest.approx(worst, rel=1e-3)
    one = measure(problem.losses, problem.weights, dataclasses.replace(settings, ascents=1), seed=0)
    assert one["rise"] == one["rise_first"] == found["rise_first"]


def test_the_rise_is_the_highest_of_all_ascents(monkeypatch):
    """A search that comes down again still reports its best place."""
    weight = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    settings = dataclasses.replace(SETTINGS, rho=1.0, ascents=4)
    # a narrow peak: the first step goes over it, later ones back and beyond
    values = measure(lambda: [torch.sin(3 * weight).sum()], [weight], settings, seed=0)
    places = [0.1]
    offset, slope = 0.0, math.cos(0.3)
    for _ in range(4):
        offset = max(-1.0, min(1.0, offset + math.copysign(1.0, slope)))
        places.append(0.1 + offset)
        slope = math.cos(3 * places[-1])
    rises = [math.sin(3 * place) - math.sin(0.3) for place in places[1:]]
    assert rises[0] != max(rises)
    assert values["rise"] == pytest.approx(max(rises))
    assert values["rise_first"] == pytest.approx(rises[0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_eigenvalue_of_largest_magnitude_has_its_sign(sign):
    problem = Quadratic(sign * CURVATURE, slope=1.0)
    settings = dataclasses.replace(SETTINGS, iterations=60)
    found = measure(problem.losses, problem.weights, settings, seed=0)
    assert found["eigenvalue"] == pytest.approx(10 * sign, abs=1e-9)
    assert found["eigenvalue_residual"] < 1e-9


def test_the_residual_tells_what_has_not_converged():
    problem = Quadratic(torch.diag(torch.tensor([10.0, -10.0, 1.0, 1.0], dtype=torch.float64)))
    settings = dataclasses.replace(SETTINGS, iterations=60)
    found = measure(problem.losses, problem.weights, settings, seed=0)
    assert abs(found["eigenvalue"]) < 10 - 1e-3
    assert found["eigenvalue_residual"] > 0.01


def test_a_linear_loss_has_no_curvature():
    weight = nn.Parameter(torch.ones(3))
    found = measure(lambda: [2 * weight.sum()], [weight], SETTINGS, seed=0)
    assert found["eigenvalue"] == 0 and found["eigenvalue_residual"] is None
    assert found["rise"] == pytest.approx(0.05 * 2 * 3**0.5, rel=1e-5)


def test_a_flat_place_and_an_unused_weight():
    weight, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2))
    found = measure(lambda: [(weight**2).sum()], [weight, unused], SETTINGS, seed=0)
    assert (found["rise"], found["rise_first"]) == (0, 0)
    assert found["eigenvalue"] == pytest.approx(2, rel=1e-3)
    assert unused.grad is None and torch.equal(unused, torch.ones(2))


def test_what_is_not_finite_is_null():
    weight = nn.Parameter(torch.ones(3))
    found = measure(lambda: [(weight * float("nan")).sum()], [weight], SETTINGS, seed=0)
    assert found["loss"] is None and found["rise"] is None
    assert torch.equal(weight, torch.ones(3))
    json.dumps(found, allow_nan=False)


def tiny():
    """A model of several codes in float64, its examples and their loss as one function."""
    sizes = dict(vocab_size=10, d_model=4, d_kv=2, d_ff=2, num_layers=1, num_heads=1)
    sizes |= dict(relative_attention_num_buckets=4)
    model = from_scratch(0, **sizes, num_decoder_layers=1, code_sizes=[3, 3], embedding_std=0.5)
    model = model.double().eval()
    ids = torch.tensor([[3, 4, 5, 1], [6, 7, 1, 0], [8, 4, 9, 1]])
    mask, codes = (ids > 0).long(), torch.tensor([[0, 2], [1, 0], [2, -1]])

    def losses():
        for rows in ([0, 1], [2]):
            yield model(ids[rows], mask[rows], codes[rows]).sum() / 3

    return model, losses, (ids, mask, codes)


def joined(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_a_model_against_its_dense_hessian():
    model, losses, inputs = tiny()
    weights = list(model.parameters())
    sizes = [weight.numel() for weight in weights]
    derivatives = partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = model(*inputs).sum() / 3
        slope = joined(derivatives(loss, weights, create_graph=True, allow_unused=True))
        rows = [derivatives(entry, weights, allow_unused=True) for entry in slope]
        hessian = torch.stack([joined(row) for row in rows])
        vector = torch.randn(len(slope), dtype=torch.float64)
        pieces = [p.view_as(w) for p, w in zip(vector.split(sizes), weights, strict=True)]
        product = hessian_times(losses, weights, pieces)
    # T5's norms round to float32 whatever the weights are, so H is symmetric only so far
    assert (hessian - hessian.T).norm() < 1e-4 * hessian.norm()
    hessian = (hessian + hessian.T) / 2
    found, expected = joined(product), hessian @ vector
    assert (found - expected).norm() < 1e-4 * expected.norm()

    values = torch.linalg.eigvalsh(hessian)
    top = float(values[values.abs().argmax()])
    settings = dataclasses.replace(SETTINGS, iterations=30, rho=1e-3)
    result = measure(losses, weights, settings, seed=1)
    assert result["eigenvalue_residual"] < 0.03
    assert result["eigenvalue"] == pytest.approx(top, rel=1e-3), "its error is a square's"
    g = slope.detach()
    bent = float(g @ hessian @ g / g.norm() ** 2)
    # a radius at which the third order is small
    first = 1e-3 * float(g.norm()) + 1e-6 / 2 * bent
    assert result["rise_first"] == pytest.approx(first, rel=1e-3)
    assert result["rise"] <= worst_rise(hessian.detach().numpy(), g.numpy(), 1e-3) * (1 + 1e-3)


def test_weights_come_back_bit_for_bit():
    model, losses, _ = tiny()
    model = model.float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(losses, list(model.parameters()), SETTINGS, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("failing", [1, 2, 4, 8])
def test_weights_come_back_from_a_failure(failing):
    model, losses, _ = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls, flags = [], torch.backends.cuda.flash_sdp_enabled()

    def fails():
        calls.append(1)
        if len(calls) == failing:
            raise RuntimeError("out of memory")
        yield from losses()

    with pytest.raises(RuntimeError, match="out of memory"):
        measure(fails, list(model.parameters()), SETTINGS, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.cuda.flash_sdp_enabled() == flags


SHORT = ("evaluation.sharpness.ascents=2", "evaluation.sharpness.iterations=3")
ON = ("evaluation.sharpness.examples=7", "evaluation.batch_size=4", *SHORT)


@pytest.fixture(scope="module")
def stream(lab):
    return prepare(lab.config(), lab.kept("evaluation.batch_size=4") / "tokenizer").stream


def test_the_sample_is_what_indexing_accuracy_reads(lab, stream):
    config = lab.config(*ON, "prompts.indexing=find", "evaluation.document_length=5")
    batches = sample(config, stream, STAGE)
    assert [batch.targets() for batch in batches] == [4, 3]
    rows = torch.cat([batch.documents for batch in batches]).tolist()
    assert len(set(rows)) == 7 and max(rows) < stream.count(STAGE)
    prompt = stream.tokenizer("find", add_special_tokens=False)["input_ids"]
    for batch in batches:
        for document, ids, mask in zip(
            batch.documents.tolist(), batch.input_ids, batch.attention_mask, strict=True
        ):
            start = stream.tokens.offsets[document]
            text = stream.tokens.values[start : start + 5].tolist()
            assert ids[mask.bool()].tolist() == [*prompt, *text]
    again = sample(config, stream, STAGE)
    assert all(torch.equal(a.documents, b.documents) for a, b in zip(batches, again, strict=True))
    other = sample(dataclasses.replace(config, seed=1), stream, STAGE)
    assert sorted(torch.cat([b.documents for b in other]).tolist()) != sorted(rows)


def test_more_examples_than_documents_are_all(lab, stream):
    batches = sample(lab.config("evaluation.sharpness.examples=1000"), stream, 0)
    assert sorted(torch.cat([b.documents for b in batches]).tolist()) == list(range(18))


def test_the_result_does_not_depend_on_the_batch_size_or_the_mode(lab, stream):
    model = DSIModel.from_pretrained(stage_folder(lab.kept(), STAGE) / "model")
    codes = np.arange(stream.count(STAGE))[:, None]
    found = []
    for size, training in ((1, True), (7, False)):
        model.train(training)
        config = lab.config(*ON, f"evaluation.batch_size={size}")
        found.append(measure_stage(config, stream, model, codes, STAGE))
        assert model.training == training
    for key, value in found[0].items():
        assert value == pytest.approx(found[1][key], rel=2e-3), key
    assert found[0]["examples"] == 7


def test_frozen_weights_are_not_moved_and_do_not_count(lab, stream):
    model = DSIModel.from_pretrained(stage_folder(lab.kept(), STAGE) / "model")
    for name, weight in model.named_parameters():
        weight.requires_grad_(name == "docids.rows")
    codes = np.arange(stream.count(STAGE))[:, None]
    found = measure_stage(lab.config(*ON), stream, model, codes, STAGE)
    assert found["weights"] == model.docids.rows.numel()
    assert found["eigenvalue"] > 0, "cross-entropy is convex in the rows"


def test_training_does_not_notice(lab):
    """The same files byte for byte, but for the measurement's own."""
    settings = ("evaluation.batch_size=4", "model.dropout=0.1", "training.accumulation=2")
    plain, measured = lab.kept(*settings), lab.kept(*settings, *ON)
    expected, found = lab.results(plain), lab.results(measured)
    lines = found.pop("metrics.jsonl").splitlines(keepends=True)
    own = [json.loads(line) for line in lines if b"sharpness/" in line]
    assert b"".join(line for line in lines if b"sharpness/" not in line) == expected.pop(
        "metrics.jsonl"
    )
    assert found == expected
    assert [event["stage"] for event in own] == [0, 1, 2]
    for event in own:
        path = stage_folder(measured, event["stage"]) / "sharpness.json"
        values = json.loads(path.read_text("utf-8"))
        assert event["sharpness/rise"] == values["rise"] > 0
        assert event["sharpness/eigenvalue"] == values["eigenvalue"]
        assert set(event) == {"stage", "update", "sharpness/rise", "sharpness/eigenvalue"}
    assert not list(plain.rglob("sharpness.json"))


def test_the_fields_of_the_file(lab):
    run = lab.kept("evaluation.batch_size=4", "model.dropout=0.1", "training.accumulation=2", *ON)
    values = json.loads((stage_folder(run, 1) / "sharpness.json").read_text("utf-8"))
    assert list(values) == [
        "examples",
        "weights",
        "rho",
        "ascents",
        "iterations",
        "loss",
        "gradient_norm",
        "rise",
        "rise_first",
        "eigenvalue",
        "eigenvalue_residual",
    ]
    assert (values["examples"], values["rho"]) == (7, 0.05)
    assert values["rise"] >= values["rise_first"] > 0


@pytest.mark.parametrize(
    ("setting", "start"),
    [
        ("examples=-1", "evaluation.sharpness.examples: must be at least 0"),
        ("rho=0", "evaluation.sharpness.rho: must be above 0"),
        ("ascents=0", "evaluation.sharpness.ascents: must be at least 1"),
        ("iterations=0", "evaluation.sharpness.iterations: must be at least 1"),
        ("radius=1", "evaluation.sharpness.radius: unknown key"),
    ],
)
def test_wrong_settings_name_their_key(setting, start):
    with pytest.raises(UserError) as caught:
        load_config(None, [f"evaluation.sharpness.{setting}"])
    assert str(caught.value).startswith(start)


def test_only_documents_that_are_there_are_drawn(lab, changing):
    config = lab.config(*changing, "evaluation.sharpness.examples=26")
    stream = prepare(config).stream
    drawn = np.concatenate([batch.documents.numpy() for batch in sample(config, stream, 3)])
    assert sorted(drawn.tolist()) == stream.members(3).tolist()
    # each with the text that it has now
    for batch in sample(config, stream, 3):
        for row, number in enumerate(batch.documents.tolist()):
            if number in (2, 19):
                own = stream.tokens_at(3)[number][:5].tolist()
                assert own == batch.input_ids[row, :5].tolist()
                assert own != stream.tokens[number][:5].tolist()
