"""Copying without parameters: a document raises the logits of its own tokens.

A small T5 from scratch learns the forms of questions within a few hundred updates, but not to copy
the words of a document that it never saw. Pointer networks (See et al. 2017) learn where to copy
from; here both parts are counted, and the model is trained on top of them:

- a token of the document is raised by ``present`` x its idf: the log of how much likelier it is
  in this document than in another;
- a token that follows, in the document, the token just written is raised by ``follow``: words of
  several pieces and names come out whole.

Shapes: D documents, L source length, R rows (queries being written), V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_IDF = 7.0  # nats: rarer tokens than one document in 1,100 are raised no further


def idf(documents: Sequence[np.ndarray], vocabulary: int) -> Tensor:
    """ln((N + 1) / (df + 1)) per token id, at most 7, float32 (V,)."""
    frequency = np.zeros(vocabulary)
    for ids in documents:
        frequency[np.unique(ids)] += 1
    values = np.log((len(documents) + 1) / (frequency + 1))
    return torch.from_numpy(np.minimum(values, MAX_IDF).astype(np.float32))


class Copying:
    """The additions to the logits for one batch of documents."""

    def __init__(
        self, input_DL: Tensor, idf_V: Tensor, present: float, follow: float, end: int, pad: int
    ) -> None:
        self.input_DL, self.follow = input_DL, follow
        self.bias_DV = torch.zeros(len(input_DL), len(idf_V), device=input_DL.device)
        self.bias_DV.scatter_(1, input_DL, present)
        self.bias_DV *= idf_V.to(input_DL.device)
        self.bias_DV[:, [pad, end]] = 0.0
        next_DL = input_DL[:, 1:]
        self.word_DL = (next_DL != end) & (next_DL != pad)

    def bias(self, document_R: Tensor, previous_R: Tensor) -> Tensor:
        """(R, V) for rows of the given documents whose last token is ``previous_R``."""
        bias_RV = self.bias_DV[document_R]
        if self.follow:
            match_RL = self.input_DL[document_R, :-1] == previous_R[:, None]
            row, place = (match_RL & self.word_DL[document_R]).nonzero(as_tuple=True)
            token = self.input_DL[document_R[row], place + 1]
            bias_RV[row, token] = self.bias_DV[document_R[row], token] + self.follow
        return bias_RV
