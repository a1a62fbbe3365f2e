"""Ranker: the documents of an index for batches of queries, whatever their docids are.

Shape legend: B queries, L source length, N documents, T docid length, K results.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dsi.search.beam_search import Found, beam_search, rank_rows, unconstrained_search
from dsi.search.forward import EncodedQueries, Inference
from dsi.search.trie import Trie, removed_rows

if TYPE_CHECKING:
    from dsi.model.dsi_model import DSIModel


class Ranker:
    """A model's weights made ready for search, and the set of docids that it may answer with.

    ``codes_NT``: the docids by document number, -1 after the end; a row of -1 alone is a removed
    document, which is never found. ``trie``: the same set, if it was built before. ``beams``: the
    width of the search, at least; wider when more results are asked for. ``dtype``: see
    :class:`dsi.search.forward.Inference`. ``version``: of a trie that is built here, the stage. A
    copy of the weights at this moment.
    """

    def __init__(
        self,
        model: "DSIModel",
        codes_NT: np.ndarray | None = None,
        trie: Trie | None = None,
        beams: int = 10,
        length_penalty: float = 0.0,
        dtype: torch.dtype | None = None,
        version: int = 0,
    ):
        self.inference = Inference(model, dtype)
        self.beams, self.length_penalty = beams, length_penalty
        self.trie: Trie | None = None
        self._numbers: np.ndarray | None = None  # of the rows, where a document has been removed
        if trie is None and codes_NT is not None:
            if not is_atomic(codes_NT, len(self.inference.rows)):
                trie = Trie.build(codes_NT, version=version)
            elif removed_rows(codes_NT).any():
                self._numbers = np.flatnonzero(~removed_rows(codes_NT))
        if trie is not None:
            self.trie = trie.to(self.inference.device)
        self._among: Tensor | None = None

    def among(self, documents: Sequence[int] | np.ndarray) -> "Ranker":
        """The same ranker, restricted to some documents; their scores stay what they were."""
        part = object.__new__(Ranker)
        part.__dict__.update(self.__dict__)
        numbers = np.unique(np.asarray(documents, np.int64))
        if self._numbers is not None:
            missing = np.setdiff1d(numbers, self._numbers)
            if len(missing):
                raise KeyError(f"document {missing[0]} is not there")
            numbers = np.searchsorted(self._numbers, numbers)
        if self.trie is not None:
            part.trie = self.trie.restrict(numbers).to(self.inference.device)
        else:
            part._among = torch.zeros(len(self.inference.rows), dtype=torch.bool)
            part._among[torch.from_numpy(numbers)] = True
            part._among = part._among.to(self.inference.device)
        return part

    def __len__(self) -> int:
        """How many documents can be found."""
        if self.trie is not None:
            return len(self.trie)
        return len(self.inference.rows) if self._among is None else int(self._among.sum())

    def rank(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        k: int,
        beams: int | None = None,
        encoded: EncodedQueries | None = None,
        length_penalty: float | None = None,
    ) -> Found:
        """The k best documents of each query (B, L); fewer columns when there are fewer documents.

        ``beams``, ``length_penalty``: of this search instead of the ranker's own. ``encoded``: the
        same queries, encoded by :attr:`inference` for several searches.
        """
        if self.trie is None:
            hidden = self.inference.query_states(input_ids, attention_mask, encoded)
            scores, numbers = rank_rows(hidden, self.inference.rows, k, among=self._among)
            if self._numbers is not None:
                numbers = torch.from_numpy(self._numbers).to(numbers.device)[numbers]
            return Found(numbers, scores)
        width = max(k, self.beams if beams is None else beams)
        penalty = self.length_penalty if length_penalty is None else length_penalty
        found = beam_search(
            self.inference, self.trie, input_ids, attention_mask, width, penalty, encoded
        )
        return Found(found.documents[:, :k], found.scores[:, :k])

    def unconstrained(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        k: int,
        encoded: EncodedQueries | None = None,
    ) -> Found:
        """What the model writes when any code may follow any other; atomic docids: the same."""
        if self.trie is None:
            return self.rank(input_ids, attention_mask, k, encoded=encoded)
        width = max(k, self.beams)
        found = unconstrained_search(
            self.inference, self.trie, input_ids, attention_mask, width, encoded
        )
        return Found(found.documents[:, :k], found.scores[:, :k])


def is_atomic(codes_NT: np.ndarray, rows: int | None = None) -> bool:
    """Whether the i-th document that is there has the one code i, so that one decoding step ranks
    them all. ``rows``: codes that the model knows; with removed documents there may be no more.
    """
    if codes_NT.shape[1] != 1:
        return False
    there = codes_NT[:, 0][~removed_rows(codes_NT)]
    if len(there) < len(codes_NT) and rows not in (None, len(there)):
        return False
    return np.array_equal(there, np.arange(len(there)))
