"""Trains one method. What a run leaves behind is in `dmesr_trainer.run_folder`."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from dmesr_trainer import optimising, processes
from dmesr_trainer.batching import Windows
from dmesr_trainer.checkpoint import Checkpoint
from dmesr_trainer.checkpoint import read as read_checkpoint
from dmesr_trainer.config import EvaluationConfig, TrainConfig
from dmesr_trainer.evaluation import Figures, evaluate, negatives
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.run_folder import Metrics, RunFolder
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

_VERSIONS_OF = (
    "dmesr",
    "torch",
    "lightning-fabric",
    "numpy",
    "safetensors",
    "tensorboardX",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


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
    resume: bool = False,
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
        resume: Go on with the run that the folder holds, if it holds one. On a CPU with as many threads the figures are
            those of a run that was never ended. Otherwise the folder's run is begun anew.
        on_epoch: Called after each epoch.
        on_step: Called after each batch with its number, from 1, and how many the epoch has at most.

    Raises:
        ValueError: The settings do not fit the data, or the folder holds another run.
    """
    started = time.perf_counter()
    _check(sequences, config)
    folder = RunFolder(output)
    history: list[EpochReport] = []
    seconds_before, best_epoch, interrupted = 0.0, 0, False
    model: Recommender | None = None
    facts = _facts(config, sequences=sequences, sources=sources)
    found = None
    if resume:
        found = folder.go_on(config, facts=facts)
    else:
        folder.begin(config, facts=facts)
    if found is not None:
        history += [EpochReport(**line) for line in found.kept["history"]]
        seconds_before = found.kept["seconds"]
    arguments = {
        "config": config,
        "sequences": sequences,
        "sources": sources,
        "checkpoint": folder.checkpoint if found is not None else None,
        "history": history,
    }
    try:
        with processes.fabrics(config, work=_work, arguments=arguments) as fabric:
            model, pretraining = _prepare(fabric, config=config, sequences=sequences, sources=sources)
            if _learns(model):
                run = _Run(fabric, config=config, sequences=sequences, model=model, found=found, on_step=on_step)
                _lead(run, folder=folder, history=history, before=seconds_before, on_epoch=on_epoch)
    except KeyboardInterrupt:
        if model is None or not folder.best.exists():
            raise
        interrupted = True
    if _learns(model):
        best_epoch = folder.load_best(model)
    model.eval()
    evaluations = {
        split: evaluate(model, sequences, split=split, config=config.evaluation) for split in ("valid", "test")
    }
    result = TrainResult(
        model=model.cpu(),
        config=config,
        metrics={split: evaluation.figures for split, evaluation in evaluations.items()},
        test_ranks={"sampled": evaluations["test"].sampled_ranks_H, "full": evaluations["test"].full_ranks_H},
        best_epoch=best_epoch,
        history=tuple(history),
        pretraining=pretraining,
        interrupted=interrupted,
        seconds=seconds_before + time.perf_counter() - started,
        item_ids=sequences.item_ids,
        train_counts_N=sequences.train_counts_N,
        lineage=_lineage(sources),
        output=output,
    )
    folder.write_result(_summary(result))
    return result


def _prepare(
    fabric: Fabric, *, config: TrainConfig, sequences: Sequences, sources: Sources | None
) -> tuple[Recommender, dict[str, float]]:
    torch.manual_seed(config.seed)
    model = build(config, sequences=sequences, sources=sources).to(fabric.device)
    return model, model.pretrain(seed=config.seed)


def _learns(model: Recommender) -> bool:
    """Whether it learns by steps."""
    return any(parameter.requires_grad for parameter in model.parameters())


def _work(
    fabric: Fabric,
    *,
    config: TrainConfig,
    sequences: Sequences,
    sources: Sources | None,
    checkpoint: Path | None,
    history: list[EpochReport],
) -> None:
    """What the processes beside the first one do."""
    found = read_checkpoint(checkpoint) if checkpoint else None
    model, _ = _prepare(fabric, config=config, sequences=sequences, sources=sources)
    if not _learns(model):
        return
    run = _Run(fabric, config=config, sequences=sequences, model=model, found=found, on_step=None)
    epoch = len(history)
    while run.agree(False):
        epoch += 1
        run.epoch(epoch)


