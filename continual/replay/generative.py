"""Generative memory: pseudo-queries stand in for the queries that later corpora lack."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from continual.replay._base import Replay
from continual.stream.view import QueryPool, StageView, true_queries
from dsi.errors import UserError
from dsi.files import (
    as_written,
    cache_folder,
    read_json,
    replace_atomically,
    write_json,
    write_text,
)
from dsi.manifest import folder_checksum, text_hash
from dsi.queries.cache import cached_generate
from dsi.queries.generator import GeneratorConfig, QueryGenerator, share
from dsi.queries.lexical import LexicalQueries
from dsi.queries.quality import bm25_ranks, measure
from dsi.queries.sampling import DecodingConfig
from dsi.seeding import derive
from dsi.settings import Count, Settings, Share
from dsi.text.tokens import LONGEST_QUERY, Tokens, tokenize, tokenizer_fingerprint


class GenerativeReplay(Replay):
    """Pseudo-queries of documents enter later stages at ``ratio``.

    Source: DSI++ section 4, genmem: a generator that learnt document -> query on D_0 rehearses old
    documents and teaches retrieval of new ones. ``lexical`` writes queries without learning, spans
    and salient terms of the document itself.

    Relations: with ``ratio: .inf`` and ``first_stage: 0`` this is no replay, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        memory: Literal["lexical", "learned", "both"] = "lexical"
        """Who writes the pseudo-queries; both: half from each."""
        documents: Literal["initial", "new", "seen"] = "seen"
        """genmem(D_0), genmem(D_n) or genmem(U_n)."""
        ratio: Annotated[float, Ge(0)] = 1.0
        """Indexing examples per replayed query (DSI++'s r: 32 sparse, 2 dense); .inf: no replay."""
        queries_per_document: Count = 20
        """How many different pseudo-queries a document has, of each writer."""
        stored_queries: Share = 0.3
        """Share of the replay that is D_0's own train queries (DSI++: none)."""
        first_stage: Annotated[float, Ge(0)] = 0.5
        """Weight of pseudo-queries in stage 0, where true queries weigh 1 (DSI++: none)."""
        round_trip: Annotated[int, Ge(0)] = 0
        """Keep a pseudo-query only if BM25 returns its document within so many; 0 keeps all."""
        lexical: LexicalQueries.Config = LexicalQueries.Config()
        """Lengths and kinds of lexical queries."""
        generator: GeneratorConfig = GeneratorConfig()
        """The learned generator and its training."""
        sampling: DecodingConfig = DecodingConfig()
        """How the learned generator draws words."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.generator.resolved()  # says now what could not be trained hours later

    def __init__(self, config: Config):
        super().__init__(config)
        self.ratio = config.ratio
        self._memory: dict[int, dict[str, tuple[Tokens, np.ndarray]]] = {}

    def begin_stage(self, view: StageView) -> None:
        """Write the pseudo-queries of the stage's corpora that have none yet.

        What was written for a corpus is in stages/NN/pseudo_queries.jsonl of the run directory:
        that file is the memory, and a resumed run reads it.
        """
        for corpus in self._corpora(view.stage):
            path = _file(view, corpus)
            # asked of the main process, whose view of the folder is the newest
            if share(view.accelerator, not path.exists()):
                self._write(view, corpus, path)
            view.wait()
            # logged by the stage that writes, also when a run goes on after that stage was cut off
            for writer, values in read_json(path.with_name("memory_quality.json")).items():
                if values["stage"] == view.stage:
                    shown = {k: v for k, v in values.items() if isinstance(v, int | float)}
                    view.log({"memory": writer, "corpus": f"D{corpus}", **shown})

    def pools(self, view: StageView) -> list[QueryPool]:
        """The pseudo-queries of the stage, and D_0's own where they are stored."""
        config, n = self.config, view.stage
        pools: list[QueryPool] = []
        corpora = self._corpora(n)
        for corpus in corpora:
            if corpus not in self._memory:
                self._memory[corpus] = self._read(view, corpus)
        for writer in self._writers() if corpora else []:
            parts = [self._memory[c][writer] for c in corpora if writer in self._memory[c]]
            if parts:
                tokens = Tokens.concatenate([part[0] for part in parts])
                documents = np.concatenate([part[1] for part in parts])
                each = self._weight(n) / len(self._writers())
                pools.append(QueryPool(writer, tokens, documents, each, by_document=True))
        if n > 0 and config.stored_queries > 0:
            stored = true_queries(view.stream, config.stored_queries)
            pools += [stored] if stored else []
        return pools

    def _weight(self, stage: int) -> float:
        """Of the pseudo-queries among all pools."""
        return self.config.first_stage if stage == 0 else 1.0 - self.config.stored_queries

    def _corpora(self, stage: int) -> list[int]:
        """Whose pseudo-queries a stage rehearses."""
        is_rehearsed = stage == 0 or self.config.ratio != float("inf")
        if not is_rehearsed or self._weight(stage) <= 0:
            return []
        choice = {"initial": [0], "new": [stage], "seen": list(range(stage + 1))}
        return choice[self.config.documents]

    def _writers(self) -> list[str]:
        return ["lexical", "learned"] if self.config.memory == "both" else [self.config.memory]

    def _read(self, view: StageView, corpus: int) -> dict[str, tuple[Tokens, np.ndarray]]:
        path = _file(view, corpus)
        start = int(view.stream.offsets[corpus])
        memory = {}
        for writer in self._writers():
            numbers, texts = [], []
            for number, queries in _read(path, writer):
                numbers += [start + number] * len(queries)
                texts += queries
            if texts:
                tokens = tokenize(view.tokenizer, texts).heads(LONGEST_QUERY)
                memory[writer] = (tokens, np.asarray(numbers, np.int64))
        return memory

    def _write(self, view: StageView, corpus: int, path: Path) -> None:
        config, stream = self.config, view.stream
        start, stop = int(stream.offsets[corpus]), int(stream.offsets[corpus + 1])
        texts = list(stream.texts(start, stop))
        ids = stream.document_ids(start, stop)
        made = {writer: self._generate(view, writer, texts) for writer in self._writers()}
        if not view.is_main:
            return
        lines, quality = [], {}
        for writer, (queries, speed) in made.items():
            if config.round_trip:
                queries = _filtered(queries, texts, config.round_trip)
            found = measure(queries, texts, seed=view.seed)
            # a dict, so it stays out of metrics.jsonl: equal runs take different times
            quality[writer] = {"stage": view.stage, **found, "generation": speed}
            for number, (document, own) in enumerate(zip(ids, queries, strict=True)):
                line = {"document": document, "number": number, "writer": writer, "queries": own}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        write_json(path.with_name("memory_quality.json"), quality)
        write_text(path, "".join(lines))

    def _generate(
        self, view: StageView, writer: str, texts: list[str]
    ) -> tuple[list[list[str]], dict[str, Any]]:
        """The queries of every text and how fast they were written; the processes share the work
        of the learned writer, and the main one does that of the lexical writer, which is little."""
        learned, speed = writer == "learned", {}
        if not (learned or view.is_main):
            return [], speed
        queries = cached_generate(
            self._learned(view) if learned else self._lexical(view),
            texts,
            self.config.queries_per_document,
            derive(view.seed, "pseudo-queries", writer),
            accelerator=view.accelerator if learned else None,
            progress=view.progress,
            report=speed.update,
        )
        return queries, speed

    def _lexical(self, view: StageView) -> LexicalQueries:
        # document frequencies of D_0 alone: what a stage writes must not depend on later corpora
        return LexicalQueries(self.config.lexical).fit(view.stream.texts(0, view.stream.count(0)))

    def _learned(self, view: StageView) -> QueryGenerator:
        """This run's generator: trained once on D_0 by one process, read by all."""
        own = view.run_folder / "generator"
        if view.is_main and not (own / "generator.json").exists():
            self._train(view).save(own)
        view.wait()
        return QueryGenerator.load(own)

    def _train(self, view: StageView) -> QueryGenerator:
        """The generator of this run, shared by equal runs through the cache."""
        config, stream = self.config, view.stream
        seed = derive(view.seed, "query generator")
        identity = [
            stream.fingerprint(1),
            tokenizer_fingerprint(view.tokenizer),
            f"{stream.title} {stream.lowercase} {seed}",
            asdict(config.generator),
            # a path alone would serve a changed checkpoint from the cache
            folder_checksum(local) if (local := Path(config.generator.source)).is_dir() else None,
            asdict(config.sampling),
        ]
        kept = cache_folder() / "generators" / text_hash(json.dumps(identity, sort_keys=True))
        if (kept / "generator.json").exists():
            return QueryGenerator.load(kept)
        queries, documents = stream.train_pairs(0)
        if not queries:
            raise UserError(
                "replay.memory: the generator learns from D_0's train queries and there are none; "
                "add qrels/train.tsv, or set replay.memory: lexical"
            )
        texts = list(stream.texts(0, stream.count(0)))
        generator = QueryGenerator.train(
            [texts[number] for number in documents],
            queries,
            self._tokenizer(view),
            config.generator,
            seed,
            view.progress,
            sampling=config.sampling,
        )
        replace_atomically(kept, lambda target: generator.save(target))
        return generator

    def _tokenizer(self, view: StageView) -> Any:
        from dsi.text.tokens import load_tokenizer

        source = self.config.generator.source
        return view.tokenizer if source == "scratch" else load_tokenizer(source)


def _file(view: StageView, corpus: int) -> Path:
    return view.run_folder / "stages" / f"{corpus:02d}" / "pseudo_queries.jsonl"


def _filtered(queries: list[list[str]], texts: list[str], k: int) -> list[list[str]]:
    flat = [(query, number) for number, own in enumerate(queries) for query in own]
    ranks = bm25_ranks([q for q, _ in flat], np.asarray([d for _, d in flat]), texts, k)
    kept: list[list[str]] = [[] for _ in queries]
    for (query, number), rank in zip(flat, ranks, strict=True):
        if 1 <= rank <= k:
            kept[number].append(query)
    # a document without any query left would never be rehearsed: it keeps its own
    return [own or before for own, before in zip(kept, queries, strict=True)]


def _read(path: Path, writer: str) -> Iterator[tuple[int, list[str]]]:
    with as_written(path), open(path, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["writer"] == writer:
                yield entry["number"], entry["queries"]
