"""QARM (Luo et al. 2024, arXiv 2411.11739): representations tuned on item-item pairs, then turned into codes.

    L_align = Batch-Contrastive(M_trigger, M_target, B)                              item alignment (§3.1)
    V = M; v_1 … v_K = TopKCode(V, m, K)                                             VQ code (§3.2)
    R^1 = Kmeans(M, C), M^1 = M - NearestRep(M, R^1), R^2 = Kmeans(M^1, C), …        RQ codebooks (§3.2)
    r_l = NearestCode(R^l, m^(l-1), 1), m^l = m^(l-1) - R^l[r_l]                      RQ code (§3.2)
    e = Σ_l E_l[r_l] + 1/K Σ_k E_V[v_k]                                              codes as ids, learned end to end

What the paper leaves open or this project cannot do, and what is done. The paper tunes the MLLM itself; here its
descriptions are fixed vectors, so an adapter over them is tuned. Its pairs come from retrieval models in production;
here they are the items that meet most in users' *training* events (`cooccurrence`). The temperature, the number of
centres and how a code's embedding meets the others are not given: code embeddings are summed, which is a concatenation
followed by a Linear. K = 25 and L = 6 are its figures. Items with the same vectors are one entry of the VQ codebook, or
a group of equals would fill all K places. The item's own part, the bias and the loss are those of every other method;
`ids.vectors` false leaves the codes alone, as DMESR's §4.1.2 sums it up.

A new item's codes come from the same codebooks, inside the exported item tower, so it can be recommended at once.
Where two entries are as near as float32 can tell, another runtime may choose the other one.

Shapes: N items, M items of a step, P pairs, W a prepared source's width, D width of the view, Q width of what is
quantised, E entries, L levels, C centres, K codes by VQ, J = K + L codes of an item, R rows of the code table, T items
with companions, V = D + 1, the bias last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from dmesr_trainer.baseline_config import QarmConfig
from dmesr_trainer.config import AlignmentConfig, TrainConfig
from dmesr_trainer.models import quantisation
from dmesr_trainer.models.alignment import align
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.sourced import (
    Concatenation,
    SourcedRecommender,
    WhiteningEncoder,
    available,
    missing_note,
)
from dmesr_trainer.sources import Sources, content_groups

# Items whose codes are found at a time: a row of distances for each.
_ROWS = 1024


class QarmEncoder(WhiteningEncoder):
    """Prepared sources → representation → codes → the sum of their embeddings."""

    entries_EQ: Tensor
    books_LCQ: Tensor
    shares_J: Tensor
    offsets_J: Tensor

    def __init__(
        self, *, names: Sequence[str], sources: Sources, config: TrainConfig, entries: int, centres: int
    ) -> None:
        """Builds it; codebooks are zeros until `fit`.

        Args:
            names: The sources, in order.
            sources: The catalogue's vectors.
            config: The run's settings.
            entries: E, 0 without VQ.
            centres: C.
        """
        super().__init__(names=names, sources=sources, config=config.adapter)
        settings = config.qarm
        self.vq_codes = min(settings.vq_codes, entries)
        self.tuned = Concatenation(self, dim=settings.width, config=config.adapter)
        # Only the contrast tunes it: behind the codes no gradient reaches it.
        self.tuned.requires_grad_(False)
        self.register_buffer("entries_EQ", torch.zeros(entries, settings.width))
        self.register_buffer("books_LCQ", torch.zeros(settings.rq_levels, centres, settings.width))
        rows = entries + settings.rq_levels * centres
        shares = [1.0 / max(1, self.vq_codes)] * self.vq_codes + [1.0] * settings.rq_levels
        self.register_buffer("shares_J", torch.tensor(shares), persistent=False)
        # Where each level's rows begin in the table.
        offsets = [0] * self.vq_codes + [entries + level * centres for level in range(settings.rq_levels)]
        self.register_buffer("offsets_J", torch.tensor(offsets, dtype=torch.int64), persistent=False)
        std = config.adapter.initial_std * (settings.rq_levels + 1) ** -0.5
        self.codes_RD = nn.Parameter(torch.randn(rows, config.dim) * std)
        self.bias_R1 = nn.Parameter(torch.zeros(rows, 1), requires_grad=config.sources.bias)

    def represent(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """The representation that is tuned and quantised, as unit vectors; [N, Q]."""
        return functional.normalize(self.tuned(prepared, present), dim=1)

    def codes(self, represented_NQ: Tensor) -> Tensor:
        """The code table's rows of each item, VQ first; int64 [N, J]."""
        found = []
        if self.vq_codes:
            found.append(quantisation.vq_codes(represented_NQ, self.entries_EQ, codes=self.vq_codes))
        if len(self.books_LCQ):
            found.append(quantisation.rq_codes(represented_NQ, self.books_LCQ))
        return torch.cat(found, dim=1) + self.offsets_J

    def embed(self, codes_MJ: Tensor, described_M: Tensor) -> Tensor:
        """The semantic vector of items with these codes, [M, V]; zeros for items without any source."""
        table_RV = torch.cat([self.codes_RD, self.bias_R1], dim=1)
        weights_MJ = self.shares_J * described_M[:, None]
        return functional.embedding_bag(codes_MJ, table_RV, per_sample_weights=weights_MJ, mode="sum")

    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:  # noqa: D102
        codes_NJ = self.codes(self.represent(prepared, present))
        # The same as `embed`, in operators that every runtime has.
        table_RV = torch.cat([self.codes_RD, self.bias_R1], dim=1)
        described_N = torch.stack(list(present)).any(0)
        return (table_RV[codes_NJ] * self.shares_J[:, None]).sum(1) * described_N[:, None]

    @torch.no_grad()
    def fit(self, represented_NQ: Tensor, *, every_item: bool, generator: torch.Generator) -> None:
        """Fills the codebooks.

        Args:
            represented_NQ: Different representations, at least E and C of them.
            every_item: Whether the representations themselves are the entries; k-means centres otherwise.
            generator: On the CPU.
        """
        if len(self.entries_EQ):
            self.entries_EQ.copy_(
                represented_NQ
                if every_item
                else quantisation.kmeans(represented_NQ, centres=len(self.entries_EQ), generator=generator)
            )
        levels, centres, _ = self.books_LCQ.shape
        if levels:
            self.books_LCQ.copy_(
                quantisation.fit_residual_books(represented_NQ, levels=levels, centres=centres, generator=generator)
            )


