"""What the benchmarks compare with: the same model in transformers, held to the same docids.

Everything here is measured against DSIModel itself and against enumeration, not against our beam
search, so that the two sides of a benchmark are checked apart.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.baselines import (
    CACHE,
    Constraint,
    CsrProcessor,
    DictTrie,
    DocidT5,
    csr_constraint,
    dict_constraint,
    end_tokens,
    equivalent_t5,
    generate_docids,
    no_constraint,
    prefix_allowed_tokens_fn,
    t5_small_text_vocabulary,
)
from dsi.model.dsi_model import DSIModel, from_scratch
from dsi.search.trie import Trie

SIZES: dict[str, Any] = dict(
    vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.5
)
INPUTS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 0, 0], [3, 3, 12, 30, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
# docids of one length with a table per position; of varying length (0 ends one); of text (0 or 4
# and 5 end one, one table); and the one-position kind
FIXED = np.array(list(itertools.product(range(3), range(2), range(4)))[::2], np.int32)
VARYING = np.array([[1, 0, -1], [2, 0, -1], [1, 1, 0], [1, 2, 0], [2, 1, 0], [3, 3, 0]], np.int32)
TEXT = np.array([[3, 0, -1, -1], [3, 4, -1, -1], [3, 3, 0, -1], [1, 2, 3, 5], [2, 0, -1, -1]])
KINDS: dict[str, tuple[list[int], np.ndarray, dict[str, Any]]] = {
    "fixed": ([3, 2, 4], FIXED, {}),
    "varying": ([4, 4, 1], VARYING, {}),
    "text": ([6] * 4, TEXT, dict(shared_codes=True)),
    "atomic": ([9], np.arange(9)[:, None], {}),
    "gated": ([3, 2, 4], FIXED, dict(feed_forward_proj="gated-gelu", num_decoder_layers=3)),
}


@pytest.fixture(params=KINDS)
def case(request) -> tuple[DSIModel, np.ndarray]:
    sizes, codes, changes = KINDS[request.param]
    model = from_scratch(2, code_sizes=sizes, **{**SIZES, **changes}).eval()
    with torch.no_grad():
        model.docids.rows.mul_(4)  # far from uniform, and the positions' totals far apart
    return model, codes


@torch.no_grad()
def log_probabilities(model: DSIModel, codes_NT: np.ndarray) -> torch.Tensor:
    """Of every docid for every query (B, N), one docid at a time."""
    states, mask = model.encode(INPUTS, MASK)
    columns = []
    for row in codes_NT:
        codes = torch.from_numpy(row[row >= 0]).long().expand(len(INPUTS), -1)
        hidden = model.decode_docid(states, mask, codes)
        scores = [
            model.docid_logits(hidden[:, t], t).log_softmax(1).gather(1, codes[:, t : t + 1])
            for t in range(codes.shape[1])
        ]
        columns.append(torch.cat(scores, 1).sum(1))
    return torch.stack(columns, 1)


def dead_token(theirs: DocidT5) -> int:
    """The one behind the docid tokens: start, padding, and what impossible beams go on with."""
    return theirs.lm_head.out_features - 1


def ranked(model: DSIModel, codes_NT: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best docids of each query by enumeration: codes (B, k, T) and scores (B, k)."""
    scores = log_probabilities(model, codes_NT).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return codes_NT[order], np.take_along_axis(scores, order, 1)


# --- the model ------------------------------------------------------------------------------------


