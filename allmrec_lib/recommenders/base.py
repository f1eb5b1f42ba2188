"""The one protocol of all recommenders, and evaluation in batches."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..sequences import Candidates, Rows


class Recommender(Protocol):
    """What every model offers. Item ids count from 1; histories are padded with 0 on the left."""

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """(B, L) and (B, C) -> (B, C), higher is better."""


class EmbeddingRecommender(Recommender, Protocol):
    """A recommender A-LLMRec can stand on: it represents users and items as vectors of one size d."""

    def item_embeddings(self) -> Tensor:
        """(n_items + 1, d); row 0 is padding."""

    def user_representation(self, histories: Tensor) -> Tensor:
        """x^u: (B, L) -> (B, d)."""


@torch.no_grad()
def score_rows(model: Recommender, rows: Rows, candidates: Candidates, device: str = "cpu", batch: int = 1024):
    """The model's scores of every candidate of every row, a NumPy array (N, C).

    Raises ValueError when the rows and the candidates are not of the same users in the same order.
    """
    if not torch.equal(rows.users, candidates.users):
        raise ValueError("the rows and the candidates are of different users; take both from the same part")
    pieces = [
        model.score(h.to(device), c.to(device)).float().cpu()
        for h, c in zip(rows.histories.split(batch), candidates.items.split(batch), strict=True)
    ]
    return torch.cat(pieces).numpy() if pieces else np.zeros((0, candidates.items.shape[1]))


def aligned(rows: Rows, candidates: Candidates) -> Rows:
    """The rows of the candidates' users, in their order (the candidates may be a sample of the users)."""
    place = torch.searchsorted(rows.users, candidates.users)
    return rows.take(place)
