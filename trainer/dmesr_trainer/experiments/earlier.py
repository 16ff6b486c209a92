"""Runs that an experiment's folder already tells of: a cell of the same name is filled from there, not run again.

Of a search's trials a folder tells what came out on validation, which is all that a further search wants of them. A
cell's name is a hash over the data, the vectors and every setting, so what is taken cannot differ in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dmesr_trainer.experiments.storage import read_json, read_parquet, write_json, write_parquet

_FILES = ("results.json", "runs.parquet", "ranks.parquet")
_KINDS = ("sampled", "full")
_GROUPS = ("", "all")  # of ranks of the test events of all users, as tables name them


@dataclass(frozen=True)
class EarlierRun:
    """One run of an experiment's folder.

    Attributes:
        line: Of runs.parquet.
        folder: The experiment's.
        code: What the trainer's code was.
        versions: Of the packages.
    """

    line: Mapping[str, Any]
    folder: Path
    code: Mapping[str, str]
    versions: Mapping[str, str]

    def fill(self, cell: Path) -> None:
        """Writes what a finished cell's folder holds."""
        write_parquet(cell / "ranks.parquet", self._ranks())
        write_json(
            cell / "result.json",
            {
                "metrics": _metrics(self.line),
                **{name: self.line[name] for name in ("best_epoch", "epochs", "seconds", "stopped_by_time")},
                "notes": [f"not run again: taken from the runs of {self.folder.name}"],
                "code": dict(self.code),
                "versions": dict(self.versions),
            },
        )

    def _ranks(self) -> pa.Table:
        table = read_parquet(self.folder / "ranks.parquet")
        wanted = pc.is_in(table["group"].cast(pa.utf8()), pa.array(_GROUPS))
        for name in ("backbone", "method"):
            wanted = pc.and_(wanted, pc.equal(table[name].cast(pa.utf8()), self.line[name]))
        found = table.filter(pc.and_(wanted, pc.equal(table["seed"], self.line["seed"])))
        columns = [found[name] for name in ("user_id", "item_id", *(f"{kind}_rank" for kind in _KINDS))]
        names = ["task", "user_id", "item_id", *(f"{kind}_rank" for kind in _KINDS)]
        return pa.table([pa.array(["test"] * found.num_rows, pa.utf8()), *columns], names=names)


@dataclass(frozen=True)
class EarlierTrial:
    """What an experiment's folder tells of a trial of its search.

    Attributes:
        valid: Sampled validation NDCG@k of the best epoch.
        folder: The experiment's, by name.
    """

    valid: float
    folder: str


@dataclass(frozen=True)
class Earlier:
    """What folders of experiments tell of, by the names of the cells; the first folder that tells of one counts.

    Attributes:
        runs: Those that left items out of training are not among them: a folder keeps their ranks for all folds in one.
        trials: Those of a search that have a value.
    """

    runs: Mapping[str, EarlierRun]
    trials: Mapping[str, EarlierTrial]


def read(folders: Sequence[Path]) -> Earlier:
    """Reads what these folders tell of.

    Raises:
        ValueError: A folder is not that of an experiment.
    """
    runs: dict[str, EarlierRun] = {}
    trials: dict[str, EarlierTrial] = {}
    for folder in folders:
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise ValueError(f"{folder} is no experiment's folder: it has no {missing[0]}; name one that holds a table")
        results = read_json(folder / "results.json")
        by_commit = {code["commit"]: code for code in results["code"]}
        for line in read_parquet(folder / "runs.parquet").to_pylist():
            if any(value is not None for name, value in line.items() if name.startswith("cold_")):
                continue
            code = by_commit.get(line["commit"], {"digest": "", "commit": line["commit"]})
            runs.setdefault(line["cell"], EarlierRun(line, folder, code, results["versions"]))
        for trial in (trial for search in results.get("searches", ()) for trial in search["trials"]):
            if trial["valid"] is not None:
                told_by = trial.get("taken_from") or folder.name
                trials.setdefault(trial["cell"], EarlierTrial(trial["valid"], told_by))
    return Earlier(runs, trials)


def _metrics(line: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, value in line.items():
        split, _, rest = name.partition("_")
        kind, _, metric = rest.partition("_")
        if kind in _KINDS and value is not None:
            found.setdefault(split, {}).setdefault(kind, {})[metric] = value
    return found
