"""The docids of a run: made and written once per corpus, by the first process; then only read."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from safetensors.numpy import load_file, save

from continual.config.schema import RunConfig
from continual.run import directory
from continual.stream.stream import Stream
from dsi.docid_report import docid_report
from dsi.docids import NewDocuments, Scheme
from dsi.embeddings import Embedder, SentenceEmbedder, TfidfEmbedder, load_embedder
from dsi.errors import UserError
from dsi.files import write_bytes, write_json
from dsi.manifest import forget, record, verify
from dsi.seeding import derive


class Assignment:
    """A docid scheme over the stream, and the files that hold what it has assigned.

    The first of the ``accelerator``'s processes assigns and writes, the others wait for its files.
    """

    def __init__(self, config: RunConfig, stream: Stream, folder: Path, accelerator: Accelerator):
        self.config, self.stream, self.folder = config, stream, folder
        self.accelerator = accelerator
        self.scheme = config.docids.build()
        self.corpora = 0
        """How many corpora have their docids."""
        self._embedder: Embedder | None = None

    @property
    def warmup(self) -> int:
        """Updates of stage 0 with atomic docids before the model's own encoder embeds D_0."""
        embedding = getattr(self.config.docids.settings, "embedding", None)
        return embedding.updates if embedding and embedding.source == "model" else 0

    def extend(self, stage: int, embedder: Embedder | None = None) -> None:
        """Docids for the corpora up to D_stage that have none; ``embedder``: of D_0, once."""
        self._embedder = embedder or self._embedder
        for corpus in range(self.corpora, stage + 1):
            if self.accelerator.is_main_process:
                state_name = f"docids/{self._state_path(corpus).name}"
                forget(self.folder, f"docids/D{corpus}.tsv", state_name, "docids/report.json")
                documents = self._documents(corpus)
                if documents.count:  # a stage may only remove and replace
                    self.scheme.extend(documents)
                directory.write_docids(self.folder, self.stream, corpus, self.scheme)
                state = {k: np.ascontiguousarray(v) for k, v in self.scheme.state_dict().items()}
                if state:
                    write_bytes(self._state_path(corpus), save(state))
                self._report(corpus)
                record(self.folder, "docids")
            self.accelerator.wait_for_everyone()
            if not self.accelerator.is_main_process:
                self.read(corpus + 1)
            self.corpora = corpus + 1

    def clear(self) -> None:
        """Forget all docids: no corpus has any."""
        self.scheme, self._embedder, self.corpora = self.config.docids.build(), None, 0

    def read(self, corpora: int) -> None:
        """Take over what was written for the first ``corpora`` corpora."""
        directory.restore_docids(self.folder, self.stream, corpora, self.scheme)
        self.corpora = corpora
        path = self._state_path(corpora - 1)
        verify(self.folder, f"docids/{path.name}")
        if not path.exists():
            if type(self.scheme).state_dict is not Scheme.state_dict:
                raise UserError(f"{path}: missing; restore the file")
            return
        try:
            state = load_file(path)
            if not state:
                raise ValueError("no arrays")
            self.scheme.load_state_dict(state)
        except Exception as error:  # of safetensors, or of arrays that do not fit
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{path}: cannot be read ({what}); restore the file") from error

    def codes(self, stage: int) -> np.ndarray:
        """Codes (N, T) of all documents that have arrived by a stage; see :func:`codes_at`."""
        if not self.corpora:  # atomic ones, as long as D_0 has no docids
            return np.arange(self.stream.count(stage), dtype=np.int32)[:, None]
        return codes_at(self.scheme, self.stream, stage)

    def code_sizes(self, stage: int) -> list[int]:
        """Codes per position that the model of a stage knows: atomic ones are as many as there are
        documents, the others only grow."""
        if self.scheme.atomic:
            return [len(self.stream.members(stage))]
        return self.scheme.code_sizes

    def kept_rows(self, stage: int) -> np.ndarray | None:
        """The rows of an atomic head of the stage before that stay, int64; None: all of them do."""
        removed = self.stream.removed(stage)
        if not (self.scheme.atomic and len(removed)):
            return None
        return np.flatnonzero(~np.isin(self.stream.members(stage - 1), removed))

    def check(self, corpora: int) -> None:
        """Read all that the docids of a next corpus depend on; UserError when it is broken."""
        self.read(corpora)
        if (self.folder / "docids" / "embedder").exists():
            self._embedder = self._load_embedder()

    def _load_embedder(self) -> Embedder:
        verify(self.folder, "docids/embedder")
        return load_embedder(self.folder / "docids" / "embedder")

    def _state_path(self, corpus: int) -> Path:
        return self.folder / "docids" / f"D{corpus}.safetensors"

    def _documents(self, corpus: int) -> NewDocuments:
        stream = self.stream
        start, stop = stream.range(corpus)

        def titles() -> list[str]:
            found = stream.titles(start, stop)
            return [title.lower() for title in found] if stream.lowercase else found

        def embeddings() -> np.ndarray:
            return self._embed(start, stop)

        return NewDocuments(
            stop - start,
            titles,
            lambda: stream.texts(start, stop),
            embeddings,
            stream.tokenizer,
            derive(self.config.seed, "docids"),
        )

    def _embed(self, start: int, stop: int) -> np.ndarray:
        """Vectors of documents, by the embedder that D_0 had."""
        folder = self.folder / "docids" / "embedder"
        if self._embedder is None and folder.exists():
            self._embedder = self._load_embedder()
        elif self._embedder is None:
            settings = self.config.docids.settings.embedding
            if settings.source == "tfidf":
                texts = self.stream.texts(0, self.stream.count(0))
                seed = derive(self.config.seed, "embedding")
                self._embedder = TfidfEmbedder.fit(texts, settings.dimensions, seed)
            else:
                assert settings.source == "sentence-transformers"
                self._embedder = SentenceEmbedder(settings.name)
        assert self._embedder is not None
        if not folder.exists():
            forget(self.folder, "docids/embedder")
            self._embedder.save(folder)
        return self._embedder.embed(self.stream.texts(start, stop))

    def _report(self, corpus: int) -> None:
        report = docid_report(
            self.scheme.codes_NT,
            self.stream.offsets[: corpus + 2],
            suffix=self.scheme.suffix,
        )
        write_json(self.folder / "docids" / "report.json", report)


def codes_at(scheme: Scheme, stream: Stream, stage: int) -> np.ndarray:
    """Codes int32 (N, T) of the N documents that have arrived by a stage, by number.

    A removed document's row is all -1. An atomic code is a document's place among those that are
    there: 0 .. M-1. Where nothing has been removed, these are the scheme's own codes, no copy.
    """
    codes_NT = scheme.codes_NT[: stream.count(stage)]
    if stream.is_whole(stage):
        return codes_NT
    present = stream.present(stage)
    if scheme.atomic:
        return np.where(present, np.cumsum(present) - 1, -1).astype(np.int32)[:, None]
    return np.where(present[:, None], codes_NT, -1)
