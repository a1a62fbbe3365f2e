"""Cut any BEIR folder, or any dataset that ir_datasets knows, into a stream.

    python -m data.beir --out nfcorpus-stream nfcorpus
    python -m data.beir --out scifact-stream --ir-datasets beir/scifact
    python -m data.beir --out fiqa-stream fiqa --sizes 20000 5x4000

The source keeps its ids, texts, splits and metadata. Splits that it lacks are taken from those it
has (most BEIR sets bring test queries only, on which nothing can be trained): whole queries move,
by their hash. With whole numbers as --sizes, documents that some query is about come first and
others fill up. Streams: iid; further ones with `python -m data.split_stream`.

A BEIR folder holds corpus.jsonl, queries.jsonl and qrels/*.tsv, each plain or .gz. The licence is
that of the source; see its page before sharing the result.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import _reading, _writing
from dsi.errors import UserError


class Source(NamedTuple):
    """Records of a corpus; ``documents()`` may be called twice."""

    documents: Callable[[], Iterable[dict[str, Any]]]
    queries: Callable[[], Iterable[tuple[str, str]]]
    judged: dict[str, list[tuple[str, str]]]


def from_folder(folder: Path) -> Source:
    """A BEIR folder, checked for its parts only; raises UserError without judged queries."""
    judged = _reading.judgements(folder)
    if not any(judged.values()):
        raise UserError(f"{folder}/qrels: no judgements in train, dev or test.tsv; add one of them")

    def queries() -> Iterable[tuple[str, str]]:
        return ((record["_id"], str(record.get("text", ""))) for record in _reading.queries(folder))

    return Source(lambda: _reading.documents(folder), queries, judged)


def from_ir_datasets(name: str) -> Source:
    """A dataset by its name, with the judgements of NAME/train, /dev and /test, or else its own."""
    base = _reading.load_ir_dataset(name)
    parts: dict[str, Any] = {}
    for split in _reading.SPLITS:
        try:
            parts[split] = _reading.load_ir_dataset(f"{name}/{split}")
        except UserError:  # most datasets have only some of the three
            continue
    parts = {split: part for split, part in parts.items() if part.has_qrels()}
    if not parts and base.has_qrels():
        parts = {"test": base}
    if not parts:
        raise UserError(f"{name}: no judgements here or in /train, /dev, /test; take another name")

    def documents() -> Iterable[dict[str, Any]]:
        for document in base.docs_iter():
            text = document.text if hasattr(document, "text") else document.default_text()
            yield {"_id": document.doc_id, "title": getattr(document, "title", ""), "text": text}

    def queries() -> Iterable[tuple[str, str]]:
        for part in parts.values():
            for query in part.queries_iter():
                yield query.query_id, getattr(query, "text", None) or query.default_text()

    judged = {
        split: [(q.query_id, q.doc_id) for q in part.qrels_iter() if q.relevance > 0]
        for split, part in parts.items()
    }
    return Source(documents, queries, judged)


def write(source: Source, out: Path, sizes: Sequence[str], seed: int) -> None:
    """Write the BEIR folder in two passes over the documents: choose by id, then copy.

    Documents without text (some sets have them) are left out.
    """
    keys = [record["_id"] for record in source.documents() if _text(record)]
    splits = _writing.complete_splits(source.judged, seed)
    counts = _writing.parse_sizes(sizes, len(keys))
    judged = {document for pairs in splits.values() for _, document in pairs}
    order = _writing.choose(keys, judged, sum(counts), seed)
    chosen = set(order)
    with _writing.BeirWriter(out) as writer:
        for record in source.documents():
            if record["_id"] in chosen and _text(record):
                metadata = record.get("metadata")
                metadata = metadata if isinstance(metadata, dict) else {}
                title = str(record.get("title") or "")
                writer.document(record["_id"], title, _text(record), **metadata)
        _writing.write_queries(writer, source.queries(), splits, chosen)
        writer.stream("iid", _writing.cut(order, counts))
    _writing.report(writer)


def main() -> None:
    """Read the command line and write the corpus."""
    parser = _writing.parser("beir", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="the BEIR folder to cut")
    parser.add_argument("--ir-datasets", metavar="NAME", help="instead: a name of ir_datasets")
    _writing.add_sizes(parser, _writing.HALF_AND_TENTHS)
    given = parser.parse_args()
    if (given.folder is None) == (given.ir_datasets is None):
        raise UserError("give either a BEIR folder or --ir-datasets NAME")
    source = from_folder(given.folder) if given.folder else from_ir_datasets(given.ir_datasets)
    write(source, given.out, given.sizes, given.seed)


def _text(record: dict[str, Any]) -> str:
    return str(record.get("text") or "").strip()


if __name__ == "__main__":
    _writing.run(main)
