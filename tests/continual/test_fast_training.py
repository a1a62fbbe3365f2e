"""Settings of speed and memory: what they may change of a run's numbers, and what not."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5LayerSelfAttention

from dsi.errors import UserError

SHORT = ("data.stream=one", "training.updates=6", "model.dropout=0.2")


def same(lab, one, other, exactly=True) -> bool:
    ours, theirs = lab.weights(one, 0), lab.weights(other, 0)
    check = torch.equal if exactly else lambda a, b: torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    return ours.keys() == theirs.keys() and all(check(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    "setting",
    ["training.prefetch=0", "training.prefetch=5", "training.gradient_checkpointing=true"],
)
def test_what_changes_no_number(lab, setting):
    assert same(lab, lab.train(*SHORT, setting), lab.kept(*SHORT))


def test_layers_run_again_under_checkpointing(lab, monkeypatch):
    calls, original = [], T5LayerSelfAttention.forward
    monkeypatch.setattr(
        T5LayerSelfAttention, "forward", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    lab.train(*SHORT)
    plain = len(calls)
    lab.train(*SHORT, "training.gradient_checkpointing=true")
    assert len(calls) - plain == 2 * plain


def test_sharpness_and_accumulation_under_checkpointing(lab):
    sharp = (*SHORT, "sharpness=sam", "training.accumulation=2")
    assert same(lab, lab.train(*sharp, "training.gradient_checkpointing=true"), lab.kept(*sharp))


def test_the_two_dropouts_draw_differently(lab):
    assert not same(lab, lab.train(*SHORT, "training.fast_dropout=false"), lab.kept(*SHORT))
    without = ("data.stream=one", "training.updates=6")
    assert same(lab, lab.train(*without, "training.fast_dropout=false"), lab.kept(*without))


def test_more_padding_changes_rounding_alone(lab):
    without = ("data.stream=one", "training.updates=6")
    assert same(lab, lab.train(*without, "training.pad_to_multiple=8"), lab.kept(*without), False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, inside
def test_a_compiled_model_differs_by_rounding_alone(lab):
    without = ("data.stream=one", "training.updates=6")
    padded = (*without, "training.pad_to_multiple=16")
    assert same(lab, lab.train(*padded, "training.compile=default"), lab.kept(*padded), False)


def test_updates_of_so_many_tokens(lab):
    run = lab.train("training.batch_size=64", "training.batch_tokens=100")
    assert lab.matrix(run)["num_updates"] == lab.matrix(lab.kept())["num_updates"]
    assert not same(lab, run, lab.kept())


def test_tokens_and_examples_exclude_each_other(lab):
    with pytest.raises(UserError, match=r"training\.batch_tokens: takes the place of"):
        lab.config("training.batch_tokens=100")
