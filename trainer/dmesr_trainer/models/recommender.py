"""What every method is: items and histories become vectors whose dot product is the score (eq. 6).

Shapes: B windows or users, L positions, N items of the sequences, M items that a step needs, P targets of a step,
V = width of an item's vector: its views side by side, then its bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmesr_trainer import losses
from dmesr_trainer.batching import Batch
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.ids import IdPart

_INITIAL_STD = 0.02  # of the mask's vector, as of the ids'


@dataclass(frozen=True)
class View:
    """A slice of an item's vector with a meaning of its own; a score's share of it is the dot product over it."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class SourceSpec:
    """An input of the item tower."""

    name: str
    dim: int


class StepLoss(NamedTuple):
    """The loss of one step and what it is made of."""

    total: Tensor
    parts: dict[str, Tensor]


class Recommender(nn.Module, ABC):
    """A method. Everything outside this class works through these names alone.

    Attributes:
        method: Its name.
        backbone_name: Its sequence model's name; "" where it has none.
        max_history: L: the events that the user tower looks at.
        views: The slices of an item's vector.
        sources: What the item tower reads; empty for a method that knows items by id alone.
        notes: What a reader of its figures must know, for instance that the recipe lacks a source. Kept with the run
            and in the manifest.
    """

    method: str
    backbone_name: str
    max_history: int
    views: tuple[View, ...]
    sources: tuple[SourceSpec, ...]
    notes: tuple[str, ...] = ()

    @property
    def vector_dim(self) -> int:
        """V."""
        return self.views[-1].stop

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """Every item's vector, float32 [N, V]: the item tower's plus the item's own part."""

    @abstractmethod
    def user_vectors(self, vectors_BTV: Tensor, lengths_B: Tensor) -> Tensor:
        """The user tower.

        Args:
            vectors_BTV: The history's item vectors, oldest first, padded at the end. T may be 0.
            lengths_B: int64; how many of them count.

        Returns:
            float32 [B, V]; finite even for an empty history.
        """

    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor]:
        """What each item adds to the item tower's vector: float32 [N, V], and bool [N] that tells who has one."""

    @property
    def indexed_N(self) -> Tensor:
        """Which items can be recommended, bool [N]: those with a part of their own, unless a source makes up for it."""
        return self.parts()[1]

    def item_tower(self) -> nn.Module | None:
        """The module behind item_tower.onnx: (vectors, present) of each of `sources` in turn → [N, V]."""
        return None

    def pretrain(self, *, seed: int) -> dict[str, float]:
        """What a method learns before the first epoch, on the device where it is; most learn nothing then.

        Draws nothing from the global random state, so a run goes on the same whether this came before or not.

        Args:
            seed: The run's.

        Returns:
            Figures for the run folder; empty for a method without this stage.
        """
        return {}

    def exact_scores(self, histories: Sequence[NDArray[np.int64]]) -> Tensor | None:
        """Scores that the towers can only approximate, for a method that has them: float32 [B, N]; None otherwise.

        Args:
            histories: Item indexes, oldest first; may be empty.
        """
        return None

    def forward(self, batch: Batch) -> StepLoss:
        """The training loss of one batch; only methods that learn have one."""
        raise NotImplementedError(f"method {self.method!r} learns nothing by steps")


def name_views(names: Sequence[str], *, dim: int) -> tuple[View, ...]:
    """Views of `dim` numbers each, side by side, then the bias."""
    views = tuple(View(name, place * dim, (place + 1) * dim) for place, name in enumerate(names))
    end = len(names) * dim
    return (*views, View("bias", end, end + 1))


