"""Constrained decoding against transformers' ``generate``: time, share of the parts, memory.

    python -m benchmarks.decoding                        # T5-small shape, 100k docids
    python -m benchmarks.decoding --sizes 1000 10000 100000 1000000 --beams 10 50 --json out.json

All contestants run in one process, one thread, interleaved; a number is the median of the rounds,
in processor time (on a GPU: wall time with synchronisation). Random weights: what is compared is
the work, and that docids and scores agree.

* ``text``: a T5 that writes docids in its 32,128-word vocabulary, ``generate`` with a trie of
  Python dictionaries (GENRE's way): what public code does;
* ``dict``, ``csr``: ``generate`` on the very weights and code vocabulary of ours, with the same
  dictionaries, or with our flat trie as a logits processor;
* ``ours``: ``dsi.search.beam_search.beam_search``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import (
    csr_constraint,
    dict_constraint,
    equivalent_t5,
    generate_docids,
    no_constraint,
    t5_small_text_vocabulary,
)
from benchmarks.options import add_options, keep, processor
from dsi.model.dsi_model import from_scratch
from dsi.search.beam_search import beam_search, rank_rows
from dsi.search.forward import Inference
from dsi.search.trie import Trie

POSITIONS, CODES = 7, 64
SMALL = dict(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_decoder_layers=6, num_heads=8)
BASE = dict(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12)
SHAPES = {"t5-small": SMALL, "t5-base": BASE}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_docids(count: int, seed: int = 0) -> np.ndarray:
    """Distinct docids (N, 7) of 64 codes a position."""
    rng = np.random.default_rng(seed)
    numbers = np.unique(rng.integers(0, CODES**POSITIONS, count + count // 8))
    numbers = rng.permutation(numbers)[:count]
    places = CODES ** np.arange(POSITIONS - 1, -1, -1)
    return (numbers[:, None] // places % CODES).astype(np.int32)


def clock() -> float:
    """Processor seconds of this process; wall seconds where a GPU does the work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(
    contestants: dict[str, Callable[[], Any]], rounds: int, now: Callable[[], float] = clock
) -> dict[str, float]:
    """Median seconds of each, after one call to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            start = now()
            run()
            seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def queries(batch: int, vocabulary: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of questions of 8 to 20 tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (batch, 20), generator=generator)
    lengths = torch.randint(8, 21, (batch,), generator=generator)
    lengths[0] = 20 if batch > 1 else 14
    width = int(lengths.max())
    mask = (torch.arange(width) < lengths[:, None]).long()
    return (ids[:, :width] * mask).to(device), mask.to(device)


def string_docids(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """The table of docids with several codes."""
    rows = []
    model = from_scratch(
        0, vocab_size=32_128, code_sizes=[CODES] * POSITIONS, **SHAPES[options.shape]
    )
    model = model.eval().to(device)
    theirs, offsets = equivalent_t5(model)
    text = t5_small_text_vocabulary(0, **SHAPES[options.shape]).to(device)
    for dtype in options.dtypes:
        kind = DTYPES[dtype]
        inference = Inference(model, kind)
        theirs.to(kind)
        text.to(kind)
        for size in options.sizes:
            codes_NT = random_docids(size)
            trie = Trie.build(codes_NT).to(device)
            dead = int(max(offsets)) + CODES - 1
            as_dict = dict_constraint(codes_NT, offsets, dead)
            as_csr = csr_constraint(codes_NT, offsets, dead)
            if as_csr.processor is not None:
                as_csr.processor.trie = trie  # type: ignore[attr-defined]
            # the same numbers of docids as words of the text vocabulary
            as_text = dict_constraint(codes_NT, [100 + 64 * t for t in range(POSITIONS)], 99)
            for batch in options.batches:
                ids, mask = queries(batch, 32_128, device)
                for beams in options.beams:
                    found = beam_search(inference, trie, ids, mask, beams)
                    same = None
                    if dtype == "fp32" and "dict" in options.against:
                        codes, scores = generate_docids(theirs, ids, mask, beams, as_dict)
                        ours = torch.from_numpy(codes_NT)[found.documents.cpu()].long()
                        same = _agreement(codes.cpu(), scores.cpu(), ours, found.scores.cpu())
                    args = (ids, mask, beams)
                    contestants: dict[str, Callable[[], Any]] = {
                        "ours": lambda i=inference, t=trie, a=args: beam_search(i, t, *a)
                    }
                    for name, (other, constraint) in {
                        "text": (text, as_text),
                        "dict": (theirs, as_dict),
                        "csr": (theirs, as_csr),
                    }.items():
                        if name in options.against:
                            contestants[name] = lambda m=other, c=constraint, a=args: (
                                generate_docids(m, *a, c, with_scores=False)
                            )
                    seconds = interleaved(contestants, options.rounds)
                    row = {
                        "docids": size,
                        "dtype": dtype,
                        "batch": batch,
                        "beams": beams,
                        "ours_ms": 1e3 * seconds["ours"],
                        "queries_per_second": batch / seconds["ours"],
                        **{n: s / seconds["ours"] for n, s in seconds.items() if n != "ours"},
                        "identical": same,
                        "bytes_per_docid": trie.num_bytes / size,
                    }
                    rows.append(row)
                    print(_string_line(row), flush=True)
    return rows


def shares(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Where the time of our search goes, 100k docids, fp32."""
    model = from_scratch(
        0, vocab_size=32_128, code_sizes=[CODES] * POSITIONS, **SHAPES[options.shape]
    )
    inference = Inference(model.eval().to(device))
    trie = Trie.build(random_docids(100_000)).to(device)
    rows = []
    for batch in options.batches:
        for beams in options.beams:
            ids, mask = queries(batch, 32_128, device)
            full, encode, steps, logits = [], [], [], []
            for _ in range(options.rounds + 1):
                start = clock()
                with torch.inference_mode():
                    queried = inference.encode(ids, mask)
                    encoded = clock()
                    past = inference.past(batch, beams, POSITIONS)
                    hidden = inference.step(None, queried, past)
                    past.choose(torch.zeros(batch, beams, dtype=torch.long, device=device))
                    codes = torch.zeros(batch, beams, dtype=torch.long, device=device)
                    for _ in range(POSITIONS - 1):
                        hidden = inference.step(codes, queried, past)
                        past.choose(torch.arange(beams, device=device).expand(batch, beams))
                    stepped = clock()
                    for position in range(POSITIONS):
                        inference.logits(hidden, position).float().log_softmax(-1)
                    scored = clock()
                    beam_search(inference, trie, ids, mask, beams)
                full.append(clock() - scored)
                encode.append(encoded - start)
                steps.append(stepped - encoded)
                logits.append(scored - stepped)
            total = statistics.median(full[1:])
            part = [statistics.median(values[1:]) / total for values in (encode, steps, logits)]
            row = {
                "batch": batch,
                "beams": beams,
                "encoder_and_cross_keys": part[0],
                "decoder_steps": part[1],
                "code_scores": part[2],
                "trie_and_beams": 1 - sum(part),
            }
            rows.append(row)
            print(
                f"share of time, batch {batch:3d}, {beams:3d} beams: encoder {part[0]:.0%}, "
                f"decoder {part[1]:.0%}, code scores {part[2]:.0%}, trie and beams "
                f"{1 - sum(part):.0%}",
                flush=True,
            )
    return rows