class _Run:
    """The moving parts of a training run in one process."""

    def __init__(
        self,
        fabric: Fabric,
        *,
        config: TrainConfig,
        sequences: Sequences,
        model: Recommender,
        found: Checkpoint | None,
        on_step: Callable[[int, int], None] | None,
    ) -> None:
        settings = config.optimiser
        self.config, self.sequences, self.model, self.fabric, self.on_step = config, sequences, model, fabric, on_step
        self.windows = Windows.of(config, sequences, rank=fabric.global_rank, world_size=fabric.world_size)
        self.adam = optimising.adam(model, settings)
        self.module, self.optimiser = fabric.setup(model, self.adam)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, optimising.learning_rate_share(settings, steps=settings.epochs * len(self.windows))
        )
        if found is not None:
            found.restore(model=model, optimiser=self.adam, schedule=self.schedule)

    def epoch(self, number: int) -> dict[str, float]:
        """One pass over the training events; the mean of each part of the loss."""
        # All draws follow from the seed and the epoch, so that a run can go on from any epoch.
        torch.manual_seed(_epoch_seed(self.config.seed, epoch=number, rank=self.fabric.global_rank))
        sums: dict[str, Tensor] = {}
        batches = 0
        self.module.train()
        for batches, batch in enumerate(self.windows.epoch(number), start=1):
            loss = self.module(batch.to(self.fabric.device))
            self.optimiser.zero_grad(set_to_none=True)
            # The processes' gradients are averaged.
            self.fabric.backward(loss.total * batch.weight)
            self.optimiser.step()
            self.schedule.step()
            for name, value in loss.parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * batch.weight
            if self.on_step:
                self.on_step(batches, len(self.windows))
        # Of a tensor it makes a tensor; its type allows for collections too.
        means = {name: cast(Tensor, self.fabric.all_reduce(sums[name], reduce_op="mean")) for name in sorted(sums)}
        return {name: float(mean) / batches for name, mean in means.items()}

    def agree(self, more: bool) -> bool:
        """Whether the first process wants another epoch; all processes ask at once."""
        wanted = torch.tensor(float(more and self.fabric.global_rank == 0), device=self.fabric.device)
        return bool(self.fabric.all_reduce(wanted, reduce_op="sum"))


def _lead(
    run: _Run,
    *,
    folder: RunFolder,
    history: list[EpochReport],
    before: float,
    on_epoch: Callable[[EpochReport], None] | None,
) -> None:
    """The epochs of the first process: it validates, writes, tells, and decides when to stop."""
    began = time.perf_counter()
    settings, evaluation = run.config.optimiser, run.config.evaluation
    # Drawn once: every epoch, and every method at this seed, meets the same candidates.
    negatives_HC = negatives(run.sequences, split="valid", count=evaluation.negatives, seed=evaluation.seed)
    best_value, best_epoch = -math.inf, 0
    for report in history:
        if report.is_best:
            best_value, best_epoch = _chosen_by(report.valid, evaluation), report.epoch

    def keep() -> None:
        told = {"history": [asdict(one) for one in history], "seconds": before + time.perf_counter() - began}
        folder.save_checkpoint(model=run.model, optimiser=run.adam, schedule=run.schedule, kept=told)

    metrics, kept = Metrics(folder, history=history), bool(history)
    try:
        while run.agree(len(history) < settings.epochs and len(history) - best_epoch < settings.patience):
            started, epoch = time.perf_counter(), len(history) + 1
            losses = run.epoch(epoch)
            valid = evaluate(
                run.model, run.sequences, split="valid", config=evaluation, negatives_HC=negatives_HC
            ).figures
            if is_best := _chosen_by(valid, evaluation) > best_value:
                best_value, best_epoch = _chosen_by(valid, evaluation), epoch
                folder.save_best(run.model, epoch=epoch)
            report = EpochReport(
                epoch=epoch,
                epochs=settings.epochs,
                losses=losses,
                valid=valid,
                is_best=is_best,
                best_epoch=best_epoch,
                learning_rate=float(run.schedule.get_last_lr()[0]),
                seconds=time.perf_counter() - started,
            )
            history.append(report)
            metrics.add(report)
            if kept := folder.checkpoint_is_due():
                keep()
            if on_epoch:
                on_epoch(report)
        if not kept:
            keep()
    finally:
        metrics.close()


def _chosen_by(valid: dict[str, Figures], evaluation: EvaluationConfig) -> float:
    return valid["sampled"][f"ndcg@{evaluation.k}"]


def _epoch_seed(seed: int, *, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0])


def _facts(config: TrainConfig, *, sequences: Sequences, sources: Sources | None) -> dict[str, Any]:
    lineage = _lineage(sources)
    return {
        "versions": versions(),
        "devices": config.devices,
        "threads": torch.get_num_threads(),
        "data": {"interactions": sequences.digest, "recipe_id": lineage.recipe_id, "vectors": lineage.digest},
    }


def _lineage(sources: Sources | None) -> Lineage:
    return Lineage(sources.recipe_id, sources.version, sources.digest) if sources else Lineage()


def _check(sequences: Sequences, config: TrainConfig) -> None:
    if not len(sequences.held_out_users_H):
        raise ValueError(f"none of the {sequences.n_users} users has 3 events or more, so nothing can be held out")
    if config.optimiser.epochs < 1:
        raise ValueError(f"optimiser.epochs is {config.optimiser.epochs}; at least one epoch is needed")
    if config.optimiser.batch_size < config.devices:
        raise ValueError(
            f"optimiser.batch_size is {config.optimiser.batch_size}, which cannot be shared among {config.devices} "
            "devices; use fewer devices or a larger batch"
        )


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
