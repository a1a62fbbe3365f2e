"""Do faster updates learn as well? Hits@10 after one stage, seed by seed, the same examples.

    python -m benchmarks.learning --corpus FOLDER "random" "window=16" "window=64"
    python -m benchmarks.learning --corpus FOLDER "random" \
        "random docid_softmax=sampled docid_samples=256"

A contestant is ``key=value`` settings of ``training``; with ``random`` its batches do not look at
length. All start from the same weights and get the same examples in a window, with atomic docids
and the given number of updates. Dev queries, or test queries where a corpus has no others. Seconds
are of the processor, for orientation: other processes change them.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.options import keep, processor
from benchmarks.training import Clock, stage_zero
from benchmarks.updates import make_accelerator, update
from continual.measure.evaluation import Evaluator
from continual.run.material import make_model, prepare_layers
from continual.update.optimizer import learning_rate, make_optimizer
from dsi.examples.batches import Batch, BatchShape, batches_from, collate
from dsi.examples.sources import Examples
from dsi.text.tokens import Tokens, pad_id

HEADER = """\
| contestant | seed | queries | Hits@10 | updates | seconds | padding |
|---|---|---|---|---|---|---|"""
VOCABULARY = 6000


def at_random(
    batches: Sequence[Batch], size: int, pad: int, rng: np.random.Generator
) -> list[Batch]:
    """The same examples in batches that do not look at length."""
    inputs = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    documents = torch.cat([batch.documents for batch in batches]).numpy()
    examples = Examples(Tokens.from_lists(inputs), documents)
    order = rng.permutation(len(inputs))
    return [collate(examples, rows, pad) for rows in order.reshape(-1, size)]


def learn(
    corpus: str, contestant: str, seed: int, updates: int, more: Sequence[str]
) -> dict[str, Any]:
    """A row of the table."""
    words = contestant.split()
    settings = [f"training.{word}" for word in words if word != "random"]
    overrides = [f"training.updates={updates}", f"seed={seed}", *more, *settings]
    material, config, mixture = stage_zero(corpus, VOCABULARY, overrides)
    training, stream = config.training, material.stream
    count, pad = stream.count(0), pad_id(material.tokenizer)
    model = make_model(config, material.tokenizer, [count], 0)
    prepare_layers(model, training)
    model.train()
    accelerator = make_accelerator("no", cpu=True)
    optimizer = make_optimizer(model, training)
    codes = torch.arange(count)[:, None]
    clock, number, tokens, cells = Clock("cpu"), 0, 0, 0
    sources, rng = mixture(seed), np.random.default_rng(seed)
    shape = BatchShape(training.batch_size, pad, training.length_groups)
    started = clock()
    while number < updates:
        stop = number + training.window
        window = list(batches_from(sources, number, stop, training.window, shape, seed))
        if "random" in words:
            window = at_random(window, training.batch_size, pad, rng)
        for batch in window[: updates - number]:
            rate = learning_rate(training, 0, number, updates)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            update(model, optimizer, batch, codes, accelerator, number)
            tokens += int(batch.attention_mask.sum())
            cells += sum(group.input_ids.numel() for group in batch.by_group())
            number += 1
    seconds = clock() - started
    split = "dev" if len(stream.judged_queries("dev", 0)) else "test"
    evaluator = Evaluator(config, stream, model, codes.numpy(), accelerator, 0)
    queries = [stream.judged_queries(split, 0)]
    (result,), _ = evaluator.evaluate(0, queries, np.zeros(count, bool))
    return {
        "contestant": contestant,
        "seed": seed,
        "split": split,
        "hits@10": result.metrics["hits@10"],
        "updates": number,
        "seconds": seconds,
        "padding": 1 - tokens / cells,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Every contestant from every seed."""
    parser = argparse.ArgumentParser(description="what batches and losses do to learning")
    parser.add_argument("contestants", nargs="+", metavar='"[random] key=value ..."')
    parser.add_argument("--corpus", default="encyclopedia")
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--override", nargs="*", default=[], help="settings of all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{processor()}, torch {torch.__version__}\n{HEADER}")
    rows = []
    for contestant in options.contestants:
        for seed in options.seeds:
            row = learn(options.corpus, contestant, seed, options.updates, options.override)
            torch.set_num_threads(options.threads)  # a configuration sets its own
            rows.append(row)
            print(
                f"| `{contestant}` | {seed} | {row['split']} | {100 * row['hits@10']:.1f} | "
                f"{row['updates']} | {row['seconds']:.0f} | {100 * row['padding']:.0f} % |",
                flush=True,
            )
    for contestant in options.contestants:
        values = [100 * row["hits@10"] for row in rows if row["contestant"] == contestant]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"`{contestant}`: Hits@10 {statistics.mean(values):.1f} ± {spread:.1f}")
    result = {"machine": processor(), "torch": torch.__version__, "rows": rows}
    keep(result, options.json)
    return result


if __name__ == "__main__":
    main()