@torch.no_grad()
def test_teacher_forced_log_probabilities_are_the_models(case):
    model, codes = case
    theirs, offsets = equivalent_t5(model)
    states, mask = model.encode(INPUTS, MASK)
    for row in codes[:: max(1, len(codes) // 4)]:
        row = torch.from_numpy(row[row >= 0]).long().expand(len(INPUTS), -1)
        hidden = model.decode_docid(states, mask, row)
        start = torch.full((len(INPUTS), 1), dead_token(theirs))
        read = torch.cat([start, row + torch.tensor(offsets[: row.shape[1]])], 1)[:, :-1]
        output = theirs(input_ids=INPUTS, attention_mask=MASK, decoder_input_ids=read)
        found = output.logits.log_softmax(2)
        for t in range(row.shape[1]):
            expected = model.docid_logits(hidden[:, t], t).log_softmax(1)
            part = slice(offsets[t], offsets[t] + model.code_sizes[t])
            torch.testing.assert_close(found[:, t, part], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.exp().sum(2), torch.ones(row.shape), atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_go_on_with_the_cache():
    model = from_scratch(2, code_sizes=[3, 2, 4], **SIZES)
    theirs, _ = equivalent_t5(model)
    read = torch.tensor([[9, 1, 4]] * 3)
    options = dict(input_ids=INPUTS, attention_mask=MASK)
    whole = theirs(**options, decoder_input_ids=read).logits
    cache, parts = None, []
    for token in read.split(1, dim=1):
        output = theirs(**options, decoder_input_ids=token, use_cache=True, **{CACHE: cache})
        cache = output[CACHE]
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_equivalent_is_a_copy_in_evaluation_mode():
    model = from_scratch(2, code_sizes=[3, 2], **SIZES).train()
    state = torch.get_rng_state()
    theirs, offsets = equivalent_t5(model)
    assert torch.equal(state, torch.get_rng_state())
    assert offsets == [0, 3]
    assert not theirs.training
    assert model.training
    ours = {value.data_ptr() for value in model.parameters()}
    assert not ours & {value.data_ptr() for value in theirs.parameters()}


def test_text_model_is_t5_small():
    with torch.device("meta"):
        model = t5_small_text_vocabulary(0)
    assert model.num_parameters() == 60_506_624  # google-t5/t5-small


# --- search ---------------------------------------------------------------------------------------


def constraints(codes: np.ndarray, offsets: list[int], dead: int) -> list[Constraint]:
    return [dict_constraint(codes, offsets, dead), csr_constraint(codes, offsets, dead)]


def test_wide_search_finds_all_docids_in_order(case):
    """More beams than docids: nothing is pruned, and the places left over are empty."""
    model, codes = case
    theirs, offsets = equivalent_t5(model)
    beams = len(codes) + 3
    expected, scores = ranked(model, codes, len(codes))
    for constraint in constraints(codes, offsets, dead_token(theirs)):
        found, found_scores = generate_docids(theirs, INPUTS, MASK, beams, constraint)
        assert found.shape == (3, beams, codes.shape[1])
        np.testing.assert_array_equal(found[:, : len(codes)], expected)
        np.testing.assert_allclose(found_scores[:, : len(codes)], scores, atol=1e-4)
        assert (found[:, len(codes) :] == -1).all()
        assert (found_scores[:, len(codes) :] == -torch.inf).all()


def test_narrow_searches_agree_and_find_valid_docids(case):
    model, codes = case
    theirs, offsets = equivalent_t5(model)
    one, other = (
        generate_docids(theirs, INPUTS, MASK, 2, constraint)
        for constraint in constraints(codes, offsets, dead_token(theirs))
    )
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])
    valid = {tuple(row): n for n, row in enumerate(codes.tolist())}
    numbers = np.array([[valid[tuple(row)] for row in rows] for rows in one[0].tolist()])
    scores = np.take_along_axis(log_probabilities(model, codes).numpy(), numbers, 1)
    np.testing.assert_allclose(one[1], scores, atol=1e-4)
    constraint = constraints(codes, offsets, dead_token(theirs))[0]
    silent, none = generate_docids(theirs, INPUTS, MASK, 2, constraint, with_scores=False)
    assert torch.equal(silent, one[0])
    assert none.isnan().all()


def test_unconstrained_search_finds_what_is_no_docid():
    model = from_scratch(2, code_sizes=[3, 2, 4], **SIZES).eval()
    theirs, offsets = equivalent_t5(model)
    every = np.array(list(itertools.product(range(3), range(2), range(4))))
    found, scores = generate_docids(theirs, INPUTS, MASK, 24, no_constraint(FIXED, offsets))
    expected, expected_scores = ranked(model, every, 24)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)


