"""Atomic docids: numbers in order of arrival."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsi.docids import NewDocuments, codes_from_text, codes_to_text
from dsi.docids.atomic import Atomic


@given(st.lists(st.integers(0, 20), max_size=6))
def test_documents_are_numbered_and_old_ones_never_change(check_docids, counts):
    scheme = Atomic()
    for count in counts:
        before = scheme.codes_NT
        new = scheme.extend(NewDocuments(count=count))
        assert new.shape == (count, 1)
        assert new.dtype == np.int32
        assert np.array_equal(scheme.codes_NT, np.concatenate([before, new]))
    total = sum(counts)
    assert scheme.codes_NT[:, 0].tolist() == list(range(total))
    assert scheme.code_sizes == [max(total, 1)]
    check_docids(scheme)


def test_an_assignment_survives_its_file(tokenizer):
    scheme = Atomic(Atomic.Config())
    scheme.extend(NewDocuments(count=12))
    lines = codes_to_text(scheme.codes_NT)
    assert lines[:3] == ["0", "1", "2"]
    assert scheme.readable(scheme.codes_NT[11], tokenizer) == "11"
    again = Atomic()
    again.restore(codes_from_text(lines))
    assert np.array_equal(again.codes_NT, scheme.codes_NT)
    assert again.extend(NewDocuments(count=1)).tolist() == [[12]]
    assert not Atomic.shared and again.state_dict() == {}
