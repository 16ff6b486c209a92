"""X-REFLECT (Lyu et al. 2024, arXiv 2408.15172): descriptions that hold text and picture against each other.

The paper asks an MLLM where text and image support and where they contradict each other (its §3; here the route
`reflect`), encodes the generated descriptions with a frozen sentence encoder, and gives the concatenated embeddings to
the item side of a recommender; DMESR's §4.1.2 sums it up as "concatenates the generated multimodal descriptions".
What neither says, and what is done here: each description is encoded by itself and the *vectors* are concatenated, so
nothing is cut off at the encoder's length; a description that an item lacks is zeros and a flag; the item side is the
same adapter as DMESR's (two Linears). The item's own part, the bias and the loss are those of every other method.

Shapes: N items, V = D + 1, the bias last.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.sourced import (
    Concatenation,
    SemanticBias,
    SourcedRecommender,
    WhiteningEncoder,
    available,
    missing_note,
)
from dmesr_trainer.sources import Sources


class XReflectEncoder(WhiteningEncoder):
    """e = Adapter([e^reflect : e^text : e^image : e^hybrid : which are there])."""

    def __init__(self, *, names: Sequence[str], sources: Sources, config: TrainConfig) -> None:
        """Builds it.

        Args:
            names: The sources, in order.
            sources: The catalogue's vectors.
            config: The run's settings.
        """
        super().__init__(names=names, sources=sources, config=config.adapter)
        self.concatenation = Concatenation(self, dim=config.dim, config=config.adapter)
        self.bias = SemanticBias(dim=config.dim, enabled=config.sources.bias)

    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:  # noqa: D102
        vectors_NV: Tensor = self.bias(self.concatenation(prepared, present))
        return vectors_NV


class XReflect(SourcedRecommender):
    """The baseline on any backbone."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        backbone: Backbone,
        train_counts_N: Tensor,
        item_ids: tuple[str, ...],
        sources: Sources,
    ) -> None:
        """Builds it. A recipe without `reflect` will do; `notes` then says so.

        Args:
            config: The run's settings.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.
            item_ids: The N items of the sequences.
            sources: Vectors of the catalogue.

        Raises:
            ValueError: The recipe has none of the sources.
        """
        names = available(config.xreflect.sources, sources)
        super().__init__(
            config=config,
            backbone=backbone,
            train_counts_N=train_counts_N,
            item_ids=item_ids,
            sources=sources,
            names=names,
            encoder=XReflectEncoder(names=names, sources=sources, config=config),
        )
        self.notes = missing_note("X-REFLECT", wanted=config.xreflect.sources, found=names)
