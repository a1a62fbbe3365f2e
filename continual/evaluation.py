"""One row of the performance matrix: every corpus seen, after a stage.

Queries and documents are sharded over ranks by index and gathered in order, so each is counted once
whatever the number of ranks or the size of the last batch.

Shape legend: Q queries, N documents of U_n, K results, B batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from continual.stream import Judged, Stream
from dsi.batching import gather, padded
from dsi.decoding import rank_rows
from dsi.metrics import gold_ranks, hits, mrr
from dsi.model import DSIModel
from dsi.tokenization import Tokens

METRICS = ("hits@1", "hits@10", "mrr@10", "indexing_accuracy")


@dataclass(frozen=True)
class CorpusResult:
    """One cell of every matrix, with what stands behind it.

    ``ranks`` (Q,): place of the best answer, 1-based, 0 when it is not among the K found.
    """

    corpus: int
    metrics: dict[str, float | None]
    queries: Judged
    ranks: np.ndarray
    top_QK: np.ndarray
    scores_QK: np.ndarray


def rank_texts(
    model: DSIModel,
    tokens: Tokens,
    k: int,
    batch_size: int,
    accelerator: Accelerator,
    prompt: np.ndarray,
    pad: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Document numbers (Q, K) and log-probabilities (Q, K), best first, for Q texts.

    Runs in evaluation mode without drawing a random number, so training is the same bit for bit
    whether or not it is called.
    """
    if len(tokens) == 0:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    starts, lengths = tokens.offsets[:-1], tokens.lengths
    tokens = gather(tokens, starts, lengths, prompt=prompt)
    order = np.argsort(tokens.lengths, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    training = model.training
    model.eval()
    with torch.inference_mode():
        for rows in mine:
            ids, mask = padded(tokens, rows, pad)
            device = accelerator.device
            with accelerator.autocast():
                hidden = model.query_states(
                    torch.from_numpy(ids).to(device),
                    torch.from_numpy(mask.astype(np.int64)).to(device),
                )
            scores, numbers = rank_rows(hidden.float(), model.docids.rows.float(), k)
            found.append((rows, numbers.cpu().numpy(), scores.cpu().numpy()))
    model.train(training)
    if accelerator.num_processes > 1:
        found = gather_object(found)
    width = found[0][1].shape[1]
    numbers = np.zeros((len(order), width), np.int64)
    scores = np.zeros((len(order), width), np.float32)
    for rows, number, score in found:
        numbers[rows], scores[rows] = number, score
    return numbers, scores


def documents_found(
    model: DSIModel,
    stream: Stream,
    stage: int,
    length: int,
    batch_size: int,
    accelerator: Accelerator,
    prompt: np.ndarray,
    pad: int,
) -> np.ndarray:
    """Whether each document of U_n decodes to its own docid from its first tokens: bool (N,)."""
    count = stream.count(stage)
    starts = stream.tokens.offsets[:count]
    lengths = np.minimum(stream.tokens.lengths[:count], length)
    heads = gather(stream.tokens, starts, lengths)
    best, _ = rank_texts(model, heads, 1, batch_size, accelerator, prompt, pad)
    return best[:, 0] == np.arange(count)


def evaluate(
    model: DSIModel,
    stream: Stream,
    stage: int,
    queries: list[Judged],
    found: np.ndarray,
    *,
    depth: int,
    batch_size: int,
    accelerator: Accelerator,
    prompt: np.ndarray,
    pad: int,
) -> list[CorpusResult]:
    """Results on D_0 .. D_n. ``queries[o]`` are those of D_o; ``found``: see documents_found.

    A corpus without queries has ``None`` for the retrieval metrics.
    """
    tokens = Tokens.concatenate([queries[o].tokens for o in range(stage + 1)])
    top_QK, scores_QK = rank_texts(model, tokens, depth, batch_size, accelerator, prompt, pad)
    results, start = [], 0
    for o in range(stage + 1):
        stop = start + len(queries[o])
        top, scores = top_QK[start:stop], scores_QK[start:stop]
        ranks = gold_ranks(top, queries[o].gold) if stop > start else np.zeros(0, np.int64)
        indexed = found[stream.offsets[o] : stream.offsets[o + 1]]
        values: dict[str, float | None] = dict.fromkeys(METRICS)
        if stop > start:
            values["hits@1"] = float(hits(ranks, 1))
            values["hits@10"] = float(hits(ranks, 10))
            values["mrr@10"] = float(mrr(ranks, 10))
        values["indexing_accuracy"] = float(indexed.mean())
        results.append(CorpusResult(o, values, queries[o], ranks, top, scores))
        start = stop
    return results
