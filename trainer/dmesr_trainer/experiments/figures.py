"""Figures: bars with intervals and the paper's values beside them, differences, and curves over a setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmesr_trainer.experiments.markdown import heading
from dmesr_trainer.experiments.measured import Row

_PAPER = {"marker": "D", "facecolors": "none", "edgecolors": "black", "zorder": 3, "s": 22}
_COLOURS = (
    *("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3"),
    *("#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd"),
)
_DASHES = ("--", ":", "-.", (0, (1, 1, 4, 1)))


def bars(rows: Sequence[Row], *, metrics: Sequence[str], title: str) -> Figure:
    """A panel for each metric: bars of the methods, grouped by backbone; diamonds are the paper's values.

    Floors, which have no backbone, are lines across.
    """
    methods = list(dict.fromkeys(row.method for row in rows if row.backbone))
    backbones = list(dict.fromkeys(row.backbone for row in rows if row.backbone)) or [""]
    figure, panels = _panels(len(metrics), title, width=max(6.0, 0.42 * len(methods) * len(backbones) + 1.5))
    for axes, metric in zip(panels, metrics, strict=True):
        _bars(axes, rows, metric, methods=methods, backbones=backbones)
    _legend(figure, panels, paper=any(row.measured.arm.paper for row in rows))
    return figure


def groups(rows: Sequence[Row], *, metric: str, title: str) -> Figure:
    """A panel for each group of rows: bars of the methods on each backbone, and those without a backbone as lines."""
    names = list(dict.fromkeys(row.measured.group for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows if row.backbone))
    backbones = list(dict.fromkeys(row.backbone for row in rows if row.backbone)) or [""]
    width = max(5.0, 0.3 * len(methods) * len(backbones) + 1.5)
    figure, panels = _panels(len(names), title, width=width)
    for axes, name in zip(panels, names, strict=True):
        _bars(axes, [row for row in rows if row.measured.group == name], metric, methods=methods, backbones=backbones)
        axes.set_title(name, fontsize=9)
    _legend(figure, panels, paper=False)
    return figure


def differences(rows: Sequence[Row], *, metrics: Sequence[str], test: str, title: str) -> Figure:
    """A panel for each metric: what each row gains or loses against what it was compared with, with intervals."""
    methods = list(dict.fromkeys(row.method for row in rows if test in row.tests))
    backbones = list(dict.fromkeys(row.backbone for row in rows if test in row.tests))
    height = max(3.0, 0.26 * len(methods) * max(1, len(backbones)) + 1.4)
    figure, panels = _panels(len(metrics), title, width=6.0, height=height)
    for number, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
        for group, backbone in enumerate(backbones):
            for place, method in enumerate(methods):
                row = _row(rows, backbone, method, metric)
                if row is None or test not in row.tests:
                    continue
                change = row.tests[test].comparison.difference
                y = -place - (group - (len(backbones) - 1) / 2) * 0.8 / len(backbones)
                reach = [[_finite(change.mean - change.low)], [_finite(change.high - change.mean)]]
                axes.errorbar(
                    [change.mean], [y], xerr=reach, fmt="o", markersize=4, capsize=2, color=_colour(group),
                    label=backbone if place == 0 else None,
                )  # fmt: skip
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_yticks([-place for place in range(len(methods))], methods if number == 0 else [""] * len(methods))
        axes.set_xlabel(f"{heading(metric)}, difference")
    _legend(figure, panels, paper=False)
    return figure


def curves(
    rows: Sequence[Row],
    *,
    settings: Sequence[tuple[str, Sequence[float], bool]],
    metrics: Sequence[str],
    title: str,
) -> Figure:
    """A panel for each setting and metric over the setting's values, a line for each method and backbone.

    Args:
        rows: Named "METHOD SETTING=VALUE".
        settings: Name, values, and whether the axis is logarithmic.
        metrics: Of each setting.
        title: The figure's.
    """
    figure, panels = _panels(len(settings) * len(metrics), title, width=4.5)
    methods = list(dict.fromkeys((row.backbone, row.method.split(" ")[0]) for row in rows))
    every = [(setting, metric) for setting in settings for metric in metrics]
    for axes, ((name, values, logarithmic), metric) in zip(panels, every, strict=True):
        for place, (backbone, method) in enumerate(methods):
            found = [(value, _row(rows, backbone, f"{method} {name}={value:g}", metric)) for value in values]
            there = [(value, row) for value, row in found if row is not None]
            xs, colour = [value for value, _ in there], _colour(place)
            if there:
                label = f"{backbone} {method}"
                axes.plot(xs, [row.mean for _, row in there], marker="o", color=colour, label=label)
                lows, highs = [row.low for _, row in there], [row.high for _, row in there]
                axes.fill_between(xs, lows, highs, color=colour, alpha=0.15)
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(list(values), [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel(heading(metric))
    _legend(figure, panels, paper=False)
    return figure


def _bars(axes: Axes, rows: Sequence[Row], metric: str, *, methods: Sequence[str], backbones: Sequence[str]) -> None:
    width = 0.8 / max(len(methods), 1)
    for place, method in enumerate(methods):
        for group, backbone in enumerate(backbones):
            row = _row(rows, backbone, method, metric)
            if row is None:
                continue
            x = group + (place - (len(methods) - 1) / 2) * width
            axes.bar(x, row.mean, width * 0.92, color=_colour(place), label=method if group == 0 else None)
            axes.errorbar(x, row.mean, yerr=_reach(row), color="black", capsize=2, linewidth=0.8)
            if printed := row.measured.arm.paper.get(metric):
                axes.scatter([x], [printed.value], **_PAPER)  # type: ignore[arg-type]
    floors = [row for row in rows if row.metric == metric and not row.backbone]
    for place, row in enumerate(floors):
        axes.axhline(row.mean, color="black", linewidth=0.9, linestyle=_DASHES[place % len(_DASHES)], label=row.method)
    axes.set_xticks(range(len(backbones)), backbones)
    axes.set_ylabel(heading(metric))
    axes.set_ylim(bottom=0)


def _panels(count: int, title: str, *, width: float, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes: Any = figure.subplots(1, count, squeeze=False)
    return figure, list(axes[0])


def _legend(figure: Figure, panels: Sequence[Axes], *, paper: bool) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels, handles = list(entries), list(entries.values())
    if paper:
        handles.append(panels[0].scatter([], [], **_PAPER))  # type: ignore[arg-type]
        labels.append("the paper")
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8, frameon=False
        )


def _row(rows: Sequence[Row], backbone: str, method: str, metric: str) -> Row | None:
    return next((row for row in rows if (row.backbone, row.method, row.metric) == (backbone, method, metric)), None)


def _reach(row: Row) -> list[list[float]]:
    return [[_finite(row.mean - row.low)], [_finite(row.high - row.mean)]]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
