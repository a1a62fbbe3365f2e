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

    ``codes_NT``: of the documents of U_stage. index.json comes last: until then there is no index.
    """
    target = directory.stage_folder(folder, stage)
    save_tokenizer: Any = stream.tokenizer.save_pretrained
    replace_atomically(target / "model", model.save_pretrained)
    replace_atomically(target / "tokenizer", save_tokenizer)
    if trie is not None:
        trie.save(target / "trie")
    ids = stream.document_ids(0, stream.count(stage))
    names = [f"D{n}" for n in stream.corpus_of(np.arange(len(ids))).tolist()]
    index_folder.write_documents(target / "docids.tsv", ids, codes_to_text(codes_NT), names)
    # one entry per source: the stream's own, and each corpus that was added up to this stage
    seen = {id(part.corpus) for part in stream.parts[: stage + 1]}
    corpora = [corpus for corpus in stream.corpora if id(corpus) in seen]
    settings = index_folder.Settings(
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
    return [corpus, *(entry["corpus"] for entry in added)]


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
