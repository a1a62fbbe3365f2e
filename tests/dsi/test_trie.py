"""The set of valid docids as flat arrays: against a set of tuples, through every change."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.errors import UserError
from dsi.trie import Trie

CODES = np.array([[2, 0, -1], [0, -1, -1], [2, 1, 3], [2, 1, 0], [1, 5, -1]], np.int32)


@st.composite
def docid_sets(draw, least=0):
    """Random prefix-free docids (N, T): bodies of codes 1..4, ended by a 0."""
    body = st.lists(st.integers(1, 4), max_size=4).map(tuple)
    bodies = draw(st.lists(body, unique=True, min_size=least, max_size=30))
    codes_NT = np.full((len(bodies), 5), -1, np.int32)
    for row, codes in zip(codes_NT, bodies, strict=True):
        row[: len(codes) + 1] = [*codes, 0]
    return codes_NT


def rows(codes_NT):
    return [tuple(code for code in row if code >= 0) for row in np.asarray(codes_NT).tolist()]


def content(trie):
    codes_NT, documents = trie.to_codes()
    return dict(zip(rows(codes_NT), documents.tolist(), strict=True))


def as_dict(codes_NT, documents):
    return dict(zip(rows(codes_NT), list(documents), strict=True))


def same(one, other):
    arrays = [(getattr(one, n), getattr(other, n)) for n in ("codes", "start", "leaves")]
    assert all(torch.equal(a, b) for a, b in arrays)
    assert torch.equal(one.documents, other.documents)
    assert (one.depth_starts, one.fan_out, one.ends) == (
        other.depth_starts,
        other.fan_out,
        other.ends,
    )


def test_arrays_of_a_small_set():
    trie = Trie.build(CODES)
    # root; 0 1 2; 1-5, 2-0 2-1; 2-1-0 2-1-3
    assert trie.codes.tolist() == [-1, 0, 1, 2, 5, 0, 1, 0, 3]
    assert trie.start.tolist() == [1, 4, 4, 5, 7, 7, 7, 9, 9, 9]
    assert trie.leaves.tolist() == [1, 4, 5, 7, 8]
    assert trie.documents.tolist() == [1, 4, 0, 3, 2]
    assert trie.depth_starts == [0, 1, 4, 7, 9]
    assert trie.fan_out == [3, 2, 2]
    assert trie.ends == [True, True, True]
    assert trie.codes.dtype == torch.int16
    assert trie.end_codes(1, 7).nonzero()[:, 0].tolist() == [0, 5]
    assert len(trie) == 5
    assert trie.num_bytes == 9 * 2 + 10 * 4 + 2 * 5 * 4


@settings(max_examples=80, deadline=None)
@given(docid_sets(), st.randoms(use_true_random=False))
def test_every_node_against_prefixes(codes_NT, random):
    documents = list(range(len(codes_NT)))
    random.shuffle(documents)
    trie = Trie.build(codes_NT, np.array(documents, np.int64))
    ids = rows(codes_NT)
    prefixes = sorted({i[:n] for i in ids for n in range(1, len(i) + 1)}, key=lambda p: (len(p), p))
    node_of = {prefix: number + 1 for number, prefix in enumerate(prefixes)}
    node_of[()] = 0
    assert trie.num_nodes == len(node_of)
    for prefix, node in node_of.items():
        expected = [p for p in prefixes if p[:-1] == prefix]
        first, count = (int(value) for value in trie.children(torch.tensor(node)))
        assert [node_of[p] for p in expected] == list(range(first, first + count))
        children, codes, allowed = trie.candidates(torch.tensor([node]), max(1, count) + 2)
        assert codes[0][allowed[0]].tolist() == [p[-1] for p in expected]
        assert children[0][allowed[0]].tolist() == [node_of[p] for p in expected]
        leaf = prefix in ids
        assert bool(trie.is_leaf(torch.tensor(node))) == leaf
        document = int(trie.documents_of(torch.tensor([[node]]))[0, 0])
        assert document == (documents[ids.index(prefix)] if leaf else -1)
    for depth, fan_out in enumerate(trie.fan_out):
        parents = [p for p in node_of if len(p) == depth]
        assert fan_out == max(sum(q[:-1] == p for q in prefixes) for p in parents)
        assert trie.ends[depth] == any(len(i) == depth + 1 for i in ids)


@settings(max_examples=60, deadline=None)
@given(docid_sets(least=2), st.randoms(use_true_random=False))
def test_append_remove_restrict_and_find(codes_NT, random):
    cut = random.randrange(len(codes_NT) + 1)
    start = Trie.build(codes_NT[:cut])
    grown = start.append(codes_NT[cut:])
    whole = Trie.build(codes_NT)
    same(grown, whole)
    assert (start.version, grown.version) == (0, 1)
    assert content(whole) == as_dict(codes_NT, range(len(codes_NT)))
    gone = np.array(sorted(random.sample(range(len(codes_NT)), cut)), np.int64)
    kept = np.setdiff1d(np.arange(len(codes_NT)), gone)
    less = whole.remove(gone)
    assert less.version == 1
    assert content(less) == as_dict(codes_NT[kept], kept.tolist())
    same(less, whole.restrict(kept))
    assert whole.restrict(kept).version == 0
    # what was removed is not found, everything else is
    expected = np.where(np.isin(np.arange(len(codes_NT)), gone), -1, np.arange(len(codes_NT)))
    assert less.find(codes_NT).tolist() == expected.tolist()
    same(less.append(codes_NT[gone], gone), whole)
    assert whole.append(codes_NT[:0]).version == 1


@settings(max_examples=60, deadline=None)
@given(docid_sets(), st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), max_size=8))
def test_what_is_no_docid_is_not_found(codes_NT, others):
    known = as_dict(codes_NT, range(len(codes_NT)))
    asked = np.full((len(others), 5), -1, np.int32)
    for row, other in zip(asked, others, strict=True):
        row[: len(other)] = other
    expected = [known.get(tuple(other), -1) for other in others]
    assert Trie.build(codes_NT).find(asked).tolist() == expected


@settings(max_examples=20, deadline=None)
@given(docid_sets())
def test_it_survives_its_files(tmp_path_factory, codes_NT):
    folder = tmp_path_factory.mktemp("trie") / "trie"
    trie = Trie.build(codes_NT, version=3)
    trie.save(folder)
    for mmap in (True, False):
        again = Trie.load(folder, mmap=mmap)
        same(again, trie)
        assert again.version == 3
        same(again.to("cpu"), trie)


def test_large_codes_take_more_bits_and_many_columns_several_keys():
    rng = np.random.default_rng(0)
    codes_NT = rng.integers(0, 60_000, (500, 12)).astype(np.int32)
    trie = Trie.build(codes_NT)
    assert trie.codes.dtype == torch.int32
    assert content(trie) == as_dict(codes_NT, range(500))
    order = np.lexsort(codes_NT.T[::-1])
    assert trie.documents.tolist() == order.tolist()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 2], [3, 4], [1, 2]], "document 10 begins that of 12"),
        ([[1, 2], [1, -1], [3, 4]], "document 11 begins that of 10"),
        ([[1, 2], [-1, -1], [3, 4]], "document 11 is empty or has a gap"),
        ([[1, 2, 0], [1, 3, 0], [3, -1, 4]], "document 12 is empty or has a gap"),
    ],
)
def test_what_is_no_prefix_free_set_is_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        Trie.build(np.array(codes), np.array([10, 11, 12]))
    with pytest.raises(ValueError, match="3 docids for 2 documents"):
        Trie.build(np.array(codes), np.array([1, 2]))


def test_unknown_documents_are_named():
    trie = Trie.build(CODES)
    for change in (trie.remove, trie.restrict):
        with pytest.raises(KeyError, match="document 9"):
            change([1, 9])


def test_broken_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"trie\.json: cannot be read"):
        Trie.load(tmp_path)
    Trie.build(CODES).save(tmp_path / "t")
    (tmp_path / "t" / "start.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"start\.npy: cannot be read"):
        Trie.load(tmp_path / "t")
    about = {**json.loads((tmp_path / "t" / "trie.json").read_text()), "schema": 99}
    (tmp_path / "t" / "trie.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"trie\.json: not a trie of schema 1"):
        Trie.load(tmp_path / "t")
