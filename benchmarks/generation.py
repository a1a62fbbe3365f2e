"""Pseudo-query generation against transformers' ``generate``: queries per second of processor time.

    python -m benchmarks.generation                       # the default generator, from scratch
    python -m benchmarks.generation --shape t5-small --updates 30 --documents 64 --json out.json
    torchrun --nproc-per-node 2 -m benchmarks.generation  # the first process alone and all of them

One generator, trained for a short while on the embedded corpus, writes the same number of queries
per document in all contestants, with the same candidates (top-k, top-p, forbidden tokens, copying):

* ``ours``: :meth:`dsi.queries.generator.QueryGenerator.generate`, tokens in, text out;
* ``generate``: ``model.generate(do_sample=True, num_return_sequences=...)`` on batches of documents
  in their order, padded to the longest, as public code writes pseudo-queries;
* ``sorted``: the same on documents sorted by length;
* ``static``: sorted, with ``cache_implementation="static"``.

All run in one process, one thread, interleaved; a number is the median of the rounds, in processor
time (on a GPU: wall time with synchronisation). A query counts once per document. Several processes
are compared in wall time, in turn, one thread each.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.decoding import interleaved
from benchmarks.options import add_options, keep, processor
from dsi.corpus.corpus import document_texts, read_corpus
from dsi.manifest import text_hash
from dsi.queries.generator import QueryGenerator, _pad
from dsi.queries.generator_model import GeneratorConfig
from dsi.text.tokens import train_tokenizer

SHAPES = {
    "default": {},
    "t5-small": dict(d_model=512, d_ff=2048, num_layers=6, num_decoder_layers=6, num_heads=8),
}


class Copies(LogitsProcessor):
    """What :class:`dsi.queries.copy_bias.Copying` adds, inside ``generate``."""

    def __init__(self, copying: Any, samples: int):
        self.copying, self.samples = copying, samples

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        rows = torch.arange(len(scores), device=scores.device)
        self.copying.add(scores, rows // self.samples, input_ids[:, -1])
        return scores


def material(documents: int, updates: int, shape: str) -> tuple[QueryGenerator, list[str]]:
    """A generator that has learnt for a while, and the texts of the embedded corpus."""
    corpus = read_corpus("encyclopedia")
    texts = list(document_texts(corpus.documents, title=True, lowercase=True))
    queries = [str(text).lower() for text in corpus.queries["text"].to_pylist()]
    tokenizer = train_tokenizer([*texts, *queries], 6000)
    pairs = corpus.qrels["train"]
    config = GeneratorConfig(updates=updates, **SHAPES[shape])
    generator = QueryGenerator.train(
        [texts[row] for row in pairs[:, 1]],
        [queries[row] for row in pairs[:, 0]],
        tokenizer,
        config,
    )
    return generator, texts[:documents]


@torch.inference_mode()
def with_generate(
    generator: QueryGenerator, texts: list[str], count: int, batch: int, ordered: bool, static: bool
) -> list[list[str]]:
    """The different queries of each document, as transformers writes them."""
    sampling, device = generator.sampling, generator.model.device
    sources = generator._ids(texts, generator.config.document_length)
    order = np.argsort([len(one) for one in sources]) if ordered else np.arange(len(texts))
    found: list[list[str]] = [[] for _ in texts]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch].tolist()
        input_DL, mask_DL = _pad([sources[i] for i in rows], generator.pad, device)
        copying = generator._copying(input_DL)
        processors = LogitsProcessorList([Copies(copying, count)] if copying else [])
        ids = generator.model.generate(
            input_ids=input_DL,
            attention_mask=mask_DL,
            do_sample=True,
            num_beams=1,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            temperature=sampling.temperature,
            num_return_sequences=count,
            max_new_tokens=generator.config.query_length,
            logits_processor=processors,
            suppress_tokens=generator.forbidden.nonzero().flatten().tolist(),
            begin_suppress_tokens=[generator.end],
            pad_token_id=generator.pad,
            eos_token_id=generator.end,
            **({"cache_implementation": "static"} if static else {}),
        )
        written = generator.tokenizer.batch_decode(ids, skip_special_tokens=True)
        for place, row in enumerate(rows):
            own = written[place * count : (place + 1) * count]
            found[row] = list(dict.fromkeys(" ".join(query.split()) for query in own))
    return found


def compare(
    generator: QueryGenerator, texts: list[str], count: int, batch: int, rounds: int
) -> dict[str, Any]:
    """Queries per second of every contestant, and how long and how many they are."""
    keys = [text_hash(text) for text in texts]
    found: dict[str, list[list[str]]] = {}

    def ours() -> None:
        found["ours"] = generator.generate(texts, keys, count, 0)

    def theirs(name: str, ordered: bool, static: bool) -> Callable[[], None]:
        def run() -> None:
            found[name] = with_generate(generator, texts, count, batch, ordered, static)

        return run

    contestants = {
        "ours": ours,
        "generate": theirs("generate", False, False),
        "sorted": theirs("sorted", True, False),
        "static": theirs("static", True, True),
    }
    torch.manual_seed(0)
    seconds = interleaved(contestants, rounds)
    result: dict[str, Any] = {}
    for name in contestants:
        queries = [query for own in found[name] for query in own]
        result[name] = {
            "queries": len(queries),
            "words_per_query": float(np.mean([len(query.split()) for query in queries])),
            "queries_per_second": len(queries) / seconds[name],
        }
    for values in result.values():
        values["ours_over_it"] = result["ours"]["queries_per_second"] / values["queries_per_second"]
    return result


def across_ranks(
    generator: QueryGenerator, texts: list[str], count: int, rounds: int
) -> dict[str, Any]:
    """Wall-clock queries per second of the first process alone and of all, which write the same."""
    accelerator = Accelerator(cpu=generator.model.device.type == "cpu")
    keys = [text_hash(text) for text in texts]
    found: dict[str, list[list[str]]] = {}

    def one() -> None:
        if accelerator.is_main_process:
            found["one"] = generator.generate(texts, keys, count, 0)
        accelerator.wait_for_everyone()

    def all_of_them() -> None:
        found["all"] = generator.generate(texts, keys, count, 0, accelerator=accelerator)
        accelerator.wait_for_everyone()

    seconds = interleaved({"one": one, "all": all_of_them}, rounds, time.perf_counter)
    queries = sum(map(len, found["all"]))
    return {
        "processes": accelerator.num_processes,
        "queries": queries,
        "equal": found.get("one", found["all"]) == found["all"],
        "queries_per_second": {name: queries / value for name, value in seconds.items()},
        "all_over_one": seconds["one"] / seconds["all"],
    }


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="default")
    parser.add_argument("--updates", type=int, default=200, help="of the generator")
    parser.add_argument("--documents", type=int, default=336)
    parser.add_argument("--count", type=int, default=10, help="queries per document")
    parser.add_argument("--batch", type=int, default=32, help="documents per call of generate")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator, texts = material(options.documents, options.updates, options.shape)
    on_gpu = torch.cuda.is_available()
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if on_gpu else processor(),
        "torch": torch.__version__,
        **{key: getattr(options, key) for key in ("shape", "updates", "count", "batch", "threads")},
        "documents": len(texts),
    }
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        result |= across_ranks(generator, texts, options.count, options.rounds)
        if int(os.environ["RANK"]) == 0:
            print(", ".join(f"{key} {value}" for key, value in result.items()))
            keep(result, options.json)
        return
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    result["contestants"] = compare(generator, texts, options.count, options.batch, options.rounds)
    for name, values in result["contestants"].items():
        print(
            f"{name:9s} {values['queries_per_second']:8.1f} queries/s, ours "
            f"{values['ours_over_it']:5.2f}x; {values['queries']} queries of "
            f"{values['words_per_query']:.1f} words",
            flush=True,
        )
    keep(result, options.json)


if __name__ == "__main__":
    main()
