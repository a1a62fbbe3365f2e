"""metrics.jsonl: one object per event, cut at the checkpoint; W&B mirrors it."""

import json
from types import SimpleNamespace

import pytest

from continual.tracking import Tracker
from dsi.errors import UserError


class Wandb:
    """An Accelerator that notes what a tracker sends to W&B."""

    is_main_process = True

    def __init__(self, run_id="abc"):
        self.started: list[dict] = []
        self.sent: list[tuple[dict, int]] = []
        self.ended = 0
        self.run_id = run_id

    def init_trackers(self, project, config, init_kwargs):
        self.started.append({"project": project, "config": config, **init_kwargs["wandb"]})

    def get_tracker(self, name, unwrap):
        return SimpleNamespace(id=self.run_id)

    def log(self, values, step):
        self.sent.append((values, step))

    def end_training(self):
        self.ended += 1


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_per_event_is_on_disk_at_once(lab, accelerator, tmp_path):
    tracker = Tracker(tmp_path, lab.config(), accelerator)
    first, second = {"stage": 0, "update": 3, "loss": 0.1 + 0.2}, {"stage": 0, "A/hits@1": None}
    tracker.log(first, 3)
    assert read(tmp_path) == [first]
    tracker.log(second, 3)
    assert read(tmp_path) == [first, second]
    assert tracker.size() == (tmp_path / "metrics.jsonl").stat().st_size
    tracker.close()


def test_lines_after_the_checkpoint_are_cut_off(lab, accelerator, tmp_path):
    tracker = Tracker(tmp_path, lab.config(), accelerator)
    tracker.log({"name": "ä"}, 1)
    size = tracker.size()
    tracker.log({"update": 2}, 2)
    tracker.close()
    resumed = Tracker(tmp_path, lab.config(), accelerator, size)
    assert resumed.size() == size and read(tmp_path) == [{"name": "ä"}]
    resumed.log({"update": 3}, 3)
    assert read(tmp_path) == [{"name": "ä"}, {"update": 3}]
    assert resumed.size() == (tmp_path / "metrics.jsonl").stat().st_size
    resumed.close()
    # a new run begins with nothing, and a lost file does not come back as zeros
    Tracker(tmp_path, lab.config(), accelerator).close()
    assert read(tmp_path) == []
    Tracker(tmp_path, lab.config(), accelerator, size).close()
    assert read(tmp_path) == []


def test_only_the_main_process_writes(lab, tmp_path):
    tracker = Tracker(tmp_path, lab.config(), SimpleNamespace(is_main_process=False))  # type: ignore[arg-type]
    tracker.log({"update": 1}, 1)
    assert tracker.size() == 0
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_json_is_refused(lab, accelerator, tmp_path):
    tracker = Tracker(tmp_path, lab.config(), accelerator)
    with pytest.raises(ValueError):
        tracker.log({"loss": float("nan")}, 1)
    tracker.close()


def test_every_value_reaches_wandb_under_a_name_of_its_own(lab, tmp_path):
    service = Wandb()
    config = lab.config("tracking.wandb=true", "tracking.project=mine")
    tracker = Tracker(tmp_path, config, service)  # type: ignore[arg-type]
    (start,) = service.started
    assert start["project"] == "mine" and start["name"] == "run" and start["dir"] == str(tmp_path)
    assert start["config"]["training"]["learning_rate"] == 0.01 and "id" not in start
    tracker.log({"stage": 1, "update": 8, "corpus": "D0", "hits@1": 0.5, "mrr@10": None}, 18)
    tracker.log({"stage": 1, "update": 8, "corpus": "D1", "hits@1": 0.25}, 18)
    assert service.sent == [
        ({"stage": 1, "update": 8, "D0/hits@1": 0.5}, 18),
        ({"stage": 1, "update": 8, "D1/hits@1": 0.25}, 18),
    ]
    tracker.close()
    assert service.ended == 1
    assert json.loads((tmp_path / "environment.json").read_text())["wandb_run"] == "abc"
    # a resumed run goes on with the same W&B run
    again = Wandb()
    Tracker(tmp_path, config, again, size=10).close()  # type: ignore[arg-type]
    assert again.started[0]["id"] == "abc" and again.started[0]["resume"] == "allow"


def test_when_wandb_fails_there_is_one_line(lab, tmp_path):
    service = Wandb()
    service.init_trackers = lambda *a, **k: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"tracking\.wandb.*offline"):
        Tracker(tmp_path, lab.config("tracking.wandb=true"), service)  # type: ignore[arg-type]


def test_an_offline_run_of_wandb_leaves_metrics_as_they_are(lab, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = lab.train("tracking.wandb=true")
    assert lab.results(run) == lab.results(lab.kept())
    written = list(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 1 and written[0].stat().st_size > 1000
    run_id = json.loads((run / "environment.json").read_text())["wandb_run"]
    assert written[0].name == f"run-{run_id}.wandb"