@torch.no_grad()
def test_text_model_writes_docids_in_its_vocabulary():
    """Two codes per position among 40 words, the end of T5 as a word like any other."""
    model = t5_small_text_vocabulary(3, **SIZES, num_decoder_layers=2)
    model.lm_head.weight.mul_(5)
    codes, offsets = np.array(list(itertools.product(range(2), repeat=3))), [1, 20, 1]
    read = torch.from_numpy(codes) + torch.tensor(offsets)
    for constraint in constraints(codes, offsets, dead=0):
        found, scores = generate_docids(model, INPUTS, MASK, 8, constraint)
        assert sorted(found[0].tolist()) == codes.tolist()
        for query in range(3):
            ids, mask = (t[query : query + 1].expand(8, -1) for t in (INPUTS, MASK))
            inputs = nn.functional.pad(read[:, :-1], (1, 0))
            output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs)
            each = output.logits.log_softmax(2).gather(2, read[..., None]).sum((1, 2))
            best = each.argsort(descending=True)
            np.testing.assert_array_equal(found[query], codes[best])
            torch.testing.assert_close(scores[query], each[best], atol=1e-4, rtol=1e-4)


# --- constraints ----------------------------------------------------------------------------------


def test_dictionary_trie():
    trie = DictTrie([[1, 2], [1, 3, 4], [5]])
    assert sorted(trie.get([])) == [1, 5]
    assert sorted(trie.get([1])) == [2, 3]
    assert trie.get([1, 2]) == trie.get([7]) == trie.get([1, 2, 2]) == []


@st.composite
def docids_and_prefixes(draw) -> tuple[np.ndarray, np.ndarray]:
    """Docids in which code 0 ends one, and prefixes of one length, some of them of no docid."""
    length = draw(st.integers(1, 4))
    codes = st.lists(st.integers(1, 5), min_size=0, max_size=length - 1)
    rows = draw(st.lists(codes, min_size=1, max_size=15, unique_by=tuple))
    padded = [[*row, 0] + [-1] * (length - len(row) - 1) for row in rows]
    size = draw(st.integers(0, length - 1))
    invented = st.lists(st.integers(0, 6), min_size=length, max_size=length)
    prefixes = [*padded, *draw(st.lists(invented, min_size=1, max_size=8))]
    return np.array(padded, np.int32), np.maximum(np.array(prefixes), 0)[:, :size]


@settings(max_examples=60)
@given(docids_and_prefixes())
def test_flat_and_dictionary_trie_allow_the_same(drawn):
    codes, prefixes = drawn
    codes = codes[:, (codes >= 0).any(0)]
    prefixes = prefixes[:, : codes.shape[1] - 1]
    offsets = [10 * t for t in range(codes.shape[1])]
    dead = 10 * codes.shape[1]
    rows = [[c + o for c, o in zip(row, offsets, strict=True) if c >= 0] for row in codes.tolist()]
    allowed = prefix_allowed_tokens_fn(DictTrie(rows), dead)
    start = torch.full((len(prefixes), 1), dead)
    tokens = torch.from_numpy(prefixes) + torch.tensor(offsets[: prefixes.shape[1]])
    input_ids = torch.cat([start, tokens.long()], 1)
    scores = torch.randn(len(prefixes), dead + 1)
    found = CsrProcessor(Trie.build(codes), offsets, dead)(input_ids, scores)
    for sequence, before, after in zip(input_ids, scores, found, strict=True):
        expected = torch.full_like(before, -torch.inf)
        index = torch.tensor(allowed(0, sequence))
        expected[index] = before[index]
        assert torch.equal(after, expected)


def test_prefix_stays_dead():
    """Not brought back to life by a code that would have been right at the root."""
    processor = CsrProcessor(Trie.build(np.array([[1, 2, 3], [2, 1, 3]])), [0, 0, 0], 9)
    assert processor.nodes(torch.tensor([[5, 1], [1, 2], [5, 2]])).tolist() == [-1, 3, -1]


def test_end_tokens():
    assert end_tokens(FIXED, [0, 3, 5]) == []
    assert end_tokens(VARYING, [0, 4, 8]) == [4]
    assert end_tokens(TEXT, [0] * 4) == [0, 4]
    with pytest.raises(ValueError, match="token 1 ends one docid and stands inside another"):
        end_tokens(np.array([[2, 1, -1], [1, 2, 3]]), [0, 0, 0])
