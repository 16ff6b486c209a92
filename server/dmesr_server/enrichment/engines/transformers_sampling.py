"""Sampling of a batch whose rows have settings and seeds of their own.

transformers draws from one generator for the whole batch, so a text would depend on its neighbours. Here each row has a
generator: adding Gumbel noise to the logarithms of the probabilities and taking the best token draws from them.

Shapes: B rows, T tokens so far, V the vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria

from .base import Sampling


class RowSampling(LogitsProcessor):
    """Turns a row's scores into scores whose best token is the one drawn; greedy search takes it."""

    def __init__(self, samplings: Sequence[Sampling], attention_BT: torch.Tensor):
        """Settles each row's generator.

        Args:
            samplings: Of each row.
            attention_BT: 0 where the prompt is padded: padding was not said, so it is not penalised.
        """
        device = attention_BT.device
        self._samplings = samplings
        self._attention_BT = attention_BT.bool()
        self._penalties_B1 = torch.tensor([[one.repetition_penalty] for one in samplings], device=device)
        self._generators = [torch.Generator().manual_seed(one.seed) for one in samplings]  # on the CPU: same everywhere

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of the next token from tokens [B, T]."""
        scores_BV = self._penalised(input_ids, scores.float())
        for row, sampling in enumerate(self._samplings):
            if sampling.temperature > 0:
                scores_BV[row] = self._drawn(scores_BV[row], sampling, self._generators[row])
        return scores_BV

    def _penalised(self, tokens_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        if bool((self._penalties_B1 == 1).all()):
            return scores_BV.clone()
        written = tokens_BT.shape[1] - self._attention_BT.shape[1]
        said_BT = torch.nn.functional.pad(self._attention_BT, (0, written), value=True)
        # Padding points at a column of its own, which is cut off again.
        vocabulary = scores_BV.shape[1]
        columns_BT = torch.where(said_BT, tokens_BT, vocabulary)
        seen_BV = torch.zeros(scores_BV.shape[0], vocabulary + 1, dtype=torch.bool, device=scores_BV.device)
        seen_BV = seen_BV.scatter(1, columns_BT, True)[:, :vocabulary]
        lowered_BV = torch.where(scores_BV > 0, scores_BV / self._penalties_B1, scores_BV * self._penalties_B1)
        return torch.where(seen_BV, lowered_BV, scores_BV)

    def _drawn(self, scores_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
        logarithms_V = torch.log_softmax(scores_V / sampling.temperature, dim=-1)
        if sampling.top_p < 1:
            ordered_V, order_V = logarithms_V.sort(descending=True)
            before_V = ordered_V.exp().cumsum(0) - ordered_V.exp()
            logarithms_V = logarithms_V.scatter(0, order_V[before_V >= sampling.top_p], -torch.inf)
        uniform_V = torch.rand(len(scores_V), generator=generator).clamp_(min=1e-20)
        return logarithms_V - torch.log(-torch.log(uniform_V)).to(scores_V.device)


class RowEnds(StoppingCriteria):
    """Ends a row at its own limit, or when nobody waits for it any more."""

    def __init__(self, start: int, limits: Sequence[int], given_up: Sequence[threading.Event]):
        """Settles each row's end.

        Args:
            start: Length of the padded prompts.
            limits: Tokens to write at most, of each row.
            given_up: Set when the row is not wanted any more.
        """
        self._start = start
        self._limits = limits
        self._given_up = given_up

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """Which rows have ended: bool [B]."""
        written = input_ids.shape[1] - self._start
        ended = [written >= limit or gone.is_set() for limit, gone in zip(self._limits, self._given_up, strict=True)]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
