"""Batches are a pure function of (seed, window), lose nothing and pad little."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsi.examples import batches as batching
from dsi.examples.batches import (
    Batch,
    BatchShape,
    batches_from,
    collate,
    even_cuts,
    examples_for,
    window_batches,
)
from dsi.examples.sources import (
    DocumentSampler,
    DocumentSource,
    QueriesOfDocuments,
    QuerySource,
    TextSource,
)
from dsi.text.tokens import Tokens, padded, slices
from dsi.text.views import View

PROMPT = np.array([900, 901], np.int32)
NO_PROMPT = np.zeros(0, np.int32)
SENTINELS = np.arange(800, 832, dtype=np.int32)
END = 1


def documents(count: int = 12) -> Tokens:
    """Document i has 1 to 30 tokens, all of the form 1000 i + place."""
    lengths = [1 + (7 * i) % 30 for i in range(count)]
    return Tokens.from_lists([[1000 * i + j for j in range(n)] for i, n in enumerate(lengths)])


def sampler(count: int = 12, seed: int = 1) -> DocumentSampler:
    return DocumentSampler([(np.arange(count), 1.0)], seed)


def mixture() -> list:
    tokens, view = documents(), View("chunk", 1.0, length=8, shortest=3)
    queries = Tokens.from_lists([[500_000 + 10 * i, i] for i in range(30)])
    owners = np.arange(30) % 12
    return [
        DocumentSource(tokens, View("first", 1.0, length=10), sampler(), 0.3, 1, NO_PROMPT),
        TextSource(tokens, view, sampler(seed=5), 0.2, 2, PROMPT, SENTINELS[:0], END),
        TextSource(tokens, view, sampler(seed=6), 0.1, 3, PROMPT, SENTINELS, END),
        QuerySource(queries, owners, 0.25, 4, PROMPT),
        QueriesOfDocuments(queries, owners, sampler(seed=7), 0.15, 5, PROMPT),
    ]


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


def test_gather_puts_the_prompt_in_front_of_each_span():
    tokens = Tokens.from_lists([[5, 6, 7], [8], [9, 10]])
    spans = (np.array([1, 3, 4]), np.array([2, 1, 2]))
    plain, prompted = slices(tokens, *spans), slices(tokens, *spans, prompt=PROMPT)
    assert [plain[i].tolist() for i in range(3)] == [[6, 7], [8], [9, 10]]
    assert [prompted[i].tolist()[:2] for i in range(3)] == [[900, 901]] * 3
    assert [prompted[i].tolist()[2:] for i in range(3)] == [[6, 7], [8], [9, 10]]
    assert np.array_equal(slices(tokens, *spans, prompt=NO_PROMPT).values, plain.values)


@given(st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=9), min_size=1, max_size=8))
def test_padded_and_back(lists):
    rows = np.arange(len(lists))[::-1]
    ids, mask = padded(Tokens.from_lists(lists), rows, pad=0)
    assert ids.shape == mask.shape == (len(lists), max(map(len, lists)))
    assert [line[real].tolist() for line, real in zip(ids, mask, strict=True)] == lists[::-1]
    assert (ids[~mask] == 0).all()


def test_a_window_is_deterministic_and_depends_on_its_seed_and_number():
    one = list(window_batches(mixture(), 2, 10, BatchShape(8), seed=3))
    again = list(window_batches(mixture(), 2, 10, BatchShape(8), seed=3))
    assert len(one) == 10
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    for other in (
        list(window_batches(mixture(), 3, 10, BatchShape(8), 3)),
        list(window_batches(mixture(), 2, 10, BatchShape(8), 4)),
    ):
        assert not all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 17, 22])
def test_resuming_gives_the_tail(start):
    whole = list(batches_from(mixture(), 0, 22, window=6, shape=BatchShape(4), seed=9))
    tail = list(batches_from(mixture(), start, 22, window=6, shape=BatchShape(4), seed=9))
    assert len(whole) == 22
    assert len(tail) == 22 - start
    assert all(same(a, b) for a, b in zip(whole[start:], tail, strict=True))


def test_what_a_resumed_window_has_had_already_is_not_made(monkeypatch):
    made = []
    monkeypatch.setattr(batching, "collate", lambda *args: made.append(args) or collate(*args))
    drawn = window_batches(mixture(), 0, 10, BatchShape(4), seed=9, first=7)
    next(drawn)
    assert len(made) == 1
    assert len([next(drawn), *drawn]) == 2


def test_asking_in_any_order_gives_the_same():
    sources = mixture()
    forwards = [list(window_batches(sources, n, 5, BatchShape(4), 1)) for n in range(4)]
    backwards = [list(window_batches(sources, n, 5, BatchShape(4), 1)) for n in reversed(range(4))][
        ::-1
    ]
    assert all(
        same(a, b)
        for one, other in zip(forwards, backwards, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_every_example_drawn_is_in_one_batch():
    source = mixture()[0]
    drawn = source.take(3 * 40, 40)
    expected = Counter(
        (int(document), *drawn.inputs[i].tolist()) for i, document in enumerate(drawn.documents)
    )
    found = Counter()
    for batch in window_batches([source], 3, 10, BatchShape(4), seed=1):
        for ids, mask, document in zip(
            batch.input_ids, batch.attention_mask, batch.documents, strict=True
        ):
            found[(int(document), *ids[mask.bool()].tolist())] += 1
    assert found == expected


def test_mixture_meets_its_shares_and_belongs_together():
    kinds: Counter = Counter()
    writing = 0
    for batch in batches_from(mixture(), 0, 100, window=20, shape=BatchShape(10), seed=2):
        assert len(batch.documents) == 10
        width = batch.attention_mask.sum(1).max()
        assert batch.input_ids.shape == (10, width)  # no column is all padding
        assert (batch.input_ids[batch.attention_mask == 0] == 0).all()
        if batch.labels is not None:
            writing += 1
            assert (batch.labels != -100).sum(1).max() == batch.labels.shape[1]
            assert batch.targets() == int((batch.labels != -100).sum())
        else:
            assert batch.targets() == 10
        for i, document in enumerate(batch.documents.tolist()):
            ids = batch.input_ids[i][batch.attention_mask[i].bool()].tolist()
            text = [t for t in ids if t >= 1000 and t < 500_000]
            if batch.labels is not None:
                label = batch.labels[i][batch.labels[i] != -100].tolist()
                assert label[-1] == END
                text += [t for t in label if t >= 1000]
                kinds["corrupt" if any(800 <= t < 832 for t in ids) else "write"] += 1
            elif max(ids) >= 500_000:
                assert ids[:2] == PROMPT.tolist()
                assert ids[3] % 12 == document
                kinds["query"] += 1
            else:
                kinds["read"] += 1
            assert all(t // 1000 == document for t in text)
    assert writing == 30
    assert kinds["read"] == pytest.approx(300, abs=2)
    assert kinds["query"] == pytest.approx(400, abs=2)
    assert kinds["write"] == pytest.approx(200, abs=1)
    assert kinds["corrupt"] == pytest.approx(100, abs=1)


def test_text_sources_write_what_the_view_reads():
    tokens, view = documents(), View("first", 1.0, length=6)
    plain = TextSource(tokens, view, sampler(), 1.0, 2, NO_PROMPT, SENTINELS[:0], END)
    examples = plain.take(0, 12)
    assert examples.labels is not None
    for i, document in enumerate(examples.documents):
        assert examples.inputs[i].tolist() == [END]  # without a prompt, one token to read
        assert examples.labels[i].tolist() == [*tokens[document][:6].tolist(), END]
    prompted = replace(plain, prompt=PROMPT).take(0, 3)
    assert prompted.inputs[2].tolist() == PROMPT.tolist()


def test_queries_of_documents_are_their_own_and_all_get_a_turn():
    queries = Tokens.from_lists([[i] for i in range(30)])
    owners = np.random.default_rng(0).permutation(np.arange(30) % 5)
    source = QueriesOfDocuments(queries, owners, sampler(5), 1.0, 3, NO_PROMPT)
    examples = source.take(0, 1000)
    assert np.array_equal(owners[examples.inputs.values], examples.documents)
    assert Counter(examples.documents.tolist()) == dict.fromkeys(range(5), 200)
    assert set(examples.inputs.values.tolist()) == set(range(30))


def test_length_buckets_save_padding():
    tokens = Tokens.from_lists([[7] * (1 + i % 64) for i in range(640)])
    source = QuerySource(tokens, np.arange(640), 1.0, 1, NO_PROMPT)
    batches = list(window_batches([source], 0, 40, BatchShape(16), seed=1))
    cells = sum(batch.input_ids.numel() for batch in batches)
    assert tokens.lengths.sum() / cells > 0.95
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths != sorted(widths)  # the batches themselves are shuffled


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 9])
def test_parts_make_up_the_batch(parts):
    for batch in window_batches(mixture(), 0, 10, BatchShape(7), seed=5):
        pieces = [batch.part(i, parts) for i in range(parts)]
        assert sum(piece.targets() for piece in pieces) == batch.targets()
        assert sum(len(piece.documents) for piece in pieces) == 7
        for i, piece in enumerate(pieces):
            rows = range(i, 7, parts)
            assert torch.equal(piece.documents, batch.documents[list(rows)])
            for j, row in enumerate(rows):
                real = batch.attention_mask[row].bool()
                own = piece.attention_mask[j].bool()
                assert torch.equal(piece.input_ids[j][own], batch.input_ids[row][real])
                if batch.labels is not None and piece.labels is not None:
                    words, mine = batch.labels[row], piece.labels[j]
                    assert torch.equal(mine[mine != -100], words[words != -100])
            if len(piece.documents):
                assert piece.attention_mask.any(0).all()  # no column is all padding
                assert piece.labels is None or (piece.labels != -100).any(0).all()


def test_collate_pads_with_the_tokenizers_padding():
    examples = mixture()[3].take(0, 4)
    examples = replace(examples, inputs=Tokens.from_lists([[5], [6, 7], [8, 9, 10], [11]]))
    batch = collate(examples, np.array([2, 0]), pad=77)
    assert batch.input_ids.tolist() == [[8, 9, 10], [5, 77, 77]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    assert batch.documents.tolist() == examples.documents[[2, 0]].tolist()
    assert batch.labels is None


def test_batches_of_tokens_are_even_and_hold_the_same_examples():
    plain = list(window_batches(mixture(), 1, 10, BatchShape(8), seed=3))
    even = list(window_batches(mixture(), 1, 10, BatchShape(8, even=True, least=2), seed=3))
    assert len(even) == len(plain)

    def inputs(batches):
        rows = [
            tuple(ids[mask.bool()].tolist())
            for b in batches
            for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)
        ]
        return sorted(rows)

    def spread(batches):
        cells = [b.input_ids.numel() for b in batches if b.labels is None]
        return max(cells) / min(cells)

    assert inputs(even) == inputs(plain)
    assert min(len(b.documents) for b in even) >= 2
    assert len({len(b.documents) for b in even}) > 1
    assert spread(even) < 0.8 * spread(plain)


@given(
    st.lists(st.integers(1, 100), min_size=12, max_size=60), st.integers(1, 4), st.integers(1, 3)
)
def test_cuts_leave_enough_everywhere(lengths, parts, least):
    cuts = even_cuts(np.sort(lengths), parts, least)
    sizes = np.diff([0, *cuts, len(lengths)])
    assert len(sizes) == parts and sizes.min() >= least


def test_too_few_examples_for_the_parts():
    with pytest.raises(ValueError, match="3 examples cannot be cut into 2 parts of 2"):
        even_cuts(np.array([1, 2, 3]), 2, 2)


def test_the_examples_that_have_so_many_tokens():
    drawn = list(window_batches(mixture(), 0, 200, BatchShape(16), seed=3))
    written = [(b.labels != -100).sum() for b in drawn if b.labels is not None]
    total = sum(int(b.attention_mask.sum()) for b in drawn) + int(sum(written))
    mean = total / sum(len(b.documents) for b in drawn)
    assert examples_for(mixture(), 1000, 16, seed=3) == pytest.approx(1000 / mean, rel=0.05)
    assert examples_for(mixture(), 1, 16, seed=3) == 1


def test_lengths_are_multiples_after_cutting_up_too():
    for batch in window_batches(mixture(), 0, 10, BatchShape(6, multiple=8), seed=3):
        for part in (batch, batch.part(1, 3), batch.rows(torch.tensor([0]))):
            assert part.input_ids.shape[1] % 8 == 0
            assert part.labels is None or part.labels.shape[1] % 8 == 0
            assert int(part.attention_mask.sum(1).max()) > part.input_ids.shape[1] - 8


def test_groups_mix_lengths_and_pad_little():
    plain = list(window_batches(mixture(), 1, 10, BatchShape(12), seed=3))
    mixed = list(window_batches(mixture(), 1, 10, BatchShape(12, groups=3), seed=3))
    lengths = [b.attention_mask.sum(1) for b in mixed if b.labels is None]

    def texts(batches):
        return sorted(
            tuple(ids[mask.bool()].tolist())
            for b in batches
            for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)
        )

    assert texts(mixed) == texts(plain)
    whole = torch.cat(lengths)
    low, high = (float(whole.float().quantile(q)) for q in (0.3, 0.7))
    for batch, sizes in zip((b for b in mixed if b.labels is None), lengths, strict=True):
        assert int(sizes.min()) <= low and int(sizes.max()) >= high
        parts = batch.by_group()
        assert [len(part.documents) for part in parts] == [4, 4, 4]
        assert torch.equal(torch.cat([part.documents for part in parts]), batch.documents)
        assert sum(part.input_ids.numel() for part in parts) < batch.input_ids.numel()
        half = batch.part(1, 2).by_group()
        assert [len(part.documents) for part in half] == [2, 2, 2]


def test_no_more_groups_than_ranks_leave_examples_for():
    shape = BatchShape(6, groups=4, least=3)
    for batch in window_batches(mixture(), 0, 10, shape, seed=3):
        assert len(batch.by_group()) == 2 and len(batch.documents) == 6


def test_groups_of_equal_tokens():
    shape = BatchShape(12, groups=2, even=True, least=2)
    for batch in window_batches(mixture(), 0, 10, shape, seed=3):
        assert [len(part.documents) >= 2 for part in batch.by_group()] == [True, True]
