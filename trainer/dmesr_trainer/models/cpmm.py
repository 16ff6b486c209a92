"""CPMM (Mo et al. 2025, Neurocomputing 130059): items' ids made of text and picture, cleaned for recommendation.

The equations follow the abstract and the code that the authors published with the paper; its text is not freely
available. With x^t, x^v an item's textual and visual vectors, hats for unit vectors, n Gaussian noise:

    z^t = A_t(x^t + n), z^v = A_v(x^v + n)                                          purification (training only)
    z^id = s + F(s), s = z^t + z^v                                                  the id representation
    L_con   = ½ (CE(ẑ^t ẑ^vᵀ / τ) + CE(ẑ^v ẑ^tᵀ / τ)), the item itself as the class  contrast between modalities
    L_shift = ½ (mean ‖ẑ^t - ẑ^id‖₂ + mean ‖ẑ^v - ẑ^id‖₂)                           L2-shift: the gap between modalities
    L_co    = BCE(ẑ^id ẑ^idᵀ / τ, co-occurrence or the same item)                   collaborative enhancement
    L       = λ1 L_con + λ2 L_shift + λ3 L_co
    e       = z^id + z^t + z^v                                                      what the recommender reads

What differs, and why. The authors sum the *raw* vectors before a projection of their own and give each modality a
second, noiseless branch; raw vectors cannot be summed here, since sources may differ in width. They use CLIP's vectors,
this project encoded descriptions (as DMESR's comparison does). They count any two items of a user as co-occurring,
which on dense data marks nearly every pair of a batch; `cooccurrence.window` 0 and `cooccurrence.neighbours` 0 is that
form. They train L first and keep it fixed; here it is trained first and then, lightly, along with the recommender;
`cpmm.weight` 0, `cpmm.freeze` and `cpmm.normalise` are their form. The item's own part, the bias and the loss are those
of every other method.

Shapes: N items, M items of a batch, W a prepared source's width, D width of the view, V = D + 1, the bias last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from dmesr_trainer.baseline_config import CpmmConfig
from dmesr_trainer.config import AlignmentConfig, TrainConfig
from dmesr_trainer.models.adapters import Adapter
from dmesr_trainer.models.alignment import align
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.cooccurrence import among
from dmesr_trainer.models.sourced import (
    SemanticBias,
    SourcedRecommender,
    WhiteningEncoder,
    available,
    missing_note,
)
from dmesr_trainer.sources import Sources, content_groups


class CpmmEncoder(WhiteningEncoder):
    """z^t, z^v, z^id and their sum. With one modality alone, s is that one."""

    def __init__(self, *, names: Sequence[str], sources: Sources, config: TrainConfig) -> None:
        """Builds it.

        Args:
            names: The textual source and the visual one, or one of them.
            sources: The catalogue's vectors.
            config: The run's settings.
        """
        super().__init__(names=names, sources=sources, config=config.adapter)
        self.settings = config.cpmm
        initial_std = config.adapter.initial_std if config.adapter.whiten else None
        self.adapters = nn.ModuleList(
            Adapter(
                width=width,
                hidden=max(1, int(config.adapter.hidden_share * sources.dims[name])),
                dim=config.dim,
                fold=config.adapter.fold,
                initial_std=initial_std,
            )
            for name, width in zip(names, self.widths, strict=True)
        )
        self.refine = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.zeros_(self.refine.weight)
        self.bias = SemanticBias(dim=config.dim, enabled=config.sources.bias)

    def representations(
        self, prepared: Sequence[Tensor], present: Sequence[Tensor], *, noisy: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Z of each modality, zeros where it is absent, and z^id; each [N, D].

        Args:
            prepared: Of each modality.
            present: bool [N] of each.
            noisy: Whether to add the noise.
        """
        modalities = []
        for adapter, vectors_NW, present_N in zip(self.adapters, prepared, present, strict=True):
            read_NW = self._noisy(vectors_NW, present_N) if noisy else vectors_NW
            modalities.append(adapter(read_NW) * present_N[:, None])
        sum_ND = torch.stack(modalities).sum(0)
        return modalities, sum_ND + self.refine(sum_ND)

    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:  # noqa: D102
        modalities, id_ND = self.representations(prepared, present)
        parts = [id_ND, *modalities]
        if self.settings.normalise:
            parts = [functional.normalize(part_ND, dim=1) for part_ND in parts]
        vectors_NV: Tensor = self.bias(torch.stack(parts).sum(0))
        return vectors_NV

    def _noisy(self, vectors_NW: Tensor, present_N: Tensor) -> Tensor:
        if not present_N.any():
            return vectors_NW
        spread = vectors_NW[present_N].square().mean().sqrt()
        return vectors_NW + torch.randn_like(vectors_NW) * (self.settings.noise * spread)


def contrast(
    text_MD: Tensor,
    image_MD: Tensor,
    both_M: Tensor,
    *,
    text_groups_M: Tensor,
    image_groups_M: Tensor,
    temperature: float,
) -> Tensor:
    """L_con over the items that have both; items with the same description are no negatives of each other."""
    terms = align(
        text_MD,
        image_MD,
        both_M,
        anchor_groups_M=text_groups_M,
        other_groups_M=image_groups_M,
        config=AlignmentConfig(temperature=temperature, positive_in_denominator=True, mask_equal_content=True),
    )
    return terms / 2


