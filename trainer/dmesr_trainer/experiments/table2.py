"""Table 2: every method on every backbone, and the floors that the paper leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dmesr_trainer.experiments import figures
from dmesr_trainer.experiments.arms import Arm, Setup, methods_and_floors, tasks
from dmesr_trainer.experiments.markdown import heading
from dmesr_trainer.experiments.measured import Row, best_baseline, floor, measure, named, rows
from dmesr_trainer.experiments.paper import table_2
from dmesr_trainer.experiments.pool import Pool
from dmesr_trainer.experiments.report import Report, write

#: What the paper prints.
PRINTED = ("hr@10", "ndcg@10")


def arms(setup: Setup, *, methods: Sequence[str], backbones: Sequence[str]) -> list[Arm]:
    """A row for each method on each backbone, and one for each floor.

    Raises:
        ValueError: A method or a backbone is unknown, or a setting does not fit.
    """
    on_backbones, floors = methods_and_floors(methods)
    found = [setup.arm(method, "") for method in floors]
    for backbone in backbones:
        found += [setup.arm(method, backbone) for method in on_backbones]
    return [with_paper(setup, arm) for arm in found]


def run(setup: Setup, *, methods: Sequence[str], backbones: Sequence[str]) -> dict[str, Any]:
    """Runs what is missing and writes the table.

    Returns:
        What results.json holds.
    """
    chosen = arms(setup, methods=methods, backbones=backbones)
    todo = tasks(setup, chosen)
    with Pool(setup.jobs) as pool:
        failures = [] if setup.only_report else pool.run(todo, label="table2")
    measured = measure(setup, chosen)
    references = {"best": best_baseline, "none": named("none")}
    references |= {arm.method: floor(arm.method) for arm in chosen if not arm.backbone}
    found = rows(measured, references=references)
    return write(
        Report(
            experiment="table2",
            subject="Table 2",
            rows=found,
            measured=measured,
            vectors=[setup.vectors] if setup.vectors else [],
            notes=gains(found),
            figure=lambda title: figures.bars(found, metrics=sampled(found), title=title),
            failures=failures,
            missing=sum(not task.cell.finished for task in todo),
        ),
        setup,
    )


def with_paper(setup: Setup, arm: Arm) -> Arm:
    """The row with what Table 2 prints for it on this dataset, if it does."""
    about = setup.data.about
    if about.filters:
        return arm  # the paper has no such sub-catalogue
    found = {
        metric: value
        for metric in PRINTED
        if (value := table_2(about.dataset, backbone=arm.backbone, method=arm.method, metric=metric))
    }
    return replace(arm, paper=found)


def sampled(found: Sequence[Row]) -> list[str]:
    """The metrics of the sampled protocol, for figures."""
    return list(dict.fromkeys(row.metric for row in found if not row.metric.startswith("full_")))


def gains(found: Sequence[Row]) -> list[str]:
    """The average relative gain over None of each method (§4.2 of the paper prints it too)."""
    notes = []
    for method in dict.fromkeys(row.method for row in found if "none" in row.tests):
        told = []
        for metric in dict.fromkeys(row.metric for row in found):
            chosen = [row for row in found if (row.method, row.metric) == (method, metric) and "none" in row.tests]
            relative = [
                row.tests["none"].comparison.difference.mean / before
                for row in chosen
                if (before := row.mean - row.tests["none"].comparison.difference.mean) > 0
            ]
            if relative:
                told.append(f"{heading(metric)} {sum(relative) / len(relative):+.1%}")
        if told:
            notes.append(f"{method} over None, mean of the backbones: {', '.join(told)}.")
    return notes
