"""From the cells' ranks to the rows of a table: means, intervals, tests. Shapes: S seeds, U users."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmesr_trainer import metrics
from dmesr_trainer.experiments.arms import Arm, Setup
from dmesr_trainer.experiments.cells import Cell
from dmesr_trainer.experiments.data import Data
from dmesr_trainer.experiments.statistics import Comparison, holm, mean_interval, paired


@dataclass(frozen=True)
class Measured:
    """An arm with what its finished cells say of each user.

    Attributes:
        arm: The row.
        seeds: Those of the finished cells.
        cells: By seed: one cell, or one for each fold.
        user_ids: The U users.
        item_ids: Their held-out items.
        ranks: int64 [S, U] by kind, "sampled" and "full".
        k: The cut-off.
        group: The part of the table where the row stands.
    """

    arm: Arm
    seeds: tuple[int, ...]
    cells: tuple[tuple[Cell, ...], ...]
    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    ranks: dict[str, NDArray[np.int64]]
    k: int
    group: str = ""

    def values_U(self, metric: str) -> NDArray[np.float64]:
        """Each user's value, averaged over seeds."""
        return np.asarray(self.values_SU(metric).mean(axis=0))

    def values_SU(self, metric: str) -> NDArray[np.float64]:
        """Each user's value of a metric: "hr@10", "ndcg@10", "full_hr@10" or "full_ndcg@10"."""
        kind, name = ("full", metric.removeprefix("full_")) if metric.startswith("full_") else ("sampled", metric)
        of = metrics.hit_rates if name.startswith("hr@") else metrics.ndcgs
        return of(self.ranks[kind], self.k)

    def only(self, chosen_U: NDArray[np.bool_], *, group: str) -> Measured:
        """The same for some of the users."""
        return Measured(
            arm=self.arm,
            seeds=self.seeds,
            cells=self.cells,
            user_ids=self.user_ids[chosen_U],
            item_ids=self.item_ids[chosen_U],
            ranks={kind: ranks_SU[:, chosen_U] for kind, ranks_SU in self.ranks.items()},
            k=self.k,
            group=group,
        )


@dataclass(frozen=True)
class Row:
    """One number of a table, with all that is to be said of it.

    Attributes:
        measured: Whose it is.
        metric: For instance "ndcg@10" (sampled) or "full_ndcg@10".
        mean: Over users and seeds.
        std: Of the seeds' means; None for a single seed.
        low: Of the interval over users.
        high: Of the same.
        tests: By what it was compared with: the other row's method, the comparison, and Holm's p-value.
    """

    measured: Measured
    metric: str
    mean: float
    std: float | None
    low: float
    high: float
    tests: dict[str, Test] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The row's name."""
        return self.measured.arm.method

    @property
    def backbone(self) -> str:
        """The row's backbone."""
        return self.measured.arm.backbone


@dataclass(frozen=True)
class Test:
    """A comparison with another row."""

    against: str
    comparison: Comparison
    p_holm: float


#: Of the rows of one metric and group: which one a row is compared with, or None.
Reference = Callable[[Row, Sequence[Row]], Row | None]


def measure(
    setup: Setup, arms: Sequence[Arm], datas: Sequence[Data] | None = None, *, task: str = "test"
) -> list[Measured]:
    """Reads the finished cells; an arm without any is left out.

    Args:
        setup: What the experiment shares.
        arms: Its rows.
        datas: The folds that make up one run; the experiment's own data when None.
        task: "test", or "cold" for events of items that were left out of training.
    """
    found = []
    for arm in arms:
        by_seed = {seed: [setup.cell(arm, seed, data) for data in datas or [setup.data]] for seed in arm.seeds}
        by_seed = {seed: cells for seed, cells in by_seed.items() if all(cell.finished for cell in cells)}
        if not by_seed:
            continue
        tables = {seed: [cell.result.ranks(task) for cell in cells] for seed, cells in by_seed.items()}
        first = next(iter(tables.values()))
        found.append(
            Measured(
                arm=arm,
                seeds=tuple(by_seed),
                cells=tuple(map(tuple, by_seed.values())),
                user_ids=np.concatenate([table.user_ids for table in first]),
                item_ids=np.concatenate([table.item_ids for table in first]),
                ranks={
                    kind: np.stack(
                        [np.concatenate([table.by_kind[kind] for table in folds]) for folds in tables.values()]
                    )
                    for kind in ("sampled", "full")
                },
                k=arm.config.evaluation.k,
            )
        )
    return found


