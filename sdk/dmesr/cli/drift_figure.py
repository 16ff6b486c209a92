"""The picture of a drift report: how far each source's vectors moved, and how many neighbours stayed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dmesr.embedding_drift import Drift

_FORMATS = (".png", ".svg", ".pdf")


def check(figure: Path) -> None:
    """Refuses what cannot be drawn before anything is read.

    Raises:
        typer.BadParameter: The format or the folder is none, or matplotlib is missing.
    """
    problem = ""
    if figure.suffix.lower() not in _FORMATS:
        problem = f"{figure.name} ends in none of {', '.join(_FORMATS)}"
    elif not figure.parent.is_dir():
        problem = f"there is no folder {figure.parent}"
    elif importlib.util.find_spec("matplotlib") is None:
        problem = "matplotlib is not installed; pip install matplotlib, or take --json"
    if problem:
        raise typer.BadParameter(problem, param_hint="--figure")


def draw(report: Drift, path: Path) -> None:
    """Two panels over the sources: the cosine's shift with its quantiles, and the share of neighbours that stayed."""
    from matplotlib.figure import Figure

    names = [one.source for one in report.sources]
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(names)), layout="constrained")
    shifts, kept = figure.subplots(1, 2, sharey=True)
    for place, one in enumerate(report.sources):
        if one.mean_shift is not None:
            shifts.barh(place, one.mean_shift, color="tab:blue")
            for share, value in one.shift_quantiles.items():
                shifts.plot(value, place, "|", color="black", markersize=12)
                shifts.annotate(f"{share:.0%}", (value, place), (0, 7), textcoords="offset points", ha="center", size=7)
        else:
            shifts.annotate("not comparable", (0, place), va="center", size=8)
        if one.overlap is not None:
            kept.barh(place, one.overlap, color="tab:green")
    shifts.set_yticks(range(len(names)), names)
    shifts.set_xlabel("1 - cosine of before and after: mean, and quantiles")
    kept.set_xlim(0, 1)
    kept.set_xlabel(f"share of the {report.k} nearest that stayed")
    figure.suptitle(
        f"recipe {report.before[0]} at {report.before[1]} → {report.after[0]} at {report.after[1]}", fontsize=9
    )
    figure.savefig(path)
