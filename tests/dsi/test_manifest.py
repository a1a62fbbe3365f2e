"""Checksums: noted once, verified when read, taken off before a file is written anew."""

import json
import shutil

import pytest

from dsi.errors import UserError
from dsi.manifest import Changed, folder_checksum, forget, record, text_hash, verify


@pytest.fixture
def folder(tmp_path):
    for name in ("a.txt", "b/c.bin", "b/d/e.txt", ".half", "b/.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def listed(folder):
    return list(json.loads((folder / "manifest.json").read_text())["sha256"])


def test_every_finished_file_is_listed_once(folder):
    record(folder, "b", "absent")
    assert listed(folder) == ["b/c.bin", "b/d/e.txt"]
    (folder / "b/c.bin").write_text("flipped")
    record(folder)
    assert listed(folder) == ["a.txt", "b/c.bin", "b/d/e.txt"]
    with pytest.raises(UserError, match=r"c\.bin: not what was written.*restore the file"):
        verify(folder)  # what was listed has kept its checksum
    verify(folder, "a.txt", "b/d")
    verify(folder, "b/c", "absent")  # no part of a name is a name


def test_a_file_off_the_list_can_be_written(folder):
    record(folder)
    forget(folder, "b")
    (folder / "b/c.bin").write_text("new")
    verify(folder)
    assert listed(folder) == ["a.txt"]
    record(folder)
    forget(folder, but=("a.txt",))
    assert listed(folder) == ["a.txt"]


def test_what_is_gone_or_no_file_is_named(folder):
    record(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: missing, and .*manifest\.json lists it"):
        verify(folder, "a.txt")
    (folder / "a.txt").mkdir()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read"):
        verify(folder)


def test_a_hash_of_a_text_and_of_a_folder(tmp_path, folder):
    assert text_hash("a") == "ca978112ca1bbdcafac231b39a23dc4d"  # sha256sum of one letter
    assert len({text_hash(text) for text in ("a", "a ", "\ud800", "")}) == 4
    before = folder_checksum(folder)
    (folder / "b/c.bin").write_text("in a folder below")
    assert folder_checksum(folder) == before
    copy = shutil.copytree(folder, tmp_path.parent / "copy")
    assert folder_checksum(copy) == before
    (folder / "a.txt").rename(folder / "b.txt")
    assert folder_checksum(folder) != before


def test_an_older_list_without_its_own_checksum_is_read(folder):
    record(folder)
    sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}, indent=1) + "\n")
    verify(folder)
    (folder / "a.txt").write_text("another")
    with pytest.raises(Changed) as caught:
        verify(folder)
    assert caught.value.path == folder / "a.txt"
    assert str(caught.value).startswith(f"{folder}/a.txt: {caught.value.what}; restore the file")


def test_without_a_manifest_nothing_is_refused(folder):
    verify(folder)
    forget(folder)
    assert not (folder / "manifest.json").exists()


def test_every_bit_of_the_manifest_counts(folder):
    record(folder)
    path = folder / "manifest.json"
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            with pytest.raises(UserError, match=r"manifest\.json: .*restore the file"):
                verify(folder, "nothing")
    for stop in range(len(content)):
        path.write_bytes(content[:stop])
        with pytest.raises(UserError, match=r"manifest\.json: "):
            record(folder)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b"])
def test_names_that_leave_the_folder_are_refused(folder, name):
    from dsi import manifest

    manifest._write(folder, {name: "0" * 64})
    with pytest.raises(UserError, match="outside of its folder"):
        verify(folder)
