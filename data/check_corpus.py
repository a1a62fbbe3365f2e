"""Check a BEIR folder that people wrote, and measure how hard its questions are.

    python -m data.check_corpus FOLDER            ids, duplicates, splits, streams
    python -m data.check_corpus FOLDER --strict   and the house rules of the sample corpus

Prints a table, then the problems, one line each: file, line or id, what is wrong. Exit status 0
without problems, 1 with some, 2 if the folder cannot be read.

The house rules: passages of 60 to 120 words under a title and a topic; five questions each, of at
least four kinds and one of them a search-box query (keyword), split 3/1/1 into train, dev and test;
no question copied from its passage; D_0 half of the documents, D_1..D_5 a tenth each.
"""

import argparse
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import _measures, _reading
from data._writing import run
from dsi.corpus.streams import read_stream_file
from dsi.errors import UserError

KINDS = ("what", "why", "who", "how", "when", "where", "which", "yesno", "keyword")
WORDS = (60, 120)
NEAR_DUPLICATE = 0.5  # Jaccard similarity of word 5-grams
COPIED = 0.85  # share of a question's content words that its passage holds
MEAN_OVERLAP = 0.5
STREAM_SHARES = (0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
STREAM_TOLERANCE = 0.025  # a tenth plus or minus one topic of eight in 336
SHOWN = 50


@dataclass
class Report:
    """What was measured, as rows of a table, and what is wrong."""

    table: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check(folder: Path, strict: bool = False) -> Report:
    """Check one folder; raises UserError only for files that cannot be read at all."""
    report = Report()
    documents = _unique(_reading.documents(folder), "corpus.jsonl", report)
    queries = _unique(_reading.queries(folder), "queries.jsonl", report)
    if not documents:
        raise UserError(f"{folder}/corpus.jsonl: no documents; write one JSON object per line")
    splits, answers = _check_judgements(folder, documents, queries, report)
    _check_passages(documents, strict, report)
    _check_questions(documents, queries, answers, report)
    _check_overlap(documents, queries, answers, strict, report)
    _check_bm25(documents, queries, splits["test"], report)
    if strict:
        _check_house_rules(documents, queries, splits, answers, report)
    _check_streams(folder, documents, strict, report)
    return report


def main() -> None:
    """Read the command line, print the report and exit."""
    parser = argparse.ArgumentParser(
        prog="python -m data.check_corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the BEIR folder")
    parser.add_argument("--strict", action="store_true", help="also check the house rules")
    given = parser.parse_args()
    report = check(given.folder, given.strict)
    width = max(len(name) for name, _ in report.table)
    for name, value in report.table:
        print(f"{name:<{width}}  {value}")
    print(f"{'problems':<{width}}  {len(report.problems)}")
    for problem in report.problems[:SHOWN]:
        print(problem)
    if len(report.problems) > SHOWN:
        print(f"... and {len(report.problems) - SHOWN} more")
    sys.exit(1 if report.problems else 0)


def _unique(records: Any, name: str, report: Report) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        key = record["_id"]
        if not key or key.split() != [key]:
            report.problems.append(f"{name}: id {key!r} is empty or holds whitespace")
        if key in found:
            report.problems.append(f"{name}: id {key!r} comes twice")
        if not str(record.get("text") or "").strip():
            report.problems.append(f"{name}: {key!r} has no text")
        found.setdefault(key, {"title": "", **record, "text": str(record.get("text") or "")})
    return found


def _check_judgements(
    folder: Path, documents: dict, queries: dict, report: Report
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[str]]]:
    """Known judgements by split, and the documents of each query."""
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in _reading.SPLITS}
    answers: dict[str, list[str]] = defaultdict(list)
    home: dict[str, str] = {}
    for split in _reading.SPLITS:
        path = folder / "qrels" / f"{split}.tsv"
        if not _reading.exists(path):
            report.problems.append(f"qrels/{split}.tsv: no such file")
            continue
        for line, query, document, relevance in _reading.read_qrels(path):
            where = f"qrels/{split}.tsv:{line}"
            if query not in queries:
                report.problems.append(f"{where}: unknown query {query!r}")
            elif document not in documents:
                report.problems.append(f"{where}: unknown document {document!r}")
            elif home.setdefault(query, split) != split:
                report.problems.append(f"{where}: query {query!r} is in {home[query]} already")
            elif document in answers[query]:
                report.problems.append(f"{where}: {query!r} judges {document!r} twice")
            elif relevance > 0:
                splits[split].append((query, document))
                answers[query].append(document)
    for query in queries:
        if not answers.get(query):
            report.problems.append(f"queries.jsonl: {query!r} is in no split")
    counts = Counter(home.values())
    sizes = " / ".join(str(counts[split]) for split in _reading.SPLITS)
    report.table += [("documents", f"{len(documents)}"), ("queries", f"{len(queries)}")]
    report.table.append(("train / dev / test queries", sizes))
    return splits, answers