def trie_steps(device: str, size: int = 1_000_000, rows: int = 320) -> dict[str, Any]:
    """Building a trie, and finding and reading the children of 320 beams at every depth."""
    codes_NT = random_docids(size)
    builds = []
    for _ in range(3):
        start = clock()
        trie = Trie.build(codes_NT)
        builds.append(clock() - start)
    trie = trie.to(device)
    steps = []
    for depth, width in enumerate(trie.fan_out):
        low, high = trie.depth_starts[depth], trie.depth_starts[depth + 1]
        nodes = torch.randint(low, high, (1 if depth == 0 else rows,), device=device)
        seconds = []
        for _ in range(30):
            start = clock()
            trie.candidates(nodes, width)
            seconds.append(clock() - start)
        steps.append(1e3 * statistics.median(seconds))
    result = {
        "docids": size,
        "build_s": min(builds),
        "bytes_per_docid": trie.num_bytes / size,
        "step_ms": steps,
    }
    print(
        f"trie of {size:,} docids: built in {result['build_s']:.2f} s, "
        f"{result['bytes_per_docid']:.0f} bytes each; a step of {rows} beams, by depth: "
        + ", ".join(f"{ms:.2f}" for ms in steps)
        + " ms",
        flush=True,
    )
    return result


def atomic_docids(options: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """One decoding step and a top-k, against ``generate`` without constraint."""
    rows = []
    for dtype in options.dtypes:
        for size in options.atomic_sizes:
            model = from_scratch(0, vocab_size=32_128, code_sizes=[size], **SHAPES[options.shape])
            model = model.eval().to(device)
            inference = Inference(model, DTYPES[dtype])
            against = size <= options.atomic_limit
            theirs, offsets = equivalent_t5(model) if against else (None, [0])
            if theirs is not None:
                theirs.to(DTYPES[dtype])
            free = no_constraint(np.zeros((1, 1), np.int32), offsets)
            for batch in options.batches:
                ids, mask = queries(batch, 32_128, device)

                def ours(ids=ids, mask=mask, inference=inference):
                    hidden = inference.query_states(ids, mask)
                    return rank_rows(hidden, inference.rows, 10)

                contestants: dict[str, Callable[[], Any]] = {"ours": ours}
                if theirs is not None:
                    contestants["generate"] = lambda m=theirs, i=ids, k=mask, c=free: (
                        generate_docids(m, i, k, 10, c, with_scores=False)
                    )
                seconds = interleaved(contestants, options.rounds)
                row = {
                    "documents": size,
                    "dtype": dtype,
                    "batch": batch,
                    "ours_ms": 1e3 * seconds["ours"],
                    "generate": seconds.get("generate", 0) / seconds["ours"] or None,
                }
                rows.append(row)
                ratio = f"{row['generate']:6.1f}x" if row["generate"] else "not run"
                print(
                    f"atomic {size:9,d} documents, {dtype}, batch {batch:3d}: ours "
                    f"{row['ours_ms']:8.1f} ms, generate with 10 beams {ratio}",
                    flush=True,
                )
    return rows


def _agreement(
    codes_BKT: torch.Tensor, scores_BK: torch.Tensor, ours_BKT: torch.Tensor, mine_BK: torch.Tensor
) -> dict[str, Any]:
    """How far two searches agree. Random weights give scores that differ in the sixth digit, where
    rounding decides the order: such exchanges are counted, with the largest gap they bridge."""
    equal_BK = (codes_BKT == ours_BKT).all(-1)
    gap = 0.0
    for row in (~equal_BK).any(1).nonzero()[:, 0].tolist():
        places = (~equal_BK[row]).nonzero()[:, 0]
        gap = max(gap, float(mine_BK[row, places].max() - mine_BK[row, places].min()))
    return {
        "results": equal_BK.numel(),
        "equal": int(equal_BK.sum()),
        "exchanged": int((~equal_BK).sum()),
        "largest_exchange": gap,
        "largest_score_difference": float((scores_BK - mine_BK).abs().max()),
    }


def _string_line(row: dict[str, Any]) -> str:
    ratios = ", ".join(f"{n} {row[n]:.2f}x" for n in ("text", "dict", "csr") if n in row)
    same = row["identical"]
    agreed = ""
    if same:
        agreed = (
            f"; {same['equal']} of {same['results']} results equal, {same['exchanged']} exchanged "
            f"at scores within {same['largest_exchange']:.0e}, scores within "
            f"{same['largest_score_difference']:.0e}"
        )
    return (
        f"{row['docids']:9,d} docids, {row['dtype']}, batch {row['batch']:3d}, "
        f"{row['beams']:3d} beams: ours {row['ours_ms']:8.1f} ms; {ratios}{agreed}"
    )


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="t5-small")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[10])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--against", nargs="*", default=["text", "dict", "csr"])
    parser.add_argument("--atomic-sizes", type=int, nargs="*", default=[10_000])
    parser.add_argument("--atomic-limit", type=int, default=100_000, help="generate up to here")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "torch": torch.__version__,
        "shape": options.shape,
        "threads": options.threads,
    }
    print(f"{result['machine']}, torch {result['torch']}, {options.shape}, {device}")
    result["trie"] = trie_steps(device)
    result["string"] = string_docids(options, device)
    result["shares"] = shares(options, device)
    result["atomic"] = atomic_docids(options, device)
    keep(result, options.json)


if __name__ == "__main__":
    main()
