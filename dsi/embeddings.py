"""Vectors of documents, from which clustered docids are made.

All embedders give float32 rows of unit length; a text without any known word gives a zero row.
What they learned is saved without pickles: JSON, safetensors and the model's own files.

Shape legend: M texts, D width of a vector, V words of the TF-IDF vocabulary.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerFast

from dsi import hub
from dsi.errors import UserError
from dsi.files import replace_atomically, write_json
from dsi.model.dsi_model import DocidHead, DSIModel, load_model
from dsi.seeding import derive
from dsi.settings import Count, Settings
from dsi.text.tokens import (
    Tokens,
    batches,
    load_tokenizer,
    pad_id,
    padded_tensors,
    slices,
    tokenize,
)

SCHEMA = 1
BATCH = 256  # texts that the model reads at once
WORDS = 200_000  # the most frequent words are kept: 128 components of them are 100 MB
ROUNDING = 1e-5  # a row of length 1 that a projection makes shorter than this is rounding error


@dataclass(frozen=True)
class EmbeddingConfig(Settings):
    """Where the vectors of documents come from."""

    source: Literal["model", "tfidf", "sentence-transformers"] = "tfidf"
    """model: our own encoder after ``updates`` of stage 0 (for pretrained checkpoints: a small
    encoder from random weights knows too little by then, see benchmarks/README.md); tfidf: TF-IDF
    and a truncated SVD; sentence-transformers: a pretrained encoder."""
    dimensions: Count = 128
    """Dimensions of the truncated SVD."""
    name: str | None = None
    """The sentence-transformers model: a name or a local folder."""
    updates: Count = 300
    """With source model: updates of stage 0, on atomic docids, before the encoder embeds D_0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "sentence-transformers" and not self.name:
            raise UserError("name: must be given with source sentence-transformers")
        if self.source != "sentence-transformers" and self.name is not None:
            raise UserError(f"name: must be left out with source {self.source}")


class Embedder(Protocol):
    """Turns texts into vectors, in one space for all calls."""

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """float32 (M, D), unit length or zero."""
        ...

    def save(self, folder: Path) -> None:
        """Replace ``folder``; :func:`load_embedder` reads it."""
        ...