class SequentialRecommender(Recommender):
    """A backbone over item vectors, tied: the same vectors are the input and what is scored against.

    Subclasses say where the items' semantics come from and how the views of a sequence meet before the backbone.
    """

    trained_N: Tensor
    every_trained_M: Tensor
    train_shares_N: Tensor

    def __init__(
        self,
        *,
        config: TrainConfig,
        views: Sequence[str],
        sources: tuple[SourceSpec, ...],
        backbone: Backbone,
        train_counts_N: Tensor,
    ) -> None:
        """Builds it.

        Args:
            config: The run's settings.
            views: The names of the item vector's views, without the bias.
            sources: What the item tower reads.
            backbone: f_θ, one for all views.
            train_counts_N: int64 training events of each item.
        """
        super().__init__()
        self.method, self.backbone_name = config.method, config.backbone.name
        self.max_history = config.backbone.max_history
        self.views, self.sources = name_views(views, dim=config.dim), sources
        self.dim, self.n_views = config.dim, len(views)
        self.loss = config.loss
        self.backbone = backbone
        self.ids = IdPart(n_items=len(train_counts_N), n_views=self.n_views, dim=config.dim, config=config.ids)
        # What stands in the place of an event to guess, in every view, before the views meet. The bias is no input.
        width = 0 if backbone.causal else self.n_views * config.dim
        self.hidden_V = nn.Parameter(torch.randn(width) * _INITIAL_STD) if width else None
        # Items without a training event keep their row of the id tables at zero for ever: they are new to the model.
        self.register_buffer("trained_N", train_counts_N > 0, persistent=False)
        self.register_buffer("every_trained_M", torch.nonzero(train_counts_N > 0).squeeze(1), persistent=False)
        self.register_buffer("train_shares_N", train_counts_N / train_counts_N.sum(), persistent=False)

    def semantics(self, items_M: Tensor | None) -> Tensor | None:
        """What the item tower gives for these items (all when None): float32 [M, V]; None for a method without."""
        return None

    def fuse(self, views: tuple[Tensor, ...], lengths_B: Tensor) -> tuple[Tensor, ...]:
        """Lets the views of a sequence, each [B, L, D], exchange before the backbone (eq. 5).

        Args:
            views: Padded at the end.
            lengths_B: int64; how many positions count.
        """
        return views

    def auxiliary_losses(self, items_M: Tensor) -> dict[str, Tensor]:
        """Further losses over the unique items of a batch, already weighted."""
        return {}

    def parts(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        has_part_N = self.trained_N if self.ids.learns else torch.zeros_like(self.trained_N)
        part_NV: Tensor = self.ids(None)
        return part_NV * has_part_N[:, None], has_part_N

    def item_vectors(self) -> Tensor:  # noqa: D102
        part_NV, _ = self.parts()
        semantic_NV = self.semantics(None)
        return part_NV if semantic_NV is None else semantic_NV + part_NV

    @property
    def _drawn_share(self) -> float:
        return min(1.0, self.loss.candidates / len(self.every_trained_M))

    def _step_items(self, batch: Batch) -> Tensor:
        """The items whose vectors a step needs, in rising order; int64 [M]."""
        if self.loss.name == "softmax" and not self.loss.candidates:
            # Every trained item is a candidate, and inputs are training events.
            return self.every_trained_M
        met = [batch.inputs_BL[batch.shown_BL], batch.targets_BL[batch.asked_BL]]
        if self.loss.name == "softmax":
            chosen_M = torch.rand(len(self.every_trained_M), device=self.every_trained_M.device) < self._drawn_share
            met.append(self.every_trained_M[chosen_M])
        else:
            assert batch.negatives_BL is not None
            met.append(batch.negatives_BL[batch.asked_BL])
        items_M: Tensor = torch.unique(torch.cat(met))
        return items_M

    def _step_vectors(self, items_M: Tensor) -> Tensor:
        """Vectors of the items of a training step, all of them with training events; [M, V]."""
        semantic_MV = self.semantics(items_M)
        part_MV: Tensor = self.ids(items_M)
        if semantic_MV is None:
            return part_MV
        return semantic_MV + self.ids.drop(part_MV)

    def hide(self, vectors_BLV: Tensor, hidden_BL: Tensor) -> Tensor:
        """Puts the mask's vector in the place of events, for backbones that are not causal."""
        assert self.hidden_V is not None
        return torch.where(hidden_BL[..., None], nn.functional.pad(self.hidden_V, (0, 1)), vectors_BLV)

    def states(self, vectors_BLV: Tensor, lengths_B: Tensor) -> Tensor:
        """The user vector at each position: float32 [B, L, V].

        On a causal backbone no position sees a later one. On the others every position sees all, and only those that
        `hide` has covered may be asked for their item.
        """
        states = self._view_states(vectors_BLV, lengths_B)
        # The user's side of the bias is 1.
        return nn.functional.pad(torch.cat(states, dim=-1), (0, 1), value=1.0)

    def _view_states(self, vectors_BLV: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        """The state of each view at each position: float32 [B, L, D] each."""
        *views, _ = vectors_BLV.split([view.stop - view.start for view in self.views], dim=-1)
        fused = self.fuse(tuple(views), lengths_B)
        # One pass for all views: they share f_θ.
        states_BLD: Tensor = self.backbone(torch.cat(fused), lengths_B.repeat(self.n_views))
        return torch.unflatten(states_BLD, 0, (self.n_views, -1)).unbind(0)

    def user_vectors(self, vectors_BTV: Tensor, lengths_B: Tensor) -> Tensor:  # noqa: D102
        # One more column, so that there is a position to read when T = 0.
        vectors_BTV = nn.functional.pad(vectors_BTV, (0, 0, 0, 1))
        longest = self.max_history + (self.hidden_V is not None)
        window_L = torch.arange(longest, device=lengths_B.device)[: vectors_BTV.shape[1]]
        index_BL = (lengths_B - self.max_history).clamp(min=0)[:, None] + window_L
        index_BL = index_BL.clamp(max=vectors_BTV.shape[1] - 1)
        vectors_BLV = vectors_BTV.gather(1, index_BL[..., None].expand(-1, -1, vectors_BTV.shape[2]))
        recent_B = lengths_B.clamp(max=self.max_history)
        # What lies behind the end may hold anything; at length 0 it is read.
        vectors_BLV = vectors_BLV.masked_fill((window_L >= recent_B[:, None])[..., None], 0.0)
        last_B = (recent_B - 1).clamp(min=0)
        if self.hidden_V is not None:
            # The next event is one more, hidden.
            last_B = recent_B
            vectors_BLV = self.hide(vectors_BLV, window_L == last_B[:, None])
            recent_B = recent_B + 1
        *views, _ = vectors_BLV.split([view.stop - view.start for view in self.views], dim=-1)
        fused = self.fuse(tuple(views), recent_B)
        states_BD = self.backbone.state_at(torch.cat(fused), recent_B.repeat(self.n_views), last_B.repeat(self.n_views))
        states = torch.unflatten(states_BD, 0, (self.n_views, -1)).unbind(0)
        return nn.functional.pad(torch.cat(states, dim=-1), (0, 1), value=1.0)

    def forward(self, batch: Batch) -> StepLoss:
        """The recommendation loss plus the method's own (eq. 8)."""
        assert (batch.hidden_BL is None) == (self.hidden_V is None)
        asked_BL = batch.asked_BL
        items_M = self._step_items(batch)
        place_N = torch.zeros(len(self.trained_N), dtype=torch.int64, device=items_M.device)
        place_N[items_M] = torch.arange(len(items_M), device=items_M.device)
        items_MV = self._step_vectors(items_M)
        vectors_BLV = nn.functional.embedding(place_N[batch.inputs_BL], items_MV)
        if not batch.mask_BL.all():
            vectors_BLV = vectors_BLV * batch.mask_BL[..., None]
        if batch.hidden_BL is not None:
            vectors_BLV = self.hide(vectors_BLV, batch.hidden_BL)
        views = self._view_states(vectors_BLV, batch.mask_BL.sum(1))
        # Rows by their numbers: choosing by a mask would write the gradient row by row.
        asked_P = asked_BL.flatten().nonzero().squeeze(1)
        asked = [states_BLD.flatten(0, 1).index_select(0, asked_P) for states_BLD in views]
        states_PV = nn.functional.pad(torch.cat(asked, dim=-1), (0, 1), value=1.0)
        targets_P = place_N[batch.targets_BL.flatten()[asked_P]]
        if self.loss.name == "softmax":
            candidates_MV = items_MV
            if self.loss.candidates:
                chance_M = losses.candidate_chances(
                    self.train_shares_N[items_M], targets=len(targets_P), drawn_share=self._drawn_share
                )
                # Beside the item's bias, where the user's side holds 1.
                candidates_MV = items_MV - nn.functional.pad(chance_M.log()[:, None], (self.vector_dim - 1, 0))
            recommend = losses.softmax_loss(states_PV, candidates_MV, targets_P)
        else:
            assert batch.negatives_BL is not None
            negatives_P = place_N[batch.negatives_BL.flatten()[asked_P]]
            recommend = losses.bce_loss(
                states_PV,
                nn.functional.embedding(targets_P, items_MV),
                nn.functional.embedding(negatives_P, items_MV),
            )
        parts = {"recommend": recommend, **self.auxiliary_losses(_met(batch))}
        return StepLoss(total=torch.stack(list(parts.values())).sum(), parts=parts)


def _met(batch: Batch) -> Tensor:
    """The unique items of the windows."""
    met_P = batch.inputs_BL[batch.shown_BL]
    if batch.hidden_BL is not None:
        met_P = torch.cat([met_P, batch.targets_BL[batch.hidden_BL]])
    items_M: Tensor = torch.unique(met_P)
    return items_M
