"""Copying without parameters: a document raises the logits of its own tokens.

A small T5 from scratch learns the forms of questions within a few hundred updates, but not to copy
the words of a document that it never saw. Pointer networks (See et al. 2017) learn where to copy
from; here two fixed biases say it, and the model is trained with them in place:

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
        # a token counts once, at its first place
        self.first_DL = (input_DL[:, :, None] == input_DL[:, None, :]).int().argmax(2)
        again_DL = self.first_DL != torch.arange(input_DL.shape[1], device=input_DL.device)
        nothing_DL = (input_DL == end) | (input_DL == pad)
        self.bias_DL = present * idf_V.to(input_DL.device)[input_DL]
        self.bias_DL.masked_fill_(again_DL | nothing_DL, 0.0)
        self.word_DL = ~nothing_DL[:, 1:]

    def add(self, logits_RV: Tensor, document_R: Tensor, previous_R: Tensor) -> None:
        """To the logits, in place, of rows of these documents whose last token is ``previous_R``.

        Touches as many values of a row as its document has tokens, not the whole vocabulary.
        """
        input_RL, bias_RL = self.input_DL[document_R], self.bias_DL[document_R]
        if self.follow:
            match_RL = (input_RL[:, :-1] == previous_R[:, None]) & self.word_DL[document_R]
            row, place = match_RL.nonzero(as_tuple=True)
            first = self.first_DL[document_R[row], place + 1]
            # of two equal pairs each writes the same value
            bias_RL[row, first] = self.bias_DL[document_R[row], first] + self.follow
        logits_RV.scatter_add_(1, input_RL, bias_RL)
