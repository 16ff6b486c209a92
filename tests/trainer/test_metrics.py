from __future__ import annotations

import numpy as np
import pytest
from dmesr_trainer import metrics


def test_ranks_count_ties_against_the_model():
    positives_U = np.array([3.0, 1.0, 5.0])
    others_UC = np.array([[1.0, 2.0, 2.9], [1.0, 1.0, 0.0], [6.0, 5.0, 4.0]])
    assert metrics.ranks(positives_U, others_UC).tolist() == [1, 3, 3]


def test_a_model_that_scores_everything_alike_comes_last():
    assert metrics.ranks(np.zeros(1), np.zeros((1, 100))).tolist() == [101]


def test_hit_rate_and_ndcg_by_hand():
    ranks_U = np.array([1, 2, 10, 11])
    assert metrics.hit_rates(ranks_U, 10).tolist() == [1, 1, 1, 0]
    # 1/log2(2), 1/log2(3), 1/log2(11), beyond the cut-off
    np.testing.assert_allclose(metrics.ndcgs(ranks_U, 10), [1.0, 0.6309297535714575, 0.2890648263178879, 0.0])


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        metrics.ranks(np.array([np.nan]), np.zeros((1, 3)))
