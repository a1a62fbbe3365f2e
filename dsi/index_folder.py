"""The folder of an index: what :class:`dsi.index.SearchIndex` opens, and how it is laid out.

    index.json   where the texts are and how queries are read (see :class:`IndexSettings`)
    docids.tsv   one line per document: document id, docid, name of its corpus
    model/       weights and configuration (``save_pretrained``)
    tokenizer/   the same of the tokenizer
    trie/        the valid docids as arrays, unless a docid is one code

Line i of docids.tsv is document i of the trie; of docids that are one code, the code is the
model's row, and the lines are in the order of the rows. index.json is written last, so a folder
without one is not finished. A folder may hold instead an index.json that only names the folder of
the index, ``{"schema": 2, "index": "stages/05"}``, as a run does for its last stage.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dsi.corpus.records import SPLITS
from dsi.errors import UserError
from dsi.files import as_written, read_json, refuse_special, whole_lines, write_text
from dsi.manifest import verify

SCHEMA = 2
FILES = ("index.json", "docids.tsv", "model", "tokenizer", "trie")


@dataclass(frozen=True)
class IndexSettings:
    """index.json: what is needed besides the files of the folder."""

    corpora: list[Any]
    """Where the texts are: what :func:`dsi.corpus.corpus.read_corpus` takes, one entry each."""
    part_hashes: list[Mapping[str, str | None]]
    """Hashes of each (see Corpus.part_hashes), which show whether it was edited since."""
    deduplicate: str
    docids: str
    """The name of the docid scheme."""
    documents: int
    """Lines of docids.tsv."""
    beams: int = 10
    length_penalty: float = 0.0
    title: bool = True
    lowercase: bool = False
    prompt: str = ""
    new_texts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Of documents whose texts were replaced: id -> place in ``corpora``, id of the row there."""

    def to_json(self) -> dict[str, Any]:
        """The content of index.json."""
        values = asdict(self)
        if not self.new_texts:
            del values["new_texts"]
        return {"schema": SCHEMA, **values}


@dataclass(frozen=True)
class Documents:
    """docids.tsv: N documents in the order of its lines.

    ``names``: of the corpora; ``corpus_N``: the place in ``names`` of each document's own.
    """

    ids: list[str]
    docids: list[str]
    names: list[str]
    corpus_N: np.ndarray


def find_index(folder: Path) -> tuple[Path, IndexSettings]:
    """The folder that holds the index of ``folder``, and its settings.

    UserError where there is none, or where index.json names a place outside of its folder.
    """
    while True:
        path = folder / "index.json"
        if not os.path.lexists(path):
            raise UserError(
                f"{folder}: no index here (index.json is missing); give a run directory with a "
                "finished stage, or a folder copied from its stages/"
            )
        verify(folder, path.name)
        value = read_json(path)
        if value.get("schema") != SCHEMA:
            raise UserError(
                f"{path}: schema {value.get('schema')!r}, this version reads {SCHEMA}; make the "
                "index anew with this version"
            )
        if "index" not in value:
            return folder, _settings(path, value)
        named = value["index"]
        if not isinstance(named, str) or not _is_below(folder / named, folder):
            raise UserError(f"{path}: index must name a folder below this one; restore the file")
        folder = folder / named


def read_settings(folder: Path) -> IndexSettings:
    """index.json of a folder that holds an index itself."""
    found, settings = find_index(folder)
    if found != folder:
        raise UserError(f"{folder}/index.json: names another folder; restore the file")
    return settings


def write_documents(
    path: Path, ids: Sequence[str], docids: Sequence[str], corpora: Sequence[str]
) -> None:
    """Write docids.tsv; ``corpora`` are the names of each document's own."""
    rows = zip(ids, docids, corpora, strict=True)
    write_text(
        path, "".join(f"{document}\t{docid}\t{corpus}\n" for document, docid, corpus in rows)
    )


def read_documents(path: Path) -> Documents:
    """The inverse of :func:`write_documents`; UserError that names the line otherwise."""
    refuse_special(path, "restore the file")
    try:
        lines = whole_lines(path, path.read_bytes())
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(f"{path}: {what}; restore the file") from error
    place_of: dict[str, int] = {}
    ids, docids, places = [], [], []
    for document, docid, corpus in _columns(path, lines):
        ids.append(document)
        docids.append(docid)
        places.append(place_of.setdefault(corpus, len(place_of)))
    return Documents(ids, docids, list(place_of), np.array(places, np.int32))


def _columns(path: Path, lines: list[str]) -> Iterator[list[str]]:
    for number, line in enumerate(lines, start=1):
        row = line.split("\t")
        if len(row) != 3 or not all(row):
            what = "not a document id, a docid and the name of a corpus"
            raise UserError(f"{path}:{number}: {what}; restore the file")
        yield row


def _settings(path: Path, value: dict[str, Any]) -> IndexSettings:
    """index.json, each of whose values is what it must be."""
    kinds = {"corpora": list, "part_hashes": list, "deduplicate": str, "docids": str}
    kinds |= {"title": bool, "lowercase": bool, "prompt": str}
    right = {key: isinstance(value.get(key), kind) for key, kind in kinds.items()}
    for key, most in (("documents", 2**31), ("beams", 2**20)):
        right[key] = type(value.get(key)) is int and 1 <= value[key] <= most
    penalty: Any = value.get("length_penalty")
    right["length_penalty"] = type(penalty) in (int, float) and math.isfinite(penalty)
    for key, is_right in right.items():
        if not is_right:
            raise UserError(f"{path}: {key} is missing or wrong; restore the file")
    with as_written(path):
        if len(value["part_hashes"]) != len(value["corpora"]):
            raise ValueError("part_hashes must be as many as corpora")
        new = value.get("new_texts", {})
        for place, row in new.values():
            if type(place) is not int or not 0 <= place < len(value["corpora"]):
                raise ValueError("new_texts must name places in corpora")
            if not isinstance(row, str):
                raise ValueError("new_texts must name rows by their ids")
        hashes = [{key: one[key] for key in ("documents", *SPLITS)} for one in value["part_hashes"]]
    kept: dict[str, Any] = {key: value[key] for key in right}
    return IndexSettings(**{**kept, "part_hashes": hashes, "new_texts": new})


def _is_below(path: Path, folder: Path) -> bool:
    # links are resolved first, so every step goes deeper and following names ends
    try:
        inner, outer = path.resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null character
        return False
    return inner != outer and inner.is_relative_to(outer)
