"""Trains one method and keeps what a run leaves behind.

A run folder holds config.json, metrics.jsonl (a line an epoch), best.safetensors and result.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from dmesr_trainer.batching import Windows
from dmesr_trainer.config import OptimiserConfig, TrainConfig
from dmesr_trainer.evaluation import Figures, evaluate, negatives
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

_VERSIONS_OF = ("dmesr", "torch", "lightning-fabric", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class EpochReport:
    """One line of metrics.jsonl.

    Attributes:
        epoch: From 1.
        epochs: At most.
        losses: The mean of each part of the loss.
        valid: {"sampled": {"hr@10": …}, "full": …}.
        is_best: Whether this epoch's sampled validation NDCG is the best so far.
        best_epoch: The best so far.
        learning_rate: At the epoch's end.
        seconds: Training and validation.
    """

    epoch: int
    epochs: int
    losses: dict[str, float]
    valid: dict[str, Figures]
    is_best: bool
    best_epoch: int
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Lineage:
    """Which vectors a run read."""

    recipe_id: str = ""
    version: int = 0
    digest: str = ""


@dataclass(frozen=True)
class TrainResult:
    """A trained model and how good it is.

    Attributes:
        model: At its best epoch, in evaluation mode, on the CPU.
        config: The run's settings.
        metrics: {"valid": {"sampled": {"hr@10": …, "ndcg@10": …}, "full": …}, "test": …}.
        test_ranks: Each held-out user's rank, "sampled" and "full": for significance tests.
        best_epoch: 0 for a method that learns nothing by steps.
        history: Every epoch.
        pretraining: Figures of what was learned before the first epoch; empty for most methods.
        interrupted: Whether Ctrl-C ended it early; the best so far was kept.
        seconds: Wall clock.
        item_ids: The N items, in the order of the model's tables.
        train_counts_N: Training events of each.
        lineage: The vectors that it read.
        output: The run folder.
    """

    model: Recommender
    config: TrainConfig
    metrics: dict[str, dict[str, Figures]]
    test_ranks: dict[str, NDArray[np.int64]]
    best_epoch: int
    history: tuple[EpochReport, ...]
    pretraining: dict[str, float]
    interrupted: bool
    seconds: float
    item_ids: tuple[str, ...]
    train_counts_N: NDArray[np.int64]
    lineage: Lineage
    output: Path


def versions() -> dict[str, str]:
    """The packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS_OF}


