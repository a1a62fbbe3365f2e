"""The report on an assignment against a tree of Python dictionaries."""

import json
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.docid_report import docid_report, format_report
from dsi.docids import NewDocuments, stack_codes
from dsi.docids.atomic import Atomic
from dsi.docids.naive import Naive

# a large code needs many bits, so that long docids do not fit one sorting key
CODES = st.lists(st.sampled_from([0, 1, 2, 2**30]), min_size=1, max_size=4)


def prefix_free(docids: list[list[int]]) -> list[tuple[int, ...]]:
    """The docids that no earlier one begins or continues."""
    kept: list[tuple[int, ...]] = []
    for docid in map(tuple, docids):
        if all(docid[: len(k)] != k and k[: len(docid)] != docid for k in kept):
            kept.append(docid)
    return kept


def as_array(docids: list[tuple[int, ...]]) -> np.ndarray:
    parts = [np.array([docid], np.int32) for docid in docids]
    return stack_codes(parts) if parts else np.zeros((0, 1), np.int32)


def expected(docids: list[tuple[int, ...]], start: int, first: list[tuple[int, ...]]) -> dict:
    """One corpus' figures, counted node by node; D_n begins at ``start``, U_0 is ``first``."""
    children: dict[tuple[int, ...], set[int]] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, docid in enumerate(docids):
        groups.setdefault(docid[:-1], []).append(number)
        for cut, code in enumerate(docid):
            children.setdefault(docid[:cut], set()).add(code)
    depths = sorted({len(prefix) for prefix in children})
    counts = [[len(c) for p, c in children.items() if len(p) == depth] for depth in depths]
    new, lengths = docids[start:], [len(docid) for docid in docids]
    in_groups = [sum(number >= start for number in group) for group in groups.values()]
    first_groups = [docid[:-1] for docid in first]
    at_first = max(map(first_groups.count, first_groups), default=0)
    largest = max(map(len, groups.values()), default=0)
    heads = np.array([docid[0] for docid in new])
    shares = np.array([np.mean(heads == code) for code in set(heads.tolist())])
    possible = min(len(new), len({docid[0] for docid in docids}))
    return {
        "documents": len(docids),
        "new": len(new),
        "depth": {"min": min(lengths), "mean": np.mean(lengths), "max": max(lengths)}
        if docids
        else None,
        "fan_out": [{"mean": np.mean(found), "max": max(found)} for found in counts],
        "leaf_groups": {
            "number": len(groups),
            "mean": len(docids) / len(groups) if groups else None,
            "max": largest or None,
        },
        "collisions": sum(number > min(group) for group in groups.values() for number in group),
        "new_in_one_group": max(in_groups) / len(new) if new else None,
        "largest_group_growth": largest / at_first if at_first else None,
        "first_code_entropy": -(shares * np.log(shares)).sum() / np.log(possible)
        if possible > 1
        else None,
    }


def approximately(value):
    """``value`` with its floats compared within rounding."""
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, abs=1e-12) if isinstance(value, float) else value


@settings(max_examples=80)
@given(st.lists(CODES, max_size=25), st.lists(st.integers(0, 25), max_size=4))
def test_the_report_is_that_of_a_tree_of_dictionaries(docids, cuts):
    docids = prefix_free(docids)
    offsets = sorted([0, *(min(cut, len(docids)) for cut in cuts), len(docids)])
    report = docid_report(as_array(docids), np.array(offsets), suffix=True)
    first = docids[: offsets[1]]
    wanted = [expected(docids[:stop], start, first) for start, stop in pairwise(offsets)]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["corpora"] == approximately(wanted)
    assert len(format_report(report).splitlines()) == len(offsets) + 1


def test_atomic_docids_are_one_leaf_group_that_grows():
    scheme = Atomic()
    scheme.extend(NewDocuments(count=30))
    corpora = docid_report(scheme.codes_NT, [0, 20, 30])["corpora"]
    assert corpora[1]["fan_out"] == [{"mean": 30.0, "max": 30}]
    assert corpora[1]["largest_group_growth"] == 1.5
    assert corpora[1]["new_in_one_group"] == 1.0
    assert corpora[1]["first_code_entropy"] == pytest.approx(1.0)
    assert corpora[1]["collisions"] is None


def test_arrivals_in_one_place_are_seen():
    """Equal assignments but for D_1, spread over all leaf groups or put into one."""
    old = np.array([[a, b] for a in range(4) for b in range(5)])
    spread = np.array([[a, 5] for a in range(4)])
    heaped = np.array([[0, b] for b in range(5, 9)])
    even, uneven = (
        docid_report(np.concatenate([old, new]), [0, 20, 24], suffix=True)["corpora"][1]
        for new in (spread, heaped)
    )
    assert (even["new_in_one_group"], uneven["new_in_one_group"]) == (0.25, 1.0)
    assert (even["largest_group_growth"], uneven["largest_group_growth"]) == (1.2, 1.8)
    assert (even["first_code_entropy"], uneven["first_code_entropy"]) == (pytest.approx(1), 0)
    assert even["collisions"] == uneven["collisions"] == 20


@pytest.mark.parametrize("offsets", [[0], [], [0, 3], [1, 4], [0, 3, 2, 4]], ids=str)
def test_offsets_that_do_not_fit(offsets):
    with pytest.raises(ValueError, match=r"^offsets: must rise from 0 to 4"):
        docid_report(np.arange(4)[:, None], offsets)


def test_equal_docids_are_refused():
    with pytest.raises(ValueError, match="same docid"):
        docid_report(np.array([[1, 2], [3, 0], [1, 2]]), [0, 3])


def test_the_table():
    codes = np.array([[0, 0], [0, 1], [1, 0], [0, 2]])
    lines = format_report(docid_report(codes, [0, 3, 3, 4], suffix=True)).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["U_0", "U_1", "U_2"]
    assert lines[0].split()[-1] == "collisions" and lines[3].split()[-1] == "2"
    assert lines[3].split()[1] == "4" and "x 1.50" in lines[3]
    assert lines[-1].endswith("2.00, 2; 2.00, 3")
    plain = format_report(docid_report(codes, [0, 4]))
    assert "collisions" not in plain


def test_two_hundred_thousand_documents():
    scheme = Naive()
    scheme.extend(NewDocuments(count=200_000))
    started = time.process_time()
    report = docid_report(scheme.codes_NT, [0, 100_000, 120_000, 140_000, 200_000])
    assert time.process_time() - started < 5  # a twentieth of that, with nothing beside it
    assert [fan["max"] for fan in report["corpora"][-1]["fan_out"]] == [10, 11, 11, 11, 11, 11, 1]
