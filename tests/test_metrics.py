"""Metrics against tables worked by hand, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from allmrec_lib import metrics

HAND = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])


def test_by_hand():
    rank = metrics.ranks(HAND)
    assert rank.tolist() == [0, 1, 1, 2]
    assert metrics.hits(rank, 1).tolist() == [1, 0, 0, 0]
    assert metrics.hits(rank, 2).tolist() == [1, 1, 1, 0]
    assert metrics.ndcg(rank, 2) == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(3), 0])
    assert metrics.ndcg(rank, 10)[3] == pytest.approx(0.5)
    assert metrics.reciprocal_rank(rank).mean() == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 / 3) / 4)


def test_ties_and_missing_scores_count_against_the_model():
    assert metrics.ranks(np.zeros((2, 20))).tolist() == [19, 19]
    assert metrics.ranks(np.array([[np.nan, 0.0], [1.0, np.nan], [np.nan, np.nan]])).tolist() == [1, 0, 1]


scores = arrays(np.float64, (7, 5), elements=st.floats(-5, 5))


@given(scores)
def test_ranks_do_not_depend_on_scale_or_on_the_order_of_negatives(values):
    rank = metrics.ranks(values)
    assert (metrics.ranks(np.argsort(np.argsort(values, axis=None, kind="stable")).reshape(values.shape)) <= rank).all()
    assert (metrics.ranks(values * 2) == rank).all()
    assert (metrics.ranks(values[:, [0, 4, 3, 2, 1]]) == rank).all()
    assert ((rank >= 0) & (rank < 5)).all()


@given(scores, st.integers(1, 5))
def test_metrics_are_ordered(values, k):
    rank = metrics.ranks(values)
    assert (metrics.hits(rank, 1) <= metrics.ndcg(rank, k) + 1e-12).all()
    assert (metrics.ndcg(rank, k) <= metrics.hits(rank, k)).all()
    assert (metrics.hits(rank, 1) <= metrics.reciprocal_rank(rank)).all()


def test_the_bootstrap_interval_is_the_textbook_one():
    values = np.random.default_rng(0).random(4000) < 0.3
    found = metrics.bootstrap(values)
    error = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / len(values))
    assert found.value == values.mean()
    assert found.low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.15 * error)
    assert metrics.bootstrap(values) == found


def test_an_empty_slice_is_an_error():
    with pytest.raises(ValueError, match="slice is empty"):
        metrics.bootstrap(np.array([]))


def test_the_paired_test():
    rng = np.random.default_rng(0)
    a = (rng.random(2000) < 0.5).astype(float)
    better = np.maximum(a, rng.random(2000) < 0.05)
    assert metrics.paired(a, a).p_value == 1.0
    found = metrics.paired(better, a)
    assert found.p_value < 0.001 and found.low > 0
    assert found.difference == pytest.approx(better.mean() - a.mean())
    assert metrics.paired(a, better).difference == pytest.approx(-found.difference)
    with pytest.raises(ValueError, match="paired rows"):
        metrics.paired(a, a[:-1])


def test_the_paired_test_is_calibrated():
    rng = np.random.default_rng(1)
    values = [metrics.paired(*(rng.random((2, 60)) < 0.5).astype(float), draws=200).p_value for _ in range(200)]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10


def test_per_user_names_what_it_holds():
    fourth, seventh = np.zeros((1, 20)), np.zeros((1, 20))
    fourth[0, :4] = [1.0, 2.0, 3.0, 4.0]
    seventh[0, :7] = [1.0, *[2.0] * 6]
    for name, value in (("hit@1", 0), ("hit@5", 1), ("ndcg@5", 1 / np.log2(5)), ("ndcg@10", 1 / np.log2(5)), ("mrr", 1 / 4)):
        assert metrics.per_user(fourth)[name] == pytest.approx([value]), name
    for name, value in (("hit@5", 0), ("hit@10", 1), ("ndcg@5", 0), ("ndcg@10", 1 / np.log2(8)), ("mrr", 1 / 7)):
        assert metrics.per_user(seventh)[name] == pytest.approx([value]), name


def test_the_paired_test_does_not_ask_which_model_is_named_first():
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 200)) < [[0.5], [0.4]]).astype(float)
    one, other = metrics.paired(a, b), metrics.paired(b, a)
    assert one.p_value == other.p_value and one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.02)
