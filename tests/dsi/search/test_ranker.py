"""One way in for every kind of docid."""

import numpy as np
import pytest
import torch

from dsi.model.dsi_model import from_scratch
from dsi.search.ranker import Ranker, is_atomic

CODES = np.array([[0, 1], [0, 0], [1, 2], [2, 0], [2, 1], [2, 2]], np.int32)
IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])
MASK = torch.ones_like(IDS)


def model(code_sizes):
    shape = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    ours = from_scratch(0, code_sizes=code_sizes, num_layers=1, num_decoder_layers=1, **shape)
    return ours.eval()


def test_atomic_docids_are_numbers_in_order():
    assert is_atomic(np.arange(4)[:, None])
    assert is_atomic(np.zeros((0, 1), np.int32))
    assert not is_atomic(np.array([[1], [0]]))
    assert not is_atomic(CODES)


def test_atomic_and_string_docids_of_one_code_agree():
    ours = model([6])
    plain = Ranker(ours, np.arange(6)[:, None])
    shuffled = np.array([3, 1, 0, 2, 5, 4])
    strings = Ranker(ours, shuffled[:, None])
    assert plain.trie is None
    assert strings.trie is not None
    one, other = plain.rank(IDS, MASK, 6), strings.rank(IDS, MASK, 6)
    assert np.array_equal(shuffled[other.documents.numpy()], one.documents.numpy())
    torch.testing.assert_close(one.scores, other.scores)


@pytest.mark.parametrize("codes_NT", [np.arange(6)[:, None], CODES], ids=["atomic", "string"])
def test_narrow_weights_give_wide_scores(codes_NT):
    ours = model([6] if codes_NT.shape[1] == 1 else [3, 3])
    wide = Ranker(ours, codes_NT).rank(IDS, MASK, 6)
    found = Ranker(ours, codes_NT, dtype=torch.bfloat16).rank(IDS, MASK, 6)
    assert found.scores.dtype == torch.float32
    # no score is a bfloat16 that was cast afterwards: those would be their own rounding
    assert not torch.isin(found.scores, found.scores.bfloat16().float()).any()
    order = found.documents.sort(1).indices
    expected = wide.scores.gather(1, wide.documents.sort(1).indices)
    torch.testing.assert_close(found.scores.gather(1, order), expected, atol=0.05, rtol=0.05)


def test_the_beam_is_never_narrower_than_the_results():
    ranker = Ranker(model([3, 3]), CODES, beams=2)
    assert ranker.rank(IDS, MASK, 5).documents.shape == (2, 5)
    assert ranker.rank(IDS, MASK, 1).documents.shape == (2, 1)
    greedy = ranker.rank(IDS, MASK, 1, beams=1)
    assert greedy.documents.shape == (2, 1)
    assert len(ranker) == 6


def test_among_restricts_and_keeps_scores():
    for ranker in (Ranker(model([6])), Ranker(model([3, 3]), CODES)):
        full = ranker.rank(IDS, MASK, 6)
        part = ranker.among([4, 1])
        assert len(part) == 2
        assert len(ranker) == 6
        found = part.rank(IDS, MASK, 6)
        kept = torch.isin(full.documents, torch.tensor([1, 4]))
        assert torch.equal(found.documents, full.documents[kept].view(2, 2))
        torch.testing.assert_close(found.scores, full.scores[kept].view(2, 2))


def test_unconstrained_reports_what_is_no_docid():
    ranker = Ranker(model([3, 3]), CODES)
    found = ranker.unconstrained(IDS, MASK, 9)
    assert found.documents.shape == (2, 9)
    assert found.invalid == 2 * 3  # 3 x 3 sequences, 6 docids
    assert found.repeats == 0
    atomic = Ranker(model([6]))
    assert torch.equal(
        atomic.unconstrained(IDS, MASK, 4).documents, atomic.rank(IDS, MASK, 4).documents
    )


def test_atomic_docids_may_have_removed_documents_between_them():
    assert is_atomic(np.array([[0], [-1], [1], [-1]]))
    assert is_atomic(np.array([[0], [-1], [1]]), rows=2)
    assert not is_atomic(np.array([[0], [-1], [1]]), rows=3), "the row of another one is there"
    assert not is_atomic(np.array([[0], [-1], [2]]))
    assert is_atomic(np.arange(4)[:, None], rows=9), "none is removed: as it was"


def test_results_are_document_numbers_when_documents_were_removed():
    ours = model([4])
    there = np.array([1, 2, 4, 7])
    codes_NT = np.full((8, 1), -1, np.int32)
    codes_NT[there, 0] = np.arange(4)
    ranker, plain = Ranker(ours, codes_NT), Ranker(ours, np.arange(4)[:, None])
    assert ranker.trie is None and len(ranker) == 4
    found, rows = ranker.rank(IDS, MASK, 9), plain.rank(IDS, MASK, 9)
    assert torch.equal(found.documents, torch.from_numpy(there)[rows.documents])
    assert torch.equal(found.scores, rows.scores)
    part = ranker.among([7, 2])
    assert len(part) == 2
    assert {*part.rank(IDS, MASK, 3).documents.flatten().tolist()} == {2, 7}
    with pytest.raises(KeyError, match="document 3 is not there"):
        ranker.among([2, 3])


@pytest.mark.parametrize("gone", [[0], [2, 5], [5]])
def test_a_removed_string_docid_is_never_found(gone):
    codes_NT = CODES.copy()
    codes_NT[gone] = -1
    ours = model([3, 3])
    ranker = Ranker(ours, codes_NT)
    found = ranker.rank(IDS, MASK, 6)
    left = np.setdiff1d(np.arange(6), gone)
    assert found.documents.sort(1).values.tolist() == [left.tolist()] * 2
    restricted = Ranker(ours, CODES).among(left).rank(IDS, MASK, 6)
    assert torch.equal(found.documents, restricted.documents)
    torch.testing.assert_close(found.scores, restricted.scores)


def test_a_removed_code_that_the_model_still_knows_is_never_found():
    """String docids of one code keep all rows: they are searched through the trie."""
    ours = model([3])
    ranker = Ranker(ours, np.array([[0], [1], [-1]]))
    assert ranker.trie is not None
    assert ranker.rank(IDS, MASK, 3).documents.sort(1).values.tolist() == [[0, 1]] * 2
