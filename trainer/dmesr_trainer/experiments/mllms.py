"""Figure 4: the same method on texts of several describers, each a recipe of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmesr_trainer.experiments import figures, markdown
from dmesr_trainer.experiments.arms import Setup, reads_vectors, tasks
from dmesr_trainer.experiments.measured import Reference, Row, measure, named, rows
from dmesr_trainer.experiments.paper import FIGURE_4
from dmesr_trainer.experiments.pool import Pool
from dmesr_trainer.experiments.report import Report, write
from dmesr_trainer.experiments.table2 import sampled
from dmesr_trainer.experiments.vectors import Vectors


def run(
    setup: Setup, *, methods: Sequence[str], backbones: Sequence[str], recipes: Sequence[Vectors]
) -> dict[str, Any]:
    """Runs what is missing and writes the table.

    Args:
        setup: What the experiment shares.
        methods: Those that read vectors get a row for each recipe.
        backbones: f_θ.
        recipes: The vectors of each; the first is what the others are compared with.

    Returns:
        What results.json holds.

    Raises:
        ValueError: No method reads vectors.
    """
    reading = [method for method in methods if reads_vectors(method)]
    if not reading:
        raise ValueError(f"of {', '.join(methods)} none reads vectors, so recipes make no difference; name dmesr")
    chosen = []
    for backbone in backbones:
        chosen += [setup.arm(method, backbone) for method in methods if not reads_vectors(method)]
        chosen += [
            setup.arm(method, backbone, called=_label(method, vectors), vectors=vectors, role="ours")
            for method in reading
            for vectors in recipes
        ]
    chosen = list({(arm.backbone, arm.method): arm for arm in chosen}.values())
    todo = tasks(setup, chosen)
    with Pool(setup.jobs) as pool:
        failures = [] if setup.only_report else pool.run(todo, label="mllms")
    measured = measure(setup, chosen)
    references: dict[str, Reference] = {"first": _first(recipes), "none": named("none")}
    found = rows(measured, references=references)
    return write(
        Report(
            experiment="mllms",
            subject="Describers",
            rows=found,
            measured=measured,
            vectors=recipes,
            notes=[FIGURE_4],
            figure=lambda title: figures.bars(found, metrics=sampled(found), title=title),
            sections=[_recipes(recipes)],
            failures=failures,
            missing=sum(not task.cell.finished for task in todo),
        ),
        setup,
    )


def _label(method: str, vectors: Vectors) -> str:
    return f"{method} on {vectors.recipe}"


def _first(recipes: Sequence[Vectors]) -> Reference:
    """The same method on the first recipe."""

    def find(row: Row, family: Sequence[Row]) -> Row | None:
        if " on " not in row.method:
            return None
        wanted = f"{row.method.split(' on ')[0]} on {recipes[0].recipe}"
        return next((one for one in family if (one.method, one.backbone) == (wanted, row.backbone)), None)

    return find


def _recipes(recipes: Sequence[Vectors]) -> str:
    lines = [
        [
            vectors.recipe,
            vectors.describer.told,
            "yes" if vectors.describer.is_mllm else "no",
            vectors.describer.encoder or "–",
            ", ".join(f"{name} {count:,}" for name, count in vectors.coverage.items()),
        ]
        for vectors in recipes
    ]
    return "## Recipes\n\n" + markdown.table(["recipe", "texts", "MLLM", "encoder", "items with a vector"], lines)
