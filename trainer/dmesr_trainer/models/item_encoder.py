"""From an item's raw vectors to its semantic vector: the coarse view, the fine view, a bias (§3.2.2–3.3.1).

Shapes: N items, S sources, D0 an encoder's width, W a whitened source's width, D width of a view, V = views · D + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dmesr_trainer.config import AdapterConfig, SourcesConfig
from dmesr_trainer.models.adapters import Adapter, pooled
from dmesr_trainer.models.whitening import Whitening


class SourceEncoder(nn.Module):
    """One source: whitening, fixed once fitted, then an adapter that learns."""

    def __init__(self, *, dim_in: int, dim: int, config: AdapterConfig, whitening: Whitening | None) -> None:
        """Builds it.

        Args:
            dim_in: D0.
            dim: D.
            config: The adapter.
            whitening: None for raw vectors.
        """
        super().__init__()
        self.whitening = whitening
        self.adapter = Adapter(
            width=whitening.width if whitening else dim_in,
            hidden=max(1, int(config.hidden_share * dim_in)),
            dim=dim,
            fold=config.fold,
            initial_std=config.initial_std if whitening else None,
        )

    def prepare(self, vectors_ND0: Tensor, present_N: Tensor) -> Tensor:
        """What does not change in training, done once: whitening, and zeros where the source is absent."""
        there_ND0 = vectors_ND0.masked_fill(~present_N[:, None], 0.0)
        return self.whitening(there_ND0) * present_N[:, None] if self.whitening else there_ND0

    def forward(self, prepared_NW: Tensor, present_N: Tensor) -> Tensor:
        """The adapted vector; zeros, and no gradient, where the source is absent."""
        adapted_ND: Tensor = self.adapter(prepared_NW)
        return adapted_ND * present_N[:, None]


class ItemEncoder(nn.Module):
    """Joins the adapted sources of an item into coarse, fine and bias."""

    def __init__(
        self, *, encoders: Sequence[SourceEncoder], n_coarse: int, config: SourcesConfig, dim: int, bias: bool
    ) -> None:
        """Builds it.

        Args:
            encoders: The coarse sources, anchor first; then, if there is one, the fine source.
            n_coarse: How many of them are coarse.
            config: How the coarse sources are joined.
            dim: D.
            bias: Whether semantics also give a bias: a new item has none of its own.
        """
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.n_coarse, self.form = n_coarse, config.coarse_form
        self.n_views = 1 + (len(encoders) > n_coarse)
        self.join = nn.Linear(n_coarse * dim, dim) if self.form == "concatenated" else None
        # What stands in the fine view of an item without its original text.
        self.no_fine_D = nn.Parameter(torch.zeros(dim)) if self.n_views == 2 else None
        self.bias = nn.Linear(self.n_views * dim, 1) if bias else None
        if self.bias is not None:
            nn.init.zeros_(self.bias.weight)
            nn.init.zeros_(self.bias.bias)

    def prepare(self, vectors: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """`SourceEncoder.prepare` of each source."""
        return [
            cast(SourceEncoder, encoder).prepare(vectors_ND0, present_N)
            for encoder, vectors_ND0, present_N in zip(self.encoders, vectors, present, strict=True)
        ]

    def coarse_routes(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """The adapted coarse sources (eq. 1), anchor first; each [N, D]."""
        return [self.encoders[place](prepared[place], present[place]) for place in range(self.n_coarse)]

    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """The semantic vector, float32 [N, V].

        Args:
            prepared: Of each source, in order.
            present: bool [N] of each source.
        """
        views = [self._coarse(prepared, present)]
        if self.no_fine_D is not None:
            views.append(self._fine(prepared[-1], present[-1]))
        views_NV = torch.cat(views, dim=1)
        bias_N1 = self.bias(views_NV) if self.bias is not None else views_NV.new_zeros(len(views_NV), 1)
        return torch.cat([views_NV, bias_N1], dim=1)

    def _fine(self, prepared_NW: Tensor, present_N: Tensor) -> Tensor:
        encoder = cast(SourceEncoder, self.encoders[-1])
        if encoder.adapter.fold:
            return pooled([encoder.adapter], [prepared_NW], present_N[:, None], absent_D=self.no_fine_D)
        assert self.no_fine_D is not None
        fine_ND: Tensor = encoder(prepared_NW, present_N)  # eq. 4
        return fine_ND + self.no_fine_D * ~present_N[:, None]

    def _coarse(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        adapters = [cast(SourceEncoder, encoder).adapter for encoder in self.encoders][: self.n_coarse]
        if self.form == "pooled" and all(adapter.fold for adapter in adapters):
            flags_NS = torch.stack(list(present[: self.n_coarse]), dim=1)
            return pooled(adapters, prepared[: self.n_coarse], flags_NS)
        routes = self.coarse_routes(prepared, present)
        if self.join is not None:
            joined_ND: Tensor = self.join(torch.cat(routes, dim=1))
            return joined_ND
        coarse_ND = routes[0]
        if self.form == "pooled":
            return torch.stack(routes).sum(0)
        have_N1 = present[0][:, None]
        for route_ND, present_N in zip(routes[1:], present[1 : self.n_coarse], strict=True):
            # The aligned vector of another route stands in for a missing anchor.
            coarse_ND = coarse_ND + route_ND * (~have_N1 & present_N[:, None])
            have_N1 = have_N1 | present_N[:, None]
        return coarse_ND


class ItemTower(nn.Module):
    """The graph behind item_tower.onnx: raw vectors and presence of each source in turn → [N, V]."""

    def __init__(self, encoder: ItemEncoder) -> None:
        """Builds it.

        Args:
            encoder: The trained item encoder.
        """
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:  # noqa: D102
        vectors, present = inputs[::2], inputs[1::2]
        vectors_NV: Tensor = self.encoder(self.encoder.prepare(vectors, present), present)
        return vectors_NV
