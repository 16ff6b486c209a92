"""Figure 3: the weight of the alignment α and the width d; and free searches with the same budget for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.experiments import figures, markdown, spaces, validation
from dmesr_trainer.experiments.arms import OURS, Arm, Setup, check_names, methods_and_floors, tasks
from dmesr_trainer.experiments.measured import Measured, Row, measure, rows
from dmesr_trainer.experiments.paper import FIGURE_3
from dmesr_trainer.experiments.pool import Pool
from dmesr_trainer.experiments.report import Report, write
from dmesr_trainer.experiments.search import Search, search, searched_arm
from dmesr_trainer.experiments.table2 import sampled


@dataclass(frozen=True)
class Grid:
    """A setting and the values that it takes.

    Attributes:
        name: For tables and figures.
        setting: As `TrainConfig.changed` takes it.
        values: Of it.
        logarithmic: Whether its axis is.
    """

    name: str
    setting: str
    values: tuple[float, ...]
    logarithmic: bool


GRIDS = {
    "alpha": Grid("α", "alignment__weight", (0.01, 0.05, 0.1, 0.5, 1.0), logarithmic=True),
    "dim": Grid("d", "dim", (32, 64, 128, 256), logarithmic=True),
}


def grid_arms(setup: Setup, grid: Grid, *, methods: Sequence[str], backbones: Sequence[str]) -> list[Arm]:
    """A row for each value, method and backbone; α means something to DMESR alone."""
    chosen = [name for name in methods if grid.setting != "alignment__weight" or name in OURS]
    return [
        setup.arm(
            method,
            backbone,
            called=f"{method} {grid.name}={value:g}",
            config=setup.config(method, backbone).changed(**{grid.setting: value}),
            role="variant",
            group=_group(grid, method),
        )
        for method in chosen
        for backbone in backbones
        for value in grid.values
    ]


def run(
    setup: Setup,
    *,
    methods: Sequence[str],
    backbones: Sequence[str],
    grids: Sequence[str],
    trials: int,
    space: Path | None,
) -> dict[str, Any]:
    """Runs what is missing and writes the table.

    Args:
        setup: What the experiment shares.
        methods: What is swept and searched.
        backbones: f_θ.
        grids: Keys of `GRIDS`.
        trials: Of each free search; 0 for none.
        space: A user's own search space.

    Returns:
        What results.json holds.
    """
    if grids:
        check_names(grids, tuple(GRIDS), what="grid")
    own_space = spaces.read(space)
    on_backbones, floors = methods_and_floors(methods)
    pairs = [(method, backbone) for method in on_backbones for backbone in backbones]
    pairs += [(method, "") for method in floors if method in spaces.OWN]
    presets = [setup.arm(method, backbone) for method, backbone in pairs]
    swept = [arm for name in grids for arm in grid_arms(setup, GRIDS[name], methods=on_backbones, backbones=backbones)]
    aligned = "alpha" in grids and "dmesr" in methods
    without = [_without_alignment(setup, backbone) for backbone in backbones if aligned]
    chosen = [*presets, *without, *swept]
    todo = tasks(setup, chosen)
    searches: list[Search] = []
    with Pool(setup.jobs) as pool:
        failures = [] if setup.only_report else pool.run(todo, label="sweep")
        if trials:
            for method, backbone in pairs:
                choices = spaces.space_of(setup, method, backbone, file=own_space)
                searches.append(search(setup, method, backbone, space=choices, trials=trials, pool=pool))
            best = [arm for found in searches if (arm := searched_arm(setup, found)) is not None]
            runs = tasks(setup, best)
            chosen, todo = chosen + best, todo + runs
            failures += [] if setup.only_report else pool.run(runs, label="what the searches found")
    measured = measure(setup, chosen)
    found_rows = rows(measured, references={"preset": _preset_of})
    return write(
        Report(
            experiment="sweep",
            subject="Settings",
            rows=found_rows,
            measured=measured,
            vectors=[setup.vectors] if setup.vectors else [],
            notes=[*_notes(searches), *_chosen(measured)],
            figure=lambda title: _figure(found_rows, grids, title),
            sections=[validation.section(measured), *map(_search_section, searches)],
            further={
                "validation": [validation.line(one) for one in measured],
                "searches": [found.to_json() for found in searches],
            },
            failures=failures,
            missing=sum(not task.cell.finished for task in todo),
        ),
        setup,
    )


def _without_alignment(setup: Setup, backbone: str) -> Arm:
    config: TrainConfig = setup.config("dmesr", backbone).changed(alignment__weight=0.0)
    group = _group(GRIDS["alpha"], "dmesr")
    return setup.arm("dmesr", backbone, called="dmesr α=0", config=config, role="variant", group=group)


def _group(grid: Grid, method: str) -> str:
    return f"values of {grid.name}, {method}"


def _preset_of(row: Row, family: Sequence[Row]) -> Row | None:
    """The same method at its preset."""
    method = row.method.split(" ")[0]
    return next((one for one in family if (one.method, one.backbone) == (method, row.backbone)), None)


def _figure(found: Sequence[Row], grids: Sequence[str], title: str) -> Figure:
    metrics = sampled(found)
    if not grids:
        return figures.bars(found, metrics=metrics, title=title)
    return figures.curves(
        found,
        settings=[(grid.name, grid.values, grid.logarithmic) for grid in (GRIDS[name] for name in grids)],
        metrics=metrics,
        title=title,
    )


def _notes(searches: Sequence[Search]) -> list[str]:
    notes = [
        FIGURE_3,
        "“Against the preset” compares each row with the same method at its preset. Settings are chosen by the "
        "validation figures, which stand in a table of their own.",
    ]
    if searches:
        notes.append(
            f"Free searches: {len(searches[0].trials)} trials for each method, the preset among them, one seed, by "
            "the sampled validation NDCG alone; what was found was then run with all seeds. Every trial is in "
            "results.json (`searches`)."
        )
    return notes


def _chosen(measured: Sequence[Measured]) -> list[str]:
    """The value of each grid that validation would choose."""
    notes = []
    for backbone, group in dict.fromkeys((one.arm.backbone, one.arm.group) for one in measured if one.arm.group):
        lines = [validation.line(one) for one in measured if (one.arm.backbone, one.arm.group) == (backbone, group)]
        metric = next(name for name in lines[0] if name.startswith("ndcg@"))
        best = max(lines, key=lambda line: line[metric])
        notes.append(
            f"{group} on {backbone}: validation chooses {best['method']} ({metric.upper()} {best[metric]:.4f})."
        )
    return notes


def _search_section(found: Search) -> str:
    names = list(found.space)
    done = sorted(found.trials, key=lambda trial: (trial.valid is None, -(trial.valid or 0.0)))
    table = markdown.table(
        ["trial", "valid NDCG", *(name.replace("__", ".") for name in names)],
        [
            [
                str(trial.number),
                f"{trial.valid:.4f}" if trial.valid is not None else trial.problem,
                *(_short(trial.settings[name]) for name in names),
            ]
            for trial in done
        ],
    )
    heading = f"Search of {found.method}" + (f" on {found.backbone}" if found.backbone else "")
    return f"<details><summary>{heading}, best first</summary>\n\n{table}\n\n</details>"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
