"""What an experiment leaves in its folder: results.json, runs.parquet, ranks.parquet, table.md and a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from dmesr.cli.console import say
from matplotlib.figure import Figure

from dmesr_trainer.experiments import markdown
from dmesr_trainer.experiments.arms import Setup
from dmesr_trainer.experiments.measured import Measured, Row, row_json
from dmesr_trainer.experiments.pool import Failure
from dmesr_trainer.experiments.statistics import CONFIDENCE
from dmesr_trainer.experiments.storage import write_json, write_parquet, write_text
from dmesr_trainer.experiments.vectors import Vectors

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """An experiment's outcome.

    Attributes:
        experiment: For instance "table2".
        subject: What the title says before the dataset.
        rows: Of the table.
        measured: What they are made of.
        vectors: What was read, of one recipe or several.
        notes: Sentences under the table, for people.
        figure: Draws the figure; not asked where there are no rows.
        sections: Further Markdown under the table.
        further: More for results.json.
        failures: Cells that could not be run.
        missing: How many cells there are no results of.
    """

    experiment: str
    subject: str
    rows: Sequence[Row]
    measured: Sequence[Measured]
    vectors: Sequence[Vectors]
    notes: Sequence[str]
    figure: Callable[[str], Figure]
    sections: Sequence[str] = ()
    further: Mapping[str, Any] | None = None
    failures: Sequence[Failure] = ()
    missing: int = 0

    def title(self, setup: Setup) -> str:
        """With the describer of the texts: a table without a multimodal LLM says so."""
        about = setup.data.about
        filters = f", {', '.join(about.filters)} only" if about.filters else ""
        made = "; ".join(dict.fromkeys(one.describer.told for one in self.vectors)) or "ids alone"
        return f"{self.subject} on {about.dataset}{filters} ({made})"


def write(report: Report, setup: Setup) -> dict[str, Any]:
    """Writes everything and returns what results.json holds."""
    folder = setup.output
    folder.mkdir(parents=True, exist_ok=True)
    title = report.title(setup)
    notes = [*report.notes, *_warnings(report, setup)]
    about = setup.data.about
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": report.experiment,
        "title": title,
        "dataset": {**asdict(about), "filters": list(about.filters), "digest": setup.data.digest},
        "vectors": [
            {
                "recipe": one.recipe,
                "recipe_id": one.recipe_id,
                "version": one.version,
                "digest": one.digest,
                "coverage": one.coverage,
                "describer": asdict(one.describer),
            }
            for one in report.vectors
        ],
        "is_mllm": bool(report.vectors) and all(one.describer.is_mllm for one in report.vectors),
        "budget": {**asdict(setup.budget), "seeds": list(setup.budget.seeds)},
        "evaluation": _evaluation(report),
        "confidence": CONFIDENCE,
        "command": setup.command,
        "notes": notes,
        "rows": [row_json(row) for row in report.rows],
        **(report.further or {}),
        "failures": [asdict(one) for one in report.failures],
        "missing_cells": report.missing,
        "code": _codes(report),
        "versions": _versions(report),
    }
    write_json(folder / "results.json", result)
    write_parquet(folder / "runs.parquet", runs_table(report.measured))
    write_parquet(folder / "ranks.parquet", ranks_table(report.measured))
    if report.rows:
        report.figure(title).savefig(folder / "figure.png", dpi=150)
    text = markdown.page(
        title=title,
        rows=report.rows,
        notes=notes,
        sections=report.sections,
        figure="figure.png" if report.rows else None,
        command=setup.command,
        vectors=report.vectors,
    )
    write_text(folder / "table.md", text)
    say(f"table.md, results.json and all else are in {folder}")
    return result


def runs_table(measured: Sequence[Measured]) -> pa.Table:
    """One line for each cell: the single runs."""
    lines: list[dict[str, Any]] = []
    for one in _whole(measured):
        for seed, folds in zip(one.seeds, one.cells, strict=False):  # what nothing was trained for has no cells
            for fold, cell in enumerate(folds):
                result = cell.result
                lines.append(
                    {
                        "backbone": one.arm.backbone,
                        "method": one.arm.method,
                        "seed": seed,
                        "fold": fold,
                        "cell": cell.folder.name,
                        "best_epoch": result.best_epoch,
                        "epochs": result.epochs,
                        "seconds": result.seconds,
                        "stopped_by_time": result.stopped_by_time,
                        "commit": result.code.get("commit", ""),
                        **{
                            f"{split}_{kind}_{name}": value
                            for split, kinds in result.metrics.items()
                            for kind, figures in kinds.items()
                            for name, value in figures.items()
                        },
                    }
                )
    columns = dict.fromkeys(name for line in lines for name in line)
    return pa.table({name: pa.array([line.get(name) for line in lines]) for name in columns})


def ranks_table(measured: Sequence[Measured]) -> pa.Table:
    """Each user's ranks in each run, from which every number of the table can be computed anew."""
    tables = []
    for one in _whole(measured):
        for place, seed in enumerate(one.seeds):
            count = len(one.user_ids)
            tables.append(
                pa.table(
                    {
                        "backbone": pa.array([one.arm.backbone] * count, pa.utf8()).dictionary_encode(),
                        "method": pa.array([one.arm.method] * count, pa.utf8()).dictionary_encode(),
                        "group": pa.array([one.group] * count, pa.utf8()).dictionary_encode(),
                        "seed": pa.array(np.full(count, seed), pa.int32()),
                        "user_id": pa.array(one.user_ids, pa.utf8()),
                        "item_id": pa.array(one.item_ids, pa.utf8()),
                        "sampled_rank": pa.array(one.ranks["sampled"][place], pa.int32()),
                        "full_rank": pa.array(one.ranks["full"][place], pa.int32()),
                    }
                )
            )
    return pa.concat_tables(tables).unify_dictionaries() if tables else pa.table({})


