"""Generative memory: pseudo-queries stand in for the queries that later corpora lack."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from annotated_types import Ge

from continual.replay._base import Replay
from continual.stream.stream import Stream
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
from dsi.text.tokens import (
    LONGEST_QUERY,
    Tokens,
    load_tokenizer,
    tokenize,
    tokenizer_fingerprint,
)

Queries: TypeAlias = tuple[Tokens, np.ndarray]
"""Texts, and the number of the document that each asks for."""


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
        """Keep a pseudo-query only if BM25 ranks its document this high (10: in the first ten); 0
        keeps all."""
        lexical: LexicalQueries.Config = LexicalQueries.Config()
        """Lengths and kinds of lexical queries."""
        generator: GeneratorConfig = GeneratorConfig()
        """The learned generator and its training."""
        sampling: DecodingConfig = DecodingConfig()
        """How the learned generator draws words."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.generator.resolved()  # a wrong setting is refused now, not after hours

    def __init__(self, config: Config):
        super().__init__(config)
        self.ratio = config.ratio
        self._memory: dict[int, dict[str, Queries]] = {}

    def begin_stage(self, view: StageView) -> None:
        """Write the pseudo-queries of the documents to rehearse that have none yet.

        What was written for the documents that are new or changed in a stage is in its
        stages/NN/pseudo_queries.jsonl of the run directory: that file is the memory, and a resumed
        run reads it. Lines of documents that were removed or replaced later are ignored.
        """
        for stage, documents in self._rehearsed(view):
            path = _file(view, stage)
            # asked of the main process, whose view of the folder is the newest
            if share(view.accelerator, not path.exists()):
                self._write(view, stage, documents, path)
            view.wait()
            # logged by the stage that writes, also when a run goes on after that stage was cut off
            for writer, values in read_json(path.with_name("memory_quality.json")).items():
                if values["stage"] == view.stage:
                    shown = {k: v for k, v in values.items() if isinstance(v, int | float)}
                    view.log({"memory": writer, "corpus": f"D{stage}", **shown})

    def pools(self, view: StageView) -> list[QueryPool]:
        """The pseudo-queries of the stage, and D_0's own where they are stored."""
        config, n = self.config, view.stage
        pools: list[QueryPool] = []
        memory = self._memory_of(view)
        for writer in self._writers():
            parts = [part[writer] for part in memory if writer in part]
            if sum(len(numbers) for _, numbers in parts):
                tokens = Tokens.concatenate([part[0] for part in parts])
                documents = np.concatenate([part[1] for part in parts])
                each = self._weight(n) / len(self._writers())
                pools.append(QueryPool(writer, tokens, documents, each, by_document=True))
        if n > 0 and config.stored_queries > 0:
            stored = true_queries(view.stream, config.stored_queries, n)
            pools += [stored] if stored else []
        return pools

    def _weight(self, stage: int) -> float:
        """Weight of all pseudo-queries together."""
        return self.config.first_stage if stage == 0 else 1.0 - self.config.stored_queries

    def _rehearsed(self, view: StageView) -> list[tuple[int, np.ndarray]]:
        """The documents whose pseudo-queries a stage rehearses, by the stage of their texts."""
        stream, n = view.stream, view.stage
        is_rehearsed = n == 0 or self.config.ratio != float("inf")
        if not is_rehearsed or self._weight(n) <= 0:
            return []
        documents = view.documents
        if self.config.documents != "seen":
            chosen = stream.added(0) if self.config.documents == "initial" else stream.changed(n)
            documents = np.intersect1d(documents, chosen)
        since = stream.text_stages(documents, n)
        return [(stage, documents[since == stage]) for stage in np.unique(since).tolist()]

    def _writers(self) -> list[str]:
        return ["lexical", "learned"] if self.config.memory == "both" else [self.config.memory]

    def _memory_of(self, view: StageView) -> list[dict[str, Queries]]:
        """What was written for the documents to rehearse, stage by stage of their texts."""
        found = []
        for stage, documents in self._rehearsed(view):
            if stage not in self._memory:
                self._memory[stage] = self._read(view, stage)
            memory = self._memory[stage].items()
            found.append({writer: _among(queries, documents) for writer, queries in memory})
        return found

    def _read(self, view: StageView, stage: int) -> dict[str, Queries]:
        path = _file(view, stage)
        memory = {}
        for writer in self._writers():
            numbers, texts = [], []
            for number, queries in _read(path, writer, stage, view.stream.offsets):
                numbers += [number] * len(queries)
                texts += queries
            if texts:
                tokens = tokenize(view.tokenizer, texts).heads(LONGEST_QUERY)
                memory[writer] = (tokens, np.asarray(numbers, np.int64))
        return memory

    def _write(self, view: StageView, stage: int, documents: np.ndarray, path: Path) -> None:
        config, stream = self.config, view.stream
        texts = list(stream.texts_at(documents, stage))
        places = _places(stream, stage, documents)
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
            for place, own in zip(places, queries, strict=True):
                line = {**place, "writer": writer, "queries": own}
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
        source = self.config.generator.source
        return view.tokenizer if source == "scratch" else load_tokenizer(source)


def _file(view: StageView, stage: int) -> Path:
    return view.run_folder / "stages" / f"{stage:02d}" / "pseudo_queries.jsonl"


def _places(stream: Stream, stage: int, documents: np.ndarray) -> list[dict[str, Any]]:
    """How the file of a stage names documents: id and number in D_stage, or in the corpus named."""
    places: list[dict[str, Any]] = []
    rows = (stream.ids_of(documents), documents.tolist(), stream.corpus_of(documents).tolist())
    for document, number, corpus in zip(*rows, strict=True):
        place = {"document": document, "number": number - stream.range(corpus)[0]}
        places.append(place if corpus == stage else {**place, "corpus": f"D{corpus}"})
    return places


def _among(queries: Queries, documents: np.ndarray) -> Queries:
    """The queries for some documents; the same arrays where these are all there are."""
    tokens, numbers = queries
    kept = np.isin(numbers, documents)
    return queries if kept.all() else (tokens.take(np.flatnonzero(kept)), numbers[kept])


def _filtered(queries: list[list[str]], texts: list[str], k: int) -> list[list[str]]:
    flat = [(query, number) for number, own in enumerate(queries) for query in own]
    ranks = bm25_ranks([q for q, _ in flat], np.asarray([d for _, d in flat]), texts, k)
    kept: list[list[str]] = [[] for _ in queries]
    for (query, number), rank in zip(flat, ranks, strict=True):
        if 1 <= rank <= k:
            kept[number].append(query)
    # a document without any query left would never be rehearsed: it keeps its own
    return [own or before for own, before in zip(kept, queries, strict=True)]


def _read(
    path: Path, writer: str, stage: int, offsets: np.ndarray
) -> Iterator[tuple[int, list[str]]]:
    """Document numbers and what a writer wrote for them."""
    with as_written(path), open(path, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["writer"] == writer:
                corpus = int(entry.get("corpus", f"D{stage}")[1:])
                yield int(offsets[corpus]) + entry["number"], entry["queries"]
