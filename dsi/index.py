"""SearchIndex: what an application imports to ask a trained run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dsi.batching import gather, padded
from dsi.corpus import read_corpus
from dsi.corpus_ids import id_rows, take
from dsi.decoding import rank_rows
from dsi.errors import UserError
from dsi.model import DSIModel
from dsi.tokenization import load_tokenizer, tokenize

SCHEMA = 1
BATCH = 256  # queries ranked at once


@dataclass(frozen=True)
class Result:
    """One document found; ``score`` is its natural-log probability."""

    document_id: str
    score: float
    title: str
    text: str

    def snippet(self, characters: int) -> str:
        """The beginning of the text."""
        if len(self.text) <= characters:
            return self.text
        return self.text[: characters - 1].rsplit(" ", 1)[0] + "…"


class SearchIndex:
    """A trained model, its docids and the texts they stand for."""

    def __init__(self, model: DSIModel, tokenizer, document_ids: list[str], corpora: list, **how):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.document_ids = document_ids
        self._corpora = [(corpus, id_rows(corpus.documents["id"])) for corpus in corpora]
        self._lowercase: bool = how.get("lowercase", False)
        prompt: str = how.get("prompt", "")
        ids = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
        self._prompt = np.asarray(ids if prompt else [], np.int32)

    def __len__(self) -> int:
        return len(self.document_ids)

    @classmethod
    def load(cls, run: str | Path, stage: int | None = None) -> "SearchIndex":
        """Open a run directory at a stage (default: the last finished one)."""
        run = Path(run)
        path = run / "index.json"
        if not path.exists():
            raise UserError(f"{run}: no run here (index.json is missing); give a run directory")
        try:
            how = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: broken JSON ({error}); restore the file") from error
        if how.get("schema") != SCHEMA:
            raise UserError(f"{path}: schema {how.get('schema')!r}, this version reads {SCHEMA}")
        found = sorted(p for p in (run / "stages").glob("[0-9]*") if (p / "model").is_dir())
        stages = {int(p.name): p for p in found}
        if not stages:
            raise UserError(f"{run}: no stage is finished yet; go on with dsi train --resume {run}")
        wanted = max(stages) if stage is None else stage
        if wanted not in stages:
            raise UserError(f"{run}: no stage {wanted}; there are {sorted(stages)}")
        ids: list[str] = []
        try:
            model = DSIModel.from_pretrained(stages[wanted] / "model")
            for n in range(wanted + 1):
                lines = (run / "docids" / f"D{n}.tsv").read_text("utf-8").split("\n")
                ids += [line.split("\t")[0] for line in lines if line]
        except OSError as error:
            what = " ".join(str(error).split())
            raise UserError(f"{run}: incomplete ({what}); copy the whole run directory") from error
        tokenizer = load_tokenizer(run / "tokenizer")
        corpora = [read_corpus(c, deduplicate=how["deduplicate"]) for c in how["corpora"]]
        return cls(model, tokenizer, ids, corpora, lowercase=how["lowercase"], prompt=how["prompt"])

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Result]]:
        """For each query its k best documents, best first (fewer when there are fewer)."""
        if not queries:
            return []
        if k < 1:
            raise UserError(f"k: must be at least 1, got {k}")
        texts = [" ".join(query.split()) for query in queries]
        parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        return [results for part in parts for results in self._search(part, k)]

    def _search(self, texts: list[str], k: int) -> list[list[Result]]:
        tokens = tokenize(self.tokenizer, [t.lower() if self._lowercase else t for t in texts])
        tokens = gather(tokens, tokens.offsets[:-1], tokens.lengths, prompt=self._prompt)
        pad = int(self.tokenizer.pad_token_id or 0)
        ids, mask = padded(tokens, np.arange(len(tokens)), pad)
        device = self.model.docids.rows.device
        with torch.inference_mode():
            hidden = self.model.query_states(
                torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)
            )
            scores, numbers = rank_rows(hidden, self.model.docids.rows, k)
        return [
            [
                self._result(int(number), float(score))
                for number, score in zip(row, line, strict=True)
            ]
            for row, line in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _result(self, number: int, score: float) -> Result:
        document_id = self.document_ids[number]
        for corpus, lookup in self._corpora:
            row = int(lookup.rows([document_id])[0])
            if row >= 0:
                found = take(corpus.documents, np.array([row]))
                return Result(
                    document_id, score, found["title"][0].as_py(), found["text"][0].as_py()
                )
        return Result(document_id, score, "", "")
