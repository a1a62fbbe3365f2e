"""Checked records as memory-mapped Arrow files, under a key of the source files' bytes.

One folder per key: documents, queries, judgements and removed as uncompressed Arrow IPC files, and
meta.json with their checksums, so an entry that was cut off or changed is noticed and rebuilt.
Records stream from the source to the files in batches; what stays in memory is one 64-bit hash per
id, so a corpus may be larger than memory.
"""

import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dsi.corpus.ids import IdRows, first_occurrence, hashes, take
from dsi.corpus.records import (
    SPLITS,
    Judgement,
    checked_documents,
    checked_queries,
    problem,
    show,
)
from dsi.corpus.sources import Source
from dsi.errors import UserError
from dsi.files import replace_atomically, write_json
from dsi.manifest import checksum, text_hash

SCHEMA = 3
"""Part of the key: raise it when what is stored, checked or hashed changes."""
BATCH_ROWS = 4096
BATCH_CHARACTERS = 1 << 24
DOCUMENTS = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
QUERIES = pa.schema([("id", pa.string()), ("text", pa.string())])
REMOVED = pa.schema([("id", pa.string()), ("row", pa.int64())])
JUDGEMENTS = pa.schema([("split", pa.int8()), ("query", pa.int64()), ("document", pa.int64())])
NAMES = ("documents", "queries", "judgements", "removed")


@dataclass(frozen=True, eq=False)
class Tables:
    """What is stored of a corpus; ``judgements`` are positive, sorted and unique."""

    documents: pa.Table
    queries: pa.Table
    judgements: pa.Table
    removed: pa.Table
    content_hash: str
    part_hashes: dict[str, str | None]
    warnings: tuple[str, ...]


def _title_key(title: str, text: str) -> str:
    return " ".join(title.split())


