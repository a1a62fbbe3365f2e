"""The corpus: documents, queries and judgements of one checked, memory-mapped collection.

The format is BEIR's folder, in and out: ``corpus.jsonl`` {"_id", "title", "text"},
``queries.jsonl`` {"_id", "text"}, ``qrels/{train,dev,test}.tsv`` (query-id, corpus-id, score), each
plain or .gz, and for continual indexing ``streams/NAME.json`` {"D0": [document ids], "D1": ...}
(see :mod:`dsi.corpus.streams`).
"""

import importlib.resources
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dsi.corpus.cache import KEYS, REMOVED, cached_tables
from dsi.corpus.ids import IdRows, id_rows, take
from dsi.corpus.records import (
    HEADER,
    SPLITS,
    check_regular,
    checked_documents,
    checked_queries,
    did_you_mean,
    find_file,
    problem,
    show,
)
from dsi.corpus.sources import Source, beir_source, dataset_source, jsonl_source
from dsi.corpus.streams import StageRows, read_stream_file, stage_rows
from dsi.errors import UserError
from dsi.files import cache_folder, write_json

__all__ = [
    "SPLITS", "Corpus", "IdRows", "StageRows", "check_stream", "document_texts", "id_rows",
    "read_corpus", "read_stream", "take", "write_corpus",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents and the queries that they answer; rows are positions in the two tables."""

    name: str
    documents: pa.Table
    """id, title, text (strings), memory-mapped; select rows with :func:`take`."""
    queries: pa.Table
    """id, text (strings), memory-mapped; empty for a corpus without queries."""
    qrels: dict[str, np.ndarray]
    """train, dev, test -> int64 (M, 2): row in queries, row in documents; relevant pairs only,
    each once, ascending."""
    folder: Path | None
    """The BEIR folder, for its streams; None for other sources."""
    content_hash: str
    """SHA-256 (hex) of ids, titles, texts, queries and judgements; not of files or paths."""
    part_hashes: Mapping[str, str | None]
    """The same of "documents" alone, and of "train", "dev", "test": a split's judgements with the
    queries that they judge, None where it has none."""
    warnings: tuple[str, ...] = ()
    removed: pa.Table = field(default_factory=REMOVED.empty_table)
    """id of every document that deduplication removed, row of the one kept in its place."""


def read_corpus(
    source: str | Path | Mapping[str, Any],
    *,
    cache: Path | None = None,
    deduplicate: str = "none",
) -> Corpus:
    """Read and check a corpus, or map it from the cache where its files have not changed.

    ``source`` is "encyclopedia" (the embedded corpus), a BEIR folder, a mapping {"documents",
    "queries"} of two JSONL files (query rows carry "relevant" and "split"), or a mapping
    {"dataset", ...} (see :func:`dsi.corpus.sources.dataset_source`).
    ``deduplicate`` keeps the first document of equal "text" (letter case, white space and Unicode
    form aside), "title", or "prefix" (the first 4,000 characters: DSI's key, Tay et al. 2022);
    judgements of the others move to it. ``cache`` defaults to $DSI_CACHE or ~/.cache/dsi-continual.
    Raises UserError with file, line and fix for whatever is wrong, before anything is trained.
    """
    if deduplicate not in KEYS:
        text = f"deduplicate: unknown {show(deduplicate)}; one of {', '.join(KEYS)}"
        raise UserError(text + did_you_mean(str(deduplicate), KEYS))
    found = _source(source)
    tables = cached_tables(found, deduplicate, cache or cache_folder())
    columns = [_integers(tables.judgements[name]) for name in ("split", "query", "document")]
    pairs = np.column_stack(columns[1:]).astype(np.int64)
    return Corpus(
        name=found.name,
        documents=tables.documents,
        queries=tables.queries,
        qrels={split: pairs[columns[0] == index] for index, split in enumerate(SPLITS)},
        folder=found.folder,
        content_hash=tables.content_hash,
        part_hashes=tables.part_hashes,
        warnings=found.warnings + tables.warnings,
        removed=tables.removed,
    )


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    """The column's numbers; pyarrow's own ``to_numpy`` imports pandas, a sixth of a start-up."""
    return np.from_dlpack(column.combine_chunks())


def _source(source: str | Path | Mapping[str, Any]) -> Source:
    if isinstance(source, Mapping):
        return dataset_source(source) if "dataset" in source else jsonl_source(source)
    if not isinstance(source, str | Path):
        raise UserError(f"corpus: {show(source)} is neither a folder nor a mapping; write one")
    if source == "":
        raise UserError("corpus: an empty name; give a folder, or 'encyclopedia'")
    if source == "encyclopedia":
        return beir_source(Path(str(importlib.resources.files("dsi"))) / "encyclopedia")
    return beir_source(Path(source))


def read_stream(corpus: Corpus, stream: str | Path | None) -> list[StageRows]:
    """The document rows that D_0, D_1, ... add, remove and replace.

    ``stream`` is a name (the corpus's ``streams/NAME.json``), the path of a JSON file, or None for
    one D_0 that holds everything. Documents that deduplication removed are left out silently;
    documents in no corpus are allowed.
    """
    if stream is None:
        every, none = np.arange(corpus.documents.num_rows, dtype=np.int64), np.zeros(0, np.int64)
        return [StageRows(every, none, none, none)]
    path = _stream_path(corpus, stream)
    text, stages = read_stream_file(path)
    lookup, deduplicated = id_rows(corpus.documents["id"]), id_rows(corpus.removed["id"])
    judged = np.zeros(corpus.documents.num_rows, dtype=bool)
    for pairs in corpus.qrels.values():
        judged[pairs[:, 1]] = True
    return stage_rows(path, text, stages, lookup, deduplicated, judged)


def check_stream(corpus: Corpus, stream: Sequence[StageRows]) -> list[str]:
    """Warnings, one line each: what a run on this stream cannot measure or will not index."""
    judged = np.zeros(corpus.documents.num_rows, dtype=bool)
    judged[corpus.qrels["test"][:, 1]] = True
    bare = [f"D{number}" for number, rows in enumerate(stream) if not judged[rows.added].any()]
    warnings = []
    if not judged.any():
        warnings.append("the corpus has no test query: no stage can be measured")
    elif bare:
        what = "has no test query: its column" if len(bare) == 1 else "have no test query: columns"
        warnings.append(f"{', '.join(bare)} {what} of the performance matrix stays empty")
    used = np.zeros(corpus.documents.num_rows, dtype=bool)
    for rows in stream:
        used[rows.added] = used[rows.texts] = True
    outside, total = int((~used).sum()), len(used)
    if outside:
        warnings.append(f"{outside} of {total} documents are in no corpus of the stream")
    return warnings


def _stream_path(corpus: Corpus, stream: str | Path) -> Path:
    is_path = isinstance(stream, Path) or stream.endswith(".json") or "/" in stream
    if is_path or "\\" in str(stream):
        check_regular(stream)
        if not os.path.isfile(stream):
            raise problem(stream, None, 'no such file; give JSON {"D0": [document ids], ...}')
        return Path(stream)
    if corpus.folder is None:
        text = "a stream is named, but this corpus has no folder; give the path of a .json file"
        raise problem(f"stream {show(stream)}", None, text)
    folder = corpus.folder / "streams"
    path = folder / f"{stream}.json"
    check_regular(path)
    if not os.path.isfile(path):
        known = sorted(entry.stem for entry in folder.glob("*.json"))
        text = f"no such stream; there are: {', '.join(known) or 'none'}"
        raise problem(path, None, text + did_you_mean(str(stream), known))
    return path


def document_texts(
    documents: pa.Table,
    *,
    title: bool,
    lowercase: bool,
    batch_size: int = 1000,
    rows: np.ndarray | None = None,
) -> Iterator[str]:
    """What the model reads of each document: "title text" or the text, white space normalised.

    A document without text gives its title in either case. ``rows`` selects and orders documents
    without copying more than ``batch_size`` of them at a time.
    """
    columns = documents.select(["title", "text"])
    if rows is None:
        tables: Iterable[Any] = columns.to_batches(max_chunksize=batch_size)
    else:
        starts = range(0, len(rows), batch_size)
        tables = (take(columns, rows[start : start + batch_size]) for start in starts)
    for table in tables:
        pairs = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        for head, body in pairs:
            words = f"{head} {body}".split() if title or not body.strip() else body.split()
            text = " ".join(words)
            yield text.lower() if lowercase else text


def write_corpus(
    folder: str | Path,
    documents: Iterable[Mapping[str, str]],
    queries: Iterable[Mapping[str, str]],
    qrels: Mapping[str, Iterable[tuple[str, str, int]]],
    streams: Mapping[str, Sequence[Sequence[str] | Mapping[str, Any]]] | None = None,
) -> Path:
    """Write a BEIR folder, such that ``read_corpus`` gives what was written; returns the folder.

    Documents {"_id", "title", "text"} and queries {"_id", "text"} are consumed once, documents
    first; ``qrels`` is split -> (query id, document id, score), ``streams`` name -> ids of D0,
    D1, ..., or what a stage adds, removes and replaces. Rows are checked as when they are read,
    except for what needs the whole corpus (unique and known ids). corpus.jsonl appears last: a
    folder that has it is complete.
    """
    folder = Path(folder)
    corpus = folder / "corpus.jsonl"
    if find_file(corpus) is not None:
        raise problem(corpus, None, "there is a corpus already; remove it or choose another folder")
    for split in qrels:
        if split not in SPLITS:
            raise problem(folder, None, f"split {show(split)}; choose of {', '.join(SPLITS)}")
    for name in streams or {}:
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise problem(folder, None, f"stream {show(name)}; give it a plain file name")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".corpus.jsonl.tmp"
    entries = checked_documents(documents, corpus)
    _write_lines(unfinished, (_json_line(("_id", "title", "text"), entry) for entry in entries))
    entries = checked_queries(queries, folder / "queries.jsonl")
    lines = (_json_line(("_id", "text"), entry) for entry in entries)
    _write_lines(folder / "queries.jsonl", lines)
    for split, judgements in qrels.items():
        rows = (f"{query}\t{document}\t{score:d}" for query, document, score in judgements)
        _write_lines(folder / "qrels" / f"{split}.tsv", chain(["\t".join(HEADER)], rows))
    for name, corpora in (streams or {}).items():
        # a stage that also removes or replaces is an object already
        stages = (ids if isinstance(ids, Mapping) else list(ids) for ids in corpora)
        value = {f"D{number}": stage for number, stage in enumerate(stages)}
        write_json(folder / "streams" / f"{name}.json", value)
    os.replace(unfinished, corpus)
    return folder


def _json_line(names: Sequence[str], values: Sequence[str]) -> str:
    return json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
