"""Validation figures beside a table of test figures: what settings are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmesr_trainer.experiments import markdown
from dmesr_trainer.experiments.measured import Measured


def line(one: Measured) -> dict[str, Any]:
    """A row's sampled validation figures, the mean over its seeds, as results.json holds them."""
    figures_by_seed = [folds[0].result.metrics["valid"]["sampled"] for folds in one.cells]
    return {
        "backbone": one.arm.backbone,
        "method": one.arm.method,
        "seeds": list(one.seeds),
        **{name: sum(each[name] for each in figures_by_seed) / len(figures_by_seed) for name in figures_by_seed[0]},
    }


def section(measured: Sequence[Measured]) -> str:
    """The same of all rows, as Markdown."""
    lines = [line(one) for one in measured]
    names = [name for name in (lines[0] if lines else {}) if "@" in name]
    table = markdown.table(
        ["backbone", "method", *(f"valid {markdown.heading(name)}" for name in names)],
        [[one["backbone"] or "–", one["method"], *(f"{one[name]:.4f}" for name in names)] for one in lines],
    )
    return f"## Validation\n\n{table}"