def shift(modalities: Sequence[Tensor], present: Sequence[Tensor], id_MD: Tensor) -> Tensor:
    """L_shift: the mean over the modalities of how far each is from the id representation, as unit vectors."""
    unit_MD = functional.normalize(id_MD, dim=1)
    terms = [
        torch.linalg.vector_norm(functional.normalize(modality_MD, dim=1) - unit_MD, dim=1)[present_M].mean()
        for modality_MD, present_M in zip(modalities, present, strict=True)
        if present_M.any()
    ]
    return torch.stack(terms).mean() if terms else id_MD.sum() * 0.0


def cooccurrence_loss(id_MD: Tensor, met_MM: Tensor, *, temperature: float) -> Tensor:
    """L_co: every pair of the batch, whether the two met."""
    unit_MD = functional.normalize(id_MD, dim=1)
    return functional.binary_cross_entropy_with_logits(unit_MD @ unit_MD.T / temperature, met_MM.to(id_MD.dtype))


class Cpmm(SourcedRecommender):
    """The baseline on any backbone."""

    encoder: CpmmEncoder

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
        """Builds it. A recipe with one of the two modalities will do; `notes` then says so.

        Args:
            config: The run's settings.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.
            item_ids: The N items of the sequences.
            sources: Vectors of the catalogue.
            neighbours_NN: Items that meet in training, from `cooccurrence.neighbours`.

        Raises:
            ValueError: The recipe has neither modality.
        """
        wanted = (config.cpmm.text, config.cpmm.image)
        names = available(wanted, sources)
        super().__init__(
            config=config,
            backbone=backbone,
            train_counts_N=train_counts_N,
            item_ids=item_ids,
            sources=sources,
            names=names,
            encoder=CpmmEncoder(names=names, sources=sources, config=config),
        )
        self.settings: CpmmConfig = config.cpmm
        self.notes = missing_note("CPMM", wanted=wanted, found=names)
        self.neighbours_NN = neighbours_NN
        aligned = sources.aligned(item_ids)
        for place, name in enumerate(names):
            groups_N = content_groups(aligned.vectors[name], aligned.present[name])
            self.register_buffer(f"groups_{place}", torch.from_numpy(groups_N), persistent=False)

    def losses(self, items_M: Tensor) -> dict[str, Tensor]:
        """The three terms over some items, weighted by λ1 to λ3 but not by `weight`; noise is added."""
        present = self.present(items_M)
        modalities, id_MD = self.encoder.representations(self.prepared(items_M), present, noisy=True)
        settings = self.settings
        parts = {"shift": settings.shift * shift(modalities, present, id_MD)}
        if len(modalities) == 2:
            text_MD, image_MD = modalities
            groups = [groups_N[items_M] for groups_N in self._by_source("groups", None)]
            parts["contrast"] = settings.contrast * contrast(
                text_MD,
                image_MD,
                present[0] & present[1],
                text_groups_M=groups[0],
                image_groups_M=groups[1],
                temperature=settings.temperature,
            )
        met_MM = among(self.neighbours_NN, items_M)
        parts["cooccurrence"] = settings.cooccurrence * cooccurrence_loss(
            id_MD, met_MM, temperature=settings.temperature
        )
        return parts

    def auxiliary_losses(self, items_M: Tensor) -> dict[str, Tensor]:
        """`weight` times the three terms over the items of a batch."""
        if self.settings.weight == 0.0 or self.settings.freeze:
            return {}
        items_M = self._described(items_M)
        if len(items_M) > self.settings.max_items:
            items_M = items_M[torch.randperm(len(items_M), device=items_M.device)[: self.settings.max_items]]
        if not len(items_M):
            return {}
        return {name: self.settings.weight * part for name, part in self.losses(items_M).items()}

    def pretrain(self, *, seed: int) -> dict[str, float]:
        """The three losses over all items with training events, before the recommender; then, if asked, freezes."""
        figures: dict[str, float] = {}
        items_N = self._described(self.every_trained_M)
        settings = self.settings
        if settings.pretrain_epochs and len(items_N):
            optimiser = torch.optim.Adam(self.encoder.parameters(), lr=settings.pretrain_learning_rate)
            self.encoder.train()
            devices = [items_N.device] if items_N.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                for epoch in range(settings.pretrain_epochs):
                    sums: dict[str, float] = {}
                    order_N = torch.randperm(len(items_N), device=items_N.device)
                    batches = torch.split(items_N[order_N], settings.pretrain_batch)
                    for items_M in batches:
                        parts = self.losses(items_M)
                        optimiser.zero_grad(set_to_none=True)
                        torch.autograd.backward(torch.stack(list(parts.values())).sum())
                        optimiser.step()
                        for name, part in parts.items():
                            sums[name] = sums.get(name, 0.0) + float(part.detach()) / len(batches)
                    if epoch in (0, settings.pretrain_epochs - 1):
                        when = "first" if epoch == 0 else "last"
                        figures |= {f"{name}_{when}": value for name, value in sums.items()}
            optimiser.zero_grad(set_to_none=True)
        if settings.freeze:
            for frozen in (self.encoder.adapters, self.encoder.refine):
                frozen.requires_grad_(False)
        return figures

    def _described(self, items_M: Tensor) -> Tensor:
        return items_M[torch.stack(self.present(items_M)).any(0)]
