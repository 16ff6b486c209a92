"""How long each method took to its best validation NDCG, read from runs that an experiment has finished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.rows import Row


def measure(folders: Sequence[Path]) -> list[Row]:
    """Seconds and epochs to the best epoch, the mean over a method's runs.

    Args:
        folders: Of experiments; each has a runs.parquet.
    """
    rows = []
    for folder in folders:
        file = folder / "runs.parquet"
        if not file.exists():
            raise SystemExit(f"error: there is no runs.parquet in {folder}; give an experiment's folder")
        runs: dict[tuple[str, str], list[dict]] = defaultdict(list)
        for run in pq.read_table(file).to_pylist():
            if run["best_epoch"]:  # what learns nothing by steps has none
                runs[run["backbone"], run["method"]].append(run)
        rows += [_row(f"{folder.name}/{method} on {backbone}", of) for (backbone, method), of in runs.items()]
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
