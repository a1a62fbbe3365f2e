"""QueryGenerator: a T5 that writes queries a user might ask a document (the generative memory).

DSI++ (Mehta et al. 2023) trains it on D_0's (document, query) pairs only, then samples pseudo-
queries for every document seen: for old ones they replace stored queries, for new ones labels.
docT5query (Nogueira & Lin 2019) and DSI-QG (Zhuang et al. 2022) are the same model.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import (
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)

from dsi.errors import UserError
from dsi.files import as_written, replace_atomically
from dsi.queries.batches import PairBatch, copy_batches, pair_batches
from dsi.queries.copy_bias import Copying, idf
from dsi.queries.generator_model import GeneratorConfig, pretrained, scratch
from dsi.queries.sampling import DecodingConfig, sample_tokens
from dsi.seeding import derive, numpy_rng
from dsi.text.tokens import Tokens, load_tokenizer, padded_tensors, tokenize, tokenizer_fingerprint

BLOCK = 16  # documents are padded to multiples of this: a document's shape is its own
MOST_ROWS = (2048, 16_384)  # samples of one batch, on a processor and on a GPU
CACHE_BYTES = (2**28, 2**32)  # of their self-attention
ROUNDS = 3  # a document that repeats itself is asked again, at most so often
SENTINEL = re.compile(r"extra_id_\d+")
IDF = "document_frequency.safetensors"
WEIGHT_DECAY = 0.01


class QueryGenerator:
    """document -> queries. Make one with :meth:`train` or :meth:`load`."""

    def __init__(
        self,
        model: T5ForConditionalGeneration | MT5ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        config: GeneratorConfig,
        sampling: DecodingConfig | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config.resolved()
        self.sampling = sampling or DecodingConfig()
        self._fingerprint: str | None = None
        self.idf = torch.zeros(model.get_input_embeddings().weight.shape[0])
        vocabulary = model.get_input_embeddings().weight.shape[0]
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        if not isinstance(pad, int) or not isinstance(end, int):
            raise UserError("generator: the tokenizer needs a padding and an end-of-text token")
        if len(tokenizer) > vocabulary:
            raise UserError(
                f"generator: the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}; "
                f"use the tokenizer of {config.source!r}"
            )
        self.pad, self.end = pad, end
        start = getattr(model.config, "decoder_start_token_id", None)
        self.start = self.pad if start is None else int(start)
        self.forbidden = torch.zeros(vocabulary, dtype=torch.bool)
        self.forbidden[len(tokenizer) :] = True  # rows that only round up the table's size
        self.forbidden[list(tokenizer.all_special_ids)] = True
        sentinels = [i for token, i in tokenizer.get_vocab().items() if SENTINEL.search(token)]
        self.forbidden[sentinels] = True
        self.forbidden[self.end] = False

    @classmethod
    def train(
        cls,
        texts: Sequence[str],
        queries: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        config: GeneratorConfig | None = None,
        seed: int = 0,
        progress: bool = False,
        *,
        sampling: DecodingConfig | None = None,
        device: str | torch.device | None = None,
    ) -> "QueryGenerator":
        """Learns from pairs: ``queries[i]`` asks for ``texts[i]``; texts may repeat.

        Same arguments, same weights (CPU). Loss: cross entropy per query token. Queries longer
        than ``query_length`` tokens are cut. The global random state is left as it was.
        """
        config = (config or GeneratorConfig()).resolved()
        if len(texts) != len(queries) or not texts:
            raise ValueError(f"{len(texts)} texts and {len(queries)} queries: need pairs")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "query-generator", "weights"))
            model = (
                scratch(config, tokenizer)
                if config.source == "scratch"
                else pretrained(config.source, dropout_rate=config.dropout)
            )
            generator = cls(model.to(device), tokenizer, config, sampling)  # type: ignore[arg-type]
            torch.manual_seed(derive(seed, "query-generator", "dropout"))
            generator._fit(texts, queries, seed, progress)
        return generator

    def generate(
        self,
        texts: Sequence[str],
        keys: Sequence[str],
        count: int,
        seed: int,
        *,
        accelerator: Any = None,
        progress: bool = False,
        rows: int | None = None,
    ) -> list[list[str]]:
        """Up to ``count`` different queries per document (one if greedy).

        ``keys`` (content hashes) name the documents: a document's random numbers come from
        (seed, key) and its padded length from itself, so its queries do not depend on its batch;
        what remains is float32 rounding in matrix products of another batch size, which could
        change about one draw in a million. Repeats are asked again, a bounded number of times, so
        short documents may have fewer queries. ``rows`` samples are written at a time, by default
        as many as there is room for.
        With ``accelerator`` the batches are shared among its processes; all return everything.
        """
        if len(texts) != len(keys):
            raise ValueError(f"{len(texts)} texts and {len(keys)} keys")
        count = 1 if self.sampling.greedy else count
        if count < 1:
            return [[] for _ in texts]
        sources = self._ids(texts, self.config.document_length)
        found: list[dict[str, None]] = [{} for _ in texts]  # a dict keeps order and drops repeats
        short = np.arange(len(texts))
        for turn in range(1 if self.sampling.greedy else ROUNDS):
            padded = np.array([-len(sources[i]) // BLOCK for i in short])
            short = short[np.argsort(padded, kind="stable")]
            rank, world = _place(accelerator)
            share = -(-len(short) // world)
            per_batch = max(1, min((rows or self._room()) // count, share))
            batches = [short[i : i + per_batch] for i in range(0, len(short), per_batch)]
            mine = batches[rank::world]
            written: list[tuple[int, list[str]]] = []
            with tqdm(
                total=count * sum(map(len, mine)),
                desc="pseudo-queries",
                unit="query",
                disable=not progress or rank > 0,
            ) as bar:
                for batch in mine:
                    made = self._write(sources, keys, batch, count, seed, turn)
                    written += zip(batch.tolist(), made, strict=True)
                    bar.update(count * len(batch))
            for i, queries in sorted(gather_objects(accelerator, written)):
                found[i].update(dict.fromkeys(queries))
            short = np.array([i for i in range(len(texts)) if len(found[i]) < count], dtype=int)
            if len(short) == 0:
                break
        return [list(queries)[:count] for queries in found]

    def fingerprint(self) -> str:
        """sha256 over weights, configuration and tokenizer: what the cache is keyed by."""
        if self._fingerprint is None:
            digest = hashlib.sha256(tokenizer_fingerprint(self.tokenizer).encode())
            digest.update(json.dumps(asdict(self.config), sort_keys=True).encode())
            model = self.model.config.to_dict()
            scale = getattr(self.model.config, "scale_decoder_outputs", False)
            parts = ("model_type", "feed_forward_proj", "layer_norm_epsilon", "num_heads")
            digest.update(json.dumps([scale, *(model.get(p) for p in parts)]).encode())
            for name, tensor in sorted({"idf": self.idf, **self.model.state_dict()}.items()):
                array = tensor.detach().cpu().contiguous()
                digest.update(f"{name}:{tuple(array.shape)}:{array.dtype}".encode())
                digest.update(array.view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def save(self, folder: str | Path) -> None:
        """Writes weights (safetensors), configuration and tokenizer, replacing ``folder``."""

        def write(target: Path) -> None:
            self.model.save_pretrained(target)
            self.tokenizer.save_pretrained(target)
            save_file({"idf": self.idf}, target / IDF)
            state = {"config": asdict(self.config), "sampling": asdict(self.sampling)}
            (target / "generator.json").write_text(json.dumps(state, indent=1) + "\n")

        replace_atomically(Path(folder), write)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None) -> "QueryGenerator":
        """Reads what :meth:`save` wrote; same fingerprint."""
        folder = Path(folder)
        try:
            state = json.loads((folder / "generator.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / 'generator.json'}: not a saved query generator ({error}); "
                "give a folder written by QueryGenerator.save"
            ) from error
        with as_written(folder / "generator.json"):
            config = GeneratorConfig(**state["config"])
            sampling = DecodingConfig(**state["sampling"])
        # the sizes were resolved when it was trained; they are in the model's own config.json
        model = pretrained(str(folder), use_safetensors=True, dropout_rate=config.dropout)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = load_tokenizer(folder)
        generator = cls(model.to(device), tokenizer, config, sampling)  # type: ignore[arg-type]
        try:
            generator.idf = load_file(folder / IDF)["idf"]
        except Exception as error:  # of safetensors
            what = f"cannot be read ({type(error).__name__}: {error})"
            raise UserError(f"{folder / IDF}: {what}; restore the file") from error
        return generator

    def _room(self) -> int:
        """Samples written at once: many, since the last steps of a batch have few rows left."""
        model, on_gpu = self.model.config, self.model.device.type == "cuda"
        # keys and values of the self-attention, float32
        layers = cast(int, model.num_decoder_layers)
        per_row = 8 * layers * model.num_heads * model.d_kv
        per_row *= self.config.query_length
        return max(1, min(MOST_ROWS[on_gpu], CACHE_BYTES[on_gpu] // per_row))

    def _ids(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Token ids of every text, cut to ``length`` with the end token."""
        tokens = tokenize(self.tokenizer, texts)
        return [np.append(tokens[i][: length - 1], self.end) for i in range(len(tokens))]

    def _write(
        self,
        sources: list[np.ndarray],
        keys: Sequence[str],
        batch: np.ndarray,
        count: int,
        seed: int,
        turn: int,
    ) -> list[list[str]]:
        """``count`` samples, repeats included, for each document of a batch."""
        device, rows = self.model.device, [int(i) for i in batch]
        input_DL, mask_DL = _pad([sources[i] for i in rows], self.pad, device, BLOCK)
        shape = (count, self.config.query_length)
        uniform_DST = torch.from_numpy(
            np.stack([numpy_rng(seed, "pseudo-queries", keys[i], turn).random(shape) for i in rows])
        )
        ids = sample_tokens(
            self.model,
            input_DL,
            mask_DL,
            uniform_DST,
            self.sampling,
            forbidden_V=self.forbidden.to(device),
            start=self.start,
            end=self.end,
            copying=self._copying(input_DL),
        )
        flat = [row for samples in ids for row in samples]
        decoded = self.tokenizer.batch_decode(
            flat, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text = [" ".join(query.split()) for query in decoded]
        return [[q for q in text[i : i + count] if q] for i in range(0, len(text), count)]

    def _copying(self, input_DL: torch.Tensor) -> Copying | None:
        present, follow = self.config.copy_bias, self.config.follow_bias
        if not present and not follow:
            return None
        return Copying(input_DL, self.idf, present or 0.0, follow or 0.0, self.end, self.pad)

    def _loss(self, batch: PairBatch) -> torch.Tensor:
        """Mean cross entropy over the query tokens of a batch."""
        model, device = self.model, self.model.device
        input_DL, mask_DL = _pad(batch.sources, self.pad, device)
        target_PT, valid_PT = _pad(batch.targets, self.pad, device)
        owner_P = torch.from_numpy(batch.owner).to(device)
        shifted_PT = torch.full_like(target_PT, self.start)
        shifted_PT[:, 1:] = target_PT[:, :-1]
        autocast = (
            torch.autocast(device.type, torch.bfloat16) if self.config.bf16 else nullcontext()
        )
        with autocast:
            states_DLC = model.encoder(input_ids=input_DL, attention_mask=mask_DL).last_hidden_state
            hidden_PTC = model.decoder(
                input_ids=shifted_PT,
                encoder_hidden_states=states_DLC[owner_P],
                encoder_attention_mask=mask_DL[owner_P],
                use_cache=False,
            ).last_hidden_state
            # only real tokens reach the vocabulary-wide product, the dearest of a small model
            pair_M, step_M = valid_PT.nonzero(as_tuple=True)
            hidden_MC = hidden_PTC[pair_M, step_M]
            if getattr(model.config, "scale_decoder_outputs", False):
                hidden_MC = hidden_MC * model.config.d_model**-0.5
            logits_MV = model.lm_head(hidden_MC)
        logits_MV = logits_MV.float()
        if (copying := self._copying(input_DL)) is not None:
            copying.add(logits_MV, owner_P[pair_M], shifted_PT[pair_M, step_M])
        return torch.nn.functional.cross_entropy(logits_MV, target_PT[pair_M, step_M])

    def _fit(self, texts: Sequence[str], queries: Sequence[str], seed: int, progress: bool) -> None:
        config, model = self.config, self.model
        assert config.learning_rate is not None
        rows: dict[str, int] = {}
        document_P = np.array([rows.setdefault(text, len(rows)) for text in texts])
        sources = self._ids(list(rows), config.document_length)
        targets = self._ids(queries, config.query_length)
        self.idf = idf(sources, len(self.forbidden))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY
        )
        total = config.copy_updates + config.updates
        bar = tqdm(
            chain(
                islice(
                    copy_batches(sources, config.batch_size, config.query_length, seed),
                    config.copy_updates,
                ),
                islice(
                    pair_batches(sources, targets, document_P, config.batch_size, seed),
                    config.updates,
                ),
            ),
            total=total,
            desc="query generator",
            disable=not progress,
        )
        model.train(bool(config.dropout))  # on CPUs a dropout of 0 costs time in training mode
        for update, batch in enumerate(bar):
            rise, fall = (update + 1) / max(config.warmup, 1), (total - update) / total
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(rise, fall)
            loss = self._loss(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if progress and update % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
        model.eval()


def gather_objects(accelerator: Any, items: list) -> list:
    """The items of all processes, on all of them; without an accelerator the items."""
    if accelerator is None or accelerator.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)


def share(accelerator: Any, item: Any) -> Any:
    """The main process's item, on all processes; without an accelerator the item."""
    if accelerator is None or accelerator.num_processes == 1:
        return item
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([item], from_process=0)[0]


def _place(accelerator: Any) -> tuple[int, int]:
    if accelerator is None:
        return 0, 1
    return accelerator.process_index, accelerator.num_processes


def _pad(
    ids: Sequence[np.ndarray], pad: int, device: torch.device, block: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (N, L) and mask (N, L), int64; L is rounded up to a multiple of ``block``."""
    tokens = Tokens.of_lengths(np.concatenate(ids), np.array([len(one) for one in ids]))
    return padded_tensors(tokens, np.arange(len(ids)), pad, device, block)
