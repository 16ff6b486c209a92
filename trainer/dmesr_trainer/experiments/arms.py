"""What an experiment compares: rows of a table, each of them cells over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dmesr_trainer.config import BACKBONES, FLOORS, METHODS, METHODS_BY_ID, TrainConfig
from dmesr_trainer.experiments.cells import Cell, CellSpec, CellStore
from dmesr_trainer.experiments.data import Data
from dmesr_trainer.experiments.paper import PaperValue
from dmesr_trainer.experiments.pool import Task
from dmesr_trainer.experiments.vectors import Vectors

#: The paper's method, as printed and as built here; everything else is what it is held against.
WHOLE, AS_PRINTED = "dmesr", "dmesr-paper"
OURS = (WHOLE, AS_PRINTED)

Role = Literal["ours", "baseline", "floor", "variant"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every method gets alike.

    Attributes:
        epochs: At most; None for what the backbone needs.
        patience: Epochs without a better validation NDCG; None for what the backbone needs.
        minutes: Wall clock of a cell's training at most; None for no limit.
        seeds: Of training.
    """

    epochs: int | None = None
    patience: int | None = None
    minutes: float | None = None
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """A row of a table.

    Attributes:
        method: What the row is called.
        backbone: "" for a floor.
        config: Its settings; the seed is put in for each cell.
        vectors: What it reads; None for a method that knows items by their ids alone.
        role: What it is in comparisons.
        seeds: Its runs.
        paper: What the paper prints for it, by metric.
        group: The part of the table where it stands.
    """

    method: str
    backbone: str
    config: TrainConfig
    vectors: Vectors | None
    role: Role
    seeds: tuple[int, ...]
    paper: Mapping[str, PaperValue] = field(default_factory=dict)
    group: str = ""

    @property
    def label(self) -> str:
        """For progress and messages."""
        return " ".join(part for part in (self.backbone, self.method) if part)

    def spec(self, data: Data, seed: int, *, minutes: float | None) -> CellSpec:
        """One of its cells."""
        return CellSpec(
            data_digest=data.digest,
            vectors=self.vectors.identity if self.vectors else "",
            config=replace(self.config, seed=seed),
            minutes=minutes,
        )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that the experiments share.

    Attributes:
        data: The histories.
        store: Where cells are.
        vectors: What methods read; None where none of them reads any.
        budget: Of every method.
        changes: Settings for every method, as `TrainConfig.changed` takes them.
        method_changes: Settings for one method, over `changes`.
        jobs: Cells at a time.
        output: Where results go.
        command: What was typed, to be told beside the results.
        only_report: Run nothing; tell of the cells that are finished.
    """

    data: Data
    store: CellStore
    vectors: Vectors | None
    budget: Budget
    changes: Mapping[str, Any]
    method_changes: Mapping[str, Mapping[str, Any]]
    jobs: int
    output: Path
    command: str
    only_report: bool = False

    def config(self, method: str, backbone: str, **changes: Any) -> TrainConfig:
        """A method's settings under this experiment's budget; a floor's backbone is "".

        Raises:
            ValueError: The method, the backbone or a setting is unknown.
        """
        # Of None, so that no method's own preset gets it more steps than another on the same backbone.
        plain = TrainConfig.preset("none", backbone=backbone or BACKBONES[0]).optimiser
        budget = {
            "optimiser__epochs": self.budget.epochs or plain.epochs,
            "optimiser__patience": self.budget.patience or plain.patience,
        }
        given = {**budget, **self.changes, **self.method_changes.get(method, {}), **changes}
        return TrainConfig.preset(method, backbone=backbone or BACKBONES[0], **given)

    def arm(self, method: str, backbone: str, /, *, called: str = "", **values: Any) -> Arm:
        """A method as it is, as a row; `called` names the row, and `values` are further fields of `Arm`."""
        floor = method in FLOORS
        defaults: dict[str, Any] = {
            "method": called or method,
            "backbone": "" if floor else backbone,
            "config": self.config(method, "" if floor else backbone),
            "vectors": self.vectors if reads_vectors(method) else None,
            "role": "floor" if floor else "ours" if method in OURS else "baseline",
            # Nothing is drawn at random in a floor: more seeds would be the same run again.
            "seeds": self.budget.seeds[:1] if floor else self.budget.seeds,
        }
        return Arm(**{**defaults, **values})

    def cell(self, arm: Arm, seed: int, data: Data | None = None) -> Cell:
        """One of an arm's cells."""
        return self.store.cell(arm.spec(data or self.data, seed, minutes=self.budget.minutes))

    def task(self, arm: Arm, seed: int, data: Data | None = None, *, note: str = "") -> Task:
        """What the pool runs for a cell."""
        cell = self.cell(arm, seed, data)
        return Task(
            cell=cell,
            label=f"{arm.label}{f' {note}' if note else ''} seed {seed}",
            data=self.store.data_folder(cell.spec),
            vectors=arm.vectors.path if arm.vectors else None,
        )


def reads_vectors(method: str) -> bool:
    """Whether a method needs vectors of the server."""
    return method not in METHODS_BY_ID


def methods_and_floors(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checks names and puts them in the order of tables: methods on a backbone, and floors.

    Raises:
        ValueError: A name is unknown.
    """
    check_names(names, METHODS, what="method")
    order = [*(name for name in METHODS if name not in OURS), *reversed([name for name in OURS if name in METHODS])]
    chosen = [name for name in order if name in names]
    return [name for name in chosen if name not in FLOORS], [name for name in chosen if name in FLOORS]


def check_names(names: Sequence[str], known: Sequence[str], *, what: str) -> None:
    """Refuses names that nobody knows.

    Raises:
        ValueError: A name is unknown, or there is none.
    """
    if not names:
        raise ValueError(f"no {what} was named; choose among {', '.join(known)}")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {what} {unknown[0]!r}; choose among {', '.join(known)}")


def tasks(setup: Setup, arms: Sequence[Arm], data: Data | None = None, *, note: str = "") -> list[Task]:
    """Every cell of these arms, seed by seed: an early look at the results then has all rows."""
    longest = max((len(arm.seeds) for arm in arms), default=0)
    return [
        setup.task(arm, arm.seeds[place], data, note=note)
        for place in range(longest)
        for arm in arms
        if place < len(arm.seeds)
    ]
