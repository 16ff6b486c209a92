"""Intervals, paired tests and Holm's correction, by hand and beside scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dmesr_trainer.experiments.statistics import holm, mean_interval, paired
from scipy import stats


def test_interval_by_hand():
    # Mean 2, standard deviation 1, error 1/√3; t(0.975, 2) = 4.302653.
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.mean == 2.0
    assert interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_paired_test_by_hand_and_beside_scipy():
    # Differences 1, 2, 3: t = 2 / (1/√3) = 3.4641 with 2 degrees of freedom, p = 0.07418.
    found = paired(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert found.difference.mean == 2.0
    assert found.p_value == pytest.approx(0.0741799, abs=1e-6)
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.random(50)
    assert paired(first, second).p_value == stats.ttest_rel(first, second).pvalue
    assert paired(second, first).p_value == pytest.approx(paired(first, second).p_value)
    scipys = stats.ttest_rel(first, second).confidence_interval(0.95)
    ours = paired(first, second).difference
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high))


def test_what_never_differs_is_no_difference():
    same = np.array([0.5, 1.0, 0.0])
    assert paired(same, same).p_value == 1.0
    assert paired(same + 1.0, same).p_value == 0.0
    assert paired(same[:1], same[1:2]).p_value == 1.0  # one user tells nothing


def test_what_cannot_be_compared_is_told():
    with pytest.raises(ValueError, match=r"the same users: got \(2,\) and \(3,\)"):
        paired(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="no users"):
        mean_interval(np.zeros(0))


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
