"""Checkpoints: whole, newest first, and one line when one is damaged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from continual.run import checkpoint as module
from continual.run.checkpoint import Checkpoint, fitting, load_latest, save
from dsi import manifest
from dsi.errors import UserError


def checkpoint(stage, update, finished=False):
    tensors = {
        "model": {"w": torch.randn(3, 2), "half": torch.randn(4).bfloat16()},
        "optimizer": {"w/step": torch.tensor(7.0)},
        "previous": {},
    }
    values = {"rows": [{"hits@1": [0.1, None]}, None], "loss": [1 / 3]}
    return Checkpoint(stage, update, finished, tensors, values)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    saved = checkpoint(3, 40)
    saved.tensors["model"]["view"] = torch.randn(4, 6).T  # not contiguous
    save(tmp_path, saved, keep=2)
    loaded = load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.stage, loaded.update, loaded.finished) == (3, 40, False)
    assert loaded.values == saved.values
    assert loaded.tensors.keys() == saved.tensors.keys()
    for group, tensors in saved.tensors.items():
        assert loaded.tensors[group].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(loaded.tensors[group][name], value)
            assert loaded.tensors[group][name].dtype == value.dtype


def test_without_a_folder_there_is_none(tmp_path):
    assert load_latest(tmp_path / "nothing") is None


def test_only_the_newest_are_kept(tmp_path):
    order = [(0, 5, False), (0, 10, False), (0, 10, True), (1, 5, False), (9, 5, False)]
    # a hundred stages and a hundred million updates: as numbers, not as letters
    order += [(99, 10, True), (100, 5, False), (100, 99_999_999, False), (100, 100_000_000, True)]
    for stage, update, finished in order:
        save(tmp_path, checkpoint(stage, update, finished), keep=2)
        latest = load_latest(tmp_path)
        assert latest is not None
        assert (latest.stage, latest.update, latest.finished) == (stage, update, finished)
        assert len(names(tmp_path)) <= 2


def test_an_interrupted_save_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, checkpoint(0, 5), keep=1)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("continual.run.checkpoint.json.dumps", lambda value: 1 / 0)
        save(tmp_path, checkpoint(0, 10), keep=1)
    assert names(tmp_path) == ["00-00000005"]
    (tmp_path / ".00-00000010.abc").mkdir()  # what a killed process leaves behind
    (tmp_path / "00-00000011").mkdir()  # not one of ours: no manifest in it
    told = []
    latest = load_latest(tmp_path, told.append)
    assert latest is not None and latest.update == 5
    assert len(told) == 1 and "00-00000011" in told[0] and "manifest.json is missing" in told[0]


FILES = ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors")


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "removed", "replaced"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path, file, how):
    save(tmp_path, checkpoint(0, 5), keep=3)
    save(tmp_path, checkpoint(0, 9), keep=3)
    path = tmp_path / "00-00000009" / file
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes({"truncated": content[:-3], "emptied": b"", "replaced": b"[]"}[how])
    told = []
    found = load_latest(tmp_path, told.append)
    assert found is not None and found.update == 5
    assert len(told) == 1 and "\n" not in told[0]
    assert "00-00000009: damaged checkpoint (" in told[0] and "skipped" in told[0]
    # what is saved next takes its place
    save(tmp_path, checkpoint(0, 7), keep=3)
    assert names(tmp_path) == ["00-00000005", "00-00000007"]


def resealed(folder, **names):
    """The manifest as if it had been written so, with more ``names``."""
    manifest.forget(folder)
    manifest.record(folder)
    sums = json.loads((folder / manifest.NAME).read_text())["sha256"]
    manifest._write(folder, {**sums, **names})


def state(folder, **values):
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def narrow(folder):
    save_file({"w/step": torch.tensor(7.0), "w/exp_avg": torch.zeros(2, 2)}, folder / OPTIMIZER)


OPTIMIZER = "optimizer.safetensors"
CRAFTED = {
    "a name that climbs": (
        lambda f: resealed(f, **{"../escape": "0" * 64}),
        "outside of its folder",
    ),
    "the folder above": (lambda f: resealed(f, **{"..": "0" * 64}), "outside of its"),
    "a path": (lambda f: resealed(f, **{"/etc/passwd": "0" * 64}), "outside of its"),
    "a group that climbs": (lambda f: state(f, groups=["../w"]), "../w.safetensors is missing"),
    "a group gone": (lambda f: (f / OPTIMIZER).unlink(), f"{OPTIMIZER} is missing"),
    "groups that are no list": (lambda f: state(f, groups=5), "not what was written: TypeError"),
    "values that are no object": (lambda f: state(f, values=[1]), "not what was written: TypeE"),
    "the state of another": (lambda f: state(f, update=12), "state.json is of 00-00000012"),
    "a state that is a list": (lambda f: (f / "state.json").write_text("[]"), "not what was wr"),
    "moments of other sizes": (narrow, "w/exp_avg has sizes (2, 2), the weight (3, 2)"),
    "weights that are none": (lambda f: (f / OPTIMIZER).write_bytes(b"{}"), "SafetensorError"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_right_checksums_of_wrong_content_are_no_checkpoint(tmp_path, case):
    change, what = CRAFTED[case]
    for update in (5, 9):
        save(tmp_path, checkpoint(0, update), keep=3)
    folder = tmp_path / "00-00000009"
    change(folder)
    if "outside" not in what:
        resealed(folder)
    told = []
    found = load_latest(tmp_path, told.append)
    assert found is not None and found.update == 5
    assert len(told) == 1 and "\n" not in told[0]
    assert "00-00000009: damaged checkpoint (" in told[0] and what in told[0]


def test_what_does_not_fit_the_run_is_one_line(tmp_path):
    found = checkpoint(1, 8, finished=True)
    with (
        pytest.raises(UserError, match=r"01-00000008-end: does not fit .*two lines.*delete it"),
        fitting(tmp_path, found),
    ):
        raise RuntimeError("two\nlines")
    with pytest.raises(KeyboardInterrupt), fitting(tmp_path, found):
        raise KeyboardInterrupt


def test_when_every_checkpoint_is_damaged_there_is_one_line(tmp_path):
    save(tmp_path, checkpoint(0, 5), keep=1)
    (tmp_path / "00-00000005" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"every checkpoint is damaged; .* --overwrite"):
        load_latest(tmp_path, lambda text: None)


def test_another_schema_is_no_damage(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "SCHEMA", 99)
        save(tmp_path, checkpoint(0, 5), keep=1)
    with pytest.raises(UserError, match=r"00-00000005/state.json: schema 99, .* the version"):
        load_latest(tmp_path)
