"""What the pipeline asks of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Turns texts into vectors: Emb(·) of §3.2.1.

    Until `start` nothing heavy may be loaded: the API process makes encoders too, to learn `recipe_fields`.

    Attributes:
        name: The kind, for instance "sentence-transformers".
        model: The model as it is called in the configuration.
        revision: What its files are: a commit or a hash of their content.
        dim: Width of its vectors, D.
        batch_size: Texts that it takes in one step; the pipeline gathers several times as many for one `encode`.
    """

    name: str
    model: str
    revision: str
    dim: int
    batch_size: int

    async def start(self) -> None:
        """Loads the model. Called before the first `encode`; a second call does nothing.

        Raises:
            ServiceError: ENCODER_UNAVAILABLE, with the remedy.
        """
        ...

    async def stop(self) -> None:
        """Lets go of the model; `start` may follow."""
        ...

    def recipe_fields(self) -> Mapping[str, Any]:
        """All that shapes a vector, for its identity: name, model, revision, pooling, truncation, normalisation, dim.

        Everything that JSON holds.
        """
        ...

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, in order: [N, D] float32. Cancelling ends it after the step in hand.

        Raises:
            ServiceError: ENCODER_UNAVAILABLE when it cannot go on at all; the job then fails.
        """
        ...
