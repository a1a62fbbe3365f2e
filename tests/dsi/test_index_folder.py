"""The files of an index: what is written is read, and what is not as written is one line."""

from pathlib import Path

import pytest

from dsi.errors import UserError
from dsi.files import write_json, write_text
from dsi.index_folder import (
    IndexSettings,
    find_index,
    read_documents,
    read_settings,
    write_documents,
)

HASHES = {"documents": "a" * 64, "train": None, "dev": None, "test": "b" * 64}
SETTINGS = IndexSettings(
    corpora=["/texts", {"documents": "d.jsonl", "queries": "q.jsonl"}],
    part_hashes=[HASHES, HASHES],
    deduplicate="none",
    docids="atomic",
    documents=3,
    beams=7,
    length_penalty=0.5,
    prompt="find:",
)


def test_settings_are_written_and_read(tmp_path):
    write_json(tmp_path / "index.json", SETTINGS.to_json())
    assert find_index(tmp_path) == (tmp_path, SETTINGS)
    assert read_settings(tmp_path) == SETTINGS
    write_json(tmp_path / "run" / "index.json", {"schema": 2, "index": "stages/00"})
    write_json(tmp_path / "run/stages/00/index.json", SETTINGS.to_json())
    assert find_index(tmp_path / "run") == (tmp_path / "run/stages/00", SETTINGS)
    with pytest.raises(UserError, match="names another folder"):
        read_settings(tmp_path / "run")


WRONG = {
    "corpora": "/texts",
    "part_hashes": [{}, {}],
    "deduplicate": 1,
    "docids": None,
    "documents": 0,
    "beams": True,
    "length_penalty": "1",
    "title": 1,
    "lowercase": None,
    "prompt": ["a"],
}


@pytest.mark.parametrize(("key", "value"), WRONG.items())
def test_a_setting_that_is_wrong_or_gone_is_one_line(tmp_path, key, value):
    path, right = tmp_path / "index.json", SETTINGS.to_json()
    without = {k: v for k, v in right.items() if k != key}
    for content in (without, {**right, key: value}):
        write_json(path, content)
        with pytest.raises(UserError, match=f"^{path}: .*restore the file$"):
            find_index(tmp_path)


def test_documents_are_written_and_read(tmp_path):
    path = tmp_path / "docids.tsv"
    write_documents(path, ["ü", "b\x85c", "3"], ["0-1", "2", "1"], ["D0", "D2", "D0"])
    assert path.read_bytes() == "ü\t0-1\tD0\nb\x85c\t2\tD2\n3\t1\tD0\n".encode()
    found = read_documents(path)
    assert (found.ids, found.docids) == (["ü", "b\x85c", "3"], ["0-1", "2", "1"])
    assert (found.names, found.corpus_N.tolist()) == (["D0", "D2"], [0, 1, 0])


LINES = {"a\t1\n": 1, "a\t0\tD0\nb\t1\t\n": 2, "\t0\tD0\n": 1, "a\t0\tD0\tD1\n": 1, "a\t0\tD0": 1}


@pytest.mark.parametrize(("text", "line"), LINES.items())
def test_a_wrong_line_is_named(tmp_path: Path, text: str, line: int):
    write_text(tmp_path / "docids.tsv", text)
    with pytest.raises(UserError, match=rf"docids\.tsv:{line}: .*restore the file"):
        read_documents(tmp_path / "docids.tsv")