def _whole(measured: Sequence[Measured]) -> list[Measured]:
    """Each run once, where groups of the same users' ranks stand side by side."""
    return [one for one in measured if one.group in ("", "all", "new items")]


def _codes(report: Report) -> list[dict[str, str]]:
    """The states of the trainer's code that the cells ran with."""
    found: list[dict[str, str]] = []
    for one in report.measured:
        for cell in (cell for folds in one.cells for cell in folds):
            if cell.result.code not in found:
                found.append(cell.result.code)
    return found


def _versions(report: Report) -> dict[str, str]:
    """Of the packages that the cells ran with; several where they differ."""
    found: dict[str, list[str]] = {}
    for one in report.measured:
        for cell in (cell for folds in one.cells for cell in folds):
            for name, version in cell.result.versions.items():
                if version not in found.setdefault(name, []):
                    found[name].append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def _evaluation(report: Report) -> dict[str, Any]:
    return asdict(report.measured[0].arm.config.evaluation) if report.measured else {}


def _warnings(report: Report, setup: Setup) -> list[str]:
    found = []
    if setup.data.about.planted:
        found.append("The tastes in this dataset are planted: the table checks the wiring and is no evidence.")
    notes: dict[str, list[str]] = {}
    for one in report.measured:
        for folds in one.cells:
            for cell in folds:
                for note in cell.result.notes:
                    if one.arm.label not in notes.setdefault(note, []):
                        notes[note].append(one.arm.label)
    found += [f"{', '.join(labels)}: {note}." for note, labels in notes.items()]
    cells = [cell.result for one in report.measured for folds in one.cells for cell in folds]
    stopped = sum(cell.stopped_by_time for cell in cells)
    if stopped:
        found.append(f"{stopped} of {len(cells)} runs were ended by the limit of {setup.budget.minutes:g} minutes.")
    codes = {cell.code["digest"] for cell in cells}
    if len(codes) > 1:
        found.append(f"The cells were run with {len(codes)} states of the trainer's code; runs.parquet names them.")
    if report.missing:
        found.append(f"{report.missing} cells have no result yet; rows show the seeds that have one.")
    return found
