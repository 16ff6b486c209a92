"""What the one-view methods that read sources share: preparing vectors, projecting them, and joining the id part.

Shapes: N items, M items of a step, S sources, D0 an encoder's width, W a prepared source's width, D width of the view,
V = D + 1, the bias last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmesr_trainer.config import AdapterConfig, TrainConfig
from dmesr_trainer.models.adapters import Adapter
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.recommender import SequentialRecommender, SourceSpec
from dmesr_trainer.models.whitening import Whitening
from dmesr_trainer.sources import Sources


def available(wanted: Sequence[str], sources: Sources) -> tuple[str, ...]:
    """Those of the wanted sources that at least one item of the catalogue has, in the order asked for.

    Raises:
        ValueError: It has none of them.
    """
    found = tuple(name for name in dict.fromkeys(wanted) if sources.coverage().get(name))
    if not found:
        raise ValueError(
            f"the recipe has no vectors of {', '.join(wanted)} (it has {', '.join(sources.names) or 'none at all'}); "
            "enrich the items, or name other sources for this method"
        )
    return found


def missing_note(method: str, *, wanted: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """What is to be told of sources that the recipe lacks; nothing when it lacks none."""
    missing = [name for name in wanted if name not in found]
    if not missing:
        return ()
    return (f"{method} ran without {', '.join(missing)}: the recipe has no such vectors; it read {', '.join(found)}",)


class SemanticEncoder(nn.Module, ABC):
    """From items' raw vectors to their semantic vectors."""

    @abstractmethod
    def prepare(self, vectors: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """What does not change in training, done once for each source.

        Args:
            vectors: float32 [N, D0] of each source, in order; rows of absent vectors may hold anything.
            present: bool [N] of each source.
        """

    @abstractmethod
    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """The semantic vector, float32 [N, V]; zeros for an item without any of the sources.

        Args:
            prepared: Of each source, in order.
            present: bool [N] of each source.
        """


class WhiteningEncoder(SemanticEncoder):
    """An encoder that whitens its sources, or leaves them as they are where the run's settings say so."""

    def __init__(self, *, names: Sequence[str], sources: Sources, config: AdapterConfig) -> None:
        """Fits the whitening, where it is asked for, on the whole catalogue.

        Args:
            names: The S sources, in order.
            sources: The catalogue's vectors.
            config: Whether and how sources are whitened.
        """
        super().__init__()
        self.whitenings = nn.ModuleList()
        self.dims, self.widths = [sources.dims[name] for name in names], list[int]()
        for name in names:
            there = torch.from_numpy(sources.vectors[name][sources.present[name]])
            if config.whiten:
                fitted = Whitening.fit(there, max_width=config.whitened_dims, items_per_dim=config.items_per_dim)
                self.whitenings.append(fitted)
                self.widths.append(fitted.width)
            else:
                self.whitenings.append(nn.Identity())
                self.widths.append(sources.dims[name])

    def prepare(self, vectors: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """Whitened vectors of each source, [N, W]; zeros where one is absent."""
        return [
            whitening(vectors_ND0.masked_fill(~present_N[:, None], 0.0)).masked_fill(~present_N[:, None], 0.0)
            for whitening, vectors_ND0, present_N in zip(self.whitenings, vectors, present, strict=True)
        ]


class Concatenation(nn.Module):
    """Sources side by side, and which of them are there, through the two Linears of an adapter."""

    def __init__(self, encoder: WhiteningEncoder, *, dim: int, config: AdapterConfig) -> None:
        """Builds it.

        Args:
            encoder: Whose prepared sources it joins.
            dim: D.
            config: The adapter.
        """
        super().__init__()
        self.adapter = Adapter(
            width=sum(encoder.widths) + len(encoder.widths),
            hidden=max(1, int(config.hidden_share * sum(encoder.dims))),
            dim=dim,
            fold=config.fold,
            initial_std=config.initial_std if config.whiten else None,
        )

    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """[N, D]; zeros, and no gradient, for an item without any of the sources."""
        flags_NS = torch.stack(list(present), dim=1)
        there_NW = torch.cat([*prepared, flags_NS.to(prepared[0].dtype)], dim=1)
        view_ND: Tensor = self.adapter(there_NW)
        return view_ND * flags_NS.any(1, keepdim=True)


class SemanticBias(nn.Module):
    """Puts a bias beside the view: how well an item sells by its semantics. A new item has none of its own."""

    def __init__(self, *, dim: int, enabled: bool) -> None:
        """Builds it.

        Args:
            dim: D.
            enabled: Otherwise the bias is 0.
        """
        super().__init__()
        # No constant: items without any source must keep a bias of 0.
        self.weigh = nn.Linear(dim, 1, bias=False) if enabled else None
        if self.weigh is not None:
            nn.init.zeros_(self.weigh.weight)

    def forward(self, view_ND: Tensor) -> Tensor:
        """[N, V]."""
        bias_N1 = view_ND.new_zeros(len(view_ND), 1) if self.weigh is None else self.weigh(view_ND)
        return torch.cat([view_ND, bias_N1], dim=1)


class EncoderTower(nn.Module):
    """The graph behind item_tower.onnx: raw vectors and presence of each source in turn → [N, V]."""

    def __init__(self, encoder: SemanticEncoder) -> None:
        """Builds it.

        Args:
            encoder: The trained encoder.
        """
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:  # noqa: D102
        vectors, present = inputs[::2], inputs[1::2]
        vectors_NV: Tensor = self.encoder(self.encoder.prepare(vectors, present), present)
        return vectors_NV


class SourcedRecommender(SequentialRecommender):
    """One view: what an encoder makes of the item's sources, plus the item's own part."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        backbone: Backbone,
        train_counts_N: Tensor,
        item_ids: tuple[str, ...],
        sources: Sources,
        names: Sequence[str],
        encoder: SemanticEncoder,
    ) -> None:
        """Builds it.

        Args:
            config: The run's settings.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.
            item_ids: The N items of the sequences.
            sources: Vectors of the catalogue, these items among them.
            names: The sources that the encoder reads, in its order.
            encoder: Makes the semantic vector.
        """
        super().__init__(
            config=config,
            views=("item",),
            sources=tuple(SourceSpec(name, sources.dims[name]) for name in names),
            backbone=backbone,
            train_counts_N=train_counts_N,
        )
        self.encoder = encoder
        aligned = sources.aligned(item_ids)
        present = [torch.from_numpy(aligned.present[name]) for name in names]
        with torch.no_grad():
            prepared = encoder.prepare([torch.from_numpy(aligned.vectors[name]) for name in names], present)
        for place in range(len(names)):
            self.register_buffer(f"prepared_{place}", prepared[place], persistent=False)
            self.register_buffer(f"present_{place}", present[place], persistent=False)

    def prepared(self, items_M: Tensor | None) -> list[Tensor]:
        """The prepared vectors of these items, or of all, by source."""
        return self._by_source("prepared", items_M)

    def present(self, items_M: Tensor | None) -> list[Tensor]:
        """Which of these items, or of all, have each source."""
        return self._by_source("present", items_M)

    def _by_source(self, kind: str, items_M: Tensor | None) -> list[Tensor]:
        every = [getattr(self, f"{kind}_{place}") for place in range(len(self.sources))]
        return every if items_M is None else [values_N.index_select(0, items_M) for values_N in every]

    def semantics(self, items_M: Tensor | None) -> Tensor:  # noqa: D102
        semantic_MV: Tensor = self.encoder(self.prepared(items_M), self.present(items_M))
        return semantic_MV

    @property
    def indexed_N(self) -> Tensor:  # noqa: D102
        return self.parts()[1] | torch.stack(self.present(None)).any(0)

    def item_tower(self) -> nn.Module:  # noqa: D102
        return EncoderTower(self.encoder)
