"""The performance matrix P and what follows from it, as pure functions.

``P[n][o]`` is a metric on corpus D_o after stage n. Rows are lists; entries above the diagonal
may be missing or None. None (or NaN) on or below it means a corpus without test queries, or none
whose answers are still there: it is left out of the averages. P[n][o] is measured on what is left
of D_o after stage n, so documents that are removed are no forgetting. Every function returns one
value per stage, None where undefined.

``average_performance``, ``forgetting`` and ``learning_performance`` are A_n, F_n and LA_n of DSI++
(Mehta et al., EMNLP 2023, section 2). Every corpus has equal weight there, D_0 included; other
papers define measures of the same names differently.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Matrix: TypeAlias = Sequence[Sequence[float | None]]
PerStage: TypeAlias = list[float | None]


def average_performance(P: Matrix) -> PerStage:
    """A_n = 1/(n+1) * sum_{o=0..n} P[n,o]."""
    return [_mean(_at(P, n, o) for o in range(n + 1)) for n in range(len(P))]


def forgetting(P: Matrix) -> PerStage:
    """F_n = 1/n * sum_{o=0..n-1} max_{o<=l<n} (P[l,o] - P[n,o]); F_0 is None.

    DSI++ lets l start at 0; a corpus that is not indexed yet scores about 0, so the maximum is
    the same, and entries above the diagonal need not be measured. Negative when D_o improved.
    """
    return [_mean(_drop(P, n, o) for o in range(n)) for n in range(len(P))]


def learning_performance(P: Matrix) -> PerStage:
    """LA_n = 1/n * sum_{o=1..n} P[o,o]; LA_0 is None, D_0 is not counted."""
    diagonal = [_at(P, o, o) for o in range(len(P))]
    return [_mean(diagonal[1 : n + 1]) for n in range(len(P))]


def summary(metrics: Mapping[str, Matrix]) -> dict[str, dict[str, PerStage]]:
    """A_n, F_n and LA_n of every metric, under the keys of a run directory's matrix.json."""
    functions = (average_performance, forgetting, learning_performance)
    return {
        function.__name__: {metric: function(P) for metric, P in metrics.items()}
        for function in functions
    }


# Forgetting events.


class EventCounts(NamedTuple):
    """What N documents went through, one entry per document."""

    events: np.ndarray  # int64: how often correct was followed by incorrect
    first_learnt: np.ndarray  # int64: when it was first correct, -1 = never
    state: np.ndarray  # int8: at its last evaluation 1 = correct, 0 = incorrect; -1 = not evaluated


class ForgettingEvents:
    """Counts forgetting events while training, without keeping the history.

    Documents are numbered from 0 in the order of the stream. The counts depend on how often one
    looks, so the cadence is part of the result: ``cadence`` says it in words, e.g. "every 500
    updates, all documents seen", and ``evaluated_at`` holds the updates at which it happened.
    """

    def __init__(self, num_documents: int, cadence: str) -> None:
        self.cadence = cadence
        self.evaluated_at: list[int] = []
        self.counts = _no_counts(num_documents)

    def extend(self, num_documents: int, replaced: Sequence[int] | np.ndarray = ()) -> None:
        """Make room for the documents of the next corpus: ``num_documents`` in total.

        ``replaced``: those that begin anew, since their text is another one. A document that has
        been removed keeps what was counted until then.
        """
        for column, start in zip(self.counts, _no_counts(1), strict=True):
            column[np.asarray(replaced, np.int64)] = start[0]
        new = _no_counts(num_documents - len(self.counts.events))
        pairs = zip(self.counts, new, strict=True)
        self.counts = EventCounts(*(np.concatenate(pair) for pair in pairs))

    def update(self, documents: np.ndarray, correct: np.ndarray, update_number: int) -> None:
        """Record one evaluation: document numbers (M,), each at most once, and outcomes (M,).

        The evaluated documents may arrive in several calls with the same ``update_number``.
        """
        documents, correct = np.asarray(documents, np.int64), np.asarray(correct, bool)
        if documents.shape != correct.shape or documents.ndim != 1:
            raise ValueError(f"{documents.shape} documents do not match {correct.shape} outcomes")
        if len(documents) and (documents.min() < 0 or len(np.unique(documents)) < len(documents)):
            raise ValueError("document numbers must be distinct and not negative")
        events, first_learnt, state = self.counts
        events[documents] += (state[documents] == 1) & ~correct
        newly = documents[correct & (first_learnt[documents] < 0)]
        first_learnt[newly] = update_number
        state[documents] = correct
        if self.evaluated_at[-1:] != [update_number]:
            self.evaluated_at.append(int(update_number))

    def summary(self) -> dict[str, int | float | None]:
        """Shares of the documents evaluated at least once; None when there are none.

        ``learnt_with_zero_events`` is Toneva's "unforgettable"; the mean is over documents ever
        learnt, since one that was never learnt has no event only because it has nothing to lose.
        """
        events, first_learnt, state = self.counts
        evaluated, learnt = state >= 0, first_learnt >= 0
        total = int(evaluated.sum())

        def share(mask: np.ndarray) -> float | None:
            return int(mask.sum()) / total if total else None

        return {
            "num_documents": total,
            "ever_learnt": share(learnt),
            "never_learnt": share(evaluated & ~learnt),
            "learnt_with_zero_events": share(learnt & (events == 0)),
            "forgotten_at_least_once": share(events > 0),
            "mean_events_of_learnt": float(events[learnt].mean()) if learnt.any() else None,
        }

    def to_json(self, document_ids: Sequence[str]) -> dict[str, Any]:
        """The content of forgetting_events.json; the lists under ``documents`` are parallel.

        ``first_learnt`` is an update number, null = never; ``final_state`` is true for correct
        at the last evaluation, null = never evaluated.
        """
        events, first_learnt, state = (column.tolist() for column in self.counts)
        if len(document_ids) != len(events):
            raise ValueError(f"{len(document_ids)} ids were given for {len(events)} documents")
        return {
            "schema": 1,
            "cadence": self.cadence,
            "evaluated_at": list(self.evaluated_at),
            "summary": self.summary(),
            "documents": {
                "id": list(document_ids),
                "events": events,
                "first_learnt": [None if update < 0 else update for update in first_learnt],
                "final_state": [None if value < 0 else bool(value) for value in state],
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Copies of all counts as numpy arrays, with the cadence and the evaluated updates."""
        arrays = {name: array.copy() for name, array in self.counts._asdict().items()}
        return {"cadence": self.cadence, "evaluated_at": list(self.evaluated_at), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned; arrays may also be lists or tensors."""
        self.cadence = str(state["cadence"])
        self.evaluated_at = [int(update) for update in state["evaluated_at"]]
        self.counts = EventCounts(
            np.array(state["events"], np.int64),
            np.array(state["first_learnt"], np.int64),
            np.array(state["state"], np.int8),
        )


def _no_counts(size: int) -> EventCounts:
    if size < 0:
        raise ValueError("documents can be added, not removed")
    return EventCounts(
        np.zeros(size, np.int64), np.full(size, -1, np.int64), np.full(size, -1, np.int8)
    )


def _at(P: Matrix, n: int, o: int) -> float | None:
    value = P[n][o] if o < len(P[n]) else None
    return None if value is None or math.isnan(value) else float(value)


def _drop(P: Matrix, n: int, o: int) -> float | None:
    """The largest P[l,o] - P[n,o] over the stages o <= l < n at which D_o was measured."""
    now, before = _at(P, n, o), [_at(P, stage, o) for stage in range(o, n)]
    if now is None:
        return None
    return max((value - now for value in before if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
