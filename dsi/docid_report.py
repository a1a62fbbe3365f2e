"""How an assignment of docids looks as a tree, corpus by corpus: what growing does to it.

Shape legend: N documents, T docid length. D_n are the documents that arrive at corpus n, U_n all
documents up to then. The depth of a node is the number of codes that lead to it; the documents of
a leaf group share all but their last code.
"""

from typing import Any

import numpy as np

from dsi.docids._text import packed_rows


def docid_report(
    codes_NT: np.ndarray, offsets: np.ndarray | list[int], suffix: bool = False
) -> dict[str, Any]:
    """The tree over U_0, U_1, ..., ready for JSON; null where there is nothing to measure.

    ``codes_NT``: docids in order of arrival, -1 after the end, all different. ``offsets``: first
    document of each corpus and, last, N. ``suffix``: whether the last code only tells documents of
    equal content apart. Per corpus:

    - ``documents`` of U_n, ``new`` of D_n; ``depth``: codes of a docid (min, mean, max).
    - ``fan_out``: children of the nodes that have any (mean, max), by depth from the root on.
    - ``leaf_groups``: number, documents of one (mean, max).
    - ``collisions``: documents that are not the first of their leaf group; null without ``suffix``.
    - ``new_in_one_group``: the largest share of D_n that went to one leaf group.
    - ``largest_group_growth``: largest leaf group, of U_n over of U_0.
    - ``first_code_entropy``: of D_n's first codes, as a share of the most that is possible with
      the codes in use and so many documents: 1 is even, 0 is all the same.

    Raises ValueError for offsets that do not fit, or for equal docids.
    """
    offsets = np.asarray(offsets, np.int64)
    sizes = np.diff(offsets)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(codes_NT) or (sizes < 0).any():
        raise ValueError(f"offsets: must rise from 0 to {len(codes_NT)}, got {offsets.tolist()}")
    corpus_N = np.repeat(np.arange(len(sizes)), sizes)
    lengths_N = (codes_NT >= 0).sum(1)
    fan_out, groups = _tree(codes_NT, lengths_N, corpus_N, len(sizes))
    corpora = []
    for n, (stop, new) in enumerate(zip(offsets[1:].tolist(), sizes.tolist(), strict=True)):
        group = groups[n]
        corpora.append(
            {
                "documents": stop,
                "new": new,
                "depth": _depth(lengths_N[:stop]),
                "fan_out": fan_out[n],
                "leaf_groups": {
                    "number": group["number"],
                    "mean": _ratio(stop, group["number"]),
                    "max": group["largest"] or None,
                },
                "collisions": stop - group["number"] if suffix else None,
                "new_in_one_group": _ratio(group["largest_new"], new),
                "largest_group_growth": _ratio(group["largest"], groups[0]["largest"]),
                "first_code_entropy": _entropy(codes_NT[:stop, 0], new),
            }
        )
    return {"suffix": suffix, "corpora": corpora}


def _tree(
    codes_NT: np.ndarray, lengths_N: np.ndarray, corpus_N: np.ndarray, corpora: int
) -> tuple[list[list[dict[str, float]]], list[dict[str, int]]]:
    """Per corpus: fan-out by depth; number and sizes of leaf groups.

    The rows are sorted once. A node is a run of rows with equal beginnings, and it exists from the
    earliest corpus among them on, so one pass over the depths serves every U_n.
    """
    order = np.lexsort(packed_rows(codes_NT)[::-1])
    codes, lengths, corpus = codes_NT[order], lengths_N[order], corpus_N[order]
    unlike = codes[1:] != codes[:-1]
    if not unlike.any(1).all():
        raise ValueError("two documents have the same docid")
    differs = np.zeros(len(codes), np.int64)  # first position unlike the row before
    differs[1:] = unlike.argmax(1)
    fan_out: list[list[dict[str, float]]] = [[] for _ in range(corpora)]
    groups = [{"number": 0, "largest": 0, "largest_new": 0} for _ in range(corpora)]
    parents = np.zeros(len(codes), np.int64)  # of every row: its node at this depth
    for depth in range(int(lengths.max(initial=0))):
        # rows whose docid ended have no node here
        inside = np.flatnonzero(lengths > depth)
        starts = np.flatnonzero(differs[inside] <= depth)
        parent = parents[inside[starts]]
        born = np.minimum.reduceat(corpus[inside], starts)
        leaves = inside[lengths[inside] == depth + 1]
        children = np.zeros(int(parents.max()) + 1, np.int64)
        documents = np.zeros_like(children)
        for n in range(corpora):
            children += np.bincount(parent[born == n], minlength=len(children))
            arrived = np.bincount(parents[leaves[corpus[leaves] == n]], minlength=len(children))
            documents += arrived
            inner = np.count_nonzero(children)
            if inner:
                most = int(children.max())
                fan_out[n].append({"mean": float(children.sum() / inner), "max": most})
            group = groups[n]
            group["number"] += int(np.count_nonzero(documents))
            group["largest"] = max(group["largest"], int(documents.max()))
            group["largest_new"] = max(group["largest_new"], int(arrived.max()))
        parents[inside] = np.cumsum(differs[inside] <= depth) - 1
    return fan_out, groups


def _depth(lengths: np.ndarray) -> dict[str, float] | None:
    if not len(lengths):
        return None
    return {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())}


def _entropy(first_codes: np.ndarray, new: int) -> float | None:
    """Of the last ``new`` codes; nothing to measure where only one code is possible."""
    possible = min(new, len(np.unique(first_codes)))
    if possible < 2:
        return None
    shares = np.unique(first_codes[len(first_codes) - new :], return_counts=True)[1] / new
    return float(abs((shares * np.log(shares)).sum()) / np.log(possible))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def format_report(report: dict[str, Any]) -> str:
    """The report as a table for a terminal, one line per corpus, and the fan-out of the last."""
    head = ["", "documents", "codes", "leaf groups", "size: mean, max", "growth"]
    head += ["new in one group", "first codes", *(["collisions"] if report["suffix"] else [])]
    rows = [head]
    for n, corpus in enumerate(report["corpora"]):
        depth, groups = corpus["depth"] or {}, corpus["leaf_groups"]
        spread = f"{_number(depth.get('min'))}-{_number(depth.get('max'))}"
        row = [f"U_{n}", f"{corpus['documents']:,}", f"{spread}, mean {_number(depth.get('mean'))}"]
        row += [f"{groups['number']:,}", f"{_number(groups['mean'])}, {_number(groups['max'])}"]
        row += [f"x {_number(corpus['largest_group_growth'])}"]
        row += [_number(corpus["new_in_one_group"]), _number(corpus["first_code_entropy"])]
        rows.append(row + ([f"{corpus['collisions']:,}"] if report["suffix"] else []))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    fans = report["corpora"][-1]["fan_out"]
    shown = "; ".join(f"{_number(fan['mean'])}, {fan['max']:,}" for fan in fans)
    return "\n".join([*lines, f"children of a node by depth (mean, max): {shown}"])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
