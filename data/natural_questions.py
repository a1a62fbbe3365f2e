"""Make the stream of DSI++ from Natural Questions: 50,000 + 5 x 10,000 Wikipedia articles.

    python -m data.natural_questions --out nq
    python -m data.natural_questions --out nq --train nq-train-*.jsonl.gz --test nq-dev-*.jsonl.gz

The cut of DSI++ (Mehta et al. 2023, section 4): unique articles, D_0 of 50,000 and five corpora of
10,000 drawn at random; the questions of the original train set are split 80/20 into train and dev,
those of the original validation set are test. Which articles count as one differs in the
literature: by title (about 110,000 remain; GenRet, NCI) or by their first 4,000 characters (about
228,000; DSI). A document is the first 4,000 characters of an article without its HTML. All
questions are kept, also those without a marked answer, as in NQ320K.

With `datasets` the source is streamed: some 45 GB pass through, about 1 GB is kept on disk until
the articles are drawn. Files may be the original or the simplified JSON lines, plain or .gz.

Licence of the source: CC BY-SA 3.0 (Kwiatkowski et al. 2019; text of Wikipedia).
"""

import hashlib
import json
import re
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import _reading, _writing
from dsi.errors import UserError

DATASET = "google-research-datasets/natural_questions"
CHARACTERS = 4000
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*>")


class Example(NamedTuple):
    """A question and the article that it was asked about."""

    key: str
    question: str
    title: str
    text: str


def example(record: dict[str, Any]) -> Example:
    """Read one record in any of its three published shapes.

    The shapes: a row of the hub's dataset, the original JSON lines (``document_tokens``) and the
    simplified ones (``document_text``, whose title stands only in the address).
    Raises KeyError or TypeError for anything else.
    """
    if "document" in record:
        page, tokens = record["document"], record["document"]["tokens"]
        words = (
            token
            for token, html in zip(tokens["token"], tokens["is_html"], strict=True)
            if not html
        )
        key, question, title = record["id"], record["question"]["text"], page["title"]
    elif "document_tokens" in record:
        words = (t["token"] for t in record["document_tokens"] if not t["html_token"])
        key, question = record["example_id"], record["question_text"]
        title = record["document_title"]
    else:
        words = (w for w in record["document_text"].split() if not _TAG.fullmatch(w))
        key, question = record["example_id"], record["question_text"]
        address = urllib.parse.urlparse(record["document_url"])
        title = urllib.parse.parse_qs(address.query)["title"][0].replace("_", " ")
    return Example(str(key), question.strip(), title.strip(), _first(words, CHARACTERS))


def from_files(paths: Iterable[Path]) -> Iterator[Example]:
    """The examples of JSON lines files; raises UserError that names the line of another shape."""
    for path in paths:
        for number, record in _reading.read_json_lines(path):
            try:
                yield example(record)
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}:{number}: not a Natural Questions record ({error!r});"
                    " take the original or the simplified JSON lines"
                ) from error


def from_dataset(name: str, split: str) -> Iterator[Example]:
    """The examples of one split of the hub's dataset, or of a local folder of its shape."""
    return map(example, _reading.load_dataset(name, split))


def write(
    train: Iterable[Example],
    test: Iterable[Example],
    out: Path,
    *,
    unique: str = "title",
    sizes: Sequence[str] = _writing.DSI_PLUS_PLUS_SIZES,
    seed: int = 0,
) -> None:
    """Write the BEIR folder: one pass over the source, articles wait in a temporary file.

    ``unique``: "title" or "text", what makes two articles the same one.
    """
    offsets: dict[str, int] = {}
    texts: list[tuple[str, str]] = []
    judged: dict[str, list[tuple[str, str]]] = {split: [] for split in _reading.SPLITS}
    with tempfile.TemporaryFile() as waiting:
        for official, examples in (("train", train), ("test", test)):
            for key, question, title, text in _writing.progress(examples, f"{official} questions"):
                if not question or not text:
                    continue
                document = _document_id(title, text, unique)
                if document not in offsets:
                    offsets[document] = waiting.tell()
                    waiting.write(json.dumps([title, text]).encode() + b"\n")
                split = official
                if official == "train":
                    split = _writing.split_of(key, seed, (0.8, 0.2, 0.0))
                texts.append((key, question))
                judged[split].append((key, document))
        counts = _writing.parse_sizes(sizes, len(offsets))
        chosen = _writing.shuffled(offsets, seed)[: sum(counts)]
        with _writing.BeirWriter(out) as writer:
            for document in chosen:
                waiting.seek(offsets[document])
                title, text = json.loads(waiting.readline())
                writer.document(document, title, text)
            _writing.write_queries(writer, texts, judged, set(chosen))
            writer.stream("iid", _writing.cut(chosen, counts))
    _writing.report(writer)


def main() -> None:
    """Read the command line and write the corpus."""
    parser = _writing.parser("natural_questions", __doc__)
    parser.add_argument("--train", nargs="+", type=Path, metavar="FILE", help="original train set")
    parser.add_argument("--test", nargs="+", type=Path, metavar="FILE", help="original dev set")
    parser.add_argument("--dataset", default=DATASET, help=f"name or folder (default {DATASET})")
    parser.add_argument(
        "--unique",
        choices=("title", "text"),
        default="title",
        help="articles are the same by title (default) or by their first 4,000 characters",
    )
    _writing.add_sizes(parser, _writing.DSI_PLUS_PLUS_SIZES)
    given = parser.parse_args()
    if bool(given.train) != bool(given.test):
        raise UserError("--train and --test belong together; give both or neither")
    if given.train:
        train, test = from_files(given.train), from_files(given.test)
    else:
        train = from_dataset(given.dataset, "train")
        test = from_dataset(given.dataset, "validation")
    write(train, test, given.out, unique=given.unique, sizes=given.sizes, seed=given.seed)


def _document_id(title: str, text: str, unique: str) -> str:
    readable = "_".join(title.split()) or "untitled"
    if unique == "title":
        return readable
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _first(words: Iterable[str], characters: int) -> str:
    """The words joined by blanks, cut at ``characters``; an article is not read to its end."""
    kept, length = [], 0
    for word in words:
        kept.append(word)
        length += len(word) + 1
        if length > characters:
            break
    return " ".join(" ".join(kept).split())[:characters].rstrip()


if __name__ == "__main__":
    _writing.run(main)
