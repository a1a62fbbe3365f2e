"""Reading for the recipes: JSON lines, tables, BEIR folders and libraries, record by record."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dsi.corpus.records import check_regular
from dsi.errors import UserError

SPLITS = ("train", "dev", "test")


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 text file, plain or ``.gz``, behind its byte-order mark; a missing ``NAME``
    stands for ``NAME.gz``."""
    if not path.exists() and path.with_name(path.name + ".gz").exists():
        path = path.with_name(path.name + ".gz")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    check_regular(path)
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def exists(path: Path) -> bool:
    """Whether ``path`` or ``path.gz`` is there."""
    return path.exists() or path.with_name(path.name + ".gz").exists()


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every line of a JSON Lines file; blank lines are skipped.

    Raises UserError that names the line of broken JSON or of a value that is not an object.
    """
    with open_text(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: broken JSON ({error.msg}); write one object per line"
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: not a JSON object; write one object per line")
            yield number, record


def read_table(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of a tab-separated file without quoting, like MS MARCO's.

    Raises UserError for a line that does not have ``columns`` cells.
    """
    with open_text(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            cells = line.rstrip("\r\n").split("\t")
            if cells == [""]:
                continue
            if len(cells) != columns:
                raise UserError(
                    f"{path}:{number}: {len(cells)} columns, {columns} are needed;"
                    " separate columns by one tab"
                )
            yield number, cells


def read_qrels(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Line number, query id, document id and relevance of a BEIR or a TREC qrels file.

    BEIR has three columns and a header, TREC four columns (the second is ignored) and none; cells
    are separated by tabs or blanks. Raises UserError that names the broken line.
    """
    with open_text(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            cells = line.split()
            if not cells or (number == 1 and cells[0] == "query-id"):
                continue
            if len(cells) == 4:
                del cells[1]
            if len(cells) != 3 or not cells[2].lstrip("-").isdigit():
                raise UserError(
                    f"{path}:{number}: {line.strip()!r} is not a judgement;"
                    " write query id, document id and a whole number, separated by tabs"
                )
            yield number, cells[0], cells[1], int(cells[2])


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of ``corpus.jsonl`` in file order; raises UserError where ``_id`` is missing."""
    yield from _identified(folder / "corpus.jsonl")


def queries(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of ``queries.jsonl`` in file order; raises UserError where ``_id`` is missing."""
    yield from _identified(folder / "queries.jsonl")


def judgements(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Query id and document id of every positive judgement, by split; absent splits are empty."""
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        path = folder / "qrels" / f"{split}.tsv"
        if exists(path):
            found[split] = [(q, d) for _, q, d, relevance in read_qrels(path) if relevance > 0]
    return found


def load_dataset(name: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of one split of a dataset (name on the hub or local folder), streamed.

    Raises UserError if the library ``datasets`` is missing or the dataset cannot be opened.
    """
    try:
        import datasets
        import datasets.exceptions
    except ImportError as error:
        raise UserError("reading a dataset needs: pip install datasets") from error
    try:
        return datasets.load_dataset(name, split=split, streaming=True)  # type: ignore[return-value]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"dataset {name!r}, split {split!r}: {message}; check the name") from error


def load_ir_dataset(name: str) -> Any:
    """A dataset of ``ir_datasets``; raises UserError if it or the library is missing."""
    try:
        import ir_datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError("reading this source needs: pip install ir_datasets") from error
    try:
        return ir_datasets.load(name)
    except KeyError as error:
        raise UserError(
            f"ir_datasets has no {name!r}; look the name up at https://ir-datasets.com"
        ) from error


def _identified(path: Path) -> Iterator[dict[str, Any]]:
    for number, record in read_json_lines(path):
        if not isinstance(record.get("_id"), str):
            raise UserError(f"{path}:{number}: no text under '_id'; give every record an id")
        yield record


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
