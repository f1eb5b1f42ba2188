"""The one protocol of all recommenders, and evaluation in batches."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .. import processes
from ..sequences import Candidates, Rows


class Recommender(Protocol):
    """What every model offers. Item ids count from 1; histories are padded with 0 on the left.

    A model that knows users by number, not by history, says so by an attribute ``by_user = True``; it is given user numbers
    (B,) where others are given histories.
    """

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """(B, L) and (B, C) -> (B, C), higher is better."""


class EmbeddingRecommender(Recommender, Protocol):
    """A recommender A-LLMRec can stand on: it represents users and items as vectors of one size d."""

    def item_embeddings(self) -> Tensor:
        """(n_items + 1, d); row 0 is padding."""

    def user_representation(self, histories: Tensor) -> Tensor:
        """x^u: (B, L) -> (B, d)."""


def inputs_of(model: Recommender, rows: Rows) -> Tensor:
    """What the model knows the rows' users by: histories (N, L), or user numbers (N,)."""
    return rows.users if getattr(model, "by_user", False) else rows.histories


def in_batches(inputs: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Row numbers in batches; histories of like length together, so that a model can leave out columns of padding."""
    if inputs.dim() == 1:
        return torch.arange(len(inputs)).split(batch)
    return (inputs != 0).sum(dim=1).argsort(stable=True).split(batch)


@torch.no_grad()
def represent(model: EmbeddingRecommender, rows: Rows, device: str = "cpu", batch: int = 256) -> Tensor:
    """x^u of every row. (N, d)."""
    inputs = inputs_of(model, rows)
    parts = in_batches(inputs, batch)
    found = torch.cat([model.user_representation(inputs[part].to(device)) for part in parts])
    return found[torch.cat(parts).argsort().to(found.device)]


@torch.no_grad()
def score_rows(model: Recommender, rows: Rows, candidates: Candidates, device: str = "cpu", batch: int = 256):
    """The model's scores of every candidate of every row, a NumPy array (N, C). Several processes share the batches out.

    Raises ValueError when the rows and the candidates are not of the same users in the same order.
    """
    if not torch.equal(rows.users, candidates.users):
        raise ValueError("the rows and the candidates are of different users; take both from the same part")
    inputs, out = inputs_of(model, rows), np.zeros(candidates.items.shape, dtype=np.float32)
    parts = list(in_batches(inputs, batch))
    if processes.count() > 1 and hasattr(model, "item_embeddings"):
        model.item_embeddings()  # which a model may share out too: all processes, before each goes its own way
    found = processes.each_once(lambda p: model.score(inputs[p].to(device), candidates.items[p].to(device)).float().cpu(), parts)
    for part, scores in zip(parts, found, strict=True):
        out[part.numpy()] = scores.numpy()
    return out


def aligned(rows: Rows, candidates: Candidates) -> Rows:
    """The rows of the candidates' users, in their order (the candidates may be a sample of the users)."""
    place = torch.searchsorted(rows.users, candidates.users)
    return rows.take(place)