def _check_passages(documents: dict, strict: bool, report: Report) -> None:
    lengths = {key: len(d["text"].split()) for key, d in documents.items()}
    low, high = min(lengths.values()), max(lengths.values())
    mean = statistics.mean(lengths.values())
    report.table.append(("words per document", f"{low} to {high}, mean {mean:.1f}"))
    report.table.append(("words", f"{sum(lengths.values())}"))
    if strict:
        for key, length in lengths.items():
            if not WORDS[0] <= length <= WORDS[1]:
                report.problems.append(
                    f"corpus.jsonl: {key!r} has {length} words, {WORDS[0]} to {WORDS[1]} are asked"
                )
    keys = list(documents)
    same = _measures.near_duplicates([documents[key]["text"] for key in keys], 0.0)
    report.table.append(("most similar documents", f"{same[0][0] if same else 0:.3f} (Jaccard)"))
    for jaccard, one, other in same:
        if jaccard >= NEAR_DUPLICATE:
            report.problems.append(
                f"corpus.jsonl: {keys[other]!r} repeats {keys[one]!r} (Jaccard {jaccard:.2f})"
            )


def _check_questions(documents: dict, queries: dict, answers: dict, report: Report) -> None:
    first: dict[str, str] = {}
    for key, query in queries.items():
        text = " ".join(_measures.words(query["text"]))
        if first.setdefault(text, key) != key:
            report.problems.append(f"queries.jsonl: {key!r} asks the same as {first[text]!r}")
    per_document = Counter(document for found in answers.values() for document in found)
    counts = [per_document[key] for key in documents]
    report.table.append(("questions per document", f"{min(counts)} to {max(counts)}"))
    kinds = Counter(_field(query, "kind") for query in queries.values())
    if kinds.keys() - {""}:
        named = ", ".join(f"{kind or 'none'} {count}" for kind, count in kinds.most_common())
        report.table.append(("kinds", named))


def _check_overlap(
    documents: dict, queries: dict, answers: dict, strict: bool, report: Report
) -> None:
    shares = []
    for key, found in answers.items():
        for document in found[:1]:
            passage = f"{documents[document]['title']} {documents[document]['text']}"
            share = _measures.overlap(queries[key]["text"], passage)
            shares.append(share)
            if strict and share > COPIED and _field(queries[key], "kind") != "keyword":
                report.problems.append(
                    f"queries.jsonl: {key!r} copies its passage ({share:.0%} of its content words)"
                )
    if not shares:
        return
    shares.sort()
    mean = statistics.mean(shares)
    quartiles = " / ".join(f"{shares[int(q * (len(shares) - 1))]:.2f}" for q in (0.25, 0.5, 0.75))
    report.table.append(("word overlap, mean", f"{mean:.3f}"))
    report.table.append(("word overlap, quartiles", quartiles))
    if strict and mean > MEAN_OVERLAP:
        report.problems.append(
            f"queries.jsonl: mean word overlap {mean:.2f}, at most {MEAN_OVERLAP} is asked;"
            " word the questions differently"
        )


