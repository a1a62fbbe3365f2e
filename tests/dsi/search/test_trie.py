"""The flat trie against nested dictionaries; what it refuses; its files."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi.errors import UserError
from dsi.search.trie import ARRAYS, SCHEMA, Trie

EXAMPLES = settings(max_examples=20, deadline=None)
SMALL = np.array([[2, 0, 1], [0, 7, -1], [2, 0, 0], [1, -1, -1]], np.int32)


def padded(rows: list[tuple[int, ...]], width: int = 0) -> np.ndarray:
    """Docids of any length as (N, T), -1 after the end."""
    width = max([width, 1, *map(len, rows)])
    return np.array([[*row] + [-1] * (width - len(row)) for row in rows], np.int32).reshape(
        len(rows), width
    )


def begins(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one == other[: len(one)]


def prefix_free(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    kept: list[tuple[int, ...]] = []
    for row in rows:
        if not any(begins(row, other) or begins(other, row) for other in kept):
            kept.append(row)
    return kept


# few codes, so that prefixes are shared; large ones, so that a key of 64 bits holds few columns
CODES = st.one_of(st.integers(0, 3), st.sampled_from([32_767, 32_768, 2**31 - 1]))
NARROW = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)
WIDE = st.lists(CODES, min_size=1, max_size=6).map(tuple)
DOCIDS = st.one_of(st.lists(NARROW, max_size=16), st.lists(WIDE, max_size=8)).map(prefix_free)


@st.composite
def assignments(draw) -> dict[int, tuple[int, ...]]:
    """Docids by document number, in any order of numbers."""
    rows = draw(DOCIDS)
    numbers = st.lists(st.integers(0, 60), min_size=len(rows), max_size=len(rows), unique=True)
    return dict(zip(draw(numbers), rows, strict=True))


def build(docids: dict[int, tuple[int, ...]], version: int = 0) -> Trie:
    return Trie.build(padded(list(docids.values())), np.array(list(docids), np.int64), version)


def prefixes(docids: dict[int, tuple[int, ...]]) -> set[tuple[int, ...]]:
    """The nodes: every beginning of a docid, the empty one included."""
    return {(), *(docid[:end] for docid in docids.values() for end in range(len(docid) + 1))}


def nested(docids: dict[int, tuple[int, ...]]) -> dict:
    """Dictionaries of dictionaries; a leaf is a document number."""
    root: dict = {}
    for number, docid in docids.items():
        node = root
        for code in docid[:-1]:
            node = node.setdefault(code, {})
        node[docid[-1]] = number
    return root


def unfolded(trie: Trie, node: int = 0):
    """The same dictionaries, read through the public methods alone, one node at a time."""
    at = torch.tensor([node])
    if bool(trie.is_leaf(at)):
        return int(trie.documents_of(at))
    first, count = (int(value) for value in trie.children(at))
    children = range(first, first + count)
    codes = [int(trie.codes[child]) for child in children]
    assert codes == sorted(set(codes))
    return {code: unfolded(trie, child) for code, child in zip(codes, children, strict=True)}


def written(trie: Trie) -> dict[int, tuple[int, ...]]:
    """Docids by document number."""
    found: dict[int, tuple[int, ...]] = {}

    def walk(node: dict | int, docid: tuple[int, ...]) -> None:
        if isinstance(node, int):
            found[node] = docid
            return
        for code, child in node.items():
            walk(child, (*docid, code))

    walk(unfolded(trie), ())
    return found


def assert_same(one: Trie, other: Trie) -> None:
    for name in ARRAYS:
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name
    for name in ("depth_starts", "fan_out", "ends", "version"):
        assert getattr(one, name) == getattr(other, name), name


# --- the set of docids ----------------------------------------------------------------------------


def test_a_small_trie_number_by_number():
    trie = Trie.build(SMALL, [10, 11, 12, 13], version=3)
    assert trie.codes.tolist() == [-1, 0, 1, 2, 7, 0, 0, 1]
    assert trie.start.tolist() == [1, 4, 5, 5, 6, 6, 8, 8, 8]
    assert trie.leaves.tolist() == [2, 4, 6, 7]
    assert trie.documents.tolist() == [13, 11, 12, 10]
    assert trie.depth_starts == [0, 1, 4, 6, 8]
    assert trie.fan_out == [3, 1, 2]
    assert trie.ends == [True, True, True]
    assert trie.version == 3
    assert (len(trie), trie.num_nodes, trie.num_bytes) == (4, 8, 2 * 8 + 4 * 9 + 4 * 4 + 4 * 4)
    dtypes = [getattr(trie, name).dtype for name in ARRAYS]
    assert dtypes == [torch.int16, torch.int32, torch.int32, torch.int32]
    first, count = trie.children(torch.tensor([[0, 3], [5, 7]]))
    assert first.dtype == count.dtype == torch.int64
    assert first.tolist() == [[1, 5], [6, 8]]
    assert count.tolist() == [[3, 1], [2, 0]]


@EXAMPLES
@given(assignments())
def test_equal_to_nested_dictionaries(docids):
    trie = build(docids)
    assert unfolded(trie) == nested(docids)
    assert written(trie) == docids
    assert len(trie) == len(docids)
    assert trie.num_nodes == len(prefixes(docids))
    largest = max((code for docid in docids.values() for code in docid), default=0)
    assert trie.codes.dtype == (torch.int16 if largest < 2**15 else torch.int32)


@EXAMPLES
@given(assignments())
def test_nodes_are_numbered_by_depth_and_then_by_prefix(docids):
    trie = build(docids)
    ordered = sorted(prefixes(docids), key=lambda prefix: (len(prefix), prefix))
    assert trie.codes.tolist() == [-1, *(prefix[-1] for prefix in ordered[1:])]
    by_docid = {docid: number for number, docid in docids.items()}
    expected = [by_docid.get(prefix, -1) for prefix in ordered]
    nodes = torch.arange(len(ordered))
    assert trie.documents_of(nodes).tolist() == expected
    assert trie.is_leaf(nodes).tolist() == [number >= 0 for number in expected]
    assert trie.leaves.tolist() == [n for n, number in enumerate(expected) if number >= 0]
    for depth, (width, ends) in enumerate(zip(trie.fan_out, trie.ends, strict=True)):
        level = [prefix for prefix in ordered if len(prefix) == depth + 1]
        above = [prefix[:-1] for prefix in level]
        assert trie.depth_starts[depth + 1] == sum(len(prefix) <= depth for prefix in ordered)
        assert width == max(map(above.count, above), default=0)
        assert ends == any(prefix in by_docid for prefix in level)
        codes = {prefix[-1] for prefix in level if prefix in by_docid}
        assert trie.end_codes(depth, 5).tolist() == [code in codes for code in range(5)]
    assert trie.depth_starts[-1] == len(ordered)
    assert not trie.end_codes(len(trie.fan_out), 5).any()


@EXAMPLES
@given(assignments(), st.data())
def test_the_order_of_the_rows_and_spare_columns_do_not_matter(docids, data):
    shuffled = dict(data.draw(st.permutations(list(docids.items()))))
    codes_NT, documents = padded(list(shuffled.values()), 7), list(shuffled)
    assert_same(build(docids), Trie.build(codes_NT, documents))
    assert_same(build(docids), Trie.build(torch.from_numpy(codes_NT), torch.tensor(documents)))


def test_many_columns_of_large_codes_are_ordered_as_tuples():
    """More than one sort: neither two columns nor all of them fit 64 bits."""
    rng = np.random.default_rng(0)
    codes_NT = rng.choice([0, 1, 2**31 - 2, 2**31 - 1], (600, 7))
    codes_NT = np.unique(codes_NT, axis=0)[rng.permutation(500)]
    trie = Trie.build(codes_NT)
    assert trie.documents.tolist() == sorted(range(500), key=lambda row: tuple(codes_NT[row]))
    assert trie.find(codes_NT).tolist() == list(range(500))


@pytest.mark.parametrize("columns", [8, 9], ids=["64 bits", "72 bits"])
def test_eight_columns_of_bytes_fill_one_key(columns):
    rng = np.random.default_rng(1)
    codes_NT = rng.choice([0, 1, 254, 255], (300, columns)).astype(np.uint8)
    codes_NT = np.unique(np.concatenate([codes_NT, np.full((1, columns), 255, np.uint8)]), axis=0)
    shuffled = codes_NT[rng.permutation(len(codes_NT))]
    assert np.array_equal(shuffled[Trie.build(shuffled).documents], codes_NT)


# --- search in it ---------------------------------------------------------------------------------


@EXAMPLES
@given(assignments(), st.lists(WIDE | NARROW, max_size=15))
def test_find_knows_docids_from_everything_else(docids, others):
    trie = build(docids)
    longer = [(*docid, 0) for docid in docids.values()]
    asked = [*docids.values(), *others, *prefixes(docids), *longer]
    by_docid = {docid: number for number, docid in docids.items()}
    expected = [by_docid.get(docid, -1) for docid in asked]
    codes_NT = padded(asked)
    found = trie.find(codes_NT)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert trie.find(torch.from_numpy(codes_NT)).tolist() == expected
    assert trie.find(codes_NT[:, :1]).tolist() == [
        by_docid.get(docid[:1], -1) if docid else -1 for docid in asked
    ]


def test_what_is_written_with_a_hole_or_a_negative_code_is_no_docid():
    trie = Trie.build(SMALL)
    rows = [[2, 0, 1], [2, -1, 0], [-1, 2, 0], [0, 7, 0], [1, -1, 0], [1, -2, -1], [-1, -1, -1]]
    assert trie.find(np.array(rows)).tolist() == [0, -1, -1, -1, -1, -1, -1]
    assert trie.find(np.array([[2, -1, 0, 0], [2, -1, 0, 1]])).tolist() == [-1, -1]


def test_nodes_of_any_shape():
    trie = Trie.build(SMALL)
    nodes = torch.arange(-1, 9).view(5, 2)
    documents = trie.documents_of(nodes)
    assert documents.tolist() == [[-1, -1], [-1, 3], [-1, 1], [-1, 2], [0, -1]]
    assert trie.documents_of(nodes.T).tolist() == documents.T.tolist()
    assert trie.documents_of(nodes.int()).dtype == torch.int64
    leaves = trie.is_leaf(nodes[1:4, None])
    assert leaves.tolist() == [[[False, True]], [[False, True]], [[False, True]]]


def test_candidates_are_the_children_and_then_nothing():
    trie = Trie.build(SMALL)
    children, codes, allowed = trie.candidates(torch.tensor([[0, 3], [6, 5]]), 4)
    assert [t.dtype for t in (children, codes, allowed)] == [torch.int64, torch.int64, torch.bool]
    assert children.tolist() == [[[1, 2, 3, 0], [5, 0, 0, 0]], [[0] * 4, [6, 7, 0, 0]]]
    assert codes.tolist() == [[[0, 1, 2, 0], [0, 0, 0, 0]], [[0] * 4, [0, 1, 0, 0]]]
    assert allowed.sum(2).tolist() == [[3, 1], [0, 2]]


def test_end_codes_beyond_the_asked_ones_are_left_out():
    trie = Trie.build(SMALL)
    assert trie.end_codes(1, 9).tolist() == [False] * 7 + [True, False]
    assert trie.end_codes(1, 3).tolist() == [False] * 3
    assert trie.end_codes(-1, 2).tolist() == [False] * 2


# --- parts of it ----------------------------------------------------------------------------------


@EXAMPLES
@given(assignments(), st.data())
def test_a_part_equals_building_it_anew(docids, data):
    trie = build(docids, version=4)
    before = {name: getattr(trie, name).clone() for name in ARRAYS}
    some = data.draw(st.lists(st.sampled_from(sorted(docids)))) if docids else []
    part = {number: docids[number] for number in some}
    restricted = trie.restrict(some)
    assert written(restricted) == part
    assert_same(restricted, build(part, version=4))
    others = padded([docid for number, docid in docids.items() if number not in part])
    assert restricted.find(others).tolist() == [-1] * len(others)
    assert all(torch.equal(getattr(trie, name), array) for name, array in before.items())


def test_the_first_unknown_document_is_named():
    restrict = Trie.build(SMALL, [10, 11, 12, 13]).restrict
    with pytest.raises(KeyError, match="document 99 "):
        restrict([11, 99, 5, 12])
    with pytest.raises(KeyError, match="document -1 "):
        restrict(np.array([-1]))
    with pytest.raises(KeyError, match="document 0 "):
        Trie.build(SMALL[:0]).restrict(torch.tensor([0]))
    with pytest.raises(ValueError, match="documents: must be integers"):
        restrict([0.5])


@pytest.mark.parametrize("width", [0, 1, 3])
def test_no_docids(width, tmp_path):
    trie = Trie.build(np.zeros((0, width), np.int32))
    assert (len(trie), trie.num_nodes) == (0, 1)
    assert (trie.fan_out, trie.ends) == ([0], [False])
    assert trie.find(np.array([[0, 1], [-1, -1]])).tolist() == [-1, -1]
    assert trie.documents_of(torch.tensor([[0]])).tolist() == [[-1]]
    assert trie.is_leaf(torch.tensor([0])).tolist() == [False]
    trie.save(tmp_path / "trie")
    assert_same(trie, Trie.load(tmp_path / "trie"))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 2), (3,), (1, 2)], "documents 5 and 7 have the same docid, 1-2"),
        ([(1, 2), (3,), (1,)], "the docid of document 7, 1, begins that of 5, 1-2"),
        ([(1,), (0, 4), (1, 2, 3)], "the docid of document 5, 1, begins that of 7, 1-2-3"),
        ([(1,), (), (2,)], "the docid of document 6 is empty"),
        ([(1, 1), (2, -1, 3), (2, 2)], "the docid of document 6 has a hole"),
        ([(1, 1), (-1, 3), (2, 2)], "the docid of document 6 has a hole"),
        ([(1,), (-2,), (2,)], "codes_NT: -2 is not between -1"),
    ],
    ids=["equal", "begins", "begins two", "empty", "hole", "hole in front", "negative"],
)
def test_impossible_docids_are_refused(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Trie.build(padded(rows), [5, 6, 7])


@EXAMPLES
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), max_size=8))
def test_exactly_the_prefix_free_sets_are_accepted(rows):
    if prefix_free(rows) == rows:
        assert len(Trie.build(padded(rows))) == len(rows)
        return
    with pytest.raises(ValueError, match=r"docid") as refusal:
        Trie.build(padded(rows))
    named = re.findall(r"documents? (\d+)|(?:and|of) (\d+)", str(refusal.value))
    one, other = (int(a or b) for a, b in named)
    assert one != other
    assert begins(rows[one], rows[other])


@pytest.mark.parametrize(
    ("codes", "documents", "message"),
    [
        ([[0], [1]], [4, 4], "documents: number 4 is given twice"),
        ([[0], [1]], [4], "documents: 2 docids, but numbers of the shape (1,)"),
        ([[0], [1]], [-1, 4], "documents: -1 is not between 0"),
        ([[0], [1]], [2**31, 4], "documents: 2147483648 is not between 0"),
        ([[0], [2**31]], None, "codes_NT: 2147483648 is not between -1"),
        ([[0.0], [1.0]], None, "codes_NT: must be integers"),
        ([0, 1], None, "codes_NT: must have two axes"),
        ([[], []], None, "the docid of document 0 is empty"),
    ],
    ids=["twice", "too few", "negative", "large", "large code", "floats", "one axis", "no columns"],
)
def test_impossible_arguments_are_refused(codes, documents, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Trie.build(np.array(codes), documents)


# --- files ----------------------------------------------------------------------------------------


def test_a_saved_trie_is_the_same(tmp_path):
    for number, trie in enumerate(
        (
            Trie.build(SMALL, version=2).restrict([0, 1, 2]),
            Trie.build([[40_000, 1], [3, -1]], [70, 8]),
        )
    ):
        trie.save(tmp_path / str(number))
        loaded = Trie.load(str(tmp_path / str(number)))
        assert_same(loaded, trie)
        assert unfolded(loaded) == unfolded(trie)


@settings(max_examples=10, deadline=None)
@given(docids=assignments())
def test_a_mapped_trie_finds_the_same(docids, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped") / "trie"
    trie = build(docids)
    trie.save(folder)
    assert_same(Trie.load(folder), trie)
    assert Trie.load(folder).find(padded(list(docids.values()))).tolist() == list(docids)


def test_writing_to_a_mapped_trie_leaves_the_files_alone(tmp_path):
    Trie.build(SMALL).save(tmp_path / "trie")
    mapped = Trie.load(tmp_path / "trie")
    mapped.documents[0] = 77
    assert_same(Trie.load(tmp_path / "trie"), Trie.build(SMALL))


def test_a_mapped_trie_survives_its_replacement(tmp_path):
    Trie.build(SMALL).save(tmp_path / "trie")
    mapped = Trie.load(tmp_path / "trie")
    mapped.restrict([1, 2, 3]).save(tmp_path / "trie")
    assert_same(mapped, Trie.build(SMALL))
    assert sorted(written(Trie.load(tmp_path / "trie"))) == [1, 2, 3]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "shorter", "pickle", "floats"])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_broken_array_is_named(name, damage, tmp_path):
    Trie.build(SMALL).save(tmp_path)
    path = tmp_path / f"{name}.npy"
    array, content = np.load(path), path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "cut"):
        path.write_bytes(content[: 0 if damage == "empty" else -3])
    elif damage == "pickle":
        np.save(path, np.array([{}, None], object), allow_pickle=True)
    else:
        np.save(path, array[:-1] if damage == "shorter" else array.astype(np.float32))
    other = "documents" if (name, damage) == ("leaves", "shorter") else name
    with pytest.raises(UserError, match=re.escape(str(tmp_path / f"{other}.npy")) + ": cannot be"):
        Trie.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[]", "{}", f'{{"schema": {SCHEMA + 1}}}', f'{{"schema": {SCHEMA}}}'],
    ids=["missing", "empty", "cut", "list", "no schema", "other schema", "no numbers"],
)
def test_a_broken_description_is_named(content, tmp_path):
    Trie.build(SMALL).save(tmp_path)
    path = tmp_path / "trie.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        Trie.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"depth_starts": []},
        {"depth_starts": "018"},
        {"depth_starts": [0, 1, 6, 4, 8]},
        {"depth_starts": [0, 1, 4, None, 8]},
        {"fan_out": 3},
        {"fan_out": [3, 1]},
        {"unknown": 1},
    ],
    ids=lambda change: next(iter(change)) + str(*change.values()),
)
def test_a_description_that_fits_nothing_is_named(change, tmp_path):
    Trie.build(SMALL).save(tmp_path)
    path = tmp_path / "trie.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Trie.load(tmp_path)


def test_on_its_device_it_is_itself():
    trie = Trie.build(SMALL)
    assert trie.to("cpu") is trie


@pytest.mark.gpu
def test_the_same_on_a_device():
    trie = Trie.build(SMALL).to("cuda")
    assert unfolded(trie) == unfolded(Trie.build(SMALL))
    assert trie.find(SMALL).tolist() == [0, 1, 2, 3]
    assert trie.restrict([0]).codes.device.type == "cuda"
    assert written(trie.restrict(torch.tensor([1, 2]))) == {1: (0, 7), 2: (2, 0, 0)}
    assert_same(trie.to("cpu"), Trie.build(SMALL))


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codes", "positions"), [(10, 7), (256, 8)])
def test_bytes_per_document(codes, positions):
    codes_NT = np.random.default_rng(0).integers(0, codes, (2_000, positions))
    trie = Trie.build(np.unique(codes_NT, axis=0))
    assert trie.num_bytes == 6 * trie.num_nodes + 4 + 8 * len(trie)
    assert trie.num_bytes <= (6 * positions + 8) * len(trie) + 100


# --- removed documents ----------------------------------------------------------------------------


@given(docids=assignments(), data=st.data())
def test_rows_without_a_code_are_removed_documents(docids, data):
    rows = list(docids.values())
    gone = [n for n in range(len(rows)) if data.draw(st.booleans())]
    codes_NT = padded(rows)
    codes_NT[gone] = -1
    trie = Trie.build(codes_NT, version=1)
    assert written(trie) == {n: row for n, row in enumerate(rows) if n not in gone}
    there = [n for n in range(len(rows)) if n not in gone]
    assert_same(trie, Trie.build(padded(rows), version=1).restrict(there))
    assert trie.find(padded(rows)).tolist() == [-1 if n in gone else n for n in range(len(rows))]


def test_a_row_without_a_code_has_no_number_of_its_own():
    with pytest.raises(ValueError, match="the docid of document 6 is empty"):
        Trie.build(np.array([[1], [-1], [2]]), [5, 6, 7])
    with pytest.raises(ValueError, match="the docid of document 1 has a hole"):
        Trie.build(np.array([[1, -1], [-1, 0]]))
