"""A cell: one training run of an experiment, identified by all that decides its result, and never run twice.

A cell's folder holds cell.json (what it is), ranks.parquet (each user's) and, once it is finished, result.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.experiments import earlier
from dmesr_trainer.experiments.earlier import EarlierTrial
from dmesr_trainer.experiments.storage import read_json, read_parquet, write_json

_NAME_DIGITS = 20  # of the hash that names a cell's folder
# Settings that came after runs were published, with the value that those had: a cell that has it too bears their name.
_LATER: dict[str, dict[str, Any]] = {"fusion": {"gate": False, "by_distance": False}}

Figures = dict[str, dict[str, float]]  # {"sampled": {"hr@10": …}, "full": …}


@dataclass(frozen=True)
class CellSpec:
    """All that decides what comes out of a cell, besides the code.

    Attributes:
        data_digest: Of the histories.
        vectors: `Vectors.identity`; "" for a method that knows items by their ids alone.
        config: Method, backbone, seed and every other setting.
        minutes: Wall clock that training may take at most; None for as many epochs as it wants.
    """

    data_digest: str
    vectors: str
    config: TrainConfig
    minutes: float | None = None

    @property
    def identity(self) -> str:
        """Canonical JSON."""
        values = {
            "data": self.data_digest,
            "vectors": self.vectors,
            "config": self.config.to_dict(),
            "minutes": self.minutes,
        }
        return json.dumps(values, sort_keys=True)

    @property
    def name(self) -> str:
        """A hash over the identity, the same on every machine."""
        values = json.loads(self.identity)
        for part, later in _LATER.items():
            settings = values["config"][part]
            values["config"][part] = {
                name: value for name, value in settings.items() if name not in later or value != later[name]
            }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_NAME_DIGITS]

    @classmethod
    def from_identity(cls, values: dict[str, Any]) -> CellSpec:
        """The reverse of `identity`; a setting that is younger than the cell has its default.

        Raises:
            ValueError: A setting no longer exists.
        """
        return cls(values["data"], values["vectors"], TrainConfig.from_dict(values["config"]), values["minutes"])


@dataclass(frozen=True)
class Cell:
    """A cell with its folder."""

    spec: CellSpec
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return (self.folder / "result.json").exists()

    @cached_property
    def result(self) -> CellResult:
        """What came out. Only of a finished cell."""
        return CellResult.read(self.folder)


@dataclass(frozen=True)
class CellResult:
    """What a finished cell left.

    Attributes:
        metrics: {"valid": {"sampled": {"hr@10": …, "ndcg@10": …}, "full": …}, "test": …}; "cold" beside them where
            items were left out of training.
        best_epoch: 0 for a method that learns nothing by steps.
        epochs: That were run.
        seconds: Wall clock of training and measuring.
        stopped_by_time: Whether the limit of minutes ended it.
        notes: What a reader of its figures must know.
        code: What the trainer's code was: a digest of it, and the commit.
        versions: Of the packages that it ran with.
        folder: The cell's.
    """

    metrics: dict[str, Figures]
    best_epoch: int
    epochs: int
    seconds: float
    stopped_by_time: bool
    notes: tuple[str, ...]
    code: dict[str, str]
    versions: dict[str, str]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> CellResult:
        """Reads a finished cell."""
        values = read_json(folder / "result.json")
        return cls(
            metrics=values["metrics"],
            best_epoch=values["best_epoch"],
            epochs=values["epochs"],
            seconds=values["seconds"],
            stopped_by_time=values["stopped_by_time"],
            notes=tuple(values["notes"]),
            code=values["code"],
            versions=values["versions"],
            folder=folder,
        )

    def ranks(self, task: str) -> RankTable:
        """Each user's ranks on the test events ("test") or on those of items left out of training ("cold")."""
        table = read_parquet(self.folder / "ranks.parquet")
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        rows = columns["task"] == task
        return RankTable(
            user_ids=columns["user_id"][rows],
            item_ids=columns["item_id"][rows],
            by_kind={
                "sampled": columns["sampled_rank"][rows].astype(np.int64),
                "full": columns["full_rank"][rows].astype(np.int64),
            },
        )


@dataclass(frozen=True)
class RankTable:
    """Ranks of held-out items, one a user.

    Attributes:
        user_ids: object [U].
        item_ids: object [U]; the held-out items.
        by_kind: int64 [U] for "sampled" and for "full".
    """

    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    by_kind: dict[str, NDArray[np.int64]]


class CellStore:
    """The folder of all cells, of any experiment: what two experiments share is run once.

    Args:
        folder: Made where it is missing.
        runs_from: Folders of experiments: what they tell of is taken from there instead of being run.

    Raises:
        ValueError: One of these is not an experiment's folder.
    """

    def __init__(self, folder: Path, *, runs_from: Sequence[Path] = ()) -> None:
        self.folder, self._earlier = folder, earlier.read(runs_from)
        self.data, self.vectors, self.cells = folder / "data", folder / "vectors", folder / "cells"
        for made in (self.data, self.vectors, self.cells):
            made.mkdir(parents=True, exist_ok=True)
        self._known = dict(self._there())

    def cell(self, spec: CellSpec) -> Cell:
        """The cell of these settings; its folder is made when it is not there."""
        identity = spec.identity
        name = spec.name
        if identity not in self._known:
            folder = self.cells / name
            folder.mkdir(exist_ok=True)
            write_json(folder / "cell.json", json.loads(identity))
            self._known[identity] = folder
        cell = Cell(spec, self._known[identity])
        if name in self._earlier.runs and not cell.finished:
            self._earlier.runs[name].fill(cell.folder)
        return cell

    def tried(self, spec: CellSpec) -> EarlierTrial | None:
        """What an earlier search tells of these settings; of no interest where the cell is finished."""
        return self._earlier.trials.get(spec.name)

    def data_folder(self, spec: CellSpec) -> Path:
        """Where a cell finds its histories."""
        return self.data / spec.data_digest

    def _there(self) -> Iterator[tuple[str, Path]]:
        """Cells by identity as of now: a setting that came later has its default in older cells."""
        for folder in sorted(self.cells.iterdir()):
            if (folder / "cell.json").exists():
                try:
                    yield CellSpec.from_identity(read_json(folder / "cell.json")).identity, folder
                except ValueError:
                    continue  # made with a setting that no longer exists: nobody can ask for it


def count_finished(cells: Sequence[Cell]) -> int:
    """How many of these have a result."""
    return sum(cell.finished for cell in cells)
