"""Text files to checked records, one line at a time; every mistake is one line that names its line.

A label is what an error calls a file (its path) or a dataset; lines count from 1.
"""

import difflib
import gzip
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsi.errors import UserError

SPLITS = ("train", "dev", "test")
HEADER = ["query-id", "corpus-id", "score"]
FIELDS = ('"_id"', '"title"', '"text"')
LONGEST_ID = 4096  # characters


class Judgement(NamedTuple):
    """One line of a qrels file; ``label`` and ``line`` say where it stands."""

    label: str
    line: int
    split: str
    query: str
    document: str
    score: int


def problem(label: object, line: int | None, text: str) -> UserError:
    """The error ``label:line: text`` on one line, whatever the text quotes."""
    where = f"{label}:{line}" if line is not None else str(label)
    return UserError(" ".join(f"{where}: {text}".splitlines()))


def show(value: object) -> str:
    """A short quotation of a value of the user's, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_regular(path: str | Path) -> None:
    """UserError for a path that exists and is no file: a folder, or a pipe (reading would wait)."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise problem(path, None, "not a regular file; put the file itself there")


def find_file(path: Path) -> Path | None:
    """``path`` or ``path.gz``, whichever exists; both at once are an error, and so is a folder or a
    pipe of that name."""
    compressed = path.with_name(path.name + ".gz")
    for named in (path, compressed):
        check_regular(named)
    # of os.path, which says no where pathlib raises: names that are too long
    plain, packed = os.path.isfile(path), os.path.isfile(compressed)
    if plain and packed:
        raise problem(path, None, f"stands beside {compressed.name}; remove one of the two")
    return path if plain else compressed if packed else None


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or .gz, without line ends (LF or CRLF) and byte-order mark.

    Blank lines are allowed at the end only, so the n-th line given is line n of the file.
    """
    blank = number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                raw = raw.rstrip(b"\r\n")
                if not raw.strip():
                    blank = blank or number
                    continue
                if blank:
                    raise problem(path, blank, "a blank line between others; remove it")
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    text = f"not UTF-8 at byte {error.start + 1}; convert the file to UTF-8"
                    raise problem(path, number, text) from None
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        text = f"bad gzip ({error}); compress the file again or give it uncompressed"
        raise problem(path, number + 1, text) from None
    except OSError as error:
        text = f"cannot be read ({error.strerror}); check the path and its permissions"
        raise problem(path, None, text) from None


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file."""
    for number, line in enumerate(lines(path), start=1):
        try:
            # looking for repeated keys in every object would make reading twice as slow
            is_suspect = any(line.count(name) > 1 for name in FIELDS)
            row = json.loads(line, object_pairs_hook=_Row) if is_suspect else json.loads(line)
        except json.JSONDecodeError as error:
            text = f"broken JSON ({error.msg} at column {error.colno})"
            raise problem(path, number, f"{text}; write one JSON object per line") from None
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
            text = f"JSON that cannot be read ({error}); correct the line"
            raise problem(path, number, text) from None
        if not isinstance(row, dict):
            text = f"{_kind(row)}, not a JSON object; write one object {{...}} per line"
            raise problem(path, number, text)
        if isinstance(row, _Row) and row.repeated:
            text = f"field {show(row.repeated[0])} is there twice; keep one of the two"
            raise problem(path, number, text)
        yield row