class Qarm(SourcedRecommender):
    """The baseline on any backbone."""

    encoder: QarmEncoder
    fitted_F: Tensor
    groups_N: Tensor
    pairs_P2: Tensor
    codes_NJ: Tensor

    def __init__(
        self,
        *,
        config: TrainConfig,
        backbone: Backbone,
        train_counts_N: Tensor,
        item_ids: tuple[str, ...],
        sources: Sources,
        neighbours_NN: sparse.csr_array,
    ) -> None:
        """Builds it.

        Args:
            config: The run's settings.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.
            item_ids: The N items of the sequences.
            sources: Vectors of the catalogue.
            neighbours_NN: Items that meet in training, from `cooccurrence.neighbours`.

        Raises:
            ValueError: The recipe has none of the sources, no item with training events has one, or neither VQ nor RQ
                is asked for.
        """
        settings = config.qarm
        if not settings.vq_codes and not settings.rq_levels:
            raise ValueError("qarm.vq_codes and qarm.rq_levels are both 0, so no item would have a code")
        names = available(settings.sources, sources)
        aligned = sources.aligned(item_ids)
        groups_N = _groups(aligned, names)
        # The items of the fit: with training events and a source, each description once.
        trained_N = (train_counts_N > 0).numpy() & (groups_N >= 0)
        fitted_F = np.flatnonzero(trained_N)[np.unique(groups_N[trained_N], return_index=True)[1]]
        if not len(fitted_F):
            raise ValueError(
                f"no item with training events has a vector of {', '.join(names)}, so there is nothing to quantise"
            )
        entries = min(settings.vq_entries or len(fitted_F), len(fitted_F)) if settings.vq_codes else 0
        super().__init__(
            config=config,
            backbone=backbone,
            train_counts_N=train_counts_N,
            item_ids=item_ids,
            sources=sources,
            names=names,
            encoder=QarmEncoder(
                names=names,
                sources=sources,
                config=config,
                entries=entries,
                centres=max(1, min(settings.rq_clusters, len(fitted_F) // 4)),
            ),
        )
        self.settings: QarmConfig = settings
        self.notes = missing_note("QARM", wanted=settings.sources, found=names)
        self.register_buffer("fitted_F", torch.from_numpy(fitted_F), persistent=False)
        self.register_buffer("groups_N", torch.from_numpy(groups_N), persistent=False)
        pairs = neighbours_NN.tocoo()
        both_P = trained_N[pairs.row] & trained_N[pairs.col]
        pairs_P2 = np.stack([pairs.row[both_P], pairs.col[both_P]], axis=1).astype(np.int64)
        self.register_buffer("pairs_P2", torch.from_numpy(pairs_P2), persistent=False)
        codes = self.encoder.vq_codes + settings.rq_levels
        self.register_buffer("codes_NJ", torch.zeros(len(item_ids), codes, dtype=torch.int64))

    def semantics(self, items_M: Tensor | None) -> Tensor:  # noqa: D102
        described_M = torch.stack(self.present(items_M)).any(0)
        codes_MJ = self.codes_NJ if items_M is None else self.codes_NJ[items_M]
        return self.encoder.embed(codes_MJ, described_M)

    def align_loss(self, pairs_P2: Tensor) -> Tensor:
        """L_align over some pairs: both directions, cosine / τ, the other pairs' items as negatives."""
        trigger_PQ, target_PQ = (self._represented(items_P) for items_P in pairs_P2.unbind(1))
        every_P = torch.ones(len(pairs_P2), dtype=torch.bool, device=pairs_P2.device)
        config = AlignmentConfig(
            temperature=self.settings.temperature, positive_in_denominator=True, mask_equal_content=True
        )
        groups = [self.groups_N[items_P] for items_P in pairs_P2.unbind(1)]
        terms = align(
            trigger_PQ, target_PQ, every_P, anchor_groups_M=groups[0], other_groups_M=groups[1], config=config
        )
        return terms / 2

    def pretrain(self, *, seed: int) -> dict[str, float]:
        """Tunes the representation on item-item pairs, fits the codebooks, and gives every item its codes."""
        generator = torch.Generator().manual_seed(seed)
        figures = {"pairs": float(len(self.pairs_P2)), **self._tune(generator)}
        with torch.no_grad():
            fitted_FQ = self._represented(self.fitted_F)
            every_item = len(self.encoder.entries_EQ) == len(fitted_FQ)
            self.encoder.fit(fitted_FQ, every_item=every_item, generator=generator)
            every_N = torch.arange(len(self.codes_NJ), device=self.codes_NJ.device)
            self.codes_NJ.copy_(
                torch.cat([self.encoder.codes(self._represented(items_M)) for items_M in torch.split(every_N, _ROWS)])
            )
            figures |= {"entries": float(len(self.encoder.entries_EQ)), **self._left_over(fitted_FQ)}
        return figures

    def _tune(self, generator: torch.Generator) -> dict[str, float]:
        figures: dict[str, float] = {}
        settings, tuned = self.settings, self.encoder.tuned
        if not settings.pretrain_epochs or len(self.pairs_P2) < 2:
            return figures
        tuned.requires_grad_(True)
        optimiser = torch.optim.Adam(tuned.parameters(), lr=settings.pretrain_learning_rate)
        for epoch in range(settings.pretrain_epochs):
            batches = torch.split(self._drawn_pairs(generator), settings.pretrain_batch)
            total = 0.0
            for pairs_P2 in batches:
                loss = self.align_loss(pairs_P2)
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
                total += float(loss.detach())
            if epoch in (0, settings.pretrain_epochs - 1):
                figures["align_first" if epoch == 0 else "align_last"] = total / len(batches)
        optimiser.zero_grad(set_to_none=True)
        tuned.requires_grad_(False)
        return figures

    def _drawn_pairs(self, generator: torch.Generator) -> Tensor:
        """Every item that has companions, in random order, each with one of them: int64 [P, 2]."""
        _, sizes_T = torch.unique_consecutive(self.pairs_P2[:, 0], return_counts=True)
        ends_T = sizes_T.cumsum(0)
        draws_T = torch.rand(len(sizes_T), generator=generator, dtype=torch.float64).to(sizes_T.device)
        chosen_T = ends_T - sizes_T + (draws_T * sizes_T).long()
        order_T = torch.randperm(len(chosen_T), generator=generator).to(chosen_T.device)
        return self.pairs_P2[chosen_T[order_T]]

    def _represented(self, items_M: Tensor) -> Tensor:
        return self.encoder.represent(self.prepared(items_M), self.present(items_M))

    def _left_over(self, fitted_FQ: Tensor) -> dict[str, float]:
        """The share of the representations' squared length that the residual levels do not hold."""
        if not len(self.encoder.books_LCQ):
            return {}
        codes_FL = quantisation.rq_codes(fitted_FQ, self.encoder.books_LCQ)
        levels_L = torch.arange(codes_FL.shape[1], device=codes_FL.device)
        held_FQ = self.encoder.books_LCQ[levels_L, codes_FL].sum(1)
        return {"rq_left_over": float((fitted_FQ - held_FQ).square().sum() / fitted_FQ.square().sum())}


def _groups(aligned: Sources, names: Sequence[str]) -> NDArray[np.int64]:
    """Numbers items so that those with the same vectors of all sources share a number; -1 without any; int64 [N]."""
    present_NS = np.stack([aligned.present[name] for name in names], axis=1)
    columns = [content_groups(aligned.vectors[name], aligned.present[name]) for name in names]
    described_N = np.asarray(present_NS.any(axis=1))
    groups_N = np.full(len(described_N), -1, np.int64)
    if described_N.any():
        together = np.stack(columns, axis=1)[described_N]
        groups_N[described_N] = np.unique(together, axis=0, return_inverse=True)[1].ravel()
    return groups_N
