"""metrics.jsonl: one object per event, cut at the checkpoint; W&B mirrors it."""

import json
import os
import struct
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from accelerate.state import AcceleratorState

from continual import cli, runs
from continual.devices.accelerator import make_accelerator
from continual.run.tracking import Tracker
from dsi.errors import UserError


class Wandb:
    """An Accelerator that notes what a tracker sends to W&B."""

    is_main_process = True

    def __init__(self, run_id="abc"):
        self.started: list[dict] = []
        self.sent: list[tuple[dict, int]] = []
        self.metrics: list[tuple] = []
        self.ended = 0
        self.run_id = run_id

    def init_trackers(self, project, config, init_kwargs):
        self.started.append({"project": project, "config": config, **init_kwargs["wandb"]})

    def get_tracker(self, name, unwrap=False):
        return SimpleNamespace(
            id=self.run_id, finish=self.finish, define_metric=self.define_metric, step=40
        )

    def define_metric(self, name, step_metric=None, hidden=False):
        self.metrics.append((name, step_metric))

    def log(self, values, step):
        self.sent.append((values, step))

    def finish(self):
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
    # a new run begins with nothing
    Tracker(tmp_path, lab.config(), accelerator).close()
    assert read(tmp_path) == []


def test_lines_before_the_checkpoint_are_what_they_were(lab, accelerator, tmp_path, capsys):
    tracker = Tracker(tmp_path, lab.config(), accelerator)
    for update in range(3):
        tracker.log({"update": update}, update)
    size, checksum = tracker.size(), tracker.checksum()
    tracker.log({"update": 3}, 3)
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    again = Tracker(tmp_path, lab.config(), accelerator, size, checksum)
    assert (again.size(), again.checksum()) == (size, checksum)
    again.close()
    for damaged, what in (
        (content[: size - 1], f"{size - 1} bytes, the checkpoint notes {size}"),
        (b"", "0 bytes"),
        (content.replace(b"1", b"7"), "not what was written before the checkpoint"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=what) as caught:
            Tracker(tmp_path, lab.config(), accelerator, size, checksum)
        assert "restore the file, or delete it" in str(caught.value)
        assert path.read_bytes() == damaged  # nothing is cut off
    path.unlink()
    os.mkfifo(path)  # opened, it would be waited for
    with pytest.raises(UserError, match="not a regular file"):
        Tracker(tmp_path, lab.config(), accelerator, size, checksum)
    # a lost file is the user's decision, and does not come back as zeros
    path.unlink()
    Tracker(tmp_path, lab.config(), accelerator, size, checksum).close()
    assert path.read_bytes() == b"" and capsys.readouterr().out.count("warning: ") == 1
    path.write_bytes(content)  # an older checkpoint has no checksum
    Tracker(tmp_path, lab.config(), accelerator, size).close()


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
    assert service.metrics == [("total_updates", None), ("*", "total_updates")]
    tracker.log({"stage": 1, "update": 8, "corpus": "D0", "hits@1": 0.5, "mrr@10": None}, 18)
    tracker.log({"stage": 1, "update": 8, "corpus": "D1", "hits@1": 0.25}, 18)
    size, checksum = tracker.size(), tracker.checksum()
    assert service.sent == [
        ({"stage": 1, "update": 8, "D0/hits@1": 0.5, "total_updates": 18}, 0),
        ({"stage": 1, "update": 8, "D1/hits@1": 0.25, "total_updates": 18}, 1),
    ]
    tracker.close()
    assert service.ended == 1
    assert json.loads((tmp_path / "environment.json").read_text())["wandb_run"] == "abc"
    # a resumed run goes on with the same W&B run, behind the steps that it has
    for lost, step in ((False, 2), (True, 40)):
        if lost:
            (tmp_path / "metrics.jsonl").unlink()
        again = Wandb()
        resumed = Tracker(tmp_path, config, again, size, checksum)  # type: ignore[arg-type]
        resumed.log({"stage": 2, "loss": 0.5}, 18)
        resumed.close()
        assert again.started[0]["id"] == "abc" and again.started[0]["resume"] == "allow"
        assert again.sent == [({"stage": 2, "loss": 0.5, "total_updates": 18}, step)]


class UsageError(Exception):
    """As W&B's: the user is not logged in."""


def test_where_the_user_can_do_something_there_is_one_line(lab, tmp_path):
    def not_logged_in(*_, **__):
        raise UsageError("api_key not configured")

    service = Wandb()
    service.init_trackers = not_logged_in  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"tracking\.wandb.*offline"):
        Tracker(tmp_path, lab.config("tracking.wandb=true"), service)  # type: ignore[arg-type]


class Unreachable(Exception):
    """As W&B's own, which derives from nothing that is known here."""


