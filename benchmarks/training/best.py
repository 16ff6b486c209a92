"""How long each method took to its best validation NDCG, read from runs that an experiment has finished."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.rows import Row


def measure(folder: Path) -> list[Row]:
    """Seconds and epochs to the best epoch, the mean over a method's runs.

    Args:
        folder: Of an experiment, or one that holds several; each has a runs.parquet.
    """
    files = sorted({*folder.glob("runs.parquet"), *folder.glob("*/runs.parquet")})
    if not files:
        raise SystemExit(f"error: there is no runs.parquet in {folder} or a folder in it; give an experiment's")
    several = len(files) > 1
    rows = []
    for file in files:
        runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
        for run in pq.read_table(file).to_pylist():
            if run["best_epoch"]:  # what learns nothing by steps has none
                runs[run["backbone"], run["method"]].append(run)
        experiment = f"{file.parent.name}, " if several else ""
        rows += [_row(f"{experiment}{method} on {backbone}", of) for (backbone, method), of in runs.items()]
    return rows


def _row(name: str, runs: list[dict]) -> Row:
    mean = sum(run["seconds"] * run["best_epoch"] / run["epochs"] for run in runs) / len(runs)
    epochs = sum(run["best_epoch"] for run in runs) / len(runs)
    return Row(
        name=f"best/{name}",
        value=mean,
        unit="s",
        better="lower",
        how=f"wall clock to the best sampled validation NDCG, a run's seconds times best epoch / epochs, mean of "
        f"{len(runs)} runs (best epoch {epochs:.1f} on average); as the runs were made, on a machine that may have had "
        "other work, so it compares methods only roughly",
    )
