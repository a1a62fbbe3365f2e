"""Files are either whole or not there."""

import json
import os
from pathlib import Path

import pytest

from dsi.errors import UserError
from dsi.files import cache_folder, replace_atomically, reported, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DSI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("DSI_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "dsi-continual"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "above" / "entry"
    replace_atomically(folder, lambda target: write_text(target / "a" / "one", "1"))
    assert (folder / "a" / "one").read_text() == "1"
    assert folder.stat().st_mode & 0o777 == 0o755
    replace_atomically(folder, lambda target: write_text(target / "two", "2"))
    assert names(folder) == ["two"]
    assert names(folder.parent) == ["entry"]


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("bad"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_folder_and_is_reported(tmp_path, error):
    folder = tmp_path / "entry"
    replace_atomically(folder, lambda target: write_text(target / "old", "1"))

    def fail(target: Path) -> None:
        (target / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        replace_atomically(folder, fail)
    with pytest.raises(type(error)):
        replace_atomically(tmp_path / "never", fail)
    assert names(tmp_path) == ["entry"]
    assert names(folder) == ["old"]


def test_a_reader_of_the_old_folder_goes_on(tmp_path):
    folder = tmp_path / "entry"
    replace_atomically(folder, lambda target: write_text(target / "file", "old"))
    with open(folder / "file") as file:
        replace_atomically(folder, lambda target: write_text(target / "file", "new"))
        assert file.read() == "old"
    assert (folder / "file").read_text() == "new"


def test_of_two_processes_the_first_wins(tmp_path, monkeypatch):
    folder, rename = tmp_path / "entry", os.rename

    def other_comes_first(source, target):
        if Path(target) == folder:
            write_text(folder / "file", "theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", other_comes_first)
    replace_atomically(folder, lambda target: write_text(target / "file", "ours"))
    assert (folder / "file").read_text() == "theirs"
    assert names(tmp_path) == ["entry"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder, rename = tmp_path / "entry", os.rename
    replace_atomically(folder, lambda target: write_text(target / "file", "old"))

    def refuse(source, target):
        if Path(target) == folder and not str(source).endswith(".old"):
            raise PermissionError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError):
        replace_atomically(folder, lambda target: write_text(target / "file", "new"))
    assert (folder / "file").read_text() == "old"
    assert names(tmp_path) == ["entry"]


def test_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "below" / "file.txt"
    write_text(path, "zwölf\r\nBoxkämpfer\n")
    assert path.read_bytes() == "zwölf\r\nBoxkämpfer\n".encode()
    write_text(path, "")
    assert path.read_bytes() == b""
    assert names(path.parent) == ["file.txt"]


def test_what_stands_in_the_way_is_one_line_where_it_is_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    (run / "metrics").mkdir(parents=True)
    fix = rf"^{run}/metrics: is a directory; .* move it away"
    with pytest.raises(UserError, match=fix), reported(run):
        write_text(run / "metrics", "1")
    assert names(run) == ["metrics"]
    (run / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"^run/loop: too many levels"), reported(run):
        open("run/loop").close()
    with pytest.raises(IsADirectoryError), reported(run):
        open(tmp_path).close()


def test_json_is_readable_and_strict(tmp_path):
    path = tmp_path / "value.json"
    value = {"name": "Zürich", "rows": [[1.5, None], [0.1, 2]]}
    write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value
    assert "Zürich" in path.read_text("utf-8")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"x": bad})
    assert json.loads(path.read_text("utf-8")) == value