class FakeWandb(ModuleType):
    """The module wandb of a service that goes away: ``fails`` names what, ``at`` from which call.

    "hangs" as an error: the call does not return.
    """

    def __init__(self, fails: str, error: Any, at: int = 1):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.config, self.id, self.calls = SimpleNamespace(update=lambda *a, **k: None), "abc", 0
        self.fails, self.error, self.at, self.lines = fails, error, at, 0

    def _do(self, what: str) -> None:
        self.calls += what == self.fails
        if what == self.fails and self.calls >= self.at:
            if self.error == "hangs":
                time.sleep(3600)
            raise cast(BaseException, self.error)

    def init(self, **_: Any) -> "FakeWandb":
        self._do("init")
        return self

    def define_metric(self, name: str, **_: Any) -> None:
        pass

    def log(self, values: Any, step: int) -> None:
        self._do("log")
        self.lines += 1

    def finish(self) -> None:
        self._do("finish")


@pytest.mark.parametrize(
    ("fails", "error", "at", "what"),
    [
        ("init", ConnectionError("no route"), 1, "did not start (ConnectionError: no route)"),
        ("init", Unreachable("timed out\n  twice"), 1, "did not start (Unreachable: timed out twi"),
        ("init", "hangs", 1, "did not start (TimeoutError: no answer within 0.2 s)"),
        ("log", ConnectionError("reset"), 1, "failed (ConnectionError: reset)"),
        ("log", Unreachable("gone"), 5, "failed (Unreachable: gone)"),
        ("finish", ConnectionError("reset"), 1, "did not finish; 'wandb sync' sends the rest (Co"),
        (
            "finish",
            SystemExit(1),
            1,
            "did not finish; 'wandb sync' sends the rest (RuntimeE",
        ),
        ("finish", "hangs", 1, "did not finish; 'wandb sync' sends the rest (TimeoutError: no a"),
    ],
)
def test_a_run_outlives_wandb(lab, tmp_path, monkeypatch, capsys, fails, error, at, what):
    service = FakeWandb(fails, error, at)
    monkeypatch.setitem(sys.modules, "wandb", service)
    for name in ("START_SECONDS", "FINISH_SECONDS") if error == "hangs" else ():
        monkeypatch.setattr(f"continual.run.tracking.{name}", 0.2)
    monkeypatch.setattr(runs, "_show", lambda folder: None)
    AcceleratorState._reset_state(True)
    assert cli.main(["train", *lab.settings("tracking.wandb=true", output=tmp_path)]) == 0
    said = capsys.readouterr()
    warnings = [line for line in (said.out + said.err).splitlines() if "W&B" in line]
    assert len(warnings) == 1 and what in warnings[0] and warnings[0].startswith("warning: ")
    assert lab.results(tmp_path / "run") == lab.results(lab.kept())
    assert service.lines == {"init": 0, "log": at - 1}.get(fails, service.lines)
    assert fails != "finish" or service.lines > 10


def history(path: Path, count: int) -> list[dict[str, float]]:
    """The rows that a W&B run wrote to its file, whose service may be a moment later than it says.

    Without ``_step`` and the like.
    """
    end = time.monotonic() + 30
    while len(rows := written_rows(path.read_bytes())) < count and time.monotonic() < end:
        time.sleep(0.05)
    return [{name: row[name] for name in row if name[0] != "_"} for row in rows]


def written_rows(content: bytes) -> list[dict[str, float]]:
    """Records in the blocks of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole, rows = 7, b"", []
    while at + 7 < len(content):
        if 32768 - at % 32768 < 7:  # no room for a head: the block's end
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += 7 + length
        if at > len(content):  # still being written
            break
        whole += content[at - length : at]
        if kind in (1, 4):  # all of a record, or its last part
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
                rows.append({name: json.loads(value) for name, value in items.items()})
    return rows


def test_an_offline_run_of_wandb_leaves_metrics_as_they_are(lab, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = lab.train("tracking.wandb=true")
    assert lab.results(run) == lab.results(lab.kept())
    written = list(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 1
    run_id = json.loads((run / "environment.json").read_text())["wandb_run"]
    assert written[0].name == f"run-{run_id}.wandb"
    lines = lab.metrics(run)
    rows = history(written[0], len(lines))
    assert [row["stage"] for row in rows] == [line["stage"] for line in lines]


def test_the_end_of_a_stage_and_the_next_beginning_are_rows_of_their_own(
    lab, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    AcceleratorState._reset_state(True)
    config = lab.config("tracking.wandb=true")
    tracker = Tracker(tmp_path, config, make_accelerator(config))
    tracker.log({"stage": 0, "update": 10, "A/hits@10": 0.5}, 10)
    tracker.log({"stage": 1, "queries": 60}, 10)
    tracker.log({"stage": 1, "update": 3, "loss": 2.5}, 13)
    tracker.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert history(written, 3) == [
        {"stage": 0, "update": 10, "A/hits@10": 0.5, "total_updates": 10},
        {"stage": 1, "queries": 60, "total_updates": 10},
        {"stage": 1, "update": 3, "loss": 2.5, "total_updates": 13},
    ]