class TfidfEmbedder:
    """TF-IDF of words (1 + log of the count), projected on the first singular vectors.

    This is latent semantic analysis: vectors for clustered docids without a pretrained encoder. The
    SVD is scikit-learn's randomised one (Halko et al. 2011, arXiv:0909.4061).
    """

    source: ClassVar = "tfidf"

    def __init__(self, words: list[str], idf_V: np.ndarray, components_DV: np.ndarray):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.words, self.idf_V, self.components_DV = words, idf_V, components_DV
        self._vectorizer = TfidfVectorizer(vocabulary=words, **_WEIGHTS)
        self._vectorizer.idf_ = idf_V

    @classmethod
    def fit(cls, texts: Iterable[str], dimensions: int, seed: int) -> "TfidfEmbedder":
        """Learn words and directions. D is smaller than ``dimensions`` where the texts are few."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        vectorizer = TfidfVectorizer(max_features=WORDS, **_WEIGHTS)
        try:
            weights_MV = vectorizer.fit_transform(texts)
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            raise UserError(
                "docids.embedding.source: tfidf finds no words in D_0; choose model"
            ) from error
        width = max(1, min(dimensions, min(weights_MV.shape) - 1))
        state = derive(seed, "truncated svd") % 2**32
        _, _, components_DV = randomized_svd(weights_MV, width, random_state=state)
        words = vectorizer.get_feature_names_out().tolist()
        return cls(words, vectorizer.idf_.astype(np.float32), components_DV.astype(np.float32))

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """float32 (M, D); zero for a text without a known word."""
        parts = [np.zeros((0, len(self.components_DV)), np.float32)]
        for batch in batches(texts):
            weights_MV = self._vectorizer.transform(batch)
            parts.append(unit_length(weights_MV @ self.components_DV.T, ROUNDING))
        return np.concatenate(parts)

    def save(self, folder: Path) -> None:
        """words.json, tfidf.safetensors and embedder.json in ``folder``, which is replaced."""
        arrays = {"idf": self.idf_V, "components": self.components_DV}

        def write(target: Path) -> None:
            write_json(target / "words.json", self.words)
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, target / _ARRAYS)
            _describe(target, self.source)

        replace_atomically(folder, write)

    @classmethod
    def load(cls, folder: Path, how: dict[str, Any]) -> "TfidfEmbedder":
        """The inverse of :meth:`save`, with the same vectors bit for bit."""
        arrays = load_file(folder / _ARRAYS)
        words = json.loads((folder / "words.json").read_text("utf-8"))
        return cls(words, arrays["idf"], arrays["components"])


class SentenceEmbedder:
    """A pretrained encoder of the package sentence-transformers, by name or local folder."""

    source: ClassVar = "sentence-transformers"

    def __init__(self, name: str):
        try:
            package = import_module("sentence_transformers")
        except ImportError:
            raise UserError(
                "docids.embedding.source: sentence-transformers needs the package; "
                "pip install sentence-transformers"
            ) from None
        self.name = name
        try:
            with hub.asked(name):
                self._model = package.SentenceTransformer(name)  # runs no code of the checkpoint's
        except Exception as error:  # of several libraries, with no common base
            what = " ".join(str(error).split())
            raise UserError(
                f"docids.embedding.name: cannot load {name!r} ({what}); give a model of "
                "sentence-transformers or a local folder"
            ) from error

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """float32 (M, D)."""
        parts = [self._encode(batch) for batch in batches(texts)]
        return np.concatenate(parts) if parts else self._encode([""])[:0]

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        return unit_length(np.asarray(vectors, np.float32))

    def save(self, folder: Path) -> None:
        """The name alone; the weights stay where they are."""
        replace_atomically(folder, lambda target: _describe(target, self.source, name=self.name))

    @classmethod
    def load(cls, folder: Path, how: dict[str, Any]) -> "SentenceEmbedder":
        """The inverse of :meth:`save`."""
        return cls(how["name"])


class ModelEmbedder:
    """Our own model: the mean of its encoder's states, as for any T5 encoder.

    It reads ``prompt_ids`` and the first ``length`` tokens of a text. The model is used as it is
    at every call, so give a copy if its training goes on.
    """

    source: ClassVar = "model"

    def __init__(
        self,
        model: DSIModel,
        tokenizer: PreTrainedTokenizerFast,
        length: int,
        prompt_ids: np.ndarray,
        lowercase: bool = False,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.length, self.lowercase = length, lowercase
        self.prompt_ids = np.asarray(prompt_ids, np.int32)

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """float32 (M, D) of token ids, in evaluation mode and without a random draw."""
        heads = np.minimum(tokens.lengths, self.length)
        tokens = slices(tokens, tokens.offsets[:-1], heads, prompt=self.prompt_ids)
        pad = pad_id(self.tokenizer)
        device = self.model.docids.start.device
        vectors_MD = np.zeros((len(tokens), self.model.config.d_model), np.float32)
        order = np.argsort(tokens.lengths, kind="stable")
        training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                ids_BL, mask_BL = padded_tensors(tokens, rows, pad, device)
                states_BLD, _ = self.model.encode(ids_BL, mask_BL)
                real_BL1 = mask_BL.bool()[..., None]
                sums = states_BLD.float().masked_fill(~real_BL1, 0.0).sum(1)
                vectors_MD[rows] = (sums / real_BL1.sum(1)).cpu().numpy()
        self.model.train(training)
        return unit_length(vectors_MD)

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """float32 (M, D)."""
        parts = [np.zeros((0, self.model.config.d_model), np.float32)]
        for batch in batches(texts):
            lowered = [text.lower() for text in batch] if self.lowercase else batch
            parts.append(self.embed_tokens(tokenize(self.tokenizer, lowered)))
        return np.concatenate(parts)

    def save(self, folder: Path) -> None:
        """model/, tokenizer/ and embedder.json in ``folder``, which is replaced.

        The model is written without its docid rows (one per document), which no vector depends on.
        """
        model = _without_docids(self.model)

        def write(target: Path) -> None:
            model.save_pretrained(target / "model")
            self.tokenizer.save_pretrained(target / "tokenizer")
            prompt_ids = self.prompt_ids.tolist()
            how = dict(length=self.length, prompt_ids=prompt_ids, lowercase=self.lowercase)
            _describe(target, self.source, **how)

        replace_atomically(folder, write)

    @classmethod
    def load(cls, folder: Path, how: dict[str, Any]) -> "ModelEmbedder":
        """The inverse of :meth:`save`, on the CPU and in evaluation mode."""
        model = load_model(folder / "model")
        tokenizer = load_tokenizer(folder / "tokenizer")
        prompt_ids = np.array(how["prompt_ids"], np.int32)
        return cls(model, tokenizer, how["length"], prompt_ids, how["lowercase"])


def load_embedder(folder: Path) -> Embedder:
    """What an embedder's ``save`` wrote; UserError when it is missing or broken."""
    path = folder / "embedder.json"
    again = "restore the folder, or start the run anew"
    try:
        how = json.loads(path.read_text("utf-8"))
        if how["schema"] != SCHEMA:
            raise UserError(f"{path}: schema {how['schema']!r}, this version reads {SCHEMA}")
        return _KINDS[how["source"]].load(folder, how)
    except UserError:
        raise
    except Exception as error:  # missing, broken JSON, broken weights: of several libraries
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: cannot load the embedder ({what}); {again}") from error


def unit_length(vectors_MD: np.ndarray, smallest: float = 0.0) -> np.ndarray:
    """Rows divided by their length, float32; rows not longer than ``smallest`` become zero."""
    vectors_MD = np.asarray(vectors_MD, np.float32)
    lengths = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    return np.where(lengths > smallest, vectors_MD / np.where(lengths > 0, lengths, 1), 0)


_WEIGHTS: dict[str, Any] = dict(sublinear_tf=True, dtype=np.float32)
_ARRAYS = "tfidf.safetensors"
_KINDS: dict[str, Any] = {
    kind.source: kind for kind in (TfidfEmbedder, SentenceEmbedder, ModelEmbedder)
}


def _describe(folder: Path, source: str, **how: Any) -> None:
    write_json(folder / "embedder.json", {"schema": SCHEMA, "source": source, **how})


def _without_docids(model: DSIModel) -> DSIModel:
    head, rows = model.docids, torch.zeros(1, model.config.d_model)
    # deepcopy takes the head from the memo as it stands there: its rows are never copied
    small = DocidHead(model.config.d_model, [1])
    small.load_state_dict({"start": head.start.detach().cpu(), "rows": rows})
    memo = {id(head): small}
    copied = copy.deepcopy(model, memo)
    copied.config.code_sizes, copied.config.shared_codes = [1], False
    return copied