class _Row(dict):
    """A JSON object that knows which of its keys were written more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = [name for name in self if names.count(name) > 1]


def checked_documents(
    rows: Iterable[Mapping[str, Any]], label: object
) -> Iterator[tuple[str, str, str]]:
    """Checked (id, title, text) of rows {"_id", "title", "text"}; the title may be left out."""
    for line, row in enumerate(rows, start=1):
        entry = (
            _id(row, label, line),
            _string(row, "title", label, line) if row.get("title") is not None else "",
            _string(row, "text", label, line),
        )
        if not (entry[1].strip() or entry[2].strip()):
            text = f"document {show(entry[0])} has neither title nor text; add one or remove it"
            raise problem(label, line, text)
        yield entry


def checked_queries(rows: Iterable[Mapping[str, Any]], label: object) -> Iterator[tuple[str, str]]:
    """Checked (id, text) of rows {"_id", "text"}."""
    for line, row in enumerate(rows, start=1):
        entry = (_id(row, label, line), _string(row, "text", label, line))
        if not entry[1].strip():
            raise problem(label, line, f"query {show(entry[0])} has an empty text; remove it")
        yield entry


def judgements_from_tsv(path: Path, split: str) -> Iterator[Judgement]:
    """The lines ``query-id<TAB>corpus-id<TAB>score`` of one qrels file; the header is optional."""
    for number, line in enumerate(lines(path), start=1):
        fields = line.split("\t")
        if number == 1 and [field.strip().lower() for field in fields] == HEADER:
            continue
        if len(fields) != 3:
            text = f"{len(fields)} tab-separated fields; write query-id<TAB>corpus-id<TAB>score"
            raise problem(path, number, text)
        query, document, score = (field.strip() for field in fields)
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", score):
            text = f"score {show(score)} is not an integer; write 1 for a relevant document"
            raise problem(path, number, text)
        yield Judgement(str(path), number, split, query, document, int(score))


def judgements_from_queries(path: Path) -> Iterator[Judgement]:
    """The judgements in query rows {"_id", "text", "relevant": [document ids], "split"}."""
    label = str(path)
    for line, row in enumerate(json_rows(path), start=1):
        split = _string(row, "split", label, line)
        if split not in SPLITS:
            text = f'"split" is {show(split)}; write one of {", ".join(SPLITS)}'
            raise problem(label, line, text)
        relevant = _field(row, "relevant", label, line)
        if not isinstance(relevant, list) or not all(isinstance(d, str) for d in relevant):
            text = '"relevant" must be a list of document ids (strings), e.g. ["d1"]'
            raise problem(label, line, text)
        for document in relevant:
            yield Judgement(label, line, split, row["_id"], document, 1)


def judgements_from_rows(
    rows: Iterable[Mapping[str, Any]], label: str, split: str
) -> Iterator[Judgement]:
    """The judgements in dataset rows {"query-id", "corpus-id", "score"}.

    Integer ids are taken as their digits: loaders of tables guess integers from the text "17",
    and the id must be known anyway. Scores like 1.0, as MTEB has them, are integers.
    """
    for line, row in enumerate(rows, start=1):
        ids = [_field(row, name, label, line) for name in HEADER[:2]]
        for name, value in zip(HEADER, ids, strict=False):
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise problem(label, line, f'"{name}" is {_kind(value)}; make it a string')
        score = _field(row, HEADER[2], label, line)
        is_integer = isinstance(score, int) or (isinstance(score, float) and score.is_integer())
        if isinstance(score, bool) or not is_integer:
            text = f"score {show(score)} is not an integer; write 1 for a relevant document"
            raise problem(label, line, text)
        yield Judgement(label, line, split, str(ids[0]), str(ids[1]), int(score))


def _field(row: Mapping[str, Any], name: str, label: object, line: int) -> Any:
    value = row.get(name)
    if value is None:
        there = ", ".join(map(show, list(row)[:8])) or "nothing"
        text = f'field "{name}" is missing (the row has {there}); add or rename it'
        raise problem(label, line, text)
    return value


def _string(row: Mapping[str, Any], name: str, label: object, line: int) -> str:
    value = _field(row, name, label, line)
    if not isinstance(value, str):
        text = f'"{name}" is {_kind(value)} ({show(value)}); write it as a string'
        raise problem(label, line, text)
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        text = f'"{name}" has half a surrogate pair (\\u{ord(value[error.start]):04x}); remove it'
        raise problem(label, line, text) from None
    return value


def _id(row: Mapping[str, Any], label: object, line: int) -> str:
    value = _field(row, "_id", label, line)
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f'"_id" is the number {show(value)}; write it as a string: "_id": "{value}"'
        raise problem(label, line, text)
    value = _string(row, "_id", label, line)
    if value.split() != [value]:
        what = "contains whitespace" if value else "is empty"
        text = f'"_id" {show(value)} {what}, which qrels and run files cannot hold; rename it'
        raise problem(label, line, text)
    if not value.isprintable() and any(unicodedata.category(c) == "Cc" for c in value):
        raise problem(label, line, f'"_id" {show(value)} has a control character; rename it')
    if len(value) > LONGEST_ID:
        text = f'"_id" {show(value)} has {len(value)} characters; make it shorter ({LONGEST_ID})'
        raise problem(label, line, text)
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