def _check_bm25(
    documents: dict, queries: dict, judged: list[tuple[str, str]], report: Report
) -> None:
    rows = {key: row for row, key in enumerate(documents)}
    gold: dict[str, set[int]] = defaultdict(set)
    for query, document in judged:
        gold[query].add(rows[document])
    if not gold:
        return
    texts = [f"{d['title']} {d['text']}" for d in documents.values()]
    hits = _measures.bm25_hits(texts, [queries[key]["text"] for key in gold], list(gold.values()))
    report.table.append(("BM25 Hits@1 / Hits@10, test", f"{hits[0]:.3f} / {hits[1]:.3f}"))


def _check_house_rules(
    documents: dict, queries: dict, splits: dict, answers: dict, report: Report
) -> None:
    asked: dict[str, list[str]] = defaultdict(list)
    for key, found in answers.items():
        for document in found:
            asked[document].append(key)
    titles = Counter(document["title"] for document in documents.values())
    topics = Counter(_field(document, "topic") for document in documents.values())
    report.table.append(("topics", f"{len(topics)}"))
    of_split = {s: Counter(document for _, document in pairs) for s, pairs in splits.items()}
    for key, document in documents.items():
        kinds = [_field(queries[query], "kind") for query in asked[key]]
        wrong = []
        if not document["title"].strip() or titles[document["title"]] > 1:
            wrong.append("its title is empty or not its own")
        if not _field(document, "topic"):
            wrong.append("metadata.topic is missing")
        if len(kinds) != 5:
            wrong.append(f"it has {len(kinds)} questions, 5 are asked")
        if len(set(kinds)) < 4 or kinds.count("keyword") != 1 or not set(kinds) <= set(KINDS):
            wrong.append(
                f"the kinds of its questions are {', '.join(kinds) or 'missing'};"
                " at least four different and one keyword are asked"
            )
        counts = [of_split[split][key] for split in _reading.SPLITS]
        if counts != [3, 1, 1]:
            wrong.append(f"its questions are split {counts}, 3 train, 1 dev, 1 test are asked")
        report.problems += [f"corpus.jsonl: {key!r}: {text}" for text in wrong]


def _check_streams(folder: Path, documents: dict, strict: bool, report: Report) -> None:
    paths = sorted((folder / "streams").glob("*.json"))
    if strict and not paths:
        report.problems.append("streams: no stream file")
    for path in paths:
        name = f"streams/{path.name}"
        try:
            _, stages = read_stream_file(path)
        except UserError as error:
            report.problems.append(str(error).replace(str(path), name))
            continue
        counts = Counter(key for stage in stages for key in stage.add)
        texts = {key for stage in stages for key in stage.replace.values()}
        named = {key for stage in stages for key in (*stage.remove, *stage.replace)}
        report.problems += [
            f"{name}: unknown document {k!r}"
            for k in dict.fromkeys([*counts, *sorted(named | texts)])
            if k not in documents
        ]
        report.problems += [f"{name}: {k!r} comes {n} times" for k, n in counts.items() if n > 1]
        report.problems += [
            f"{name}: {k!r} is in no corpus" for k in documents if k not in counts.keys() | texts
        ]
        sizes = [len(stage.add) for stage in stages]
        report.table.append((f"stream {path.stem}", " + ".join(map(str, sizes))))
        shares = [size / len(documents) for size in sizes]
        if strict and (
            len(shares) != len(STREAM_SHARES)
            or any(
                abs(share - asked) > STREAM_TOLERANCE
                for share, asked in zip(shares, STREAM_SHARES, strict=True)
            )
        ):
            report.problems.append(f"{name}: sizes {sizes}; a half and five tenths are asked")


def _field(record: dict[str, Any], name: str) -> str:
    metadata = record.get("metadata")
    return str(metadata.get(name, "")) if isinstance(metadata, dict) else ""


if __name__ == "__main__":
    run(main)