def train(
    *,
    config: TrainConfig,
    sequences: Sequences,
    sources: Sources | None,
    output: Path,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Trains until the validation NDCG no longer rises, then measures the best epoch on the test events.

    Ctrl-C ends the training and keeps the best epoch so far; before the first epoch's end it is raised.

    Args:
        config: The settings.
        sequences: The histories.
        sources: The catalogue's vectors; None for methods that know items by their ids alone.
        output: The run folder; made where it is missing.
        on_epoch: Called after each epoch.
        on_step: Called after each batch with its number, from 1, and how many the epoch has at most.

    Raises:
        ValueError: The settings do not fit the data.
    """
    started = time.perf_counter()
    _check(sequences, config)
    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "config.json", config.to_dict())
    torch.manual_seed(config.seed)
    fabric = Fabric(accelerator=_accelerator(config.device), devices=1, precision=config.precision)
    model = build(config, sequences=sequences, sources=sources).to(fabric.device)
    pretraining = model.pretrain(seed=config.seed)
    history: list[EpochReport] = []
    interrupted = False
    best = output / "best.safetensors"
    if any(parameter.requires_grad for parameter in model.parameters()):
        best.unlink(missing_ok=True)
        run = _Run(config, sequences=sequences, model=model, fabric=fabric, on_step=on_step)
        try:
            with (output / "metrics.jsonl").open("w", encoding="utf-8") as lines:
                _epochs(run, history=history, best=best, lines=lines, on_epoch=on_epoch)
        except KeyboardInterrupt:
            if not best.exists():
                raise
            interrupted = True
        model.load_state_dict(load_file(best))
    model.eval()
    evaluations = {
        split: evaluate(model, sequences, split=split, config=config.evaluation) for split in ("valid", "test")
    }
    lineage = Lineage(sources.recipe_id, sources.version, sources.digest) if sources else Lineage()
    result = TrainResult(
        model=model.cpu(),
        config=config,
        metrics={split: evaluation.figures for split, evaluation in evaluations.items()},
        test_ranks={"sampled": evaluations["test"].sampled_ranks_H, "full": evaluations["test"].full_ranks_H},
        best_epoch=next((report.epoch for report in reversed(history) if report.is_best), 0),
        history=tuple(history),
        pretraining=pretraining,
        interrupted=interrupted,
        seconds=time.perf_counter() - started,
        item_ids=sequences.item_ids,
        train_counts_N=sequences.train_counts_N,
        lineage=lineage,
        output=output,
    )
    _write_json(output / "result.json", _summary(result))
    return result


class _Run:
    """The moving parts of a training run."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        sequences: Sequences,
        model: Recommender,
        fabric: Fabric,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        settings = config.optimiser
        self.config, self.sequences, self.model, self.fabric, self.on_step = config, sequences, model, fabric, on_step
        self.windows = Windows.of(config, sequences)
        optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.module, self.optimiser = fabric.setup(model, optimiser)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, _learning_rate_share(settings, steps=settings.epochs * len(self.windows))
        )
        evaluation = config.evaluation
        # Drawn once: every epoch, and every method at this seed, meets the same candidates.
        self.negatives_HC = negatives(sequences, split="valid", count=evaluation.negatives, seed=evaluation.seed)

    def epoch(self) -> dict[str, float]:
        """One pass over the training events; the mean of each part of the loss."""
        sums: dict[str, float] = {}
        batches = 0
        self.module.train()
        for batches, batch in enumerate(self.windows.epoch(), start=1):
            loss = self.module(batch.to(self.fabric.device))
            self.optimiser.zero_grad(set_to_none=True)
            self.fabric.backward(loss.total)
            self.optimiser.step()
            self.schedule.step()
            for name, value in loss.parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if self.on_step:
                self.on_step(batches, len(self.windows))
        return {name: value / batches for name, value in sums.items()}

    def validate(self) -> dict[str, Figures]:
        """Figures on the validation events."""
        return evaluate(
            self.model,
            self.sequences,
            split="valid",
            config=self.config.evaluation,
            negatives_HC=self.negatives_HC,
        ).figures


def _epochs(
    run: _Run,
    *,
    history: list[EpochReport],
    best: Path,
    lines: TextIO,
    on_epoch: Callable[[EpochReport], None] | None,
) -> None:
    settings = run.config.optimiser
    best_value, best_epoch = -math.inf, 0
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        losses, valid = run.epoch(), run.validate()
        value = valid["sampled"][f"ndcg@{run.config.evaluation.k}"]
        is_best = value > best_value
        if is_best:
            best_value, best_epoch = value, epoch
            _save(run.model, best)
        report = EpochReport(
            epoch=epoch,
            epochs=settings.epochs,
            losses=losses,
            valid=valid,
            is_best=is_best,
            best_epoch=best_epoch,
            learning_rate=run.schedule.get_last_lr()[0],
            seconds=time.perf_counter() - started,
        )
        history.append(report)
        lines.write(json.dumps(asdict(report)) + "\n")
        lines.flush()
        if on_epoch:
            on_epoch(report)
        if epoch - best_epoch >= settings.patience:
            return


def _check(sequences: Sequences, config: TrainConfig) -> None:
    if not len(sequences.held_out_users_H):
        raise ValueError(f"none of the {sequences.n_users} users has 3 events or more, so nothing can be held out")
    if config.optimiser.epochs < 1:
        raise ValueError(f"optimiser.epochs is {config.optimiser.epochs}; at least one epoch is needed")


def _accelerator(device: str) -> str:
    match device:
        case "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        case "cuda" if not torch.cuda.is_available():
            raise ValueError("device 'cuda' was asked for, but PyTorch sees no GPU; use --device cpu or auto")
        case "cpu" | "cuda":
            return device
        case _:
            raise ValueError(f"unknown device {device!r}; choose auto, cpu or cuda")


def _learning_rate_share(settings: OptimiserConfig, *, steps: int) -> Callable[[int], float]:
    def share(step: int) -> float:
        warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        if settings.decay == "none":
            return warm
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))

    return share


def _save(model: Recommender, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, partial)
    partial.replace(path)  # a kill never leaves half a checkpoint


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _summary(result: TrainResult) -> dict[str, Any]:
    return {
        "method": result.config.method,
        "backbone": result.model.backbone_name,
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "pretraining": result.pretraining,
        "notes": list(result.model.notes),
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 3),
        "lineage": asdict(result.lineage),
        "versions": versions(),
    }
