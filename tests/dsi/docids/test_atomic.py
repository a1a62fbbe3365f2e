"""Atomic docids: numbers in order of arrival."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsi.docids.atomic import Atomic


@given(st.lists(st.integers(0, 20), max_size=6))
def test_documents_are_numbered_and_old_ones_never_change(counts):
    scheme = Atomic()
    for count in counts:
        before = scheme.codes_NT
        new = scheme.extend(count)
        assert new.shape == (count, 1)
        assert new.dtype == np.int64
        assert np.array_equal(scheme.codes_NT, np.concatenate([before, new]))
    total = sum(counts)
    assert scheme.codes_NT[:, 0].tolist() == list(range(total))
    assert scheme.code_sizes == [total]


def test_an_assignment_survives_its_file():
    scheme = Atomic(Atomic.Config())
    scheme.extend(12)
    lines = [scheme.to_text(codes) for codes in scheme.codes_NT]
    assert lines[:3] == ["0", "1", "2"]
    again = Atomic()
    again.restore(np.array([again.from_text(line) for line in lines], np.int64))
    assert np.array_equal(again.codes_NT, scheme.codes_NT)
    assert again.extend(1).tolist() == [[12]]
