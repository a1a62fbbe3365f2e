"""Lookup by hashes: equal to a dictionary, also where every hash collides."""

import numpy as np
import pyarrow as pa
import pytest

from dsi.corpus import ids as corpus_ids
from dsi.corpus.ids import IdRows, first_occurrence, hashes, id_rows, take

IDS = [f"doc{n * 7919 % 5000}" for n in range(5000)]
HASHES = {"hash": hash, "length": len, "constant": lambda _: 3}


@pytest.mark.parametrize("function", HASHES)
@pytest.mark.parametrize("is_chunked", [True, False])
def test_rows_equal_a_dictionary(function, is_chunked, monkeypatch):
    monkeypatch.setattr(corpus_ids, "BATCH", 64)
    ids = IDS if function == "hash" else IDS[:90]
    column = pa.chunked_array([ids[:37], [], ids[37:]]) if is_chunked else pa.array(ids)
    expected = {entry: row for row, entry in enumerate(ids)}
    asked = [*ids[::-1], "unknown", "", "doc1\ud800", ids[5], ids[5]]
    rows = IdRows(column, HASHES[function]).rows(asked)
    assert rows.dtype == np.int64
    assert rows.tolist() == [expected.get(entry, -1) for entry in asked]


def test_first_of_repeated_ids_and_empty_columns():
    assert id_rows(pa.array(["a", "b", "a"])).rows(["a", "b"]).tolist() == [0, 1]
    for empty in (pa.chunked_array([], pa.string()), pa.array([], pa.string())):
        assert len(id_rows(empty)) == 0
        assert id_rows(empty).rows(["a"]).tolist() == [-1]
    assert id_rows(pa.array(["a"])).rows([]).tolist() == []


@pytest.mark.parametrize("function", HASHES)
def test_first_occurrence_verifies_the_strings(function):
    strings = ["b", "a", "b", "cc", "a", "b", "dd"]
    first = first_occurrence(hashes(strings, HASHES[function]), strings.__getitem__)
    assert first.tolist() == [0, 1, 0, 3, 1, 0, 6]


def test_strings_are_asked_for_only_where_hashes_repeat():
    def value(row: int) -> str:
        raise AssertionError(row)

    assert first_occurrence(hashes(map(str, range(1000))), value).tolist() == list(range(1000))


@pytest.mark.parametrize("rows", [[], [3], [0, 1, 2], [9, 0, 5, 5, 2], list(range(10))])
def test_take_equals_arrows_take(rows):
    column = pa.chunked_array([list("abc"), [], list("defghij")])
    table = pa.table({"id": column, "row": pa.chunked_array([range(3), range(3, 10)])})
    rows = np.array(rows, dtype=np.int64)
    assert take(table, rows).equals(table.take(pa.array(rows)))


@pytest.mark.parametrize("row", [-1, 2])
def test_take_refuses_rows_outside(row):
    with pytest.raises(IndexError, match=r"0\.\.1"):
        take(pa.table({"id": ["a", "b"]}), np.array([row]))
