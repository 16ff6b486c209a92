"""DMESR: coarse multimodal semantics and fine original text, fused both ways (§3). Shapes: N items, M items of a step.

`dmesr` and `dmesr-paper` are this class with different settings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.alignment import align
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.fusion import BidirectionalFusion
from dmesr_trainer.models.item_encoder import ItemEncoder, ItemTower, SourceEncoder
from dmesr_trainer.models.recommender import SequentialRecommender, SourceSpec
from dmesr_trainer.models.whitening import Whitening
from dmesr_trainer.sources import Sources, content_groups


class Dmesr(SequentialRecommender):
    """Two views of every item, from its sources and its id; alignment between routes; fusion before the backbone."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        backbone: Backbone,
        train_counts_N: Tensor,
        item_ids: tuple[str, ...],
        sources: Sources,
    ) -> None:
        """Builds it.

        Args:
            config: The run's settings.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.
            item_ids: The N items of the sequences.
            sources: Vectors of the catalogue, these items among them. Whitening is fitted on all of it.

        Raises:
            ValueError: The recipe has none of the coarse sources, or another setting does not fit the data.
        """
        coarse, fine = _roles(config, sources)
        names = coarse + ((fine,) if fine else ())
        super().__init__(
            config=config,
            views=("coarse", "fine") if fine else ("coarse",),
            sources=tuple(SourceSpec(name, sources.dims[name]) for name in names),
            backbone=backbone,
            train_counts_N=train_counts_N,
        )
        self.alignment, self.n_coarse = config.alignment, len(coarse)
        self.encoder = ItemEncoder(
            encoders=[_encoder(name, config=config, sources=sources) for name in names],
            n_coarse=len(coarse),
            config=config.sources,
            dim=config.dim,
            bias=config.sources.bias,
        )
        # Beside a window's events stands the hidden one, where there is one.
        longest = config.backbone.max_history + (not backbone.causal)
        fused = fine is not None and config.fusion.enabled
        self.fusion = BidirectionalFusion(config.fusion, dim=config.dim, longest=longest) if fused else None
        self.leaky = config.fusion.leaky
        aligned = sources.aligned(item_ids)
        present = [torch.from_numpy(aligned.present[name]) for name in names]
        with torch.no_grad():
            prepared = self.encoder.prepare([torch.from_numpy(aligned.vectors[name]) for name in names], present)
        for place, name in enumerate(names):
            groups_N = content_groups(aligned.vectors[name], aligned.present[name])
            self.register_buffer(f"prepared_{place}", prepared[place], persistent=False)
            self.register_buffer(f"present_{place}", present[place], persistent=False)
            self.register_buffer(f"groups_{place}", torch.from_numpy(groups_N), persistent=False)

    def semantics_inputs(self, kind: str, items_M: Tensor | None) -> list[Tensor]:
        """What the item encoder reads of these items, or of all, by source: "prepared", "present" or "groups"."""
        every = [getattr(self, f"{kind}_{place}") for place in range(len(self.sources))]
        return every if items_M is None else [values_N.index_select(0, items_M) for values_N in every]

    def semantics(self, items_M: Tensor | None) -> Tensor:  # noqa: D102
        prepared, present = self.semantics_inputs("prepared", items_M), self.semantics_inputs("present", items_M)
        semantic_MV: Tensor = self.encoder(prepared, present)
        return semantic_MV

    @property
    def indexed_N(self) -> Tensor:  # noqa: D102
        return self.parts()[1] | torch.stack(self.semantics_inputs("present", None)).any(0)

    def fuse(self, views: tuple[Tensor, ...], lengths_B: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        if self.fusion is None:
            return views
        causal = self.backbone.causal and not self.leaky
        fused: tuple[Tensor, ...] = self.fusion(*views, lengths_B=lengths_B, causal=causal)
        return fused

    def auxiliary_losses(self, items_M: Tensor) -> dict[str, Tensor]:
        """α · L_align between the anchor and each other coarse route (eq. 3), over the items of a batch."""
        if self.alignment.weight == 0.0 or self.n_coarse < 2:
            return {}
        present = self.semantics_inputs("present", items_M)[: self.n_coarse]
        # Items without the anchor and another route would take no part; leave them before drawing at most `max_items`.
        items_M = items_M[present[0] & torch.stack(present[1:]).any(0)]
        if len(items_M) > self.alignment.max_items:
            items_M = items_M[torch.randperm(len(items_M), device=items_M.device)[: self.alignment.max_items]]
        present, groups = self.semantics_inputs("present", items_M), self.semantics_inputs("groups", items_M)
        routes = self.encoder.coarse_routes(self.semantics_inputs("prepared", items_M), present)
        terms = [
            align(
                routes[0],
                routes[other],
                present[0] & present[other],
                anchor_groups_M=groups[0],
                other_groups_M=groups[other],
                config=self.alignment,
            )
            for other in range(1, self.n_coarse)
        ]
        return {"align": self.alignment.weight * torch.stack(terms).sum()}

    def item_tower(self) -> nn.Module:  # noqa: D102
        return ItemTower(self.encoder)


def _roles(config: TrainConfig, sources: Sources) -> tuple[tuple[str, ...], str | None]:
    coarse = tuple(name for name in config.sources.coarse if sources.coverage().get(name))
    if not coarse:
        raise ValueError(
            f"the recipe has no vectors of {', '.join(config.sources.coarse)} (it has "
            f"{', '.join(sources.names) or 'none at all'}); enrich the items, or name other sources.coarse"
        )
    fine = config.sources.fine
    return coarse, fine if fine and sources.coverage().get(fine) else None


def _encoder(name: str, *, config: TrainConfig, sources: Sources) -> SourceEncoder:
    whitening = None
    if config.adapter.whiten:
        there = torch.from_numpy(sources.vectors[name][sources.present[name]])
        whitening = Whitening.fit(
            there, max_width=config.adapter.whitened_dims, items_per_dim=config.adapter.items_per_dim
        )
    return SourceEncoder(dim_in=sources.dims[name], dim=config.dim, config=config.adapter, whitening=whitening)
