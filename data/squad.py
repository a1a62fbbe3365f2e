"""Make a corpus from SQuAD v1.1: paragraphs of Wikipedia and the questions people wrote for them.

    python -m data.squad --out squad                                   # with the library datasets
    python -m data.squad --out squad train-v1.1.json dev-v1.1.json     # from the original files

A paragraph is a document (title: its article), its questions are queries. SQuAD's own train and
dev sets share no article, so a model could not have trained on anything about a dev paragraph;
the questions of every paragraph are therefore split anew, 80/10/10. Streams: iid, and topic,
where whole articles arrive together.

Licence of the source: CC BY-SA 4.0 (Rajpurkar, Zhang, Lopyrev, Liang 2016; text of Wikipedia).
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data import _reading, _writing
from dsi.errors import UserError

DATASET = "rajpurkar/squad"
SHARES = (0.8, 0.1, 0.1)


class Question(NamedTuple):
    """One question with its paragraph."""

    key: str
    text: str
    title: str
    paragraph: str


def from_files(paths: Iterable[Path]) -> Iterator[Question]:
    """The questions of original SQuAD v1.1 files; raises UserError for another shape."""
    for path in paths:
        try:
            with _reading.open_text(path) as file:
                articles = json.load(file)["data"]
            for article in articles:
                for paragraph in article["paragraphs"]:
                    for question in paragraph["qas"]:
                        yield Question(
                            question["id"],
                            question["question"],
                            article["title"],
                            paragraph["context"],
                        )
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: not a SQuAD v1.1 file ({error!r});"
                " take train-v1.1.json or dev-v1.1.json from the dataset's page"
            ) from error


def from_dataset(name: str) -> Iterator[Question]:
    """The questions of a dataset with SQuAD's columns: a name on the hub or a local folder."""
    for split in ("train", "validation"):
        for row in _reading.load_dataset(name, split):
            yield Question(row["id"], row["question"], row["title"], row["context"])


def write(questions: Iterable[Question], out: Path, sizes: Sequence[str], seed: int) -> None:
    """Write the BEIR folder; a paragraph that comes twice is one document.

    The last paragraphs beyond ``sizes`` are left out, with their questions.
    """
    keys: dict[tuple[str, str], str] = {}
    articles: dict[str, list[str]] = {}
    texts: list[tuple[str, str]] = []
    pairs: list[tuple[str, str]] = []
    for key, text, title, paragraph in questions:
        text, paragraph = text.strip(), paragraph.strip()
        if not text or not paragraph:
            continue
        document = keys.get((title, paragraph))
        if document is None:
            article = articles.setdefault(title, [])
            document = f"{'_'.join(title.split())}-{len(article) + 1}"
            article.append(document)
            keys[title, paragraph] = document
        texts.append((key, text))
        pairs.append((key, document))
    if not keys:
        raise UserError("the source has no questions; check the files")

    counts = _writing.parse_sizes(sizes, len(keys))
    order = [
        document for title in _writing.shuffled(articles, seed) for document in articles[title]
    ]
    chosen = set(order[: sum(counts)])
    judged: dict[str, list[tuple[str, str]]] = {split: [] for split in _reading.SPLITS}
    for query, document in pairs:
        judged[_writing.split_of(query, seed, SHARES)].append((query, document))
    with _writing.BeirWriter(out) as writer:
        for (title, paragraph), document in keys.items():
            if document in chosen:
                writer.document(document, title.replace("_", " "), paragraph, article=title)
        _writing.write_queries(writer, texts, judged, chosen)
        groups = [
            [document for document in articles[title] if document in chosen]
            for title in _writing.shuffled(articles, seed)
        ]
        groups = [group for group in groups if group]
        writer.stream("iid", _writing.cut(_writing.shuffled(chosen, seed), counts))
        if len(groups) >= 2 * len(counts):
            writer.stream("topic", _writing.cut_groups(groups, counts))
        else:
            print("too few articles for streams/topic.json; only iid is written", file=sys.stderr)
    _writing.report(writer)


def main() -> None:
    """Read the command line and write the corpus."""
    parser = _writing.parser("squad", __doc__)
    parser.add_argument("files", nargs="*", type=Path, help="SQuAD v1.1 JSON; none: use --dataset")
    parser.add_argument("--dataset", default=DATASET, help=f"name or folder (default {DATASET})")
    _writing.add_sizes(parser, _writing.HALF_AND_TENTHS)
    given = parser.parse_args()
    questions = from_files(given.files) if given.files else from_dataset(given.dataset)
    write(questions, given.out, given.sizes, given.seed)


if __name__ == "__main__":
    _writing.run(main)
