"""What holds for every member of every family: one row of a table each.

A new member is a row in ``MEMBERS``. What is its own (a closed form, a hand-worked case) is in its
own test; sharpness has more in common, which ``tests/continual/sharpness/`` shows.
"""

from dataclasses import dataclass

import pytest
import torch

from continual.config.registry import BASES, available
from continual.update.update import Update
from tests.continual.test_resume import interrupt, resume, timeless
from tests.continual.test_two_ranks import equal
from tests.ranks import on_two_ranks


@dataclass(frozen=True)
class Row:
    """``neutral``: settings with which the member is, bit for bit, what it ``extends`` (settings
    of that; none: plain training). ``strong``: settings with which all that it has is at work."""

    neutral: tuple[str, ...]
    strong: tuple[str, ...]
    extends: tuple[str, ...] = ()
    kill: int = 9
    """Before which update of the run it is killed: in stage 1, where the stage makes updates."""


MEMBERS = {
    "merging/average": Row(("merging.new=1",), ("merging.new=0.4",)),
    "merging/guard": Row(("merging.steps=0",), ("merging.steps=3",)),
    "merging/soup": Row(("merging.decay=0",), ("merging.decay=0.8",)),
    "parameters/docid_rows": Row(("data.stream=one",), (), extends=("data.stream=one",)),
    "parameters/incremental_rows": Row(
        ("data.stream=one",), (), extends=("data.stream=one",), kill=4
    ),
    "parameters/lora": Row(
        ("parameters.r=0",), ("parameters.r=2",), extends=("parameters=docid_rows",)
    ),
    # nothing but how much moves tells it from full training
    "parameters/tables": Row(
        ("training.learning_rate=1e-30",), (), extends=("training.learning_rate=1e-30",)
    ),
    "regularizer/ewc": Row(
        ("regularizer.weight=0",),
        ("regularizer.weight=1e3", "regularizer.samples=13", "regularizer.fisher=model"),
    ),
    "regularizer/l2": Row(("regularizer.weight=0",), ("regularizer.weight=10",)),
    "replay/dark": Row(
        ("replay.ratio=1", "replay.alpha=0"),
        ("replay.ratio=1", "replay.alpha=5", "replay.beta=0.5", "replay.top_k=4"),
        extends=("replay=episodic", "replay.ratio=1"),
    ),
    "replay/episodic": Row(("replay.ratio=.inf",), ("replay.ratio=1",)),
    "replay/generative": Row(
        ("replay.ratio=.inf", "replay.first_stage=0", "replay.stored_queries=0"),
        ("replay.ratio=1", "replay.queries_per_document=2", "replay.first_stage=0.5"),
    ),
    "replay/oracle": Row(
        ("replay.ratio=1",),
        ("replay.ratio=0.5",),
        extends=("replay=episodic", "replay.documents=seen", "replay.ratio=1"),
    ),
    "sharpness/sam": Row(("sharpness.rho=0",), ("sharpness.rho=0.2",)),
    "starts/centroid": Row(
        ("data.stream=one",), ("starts.queries=3",), extends=("data.stream=one",)
    ),
    # no setting of it is plain training; where a word counts once, no length matters
    "starts/lexical": Row(
        ("starts.k1=0", "starts.b=1"),
        ("starts.k1=1.5", "starts.strength=3", "starts.rounds=2"),
        extends=("starts=lexical", "starts.k1=0", "starts.b=0"),
    ),
}
FEW = ("training.updates=5", "training.updates_per_stage=4")
FAMILIES = [axis for axis in BASES if axis not in ("docids", "sharpness", "baseline")]
every_member = pytest.mark.parametrize("member", MEMBERS)


def neutral(member):
    return (*FEW, member.replace("/", "="), *MEMBERS[member].neutral)


def strong(member):
    return (*FEW, "checkpoint.every=2", member.replace("/", "="), *MEMBERS[member].strong)


def differ(lab, one, other):
    ours, theirs = lab.weights(one, 2), lab.weights(other, 2)
    return any(not torch.equal(value, theirs[name]) for name, value in ours.items())


def test_every_member_is_in_the_table():
    there = {f"{axis}/{name}" for axis in FAMILIES for name in available(axis)}
    there -= {f"{axis}/{BASES[axis][2]}" for axis in FAMILIES}
    assert there == {member for member in MEMBERS if not member.startswith("sharpness/")}


@every_member
def test_a_neutral_setting_is_what_it_extends_bit_for_bit(lab, member):
    run = lab.train(*neutral(member))
    assert lab.results(run) == lab.results(lab.kept(*FEW, *MEMBERS[member].extends))


@every_member
def test_a_strong_setting_is_not(lab, member):
    run = lab.kept(*strong(member), double=True)
    assert differ(lab, run, lab.kept(*FEW, double=True))
    extended = lab.kept(*FEW, *MEMBERS[member].extends, double=True)
    if (extended / "stages" / "02").exists():
        assert differ(lab, run, extended)


@every_member
def test_its_state_survives_a_kill(lab, tmp_path, member):
    """Its last checkpoint is one update old."""
    with lab.in_double():
        run = interrupt(
            lab, tmp_path, Update, "take", MEMBERS[member].kill, settings=strong(member)
        )
        resume(lab, run)
    assert timeless(run) == timeless(lab.kept(*strong(member), double=True))


@every_member
def test_four_micro_batches_are_one_batch(lab, member):
    whole = lab.kept(*strong(member), double=True)
    with lab.in_double():
        parts = lab.train(*strong(member), "training.accumulation=4")
    for stage in range(3):
        theirs = lab.weights(parts, stage)
        for name, value in lab.weights(whole, stage).items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-9, atol=1e-9)


def train_all(lab, place):
    for member in MEMBERS:
        try:
            lab.train_quietly(place / member, *strong(member))
        except Exception as error:
            error.add_note(f"this was {member}")
            raise


@pytest.fixture(scope="module")
def by_two_ranks(lab, tmp_path_factory):
    """A folder with a run of every member, all by one pair of processes."""
    place = tmp_path_factory.mktemp("two-ranks")
    with lab.in_double():
        on_two_ranks(train_all, lab, place)
    return place


@every_member
def test_two_ranks_are_one(lab, by_two_ranks, member):
    equal(lab, lab.kept(*strong(member), double=True), by_two_ranks / member / "run")
