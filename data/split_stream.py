"""Cut a BEIR folder into a stream file: at random, by a metadata field, or by id order.

    python -m data.split_stream squad --name iid
    python -m data.split_stream encyclopedia --by topic            # whole topics arrive together
    python -m data.split_stream news --by year --sorted --sizes 0.7 0.1 0.1 0.1
    python -m data.split_stream wiki --by id --sizes 50000 5x10000

--by iid       random order (a hash of seed and id), the default: no shift between corpora
--by FIELD     documents with the same metadata.FIELD stay together; groups come in random order,
               with --sorted in the order of their values (dates, years): topic or time shift
--by id        order of the ids; ids that are all numbers count as numbers
--by file      order of corpus.jsonl

Only the ids are read into memory. The file is FOLDER/streams/NAME.json, or --out DIR/NAME.json; one
that is there already is replaced with --overwrite alone.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from data import _reading, _writing
from dsi.errors import UserError


def corpora(
    folder: Path, by: str, sizes: Sequence[str], seed: int = 0, in_order: bool = False
) -> list[list[str]]:
    """The document ids of D_0, D_1, ... (see the module's docstring for ``by``).

    Raises UserError if a document lacks the field, or if the sizes do not fit.
    """
    if in_order and by in ("iid", "id", "file"):
        raise UserError(f"--sorted orders groups, and --by {by} makes none; leave --sorted out")
    if by in ("iid", "id", "file"):
        keys = [record["_id"] for record in _reading.documents(folder)]
        counts = _writing.parse_sizes(sizes, len(keys))
        if by == "iid":
            keys = _writing.shuffled(keys, seed)
        elif by == "id":
            numbers = all(key.isdecimal() for key in keys)
            keys.sort(key=(lambda key: (int(key), key)) if numbers else None)
        return _writing.cut(keys, counts)

    groups: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for record in _reading.documents(folder):
        metadata = record.get("metadata")
        value = metadata.get(by) if isinstance(metadata, dict) else None
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{folder}/corpus.jsonl: document {record['_id']!r} has no text or number under"
                f" metadata.{by}; give every document one, or use --by iid"
            )
        groups.setdefault(str(value), []).append(record["_id"])
        values[str(value)] = value
    counts = _writing.parse_sizes(sizes, sum(map(len, groups.values())))
    if not in_order:
        names = _writing.shuffled(groups, seed)
    elif all(isinstance(value, int | float) for value in values.values()):
        names = sorted(groups, key=float)
    else:
        names = sorted(groups)
    return _writing.cut_groups([groups[name] for name in names], counts)


def main() -> None:
    """Read the command line and write the stream file."""
    parser = argparse.ArgumentParser(
        prog="python -m data.split_stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the BEIR folder")
    parser.add_argument("--by", default="iid", metavar="iid|id|file|FIELD")
    parser.add_argument("--sorted", action="store_true", help="groups by the order of their values")
    parser.add_argument("--name", help="of the stream; default: the value of --by")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: FOLDER/streams")
    parser.add_argument("--overwrite", action="store_true", help="replace a stream of this name")
    parser.add_argument("--seed", type=int, default=0, help="of the random order (default 0)")
    _writing.add_sizes(parser, _writing.HALF_AND_TENTHS)
    given = parser.parse_args()
    path = (given.out or given.folder / "streams") / f"{given.name or given.by}.json"
    if os.path.lexists(path) and not given.overwrite:
        raise UserError(f"{path}: is there already; give another --name, or --overwrite")
    made = corpora(given.folder, given.by, given.sizes, given.seed, given.sorted)
    _writing.write_stream(path, made)
    print(f"{path}: {', '.join(f'D{n} {len(ids)}' for n, ids in enumerate(made))} documents")


if __name__ == "__main__":
    _writing.run(main)
