"""The index of a finished stage: stages/NN holds all that a search needs but the texts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from continual.config.schema import RunConfig
from continual.run import directory
from continual.stream.stream import Stream
from dsi import index_folder
from dsi.corpus.corpus import Corpus
from dsi.corpus.ids import take
from dsi.docids import codes_to_text
from dsi.errors import UserError
from dsi.files import read_json, replace_atomically, write_json
from dsi.model.dsi_model import DSIModel
from dsi.search.trie import Trie


def write_index(
    folder: Path,
    stage: int,
    config: RunConfig,
    stream: Stream,
    model: DSIModel,
    codes_NT: np.ndarray,
    trie: Trie | None,
) -> None:
    """Write the index of a stage (see :mod:`dsi.index_folder`), and name it as that of the run.

    ``codes_NT``: by document number; an index has the documents that are there in the stage.
    index.json comes last: until then there is no index.
    """
    target = directory.stage_folder(folder, stage)
    save_tokenizer: Any = stream.tokenizer.save_pretrained
    replace_atomically(target / "model", model.save_pretrained)
    replace_atomically(target / "tokenizer", save_tokenizer)
    members = stream.members(stage)
    if trie is not None:
        # its documents are the lines of docids.tsv
        own = trie if stream.is_whole(stage) else Trie.build(codes_NT[members], version=stage)
        own.save(target / "trie")
    ids = stream.ids_of(members)
    names = [f"D{n}" for n in stream.corpus_of(members).tolist()]
    docids = codes_to_text(codes_NT[members])
    index_folder.write_documents(target / "docids.tsv", ids, docids, names)
    # one entry per source: the stream's own, and each corpus that was added up to this stage
    seen = {id(part.corpus) for part in stream.parts[: stage + 1]}
    corpora = [corpus for corpus in stream.corpora if id(corpus) in seen]
    settings = index_folder.IndexSettings(
        corpora=text_sources(config, _added(folder))[: len(corpora)],
        part_hashes=[dict(corpus.part_hashes) for corpus in corpora],
        deduplicate=config.data.deduplicate,
        docids=config.docids.name,
        documents=len(ids),
        beams=config.evaluation.beams,
        length_penalty=config.evaluation.length_penalty,
        title=config.data.title,
        lowercase=config.data.lowercase,
        prompt=config.prompts.retrieval,
        new_texts=_new_texts(stream, stage, corpora),
    )
    write_json(target / "index.json", settings.to_json())
    named = {"schema": index_folder.SCHEMA, "index": target.relative_to(folder).as_posix()}
    directory.replace(folder, "index.json", named)


def text_sources(config: RunConfig, added: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Where the texts of a run's corpora are; UserError for a path that cannot be noted."""
    corpus = config.data.corpus
    if isinstance(corpus, str):
        corpus = absolute(corpus)
    else:
        corpus = {key: absolute(value) for key, value in corpus.items()}
    return [corpus, *(entry["corpus"] for entry in added if "corpus" in entry)]


def _new_texts(stream: Stream, stage: int, corpora: list[Corpus]) -> dict[str, list[Any]]:
    """Where the texts of replaced documents are: see :class:`dsi.index_folder.IndexSettings`."""
    found = {}
    for part in stream.parts[: stage + 1]:
        place = next(n for n, corpus in enumerate(corpora) if corpus is part.corpus)
        rows = take(part.corpus.documents.select(["id"]), part.texts)["id"].to_pylist()
        pairs = zip(stream.ids_of(part.replaced), rows, strict=True)
        found |= {document: [place, row] for document, row in pairs}
    gone = set(stream.ids_of(np.flatnonzero(~stream.present(stage))))
    return {document: place for document, place in found.items() if document not in gone}


def absolute(value: Any) -> Any:
    """A path that exists as an absolute one, so that a run can be searched from anywhere."""
    if not isinstance(value, str) or not os.path.exists(value):
        return value
    path = str(Path(value).resolve())
    if any("\udc80" <= character <= "\udcff" for character in path):
        raise UserError(f"{path}: the path is not UTF-8, and the run has to note it; rename it")
    return path


def _added(folder: Path) -> list[Mapping[str, Any]]:
    path = folder / "added.json"
    return read_json(path, list) if path.exists() else []