def _text_key(title: str, text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _prefix_key(title: str, text: str) -> str:
    return text[:4000]


KEYS: dict[str, Callable[[str, str], str] | None] = {
    "none": None,
    "text": _text_key,
    "title": _title_key,
    "prefix": _prefix_key,
}
"""Deduplication: documents of equal key are one document; an empty key is never a duplicate."""


def cached_tables(source: Source, deduplicate: str, cache: Path) -> Tables:
    """The tables of a source, read from its files only where the cache has no whole entry."""
    entry = cache / "corpora" / _cache_key(source, deduplicate)
    tables = _open(entry)
    if tables is None:
        try:
            replace_atomically(entry, lambda target: _build(source, deduplicate, target))
        except OSError as error:
            text = f"cannot be written ({error.strerror or error}); set DSI_CACHE elsewhere"
            raise problem(cache, None, text) from None
        tables = _open(entry)
    if tables is None:
        raise problem(entry, None, "damaged and cannot be replaced; remove it or set DSI_CACHE")
    return tables


def _cache_key(source: Source, deduplicate: str) -> str:
    parts = [str(SCHEMA), deduplicate, *source.options]
    for name, path in source.files.items():
        # the same bytes may be a good corpus.jsonl and a broken corpus.jsonl.gz
        parts += [name, str(path.suffix == ".gz"), _checksum(path)]
    return text_hash(json.dumps(parts))


def _checksum(path: Path) -> str:
    try:
        return checksum(path, "blake2b")  # twice as fast as SHA-256
    except OSError as error:
        text = f"cannot be read ({error.strerror}); check the path and its permissions"
        raise problem(path, None, text) from None


def _open(entry: Path) -> Tables | None:
    """The entry's tables, or None where it is absent or not what was written."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        for name in NAMES:
            if _checksum(entry / f"{name}.arrow") != meta["files"][name]:
                return None
        tables = {name: open_table(entry / f"{name}.arrow") for name in NAMES}
        sums = {key: meta[key] for key in ("content_hash", "part_hashes")}
        return Tables(**tables, **sums, warnings=tuple(meta["warnings"]))
    except (OSError, UserError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def open_table(path: Path) -> pa.Table:
    """The table in an Arrow IPC file, memory-mapped: pages are read when they are touched."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _build(source: Source, deduplicate: str, target: Path) -> None:
    scratch = target / "scratch"
    scratch.mkdir()
    all_documents = _write_records(
        checked_documents(source.documents(scratch), source.documents_label),
        DOCUMENTS,
        scratch / "documents.arrow",
        source.documents_label,
        "document",
    )
    if all_documents.num_rows == 0:
        raise problem(source.documents_label, 1, "no documents; a corpus needs at least one")
    all_queries = _write_records(
        checked_queries(source.queries(scratch), source.queries_label),
        QUERIES,
        target / "queries.arrow",
        source.queries_label,
        "query",
    )
    keep, row_of = _deduplicate(all_documents, KEYS[deduplicate])
    if keep.all():
        os.replace(scratch / "documents.arrow", target / "documents.arrow")
    else:
        _write_table(_filtered(all_documents, keep), DOCUMENTS, target / "documents.arrow")
    dropped = np.flatnonzero(~keep)
    removed = pa.table(
        {"id": all_documents["id"].filter(pa.array(~keep)), "row": row_of[dropped]},
        schema=REMOVED,
    )
    _write_table(removed.to_batches(), REMOVED, target / "removed.arrow")
    judged = _resolve(source, scratch, all_documents, all_queries, row_of)
    _write_table([judged], JUDGEMENTS, target / "judgements.arrow")
    shutil.rmtree(scratch)

    warnings = []
    if dropped.size:
        text = f"{dropped.size} of {keep.size} documents removed as duplicates"
        moved = "their judgements moved to the ones kept"
        warnings.append(f"{text} (deduplicate: {deduplicate}); {moved}")
    warnings += _leaks(judged)
    tables = {name: open_table(target / f"{name}.arrow") for name in NAMES}
    content, parts = _hashes(tables)
    meta = {
        "schema": SCHEMA,
        "content_hash": content,
        "part_hashes": parts,
        "warnings": warnings,
        "files": {name: _checksum(target / f"{name}.arrow") for name in NAMES},
    }
    write_json(target / "meta.json", meta)


def _write_records(
    records: Iterable[tuple[str, ...]], schema: pa.Schema, path: Path, label: str, what: str
) -> pa.Table:
    """Stream records (the id first) to an Arrow file; their ids must be unique."""
    parts: list[np.ndarray] = [np.empty(0, np.int64)]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in _batches(records):
            columns = list(zip(*batch, strict=True))
            parts.append(hashes(columns[0]))
            yield pa.record_batch([pa.array(c, pa.string()) for c in columns], schema=schema)

    _write_table(batches(), schema, path)
    table = open_table(path)
    ids = table["id"]
    first = first_occurrence(np.concatenate(parts), lambda row: ids[row].as_py())
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if repeated.size:
        row = int(repeated[0])
        text = f"{what} id {show(ids[row].as_py())} is already on line {first[row] + 1}"
        raise problem(label, row + 1, f"{text}; remove or rename one of the two")
    return table


def _batches(records: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    batch, characters = [], 0
    for record in records:
        batch.append(record)
        characters += sum(map(len, record))
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_table(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _filtered(table: pa.Table, keep: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in table.to_batches():
        yield batch.filter(pa.array(keep[start : start + batch.num_rows]))
        start += batch.num_rows


def _deduplicate(
    table: pa.Table, key: Callable[[str, str], str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows stay, bool (N,), and the row each document has afterwards, int64 (N,)."""
    rows = np.arange(table.num_rows)
    if key is None:
        return np.ones(len(rows), dtype=bool), rows
    parts, filled = [], []
    for batch in table.to_batches():
        keys = list(map(key, batch["title"].to_pylist(), batch["text"].to_pylist()))
        parts.append(hashes(keys))
        filled.append(np.fromiter(map(bool, keys), dtype=bool))
    titles, texts = table["title"], table["text"]
    candidates = np.flatnonzero(np.concatenate(filled))
    first = first_occurrence(
        np.concatenate(parts)[candidates],
        lambda i: key(titles[int(candidates[i])].as_py(), texts[int(candidates[i])].as_py()),
    )
    kept = rows.copy()
    kept[candidates] = candidates[first]
    keep = kept == rows
    return keep, (np.cumsum(keep) - 1)[kept]


def _resolve(
    source: Source, scratch: Path, documents: pa.Table, queries: pa.Table, row_of: np.ndarray
) -> pa.RecordBatch:
    """Judgements as rows; an unknown id is an error. ``row_of``: see :func:`_deduplicate`."""
    query_rows, document_rows = IdRows(queries["id"]), IdRows(documents["id"])
    parts, irrelevant = [np.empty((0, 3), np.int64)], [np.empty((0, 3), np.int64)]
    judgements = source.judgements(scratch)
    while batch := list(islice(judgements, 65_536)):
        query = query_rows.rows([judgement.query for judgement in batch])
        document = document_rows.rows([judgement.document for judgement in batch])
        for i in np.flatnonzero((query < 0) | (document < 0))[:1].tolist():
            raise _unknown(source, batch[i], "query" if query[i] < 0 else "document")
        split = [SPLITS.index(judgement.split) for judgement in batch]
        positive = np.array([judgement.score > 0 for judgement in batch])
        parts.append(np.column_stack([split, query, document])[positive])
        irrelevant.append(np.column_stack([split, query, document])[~positive])
    relevant = np.concatenate(parts)
    # copies of a text may be judged differently, one document may not
    _check_agreement(source, scratch, relevant, np.concatenate(irrelevant), queries, documents)
    relevant[:, 2] = row_of[relevant[:, 2]]
    unique = np.unique(relevant, axis=0)
    columns = [pa.array(unique[:, 0].astype(np.int8)), *map(pa.array, unique[:, 1:].T)]
    return pa.record_batch(columns, schema=JUDGEMENTS)


def _check_agreement(
    source: Source,
    scratch: Path,
    relevant: np.ndarray,
    irrelevant: np.ndarray,
    queries: pa.Table,
    documents: pa.Table,
) -> None:
    """No pair (split, query row, document row) may be in both; both are int64 (M, 3)."""
    if not len(irrelevant):
        return
    both = np.concatenate([np.unique(relevant, axis=0), np.unique(irrelevant, axis=0)])
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    for split, query, document in pairs[counts > 1][:1].tolist():
        wanted = SPLITS[split], queries["id"][query].as_py(), documents["id"][document].as_py()
        found = [j for j in source.judgements(scratch) if (j.split, j.query, j.document) == wanted]
        other = next(j for j in found if (j.score > 0) != (found[0].score > 0))
        text = (
            f"query {show(wanted[1])} and document {show(wanted[2])} have the score {other.score}"
        )
        text += f" here and {found[0].score} on line {found[0].line}"
        raise problem(other.label, other.line, f"{text}; keep one of the two judgements")


def _unknown(source: Source, judgement: Judgement, what: str) -> UserError:
    value = judgement.query if what == "query" else judgement.document
    label = source.queries_label if what == "query" else source.documents_label
    text = f"{what} {show(value)} is not in {label}; add it there or remove the judgement"
    return problem(judgement.label, judgement.line, text)


def _leaks(judgements: pa.RecordBatch) -> list[str]:
    split, query = (np.from_dlpack(judgements[name]) for name in ("split", "query"))
    shared = np.intersect1d(query[split == 0], query[split == 2]).size
    text = "queries are judged in both train and test; the test would reward memory"
    return [f"{shared} {text}"] if shared else []


def _hashes(tables: dict[str, pa.Table]) -> tuple[str, dict[str, str | None]]:
    """SHA-256 of ids, titles, texts, queries and judgements, whatever the batches are; and of the
    documents alone, and of each split's judgements with the queries that they judge."""
    digests = {name: _table_digest(tables[name]) for name in NAMES[:3]}
    parts: dict[str, str | None] = {"documents": hashlib.sha256(digests["documents"]).hexdigest()}
    columns = [
        np.from_dlpack(tables["judgements"][name].combine_chunks()) for name in JUDGEMENTS.names
    ]
    for number, split in enumerate(SPLITS):
        queries, documents = (column[columns[0] == number] for column in columns[1:])
        digest = hashlib.sha256(_table_digest(take(tables["queries"], queries)))
        digest.update(documents.astype("<i8").tobytes())
        parts[split] = digest.hexdigest() if len(queries) else None
    return hashlib.sha256(b"".join(digests.values())).hexdigest(), parts


def _table_digest(table: pa.Table) -> bytes:
    return b"".join(map(_column_digest, table.itercolumns()))


def _column_digest(column: Any) -> bytes:
    lengths, data = hashlib.sha256(), hashlib.sha256()
    for chunk in (chunk for chunk in column.chunks if len(chunk)):
        if pa.types.is_string(chunk.type):
            start, stop = chunk.offset, chunk.offset + len(chunk) + 1
            _, offsets, characters = chunk.buffers()
            bounds = np.frombuffer(offsets, np.int32)[start:stop]
            lengths.update(np.diff(bounds).astype("<i8").tobytes())
            if characters is not None:
                data.update(memoryview(characters)[bounds[0] : bounds[-1]])
        else:
            data.update(np.from_dlpack(chunk).astype("<i8").tobytes())
    return lengths.digest() + data.digest()
