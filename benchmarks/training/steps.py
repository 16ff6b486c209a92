"""Training steps, ours and the peers', and the CPU time of each, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from dmesr_trainer.batching import Batch, Windows
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.optimising import adam
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

from .size import Size
from .textbook import TextbookSasRec

Step = Callable[[], object]


def settings(method: str, *, size: Size, length: int, **changes: object) -> TrainConfig:
    """Two layers, two heads, eq. 7's loss with one negative a target, each user's last window.

    Args:
        method: As in `TrainConfig.preset`.
        size: Batch and width.
        length: L.
        **changes: As in `TrainConfig.preset`.
    """
    fixed = {
        "dim": size.dim,
        "backbone__max_history": length,
        "backbone__layers": 2,
        "backbone__heads": 2,
        "optimiser__batch_size": size.batch,
        "optimiser__windows": "last",
        "loss__name": "bce",
    }
    return TrainConfig.preset(method, **{**fixed, **changes})


class Ours:
    """A step as the trainer makes it: windows and negatives drawn, forward, backward, Adam."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        sequences: Sequences,
        sources: Sources | None = None,
        model: Recommender | None = None,
    ) -> None:
        """Builds the model and its optimiser.

        Args:
            config: The run's settings.
            sequences: The histories.
            sources: The items' vectors.
            model: Trained in place of the one that the settings name.
        """
        torch.manual_seed(config.seed)
        self.model = (model or build(config, sequences=sequences, sources=sources)).train()
        self.adam = adam(self.model, config.optimiser)
        self.windows = Windows.of(config, sequences)
        self._batches = self._endless()

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self.windows.epoch()

    def __call__(self) -> None:
        """One step."""
        loss = self.model(next(self._batches))
        self.adam.zero_grad(set_to_none=True)
        loss.total.backward()
        self.adam.step()


class Textbook:
    """A step of the textbook's model on the same windows, drawn beforehand: its data costs it nothing."""

    def __init__(self, model: TextbookSasRec, *, config: TrainConfig, sequences: Sequences, batches: int = 8) -> None:
        """Draws the batches.

        Args:
            model: The model.
            config: Of the run that it is held against: the same windows.
            sequences: The histories.
            batches: Drawn, and used again and again.
        """
        self.model = model.train()
        self.adam = torch.optim.Adam(model.parameters(), lr=config.optimiser.learning_rate)
        windows = Windows.of(config, sequences)
        self.batches = [_counted_from_one(batch) for batch, _ in zip(windows.epoch(), range(batches), strict=False)]
        self._place = 0

    def __call__(self) -> None:
        """One step."""
        batch = self.batches[self._place % len(self.batches)]
        self._place += 1
        loss = self.model.loss(*batch)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()


def _counted_from_one(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert batch.negatives_BL is not None
    inputs, targets, negatives = (
        (items_BL + 1) * batch.mask_BL for items_BL in (batch.inputs_BL, batch.targets_BL, batch.negatives_BL)
    )
    return inputs, targets, negatives


def cpu_seconds(steps: Sequence[Step], *, repeats: int, each: int = 1) -> list[float]:
    """CPU seconds of one step of each, the median of some turns, after one turn that does not count.

    Args:
        steps: What is held beside each other.
        repeats: Turns that count.
        each: Steps of a turn.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 1):
        for place, step in enumerate(steps):
            started = time.process_time()
            for _ in range(each):
                step()
            if turn:
                seconds[place].append((time.process_time() - started) / each)
    return [statistics.median(times) for times in seconds]
