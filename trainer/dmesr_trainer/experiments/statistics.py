"""Intervals, paired tests over users and corrections for many comparisons. Shapes: S seeds, U users."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over users and its confidence interval (Student's t)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same users.

    Attributes:
        difference: The mean over users of the first less the second, with its interval.
        p_value: Two-sided paired t-test; 1 where no user differs.
    """

    difference: Interval
    p_value: float


def mean_interval(values_U: NDArray[np.float64]) -> Interval:
    """The mean over users with its interval at `CONFIDENCE`.

    A single user has no spread to tell an interval from: it is the whole line.

    Raises:
        ValueError: There are no users.
    """
    if not len(values_U):
        raise ValueError("there are no users to take a mean over")
    mean = float(values_U.mean())
    if len(values_U) == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(values_U.std(ddof=1)) / math.sqrt(len(values_U))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values_U) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def paired(first_U: NDArray[np.float64], second_U: NDArray[np.float64]) -> Comparison:
    """Compares two methods by each user's value (averaged over seeds before).

    Raises:
        ValueError: The users are not the same, or there are none.
    """
    if first_U.shape != second_U.shape:
        raise ValueError(f"a paired test needs the same users: got {first_U.shape} and {second_U.shape} values")
    differences_U = first_U - second_U
    interval = mean_interval(differences_U)
    if len(differences_U) == 1 or np.ptp(differences_U) == 0.0:
        # Nothing varies, so t is 0/0 or infinite.
        same = len(differences_U) == 1 or not differences_U.any()
        return Comparison(interval, 1.0 if same else 0.0)
    return Comparison(interval, float(stats.ttest_rel(first_U, second_U).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of tests, in the order given.

    The i-th smallest of m p-values becomes the largest of (m - j + 1)·p_(j) over j ≤ i, at most 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
