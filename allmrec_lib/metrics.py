"""Hit@k, NDCG@k and MRR on score matrices, intervals by bootstrap, and a paired test. NumPy only.

Everything starts from the rank of the positive among its candidates. Ties count against the model, and so does a score
that is not a number: a model that gives every candidate the same score ranks the positive last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Model a minus model b on the same rows: mean difference, its 95% interval, two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def ranks(scores: np.ndarray, positive: int = 0) -> np.ndarray:
    """Rank of the positive, 0 the best: how many other candidates score at least as high. scores (N, C) -> (N,)."""
    scores = np.where(np.isnan(scores), -np.inf, np.asarray(scores, dtype=np.float64))
    others = np.delete(scores, positive, axis=1)
    return (others >= scores[:, [positive]]).sum(axis=1)


def hits(rank: np.ndarray, k: int) -> np.ndarray:
    """1.0 where the positive is among the first k. (N,) -> (N,)."""
    return (rank < k).astype(np.float64)


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """Gain 1 / log2(rank + 2) within the first k; the ideal gain is 1, since there is one positive."""
    return np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)


def reciprocal_rank(rank: np.ndarray) -> np.ndarray:
    """1 / (rank + 1); its mean is MRR."""
    return 1.0 / (rank + 1.0)


def per_user(scores: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of every row: hit@1, hit@5, hit@10, ndcg@5, ndcg@10, mrr, each (N,)."""
    rank = ranks(scores)
    values = {f"hit@{k}": hits(rank, k) for k in (1, 5, 10)} | {f"ndcg@{k}": ndcg(rank, k) for k in (5, 10)}
    return values | {"mrr": reciprocal_rank(rank)}


def _resampled_means(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(values))  # rows of indices in memory at once
    sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    return np.concatenate([values[rng.integers(0, len(values), (size, len(values)))].mean(axis=1) for size in sizes])


def bootstrap(values: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
    """Mean of ``values`` (N,) with the 95% percentile interval over users drawn with replacement (Efron 1979).

    Raises ValueError when there is no row.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no rows to average: the slice is empty")
    low, high = np.percentile(_resampled_means(values, draws, seed), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


def paired(a: np.ndarray, b: np.ndarray, draws: int = 2000, seed: int = 0) -> Comparison:
    """Model a against model b on the same rows: bootstrap interval of the difference, sign-flip permutation p-value.

    Under the null hypothesis a row's two values can be swapped; the p-value is the share of random swaps whose mean
    difference is at least as large in size as the observed one (the observed one counted in).
    Raises ValueError when the rows differ in number.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired rows needed: model a has {a.shape}, model b has {b.shape}")
    difference = a - b
    interval = bootstrap(difference, seed=seed)
    moving = difference[difference != 0]
    rng = np.random.default_rng(seed)
    observed, extreme = abs(difference.sum()), 1  # the observed one
    for _ in range(draws):
        extreme += bool(abs((moving * rng.choice((-1.0, 1.0), len(moving))).sum()) >= observed - 1e-9)
    return Comparison(interval.value, interval.low, interval.high, extreme / (draws + 1))
