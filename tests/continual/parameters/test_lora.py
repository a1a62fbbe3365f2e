"""Adapters: what they compute, what a stage leaves of them, and a run that is stopped meanwhile."""

import sys

import pytest
import torch

from continual.cli import main
from continual.parameters.lora import Lora
from continual.trainer import Trainer
from continual.update.update import Update
from dsi.model.dsi_model import from_scratch
from dsi.search.forward import Inference
from tests.continual.test_resume import interrupt, resume

SMALL = ("parameters=lora", "parameters.r=2")
EVERYWHERE = ("q", "k", "v", "o", "wi", "wo")


def model_with(targets, **sizes):
    """A float64 model that is to have adapters, the member, queries and their loss."""
    sizes = dict(d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, **sizes)
    model = from_scratch(0, vocab_size=40, code_sizes=[5], dropout_rate=0.0, **sizes).double()
    member = Lora(Lora.Config(r=3, alpha=6.0, targets=targets))
    ids = torch.arange(12).view(3, 4) + 3
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def loss():
        return model(**given, codes=torch.tensor([[0], [2], [4]])).sum()

    return model, member, given, loss


def fill(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                drawn = torch.empty(parameter.shape, dtype=torch.float64)
                parameter.copy_(drawn.normal_(0.0, 0.3, generator=generator))


@pytest.mark.parametrize(
    "targets, sizes, layers",
    [
        (("q", "v"), {}, 12),  # 2 encoder layers, 2 decoder layers of 2 attentions each
        (EVERYWHERE, {}, 32),
        (EVERYWHERE, {"feed_forward_proj": "gated-gelu"}, 36),
    ],
)
def test_the_forward_pass_of_training_is_that_of_the_folded_weights(targets, sizes, layers):
    model, member, given, loss = model_with(targets, **sizes)
    plain, before = list(model.state_dict()), loss()
    drawn = torch.get_rng_state()
    member.shape(model, 1)
    member.select(model, 1)
    assert torch.equal(torch.get_rng_state(), drawn)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sum(name.endswith("lora_A.default.weight") for name in trained) == layers
    assert len(trained) == 2 * layers + 1 and trained[-1] == "docids.rows"
    assert loss() == before, "B A is zero"
    fill(model)
    ours, states = loss(), model.query_states(**given).detach()
    assert abs(ours - before) > 0.01
    ours.backward()
    with_gradient = [n for n, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == trained
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with member.folded(model):
        assert list(model.state_dict()) == plain
        torch.testing.assert_close(loss(), ours, rtol=1e-12, atol=0)
        torch.testing.assert_close(Inference(model).query_states(**given), states)
    again = model.state_dict()
    assert list(again) == list(kept)
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    name = "decoder.block.1.layer.1.EncDecAttention.q"
    a, b = (kept[f"{name}.lora_{part}.default.weight"] for part in "AB")
    torch.testing.assert_close(
        _end(model, member)[f"{name}.weight"], kept[f"{name}.base_layer.weight"] + 2.0 * b @ a
    )  # alpha / r = 2
    torch.testing.assert_close(loss(), ours, rtol=1e-12, atol=0)


def _end(model, member):
    member.end_stage(type("View", (), {"model": model}))
    return model.state_dict()


def test_a_stage_moves_little_and_leaves_a_plain_model(lab):
    run, full = lab.kept(*SMALL), lab.kept()
    assert lab.weights(run, 0).keys() == lab.weights(full, 2).keys()
    assert all(torch.equal(v, lab.weights(full, 0)[n]) for n, v in lab.weights(run, 0).items())
    for stage in (1, 2):
        before, after = lab.weights(run, stage - 1), lab.weights(run, stage)
        for name, value in before.items():
            moved = after[name][: len(value)] - value
            kind = name.rpartition("Attention.")[2]
            if kind in ("q.weight", "v.weight"):
                # the decoder has one position, whose weight is one whatever q is
                least = 0 if "decoder.block.0.layer.0" in name and kind[0] == "q" else 1
                assert least <= torch.linalg.matrix_rank(moved, rtol=1e-3) <= 2, name
            else:
                assert bool(moved.any()) == (name == "docids.rows"), name


def test_a_look_in_the_middle_of_a_stage_sees_the_folded_weights_and_changes_nothing(
    lab, monkeypatch
):
    look, seen = Trainer._look, []

    def noted(self, state, *others):
        weights = [name for name in state.model.state_dict() if "lora" in name]
        seen.append((state.stage, state.update, weights))
        return look(self, state, *others)

    monkeypatch.setattr(Trainer, "_look", noted)
    looked = lab.train(*SMALL, "evaluation.events_every=3")
    when = [(0, u) for u in (3, 6, 9, 10)] + [(n, u) for n in (1, 2) for u in (3, 6, 8)]
    assert seen == [(*place, []) for place in when]
    for stage in (1, 2):
        ours, theirs = lab.weights(looked, stage), lab.weights(lab.kept(*SMALL), stage)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_rank_zero_is_docid_rows(lab):
    ours = lab.train("parameters=lora", "parameters.r=0")
    assert lab.results(ours) == lab.results(lab.kept("parameters=docid_rows"))


def test_merging_sees_the_weights_that_adapters_make(lab):
    run = lab.train(*SMALL, "merging=average", "merging.new=0")
    before, after = lab.weights(run, 0), lab.weights(run, 1)
    assert all(torch.equal(after[name][: len(v)], v) for name, v in before.items())


MUCH = (
    *SMALL,
    "checkpoint.every=4",
    "evaluation.events_every=3",
    "regularizer=l2",
    "sharpness=sam",
    "merging=average",
    "model.dropout=0.2",
)


def test_going_on_within_a_stage_is_never_having_stopped(lab, tmp_path):
    run = interrupt(lab, tmp_path, Update, "take", 17, False, settings=MUCH)
    assert (run / "checkpoints" / "01-00000004").is_dir()
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*MUCH))


@pytest.mark.parametrize(
    "setting, line",
    [
        ("parameters.r=-1", "parameters.r: must be at least 0"),
        ("parameters.alpha=0", "parameters.alpha: must be above 0"),
        ("parameters.targets=[x]", "parameters.targets[0]: 'x' is not one of: q, k, v, o"),
        ("parameters.targets=[]", "parameters.targets: give some of q, k, v, o, wo, wi"),
    ],
)
def test_wrong_settings_are_one_line(lab, capsys, setting, line):
    assert main(["train", *lab.settings("parameters=lora", setting)]) == 2
    assert line in capsys.readouterr().err


def test_without_the_package_nothing_is_written(lab, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["train", *lab.settings(*SMALL, output=tmp_path)]) == 2
    assert "parameters.name: lora needs the package; pip install peft" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
