"""Floors that need no training: popularity, co-occurrence, and either after the items of the user's own history.

On Luxury Beauty 17% of the test items are already in the user's history while a negative never is: whoever copies the
history is then always right. A table without these rows cannot be read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..sequences import Sequences
from .base import Recommender


class Popularity:
    """Scores an item by how often it occurs in training."""

    def __init__(self, sequences: Sequences):
        self.counts = torch.from_numpy(sequences.train_counts()).float()

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        return self.counts.to(candidates.device)[candidates]


class CoOccurrence:
    """Item-based neighbours (Sarwar et al., WWW 2001): the summed cosine of a candidate's training users with those of each
    item of the history, an item with itself left out."""

    def __init__(self, sequences: Sequences):
        users, items = sequences.train_pairs()
        users = users - 1
        size = np.bincount(items, minlength=sequences.n_items + 1)
        values = torch.from_numpy(size[items] ** -0.5)  # columns of length 1
        shape = (sequences.n_users, sequences.n_items + 1)
        self.users = torch.sparse_coo_tensor(np.stack([users, items]), values, shape, check_invariants=True)
        self.items = self.users.transpose(0, 1)
        self.known = torch.from_numpy(size > 0)

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        device, histories, candidates = candidates.device, histories.cpu(), candidates.cpu()
        times = torch.zeros(len(histories), len(self.known), dtype=torch.float64)
        times.scatter_add_(1, histories, torch.ones(histories.shape, dtype=torch.float64))
        times[:, 0] = 0.0
        near = torch.sparse.mm(self.items, torch.sparse.mm(self.users, times.T)).T
        near = near - times * self.known  # an item's cosine with itself is 1
        return near.gather(1, candidates).round(decimals=9).float().to(device)  # equal sums in another order stay equal


class RepeatFirst:
    """Items of the user's history first, then the others, each group in another floor's order."""

    def __init__(self, floor: Recommender):
        self.floor = floor

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        scores = self.floor.score(histories, candidates)
        seen = (candidates[:, :, None] == histories[:, None, :]).any(dim=2)
        return scores + seen * (scores.abs().max() * 2 + 1)


FLOORS = {
    "Popularity": Popularity,
    "Repeat+Popularity": lambda sequences: RepeatFirst(Popularity(sequences)),
    "Co-occurrence": CoOccurrence,
    "Repeat+Co-occurrence": lambda sequences: RepeatFirst(CoOccurrence(sequences)),
}
