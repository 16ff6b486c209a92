"""What may not be recommended: seen or denied items, and what a filter holds back; for several questions at once.

Shapes: B questions, N items of the index, S items of one slice of it, X pairs of a question and an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Barred:
    """What may not be chosen, by question.

    Attributes:
        owners_X: Questions, ascending, int64.
        rows_X: A row of the index that each may not have.
        allowed: Of each question the items that a filter lets through, bool [N]; None where there is no filter.
    """

    owners_X: np.ndarray
    rows_X: np.ndarray
    allowed: Sequence[np.ndarray | None]

    @staticmethod
    def by_question(rows: Sequence[np.ndarray], allowed: Sequence[np.ndarray | None]) -> Barred:
        """Puts together what each question may not have."""
        owners_X = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
        return Barred(owners_X, np.concatenate([np.zeros(0, np.int64), *rows]), allowed)

    def of(self, questions: slice) -> Barred:
        """The same for some of the questions, counted from the first of them."""
        within = slice(*np.searchsorted(self.owners_X, [questions.start, questions.stop]).tolist())
        return Barred(self.owners_X[within] - questions.start, self.rows_X[within], self.allowed[questions])

    def put(self, score: float, scores_BS: np.ndarray, part: slice | None = None) -> None:
        """Writes a score over those of what is barred.

        Args:
            score: The lowest.
            scores_BS: Of all questions, and of all items or one slice of them.
            part: The slice.
        """
        part = part or slice(0, scores_BS.shape[1])
        inside_X = (self.rows_X >= part.start) & (self.rows_X < part.stop)
        scores_BS[self.owners_X[inside_X], self.rows_X[inside_X] - part.start] = score
        for scores_S, allowed_N in zip(scores_BS, self.allowed, strict=True):
            if allowed_N is not None:
                np.copyto(scores_S, score, where=~allowed_N[part])