#: The comparison that `p_value` is of, by kind of table.
MAIN = ("best", "whole", "preset", "first")


def metric_names(k: int) -> tuple[str, ...]:
    """What every table holds: the paper's two metrics, sampled and over all items."""
    return (f"hr@{k}", f"ndcg@{k}", f"full_hr@{k}", f"full_ndcg@{k}")


def rows(measured: Sequence[Measured], *, references: dict[str, Reference]) -> list[Row]:
    """Means, intervals and tests.

    The family of Holm's correction is all rows of one metric and group that are compared by the same reference.

    Args:
        measured: The rows of a table.
        references: What each row is compared with, by a name for it.
    """
    found: list[Row] = []
    for metric in metric_names(measured[0].k if measured else 10):
        for group in dict.fromkeys(one.group for one in measured):
            family = [_row(one, metric) for one in measured if one.group == group and len(one.user_ids)]
            for name, reference in references.items():
                _compare(family, name=name, reference=reference)
            found += family
    return found


def _row(one: Measured, metric: str) -> Row:
    interval = mean_interval(one.values_U(metric))
    means_S = one.values_SU(metric).mean(axis=1)
    std = float(means_S.std(ddof=1)) if len(means_S) > 1 else None
    return Row(measured=one, metric=metric, mean=interval.mean, std=std, low=interval.low, high=interval.high)


def _compare(family: Sequence[Row], *, name: str, reference: Reference) -> None:
    pairs = [(row, other) for row in family if (other := reference(row, family)) is not None and other is not row]
    comparisons = [
        paired(row.measured.values_U(row.metric), other.measured.values_U(other.metric)) for row, other in pairs
    ]
    adjusted = holm([comparison.p_value for comparison in comparisons])
    for (row, other), comparison, p_holm in zip(pairs, comparisons, adjusted, strict=True):
        row.tests[name] = Test(other.method, comparison, p_holm)


def best_baseline(row: Row, family: Sequence[Row]) -> Row | None:
    """The best row of the same backbone that is not ours, floors included; by the mean of the metric."""
    others = [
        other
        for other in family
        if other.measured.arm.role in ("baseline", "floor") and other.backbone in ("", row.backbone)
    ]
    return max(others, key=lambda other: other.mean, default=None)


def named(method: str) -> Reference:
    """The row of this name on the same backbone."""

    def find(row: Row, family: Sequence[Row]) -> Row | None:
        if not row.backbone:
            return None
        return next((other for other in family if (other.method, other.backbone) == (method, row.backbone)), None)

    return find


def floor(method: str) -> Reference:
    """The floor of this name; floors are compared with nothing."""

    def find(row: Row, family: Sequence[Row]) -> Row | None:
        return next((other for other in family if other.method == method), None) if row.backbone else None

    return find


def row_json(row: Row) -> dict[str, Any]:
    """A row as results.json holds it; numbers that do not exist are null."""
    tests: dict[str, Any] = {}
    main = next((row.tests[name] for name in MAIN if name in row.tests), None)
    tests["p_value"] = main and main.comparison.p_value
    tests["p_holm"] = main and main.p_holm
    tests["against"] = main and main.against
    tests["comparisons"] = {
        name: {
            "against": test.against,
            "difference": test.comparison.difference.mean,
            "difference_low": finite(test.comparison.difference.low),
            "difference_high": finite(test.comparison.difference.high),
            "relative": _relative(row.mean, test.comparison.difference.mean),
            "p_value": test.comparison.p_value,
            "p_holm": test.p_holm,
        }
        for name, test in row.tests.items()
    }
    arm = row.measured.arm
    printed = arm.paper.get(row.metric)
    return {
        "backbone": row.backbone,
        "method": row.method,
        "metric": row.metric,
        "mean": row.mean,
        "std": row.std,
        "ci_low": finite(row.low),
        "ci_high": finite(row.high),
        "seeds": list(row.measured.seeds),
        "users": len(row.measured.user_ids),
        **tests,
        "paper": printed and printed.value,
        "paper_source": printed and printed.source,
        "group": row.measured.group or arm.group,
        "role": arm.role,
    }


def finite(value: float) -> float | None:
    """None in place of an infinite end of an interval."""
    return value if math.isfinite(value) else None


def _relative(mean: float, difference: float) -> float | None:
    before = mean - difference
    return difference / before if before > 0 else None
