"""One writer per run directory, and whoever has ended is in nobody's way."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time

import pytest

from continual.run.lock import FILES, only_writer
from dsi.errors import UserError
from dsi.files import write_json


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dsi", "add", "a run", "corpus"])


def refused(folder):
    with pytest.raises(UserError) as caught, only_writer(folder):
        raise AssertionError("two writers")
    return str(caught.value)


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    with only_writer(tmp_path):
        found = (tmp_path / ".lock.json").read_bytes()
        line = refused(tmp_path)
        assert line.startswith(f"{tmp_path}: process {os.getpid()} on {os.uname().nodename} ")
        assert "(dsi add 'a run' corpus, since 2" in line and line.endswith("or stop it")
        assert (tmp_path / ".lock.json").read_bytes() == found
        assert {path.name for path in tmp_path.iterdir()} == set(FILES[:2])
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def write_for_ever(folder):
    with only_writer(folder):
        (folder / "begun").touch()
        time.sleep(60)


def test_a_writer_that_was_killed_is_in_nobodys_way(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path,))
    child.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert f"process {child.pid} on" in refused(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert (tmp_path / ".lock.json").exists()
    with only_writer(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_a_writer_of_another_machine_may_still_be_there(tmp_path):
    """Its lock is not seen here, on a file system that does not carry locks."""
    note = {"host": "node7", "pid": 12, "command": "dsi train", "since": "2026-01-01T00:00:00Z"}
    write_json(tmp_path / ".lock.json", note)
    line = refused(tmp_path)
    assert "process 12 on node7 (dsi train, since 2026" in line
    assert f"if it has ended, delete {tmp_path / '.lock.json'}" in line
    assert [path.name for path in tmp_path.iterdir()] == [".lock.json"]
    (tmp_path / ".lock.json").unlink()
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"host": "node7"}'])
def test_a_note_of_nobody_is_no_lock(tmp_path, content):
    (tmp_path / ".lock.json").write_text(content)
    with only_writer(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_locked_by_a_file(tmp_path, monkeypatch, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_writer(tmp_path):
        assert f"process {os.getpid()} on" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []
