"""What one stage trains on: the sources of its batches and their shares."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

import numpy as np
from transformers import PreTrainedTokenizerFast

from continual.config.schema import RunConfig, TrainingConfig
from continual.stream.stream import Stream
from continual.stream.view import QueryPool, StageView, true_queries
from dsi.errors import UserError
from dsi.examples.batches import Batch, BatchShape, batches_from, examples_for
from dsi.examples.sources import (
    DocumentSampler,
    DocumentSource,
    ExampleSource,
    QueriesOfDocuments,
    QuerySource,
    TextSource,
)
from dsi.seeding import derive
from dsi.text.tokens import pad_id, prompt_ids

MARKS = [f"<extra_id_{i}>" for i in range(32)]  # what stands for a span that was left out

Sampler: TypeAlias = Callable[[np.ndarray, str], DocumentSampler]
"""Makes the sampler of some documents (numbers) for a purpose, which its draws depend on."""


def document_groups(
    documents: np.ndarray, stream: Stream, stage: int, new: float | None, balance: float
) -> list[tuple[np.ndarray, float]]:
    """Groups of ``documents`` (numbers in U_n) and their shares of the draws.

    A share ``new`` of the draws goes to new documents: D_n and what the stage replaces. Of the
    other draws a share ``balance`` picks an old corpus first, the rest any old document.
    ``new=None``, or nothing old: one group. Nothing new: the old have all draws.
    """
    corpora = stream.corpus_of(documents)
    old = (corpora < stage) & ~np.isin(documents, stream.replaced(stage))
    if new is None or stage == 0 or not old.any():
        return [(documents, 1.0)]
    if old.all():
        new = 0.0
    groups = [(documents[~old], new), (documents[old], (1 - new) * (1 - balance))]
    present = np.unique(corpora[old])
    groups += [
        (documents[old & (corpora == corpus)], (1 - new) * balance / len(present))
        for corpus in present
    ]
    return groups


def stage_sources(
    config: RunConfig,
    stream: Stream,
    stage: int,
    pools: Sequence[QueryPool],
    ratio: float,
    tokenizer: PreTrainedTokenizerFast,
) -> list[ExampleSource]:
    """The mixture of one stage; ``ratio`` indexing examples per retrieval example.

    Without documents to index everything is retrieval; without queries, or with an infinite ratio,
    everything is indexing. A stage that only removes makes no updates: its mixture is of the
    documents that are left, or empty.
    """
    fresh = stage == 0 or config.training.restart
    sampling = config.sampling
    new = None if fresh else sampling.new

    def sampler(documents: np.ndarray, purpose: str) -> DocumentSampler:
        groups = document_groups(documents, stream, stage, new, sampling.balance)
        return DocumentSampler(groups, derive(config.seed, "documents", stage, purpose))

    changed = stream.changed(stage)
    is_new = config.indexing == "new" and not fresh and len(changed) > 0
    indexed = changed if is_new else stream.members(stage)
    retrieval = 0.0 if not pools or ratio == float("inf") else 1.0 / (1.0 + ratio)
    if config.indexing == "none" and not (stage == 0 and not pools):
        retrieval = 1.0
    sources = _query_sources(config, pools, retrieval, sampler, stage, tokenizer)
    if retrieval < 1.0:
        sources += _indexing_sources(
            config, stream, 1.0 - retrieval, sampler, indexed, stage, tokenizer
        )
    if not sources and len(changed):
        raise UserError(
            f"indexing: none leaves stage {stage} nothing to train on: replay gives it no queries; "
            "set indexing: seen, or a finite replay.ratio and a corpus with train queries"
        )
    return sources


def stage_pools(
    config: RunConfig, stream: Stream, stage: int, rehearsed: list[QueryPool], ratio: float
) -> tuple[list[QueryPool], float]:
    """All queries of a stage, and how many indexing examples there are per query.

    ``rehearsed``, at ``ratio``: what replay gives. The train queries of D_0 are there in stage 0,
    and where a later stage starts from new weights and nothing is rehearsed.
    """
    if stage > 0 and math.isinf(ratio):
        rehearsed = []
    if stage == 0 or (config.training.restart and not rehearsed):
        own = true_queries(stream, stage=stage)
        return ([own, *rehearsed] if own else rehearsed), config.training.ratio
    return rehearsed, ratio


def stage_batches(view: StageView, count: int, purpose: str) -> Iterator[Batch]:
    """``count`` batches of a stage's mixture, with draws of their own."""
    seed = derive(view.seed, "batches", view.stage, purpose)
    config = replace(view.config, seed=seed)
    sources = stage_sources(config, view.stream, view.stage, view.pools, view.ratio, view.tokenizer)
    if not sources:
        return iter(())
    window = min(count, config.training.window)
    shape = batch_shape(config.training, sources, window, seed, 1, pad_id(view.tokenizer))
    return batches_from(sources, 0, count, window, shape, seed)


def window_updates(training: TrainingConfig, budget: int) -> int:
    """Updates drawn together in a stage of ``budget`` updates.

    At most ``training.window``, and the same in every window, so that (nearly) no window reaches
    beyond the end of the stage. A window is sorted by length and cut into batches: batches that are
    never trained on would leave the texts of their lengths out.
    """
    windows = max(1, math.ceil(budget / training.window))
    return max(1, math.ceil(budget / windows))


def batch_shape(
    training: TrainingConfig,
    sources: Sequence[ExampleSource],
    window: int,
    seed: int,
    ranks: int,
    pad: int,
) -> BatchShape:
    """The size of updates that ``ranks`` processes can share, in windows of ``window``."""
    least, even = ranks * training.accumulation, training.batch_tokens > 0
    size = training.batch_size
    if even and sources:
        size = examples_for(sources, training.batch_tokens, window, seed)
    groups, multiple = training.length_groups, training.pad_to_multiple
    return BatchShape(max(size, least), pad, groups, even, least, multiple)


def _query_sources(
    config: RunConfig,
    pools: Sequence[QueryPool],
    share: float,
    sampler: Sampler,
    stage: int,
    tokenizer: PreTrainedTokenizerFast,
) -> list[ExampleSource]:
    if share <= 0:
        return []
    total = sum(pool.weight for pool in pools)
    prompt = prompt_ids(tokenizer, config.prompts.retrieval)
    sources: list[ExampleSource] = []
    for pool in pools:
        part, seed = share * pool.weight / total, derive(config.seed, "queries", stage, pool.name)
        if pool.by_document:
            documents = sampler(np.unique(pool.documents), pool.name)
            sources.append(
                QueriesOfDocuments(
                    pool.tokens, pool.documents, documents, part, seed, prompt, pool.extras
                )
            )
        else:
            sources.append(
                QuerySource(pool.tokens, pool.documents, part, seed, prompt, pool.extras)
            )
    return sources


def _indexing_sources(
    config: RunConfig,
    stream: Stream,
    share: float,
    sampler: Sampler,
    indexed: np.ndarray,
    stage: int,
    tokenizer: PreTrainedTokenizerFast,
) -> list[ExampleSource]:
    total = sum(view.weight for view in config.views)
    prompt = prompt_ids(tokenizer, config.prompts.indexing)
    found = cast(list[int | None], tokenizer.convert_tokens_to_ids(MARKS))
    marks = np.asarray([m for m in found if m not in (None, tokenizer.unk_token_id)], np.int32)
    if config.direction == "span_corruption" and len(marks) < 2:
        raise UserError(
            "direction: span_corruption needs <extra_id_0>, <extra_id_1>, ... in the tokenizer; "
            "choose a T5 tokenizer, or tokenizer.source=train"
        )
    end = cast(int, tokenizer.eos_token_id or 0)
    sources: list[ExampleSource] = []
    for i, view in enumerate(config.views):
        if view.weight <= 0:
            continue
        tokens = stream.set_tokens_at(stage) if view.name == "set" else stream.tokens_at(stage)
        name, part = f"{view.name}-{i}", share * view.weight / total
        seed = derive(config.seed, "views", stage, name)
        read = sampler(indexed, name)
        forward = DocumentSource(tokens, view, read, part, seed, prompt)
        backward = TextSource(tokens, view, read, part, seed, prompt, marks[:0], end)
        if config.direction == "inputs_to_targets":
            sources.append(forward)
        elif config.direction == "targets_to_inputs":
            sources.append(backward)
        elif config.direction == "span_corruption":
            sources.append(TextSource(tokens, view, read, part, seed, prompt, marks, end))
        else:
            forward.share = backward.share = part / 2
            # a sampler keeps one epoch's order at a time: each direction walks its own
            backward.sampler = sampler(indexed, f"{name}-backward")
            sources += [forward, backward]
    return sources
