"""The loop over updates: what it makes due and when, and where it stops."""

import pytest
import torch

from continual.stage import StageLoop
from continual.update.update import Taken, Update
from dsi.errors import UserError


@pytest.fixture
def seen(monkeypatch):
    """What every loop made due, at which update of which stage."""
    found, train = [], StageLoop.train

    def noted(self, stop):
        for due in train(self, stop):
            found.append((self.state.stage, self.state.update, due.events, due.save))
            yield due

    monkeypatch.setattr(StageLoop, "train", noted)
    return found


def test_saving_and_looking_are_due_at_their_cadence_but_not_at_the_end(lab, seen):
    lab.train("checkpoint.every=4", "evaluation.events_every=5")
    first = [(0, 4, False, True), (0, 5, True, False), (0, 8, False, True)]
    later = [(4, False, True), (5, True, False)]  # 8 and 10 are the ends of stages
    assert seen == [*first, *((stage, *due) for stage in (1, 2) for due in later)]


def test_nothing_is_due_by_default(lab, seen):
    lab.train()
    assert seen == []


def test_a_loss_that_is_not_finite_is_found_at_the_next_log_line(lab, monkeypatch):
    made, take = [], Update.take

    def spoilt(self, *arguments, **options):
        made.append(1)
        taken = take(self, *arguments, **options)
        return Taken(taken.loss * float("nan")) if len(made) == 5 else taken

    monkeypatch.setattr(Update, "take", spoilt)
    with pytest.raises(UserError, match=r"nan at update 4 of stage 0"):
        lab.train()
    assert len(made) == 6, "log_every is 3"


def test_the_mean_loss_is_of_all_updates_since_the_last_line(lab, monkeypatch):
    numbers = iter(range(1000))
    monkeypatch.setattr(Update, "take", lambda *a, **k: Taken(torch.tensor(float(next(numbers)))))
    lines = [line["loss"] for line in lab.metrics(lab.train()) if "loss" in line]
    assert lines[:4] == [1.0, 4.0, 7.0, 9.0]  # 0..2, 3..5, 6..8, then the tenth alone
