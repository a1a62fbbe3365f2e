"""Make a stream from MS MARCO passages: 50,000 + 5 x 10,000 of them, or all 8.8 million.

    python -m data.msmarco --out msmarco                         # with the library ir_datasets
    python -m data.msmarco --out msmarco --local FOLDER          # the official tsv files
    python -m data.msmarco --out msmarco-full --full

Only about 6 per cent of the passages have a judged query. The subset is drawn from those first, as
a passage without queries can be indexed but not be evaluated. The official train queries are split
80/20 into train and dev; the official dev queries (by default the 6,980 of the small set) are test.

--local FOLDER holds collection.tsv, queries.train.tsv, qrels.train.tsv and queries.dev.small.tsv,
qrels.dev.small.tsv (or .dev.tsv without "small"). With a plain queries.tsv and qrels.tsv instead,
their queries are split 60/20/20. All may be .gz.

The source may be used for non-commercial research only (Bajaj et al. 2016; see the terms at
https://microsoft.github.io/msmarco). The full stream needs a few GB of memory for its ids.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data import _reading, _writing
from dsi.errors import UserError

DATASET = "msmarco-passage"


class Source(NamedTuple):
    """Where passages, queries and judgements come from; ``passages()`` may be called twice."""

    passages: Callable[[], Iterable[tuple[str, str]]]
    queries: Callable[[], Iterable[tuple[str, str]]]
    judged: dict[str, list[tuple[str, str]]]


def local(folder: Path) -> Source:
    """The official tab-separated files in a folder; raises UserError for a missing one."""
    names = {"train": ["train"], "test": ["dev.small", "dev"]}
    found: dict[str, tuple[Path, Path]] = {}
    for split, endings in names.items():
        for ending in endings:
            pair = folder / f"queries.{ending}.tsv", folder / f"qrels.{ending}.tsv"
            if split not in found and all(map(_reading.exists, pair)):
                found[split] = pair
    if not found and _reading.exists(folder / "qrels.tsv"):
        found["test"] = folder / "queries.tsv", folder / "qrels.tsv"
    if not found:
        raise UserError(
            f"{folder}: no queries.train.tsv and qrels.train.tsv, and no queries.tsv and qrels.tsv;"
            " put the official files there"
        )

    def queries() -> Iterator[tuple[str, str]]:
        for texts, _ in found.values():
            yield from _pairs(texts)

    judged = {
        split: [(q, d) for _, q, d, relevance in _reading.read_qrels(qrels) if relevance > 0]
        for split, (_, qrels) in found.items()
    }
    return Source(lambda: _pairs(folder / "collection.tsv"), queries, judged)


def downloaded(name: str) -> Source:
    """The passages of ``ir_datasets``, which downloads them on first use (about 1 GB)."""
    parts = {split: f"{name}/{part}" for split, part in (("train", "train"), ("test", "dev/small"))}
    sets = {split: _reading.load_ir_dataset(part) for split, part in parts.items()}
    passages = _reading.load_ir_dataset(name)
    judged = {
        split: [(q.query_id, q.doc_id) for q in part.qrels_iter() if q.relevance > 0]
        for split, part in sets.items()
    }
    return Source(
        lambda: ((d.doc_id, d.text) for d in passages.docs_iter()),
        lambda: ((q.query_id, q.text) for part in sets.values() for q in part.queries_iter()),
        judged,
    )


def write(source: Source, out: Path, sizes: Sequence[str], seed: int) -> None:
    """Write the BEIR folder in two passes over the passages: choose by id, then copy."""
    keys = [
        key
        for key, text in _writing.progress(source.passages(), "passages", 1_000_000)
        if text.strip()
    ]
    splits = source.judged
    if splits.get("train"):
        splits = {"train": [], "dev": [], "test": splits.get("test", [])}
        for query, document in source.judged["train"]:
            split = _writing.split_of(query, seed, (0.8, 0.2, 0.0))
            splits[split].append((query, document))
    splits = _writing.complete_splits(splits, seed)
    judged = {document for pairs in splits.values() for _, document in pairs}
    counts = _writing.parse_sizes(sizes, len(keys))
    order = _writing.choose(keys, judged, sum(counts), seed)
    del keys
    chosen = set(order)
    with _writing.BeirWriter(out) as writer:
        for key, text in _writing.progress(source.passages(), "passages", 1_000_000):
            if key in chosen:
                writer.document(key, "", " ".join(text.split()))
        _writing.write_queries(writer, source.queries(), splits, chosen)
        writer.stream("iid", _writing.cut(order, counts))
    _writing.report(writer)


def main() -> None:
    """Read the command line and write the corpus."""
    parser = _writing.parser("msmarco", __doc__)
    parser.add_argument("--local", type=Path, metavar="FOLDER", help="folder of the official files")
    parser.add_argument("--full", action="store_true", help="all passages: half, then tenths")
    _writing.add_sizes(parser, _writing.DSI_PLUS_PLUS_SIZES)
    given = parser.parse_args()
    sizes = _writing.HALF_AND_TENTHS if given.full else given.sizes
    source = local(given.local) if given.local else downloaded(DATASET)
    write(source, given.out, sizes, given.seed)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for _, (key, text) in _reading.read_table(path, 2):
        yield key, text


if __name__ == "__main__":
    _writing.run(main)
