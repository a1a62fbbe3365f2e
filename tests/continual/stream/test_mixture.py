"""Shares of what a stage trains on, and which documents and queries are drawn."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.config.loading import load_config
from continual.config.schema import RunConfig, TrainingConfig
from continual.run.material import prepare
from continual.stream.mixture import document_groups, prompt_ids, stage_sources, window_updates
from continual.stream.view import QueryPool
from dsi.errors import UserError
from dsi.examples.batches import BatchShape, window_batches
from dsi.examples.sources import (
    DocumentSampler,
    DocumentSource,
    QueriesOfDocuments,
    QuerySource,
    TextSource,
)
from dsi.text.tokens import tokenize

SIZES = (18, 6, 6)
DRAWS = 3600


@pytest.fixture(scope="module")
def stream(lab):
    assert lab.sizes == SIZES
    return prepare(lab.config("views=[{name: set, weight: 1}]")).stream


def config(*settings: str) -> RunConfig:
    return load_config(None, ["method=windows", *settings])


def sources(stream, stage: int, *settings: str, pools=(), ratio: float = math.inf) -> list[Any]:
    return stage_sources(config(*settings), stream, stage, pools, ratio, stream.tokenizer)


def pool(stream, documents, name="pool", weight=1.0, by_document=False) -> QueryPool:
    """A pool of one query per document number; its text says which."""
    tokens = tokenize(
        stream.tokenizer,
        [f"{name} {chr(97 + number // 6)} {chr(97 + number % 6)}" for number in documents],
    )
    return QueryPool(name, tokens, np.asarray(documents), weight, by_document)


def shares(stream, documents: np.ndarray) -> list[float]:
    """Which share of the draws falls on each corpus."""
    counts = np.bincount(stream.corpus_of(documents), minlength=len(stream))
    return (counts / len(documents)).tolist()


def drawn(groups, count=DRAWS) -> np.ndarray:
    return DocumentSampler(groups, 0).take(0, count)


@pytest.mark.parametrize(
    ("stage", "new", "balance", "expected"),
    [
        (0, 0.3, 0.5, [1, 0, 0]),
        (1, 0.3, 0.5, [0.7, 0.3, 0]),
        # of the old 0.7: half picks one of two corpora, half one of 24 documents
        (2, 0.3, 0.5, [0.35 * 18 / 24 + 0.175, 0.35 * 6 / 24 + 0.175, 0.3]),
        (2, 0.3, 1.0, [0.35, 0.35, 0.3]),
        (2, 0.3, 0.0, [0.7 * 18 / 24, 0.7 * 6 / 24, 0.3]),
        (2, None, 0.5, [18 / 30, 6 / 30, 6 / 30]),
        (2, 1.0, 0.5, [0, 0, 1]),
        (2, 0.0, 1.0, [0.5, 0.5, 0]),
    ],
)
def test_documents_are_drawn_in_the_shares_that_are_asked_for(
    stream, stage, new, balance, expected
):
    documents = np.arange(stream.count(stage))
    groups = document_groups(documents, stream, stage, new, balance)
    assert sum(share for _, share in groups) == pytest.approx(1)
    assert shares(stream, drawn(groups)) == pytest.approx(expected, abs=1e-3)
    # and every prefix of the draws has them, too
    assert shares(stream, drawn(groups, 360)) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("new", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_what_is_absent_leaves_its_share_to_the_rest(stream, new, balance):
    """Only new documents, or only old ones: shares of nothing must not leave nothing."""
    only_new = np.arange(24, 30)
    found = drawn(document_groups(only_new, stream, 2, new, balance), 60)
    assert np.bincount(found)[24:].tolist() == [10] * 6
    only_old = np.arange(24)
    found = shares(stream, drawn(document_groups(only_old, stream, 2, new, balance)))
    alike, by_corpus = np.array([0.75, 0.25, 0]), np.array([0.5, 0.5, 0])
    mixed = alike if new is None else balance * by_corpus + (1 - balance) * alike
    assert found == pytest.approx(mixed.tolist(), abs=1e-3)


def test_within_a_group_every_document_has_its_turn(stream):
    groups = document_groups(np.arange(30), stream, 2, None, 0.5)
    assert np.bincount(drawn(groups, 90)).tolist() == [3] * 30


@pytest.mark.parametrize("ratio", [0.5, 1, 32])
def test_the_ratio_is_indexing_examples_per_query(stream, ratio):
    found = sources(stream, 1, pools=[pool(stream, range(18))], ratio=ratio)
    queries = sum(s.share for s in found if isinstance(s, QuerySource))
    indexing = sum(s.share for s in found if isinstance(s, DocumentSource))
    assert queries + indexing == pytest.approx(1)
    assert indexing / queries == pytest.approx(ratio)


def test_without_queries_everything_is_indexing(stream):
    pools = [pool(stream, range(18))]
    plain = sources(stream, 1)
    assert all(isinstance(source, DocumentSource) for source in plain)
    assert sum(source.share for source in plain) == pytest.approx(1)
    off = sources(stream, 1, pools=pools, ratio=math.inf)
    assert [type(s) for s in off] == [type(s) for s in plain]
    assert [s.share for s in off] == [s.share for s in plain]
    one, other = (list(window_batches(s, 0, 4, BatchShape(8), seed=1)) for s in (plain, off))
    for a, b in zip(one, other, strict=True):  # an infinite ratio is no replay, bit for bit
        assert a.input_ids.equal(b.input_ids)
        assert a.documents.equal(b.documents)
    none = sources(stream, 1, pools=pools, ratio=0)
    assert [type(source) for source in none] == [QuerySource]


def indexed(found: list[Any], count: int = 600) -> np.ndarray:
    """Documents drawn by the indexing sources."""
    documents = [s for s in found if isinstance(s, DocumentSource | TextSource)]
    return np.concatenate([source.take(0, count).documents for source in documents])


@pytest.mark.parametrize(
    ("settings", "stage", "expected"),
    [
        (["indexing=seen"], 0, range(18)),
        (["indexing=seen"], 1, range(24)),
        (["indexing=seen"], 2, range(30)),
        (["indexing=new"], 0, range(18)),
        (["indexing=new"], 1, range(18, 24)),
        (["indexing=new"], 2, range(24, 30)),
        (["indexing=new", "sampling.new=0"], 2, range(24, 30)),
        (["indexing=new", "training.restart=true"], 2, range(30)),
    ],
)
def test_which_documents_are_indexed(stream, settings, stage, expected):
    found = sources(stream, stage, *settings)
    assert set(indexed(found).tolist()) == set(expected)


def test_a_restart_reads_everything_alike(stream):
    view = "views=[{name: first, weight: 1}]"
    fresh = sources(stream, 2, "training.restart=true", "sampling.new=0.9", view)
    assert np.bincount(indexed(fresh, 60)).tolist() == [2] * 30
    continued = sources(stream, 2, "sampling.new=0.9", view)
    assert shares(stream, indexed(continued, 600))[2] == pytest.approx(0.9)


def test_indexing_none_leaves_queries_alone(stream):
    pools = [pool(stream, range(24), by_document=True)]
    settings = ("indexing=none", "replay=generative")
    found = sources(stream, 1, *settings, pools=pools, ratio=32)
    assert [type(source) for source in found] == [QueriesOfDocuments]
    assert found[0].share == 1
    # without any query stage 0 indexes after all, a later stage says what is wrong
    assert all(isinstance(s, DocumentSource) for s in sources(stream, 0, *settings))
    with pytest.raises(UserError, match=r"^indexing: none leaves stage 1 nothing to train on.*set"):
        sources(stream, 1, *settings)


def test_pools_share_the_retrieval_by_weight(stream):
    pools = [
        pool(stream, range(18), "stored", 0.3),
        pool(stream, range(24), "written", 0.6, by_document=True),
        pool(stream, range(24), "learned", 0.6, by_document=True),
    ]
    found = sources(stream, 1, "sampling.new=0.3", pools=pools, ratio=1)[:3]
    assert [s.share for s in found] == pytest.approx([0.1, 0.2, 0.2])
    assert [type(s) for s in found] == [QuerySource, QueriesOfDocuments, QueriesOfDocuments]
    stored, written = found[0].take(0, 180), found[1].take(0, 240)
    assert np.bincount(stored.documents).tolist() == [10] * 18, "every query equally often"
    assert shares(stream, written.documents)[1] == pytest.approx(0.3), "as sampling.new says"
    for examples, own in ((stored, pools[0]), (written, pools[1])):
        texts = [own.tokens[number].tolist() for number in own.documents]
        assert len(set(map(tuple, texts))) == len(texts)
        for i, document in enumerate(examples.documents):
            assert examples.inputs[i].tolist() == texts[document]


def test_pools_and_views_draw_for_themselves(stream):
    """Equal settings under another name give another order; the same name the same."""
    pools = [pool(stream, range(18), name) for name in ("one", "two")]
    first, second = sources(stream, 1, pools=pools, ratio=1)[:2]
    again = sources(stream, 1, pools=pools, ratio=1)[0]
    assert first.take(0, 18).documents.tolist() != second.take(0, 18).documents.tolist()
    assert first.take(0, 18).documents.tolist() == again.take(0, 18).documents.tolist()
    other = sources(stream, 2, pools=pools, ratio=1)[0]
    assert first.take(0, 18).documents.tolist() != other.take(0, 18).documents.tolist()


def test_views_share_the_indexing_by_weight(stream):
    views = (
        "views=[{name: first, weight: 3, length: 4}, {name: chunk, weight: 0}, "
        "{name: set, weight: 1, length: 9}]"
    )
    first, second = sources(stream, 0, views)
    assert (first.share, second.share) == pytest.approx((0.75, 0.25))
    examples = first.take(0, 18)
    for i, document in enumerate(examples.documents):
        assert examples.inputs[i].tolist() == stream.tokens[document][:4].tolist()
    examples = second.take(0, 18)
    for i, document in enumerate(examples.documents):
        assert examples.inputs[i].tolist() == stream.set_tokens[document][:9].tolist()


FIRST = "views=[{name: first, weight: 1, length: 5}]"


def test_bidirectional_is_half_of_each_direction(stream):
    forward, backward = sources(stream, 0, FIRST, "direction=bidirectional")
    assert (type(forward), type(backward)) == (DocumentSource, TextSource)
    assert forward.share == backward.share == 0.5
    # each walks over all documents on its own
    pieces = [source.take(start, 6) for start in (0, 6, 12) for source in (forward, backward)]
    for own in (pieces[0::2], pieces[1::2]):
        seen = np.concatenate([piece.documents for piece in own])
        assert sorted(seen) == list(range(18))
    both = [pieces[0].documents.tolist(), pieces[1].documents.tolist()]
    assert both[0] != both[1]
    only = sources(stream, 0, FIRST)[0]
    assert only.take(0, 6).documents.tolist() == both[0], "the plain direction's order"


def test_targets_to_inputs_writes_the_text(stream):
    (source,) = sources(stream, 0, FIRST, "direction=targets_to_inputs", "prompts.indexing=the")
    end = stream.tokenizer.eos_token_id
    examples = source.take(0, 18)
    prompt = prompt_ids(stream.tokenizer, "the").tolist()
    assert examples.labels is not None
    for i, document in enumerate(examples.documents):
        assert examples.inputs[i].tolist() == prompt
        assert examples.labels[i].tolist() == [*stream.tokens[document][:5].tolist(), end]


def test_span_corruption_hides_and_writes_spans(stream):
    (source,) = sources(stream, 0, FIRST, "direction=span_corruption")
    marks = set(stream.tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(32)]))
    examples = source.take(0, 18)
    assert examples.labels is not None
    for i, document in enumerate(examples.documents):
        shown, hidden = examples.inputs[i].tolist(), examples.labels[i].tolist()
        assert set(shown) & marks == set(hidden) & marks != set()
        words = [token for token in shown + hidden[:-1] if token not in marks]
        assert sorted(words) == sorted(stream.tokens[document][:5].tolist())


def test_span_corruption_needs_sentinels(stream):
    class WithoutSentinels:
        unk_token_id, eos_token_id = 2, 1
        backend_tokenizer = stream.tokenizer.backend_tokenizer

        @staticmethod
        def convert_tokens_to_ids(tokens):
            return [2] * len(tokens)

    tokenizer: Any = WithoutSentinels()
    with pytest.raises(UserError, match=r"^direction: span_corruption needs <extra_id_0>"):
        stage_sources(config("direction=span_corruption"), stream, 0, (), math.inf, tokenizer)
    # the other directions do not
    assert stage_sources(config("direction=bidirectional"), stream, 0, (), math.inf, tokenizer)


def test_prompts_stand_in_front(stream):
    assert prompt_ids(stream.tokenizer, "").tolist() == []
    assert prompt_ids(stream.tokenizer, "").dtype == np.int32
    prompts = ("prompts.indexing=the quick", "prompts.retrieval=fox")
    found = sources(stream, 0, FIRST, *prompts, pools=[pool(stream, range(18))], ratio=1)
    queries, documents = found
    for source, text in ((queries, "fox"), (documents, "the quick")):
        prompt = prompt_ids(stream.tokenizer, text)
        assert len(prompt) > 0
        examples = source.take(0, 5)
        for i in range(5):
            assert examples.inputs[i][: len(prompt)].tolist() == prompt.tolist()


@given(st.integers(1, 5000), st.integers(1, 200))
def test_a_stage_is_as_few_windows_of_one_size_as_it_can_be(budget, most):
    window = window_updates(TrainingConfig(window=most), budget)
    windows = math.ceil(budget / window)
    assert 1 <= window <= min(most, budget)
    assert windows == math.ceil(budget / most)
    assert windows * window - budget < windows


def test_a_stage_without_updates_has_a_window():
    assert window_updates(TrainingConfig(), 0) == 1


@pytest.fixture(scope="module")
def changed(lab, changing):
    """See CHANGES in tests/continual/conftest.py."""
    return prepare(lab.config(*changing)).stream


@pytest.mark.parametrize(
    ("indexing", "expected"),
    [
        ("seen", sorted(set(range(30)) - {1, 3, 5, 18})),
        ("new", [2, 19, *range(24, 30)]),
    ],
)
def test_a_stage_indexes_what_is_there_or_what_has_changed(changed, indexing, expected):
    found = sources(changed, 3, f"indexing={indexing}", "sampling={new: null}")
    for source in found:
        assert np.unique(source.take(0, 600).documents).tolist() == expected
        text = source.tokens[2].tolist()
        (own,) = changed.texts_at(np.array([2]), 3)
        assert text == tokenize(changed.tokenizer, [own])[0].tolist()


def test_replaced_documents_are_drawn_as_new_ones(changed):
    groups = document_groups(changed.members(3), changed, 3, 0.4, 1.0)
    counts = np.bincount(drawn(groups), minlength=30) / DRAWS
    # 0.4 for six new and two replaced ones, and half of the rest for each old corpus
    assert counts[[2, 19, *range(24, 30)]] == pytest.approx(np.full(8, 0.05), abs=1e-3)
    assert counts[:18].sum() - counts[2] == pytest.approx(0.3, abs=1e-3)
    assert counts[18:24].sum() - counts[19] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("indexing", ["seen", "new"])
@pytest.mark.parametrize("restart", ["true", "false"])
def test_a_stage_that_only_removes_has_what_is_there(changed, indexing, restart):
    found = sources(changed, 2, f"indexing={indexing}", f"training.restart={restart}")
    expected = sorted(set(range(24)) - {1, 3, 5})
    assert np.unique(found[0].take(0, 600).documents).tolist() == expected


def test_a_stage_that_only_removes_needs_nothing_to_train_on(changed):
    none = load_config(None, ["method=windows", "indexing=none", "replay=episodic"])
    assert stage_sources(none, changed, 2, [], math.inf, changed.tokenizer) == []
    with pytest.raises(UserError, match="indexing: none leaves stage 3 nothing to train on"):
        stage_sources(none, changed, 3, [], math.inf, changed.tokenizer)
