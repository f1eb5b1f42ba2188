"""What the sequential models (SASRec, GRU4Rec, NextItNet, MoRec, CTRL) have in common: scores, training, negatives.

A model reads the items of a history and has a state after each; a score is the dot product of the last state, x^u, with the
item's embedding. Training predicts the next item at every position of a user's window.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import metrics
from ..config import SequentialConfig
from ..sequences import Candidates, Sequences
from ..shares import Share
from ..training import History, bucketed_batches, cpu_threads, fit
from .base import aligned, score_rows


class SequentialModel(nn.Module):
    """Item embeddings (n_items + 1, d), normal with variance 1 / d, row 0 being padding and zero; :meth:`states` is what a
    model adds."""

    threads: int | None = 1  # what training is fastest with on a CPU

    def __init__(self, n_items: int, config: SequentialConfig):
        super().__init__()
        self.config = config
        self.items = nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        with torch.no_grad():
            self.items.weight *= config.dim**-0.5

    def states(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The state after every position. inputs (B, L, d): item embeddings; real (B, L, 1): no padding. (B, L, d)."""
        raise NotImplementedError

    def last_state(self, inputs: Tensor, real: Tensor) -> Tensor:
        """The state after the last position, for models that can do with less than all. (B, d)."""
        return self.states(inputs, real)[:, -1]

    def hidden(self, histories: Tensor) -> Tensor:
        """(B, L) -> (B, L, d)."""
        return self.states(self.embed(histories), (histories != 0).unsqueeze(-1))

    def embed(self, items: Tensor) -> Tensor:
        """The embeddings of some items: (...,) -> (..., d)."""
        return F.embedding(items, self.item_embeddings())

    def item_embeddings(self) -> Tensor:
        """(n_items + 1, d)."""
        return self.items.weight

    def user_representation(self, histories: Tensor) -> Tensor:
        """x^u: (B, L) -> (B, d)."""
        longest = int((histories != 0).sum(dim=1).max()) if len(histories) else 0  # the rest is padding in every row
        histories = histories[:, -min(max(longest, 1), self.config.max_len) :]
        return self.last_state(self.embed(histories), (histories != 0).unsqueeze(-1))

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """(B, L) and (B, C) -> (B, C)."""
        return torch.einsum("bd,bcd->bc", self.user_representation(histories), self.embed(candidates))

    def groups(self) -> list[dict]:
        """Parameter groups for the optimizer."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": self.config.lr}]


def draw_negatives(inputs: Tensor, targets: Tensor, n_items: int, tries: int = 3) -> Tensor:
    """A uniform item for every position that is not in the row's training window, drawn on the device. (B, L).

    A drawn item that is in the window is drawn again, ``tries`` times at most; one that is still in it is kept (its
    chance is (window / n_items) ** (tries + 1)).
    """
    window = torch.cat([inputs, targets[:, -1:]], dim=1).sort(dim=1).values

    def seen(items: Tensor) -> Tensor:
        place = torch.searchsorted(window, items).clamp(max=window.shape[1] - 1)
        return window.gather(1, place) == items

    negatives = torch.randint(1, n_items + 1, targets.shape, device=targets.device)
    for _ in range(tries):
        negatives = torch.where(seen(negatives), torch.randint_like(negatives, 1, n_items + 1), negatives)
    return negatives


class SequentialTask:
    """Every user's window is a row; every position predicts the next item (equation 1).

    ``loss`` "bce": one uniform negative a position; "ce": softmax over all items.
    """

    def __init__(self, model: SequentialModel, sequences: Sequences, candidates: Candidates, device: str):
        if model.config.loss not in ("bce", "ce"):
            raise ValueError(f"unknown loss {model.config.loss!r}; one of bce, ce")
        self.module, self.config, self.device = model.to(device), model.config, device
        self.inputs, self.targets = (t.to(device) for t in sequences.train_windows(self.config.max_len))
        self.n_rows, self.n_items = len(self.inputs), sequences.n_items
        self.lengths = (self.inputs != 0).sum(dim=1).cpu()
        self.validation = aligned(sequences.rows("validation", self.config.max_len), candidates), candidates

    def parameters(self) -> list[dict]:
        return self.module.groups()

    def batches(self, order: Tensor) -> list[Tensor]:
        return bucketed_batches(order, self.config.batch_size, self.lengths)

    def loss(self, rows: Tensor) -> Tensor:
        share, rows = Share.of_batch(len(rows)), rows.to(self.device)
        inputs, targets = self.inputs[rows], self.targets[rows]
        longest = int((inputs != 0).sum(dim=1).max())  # columns that are padding in every row cost time for nothing
        inputs, targets = inputs[:, -longest:], targets[:, -longest:]
        own, whole = share.of(targets), int((targets != 0).sum())
        real = own != 0
        with share:
            hidden = self.module.hidden(share.of(inputs))
        if self.config.loss == "ce":
            mean = F.cross_entropy(hidden[real] @ self.module.item_embeddings()[1:].T, own[real] - 1)
        else:
            negatives = share.of(draw_negatives(inputs, targets, self.n_items))
            score = [(hidden * self.module.embed(items)).sum(-1)[real] for items in (own, negatives)]
            mean = F.softplus(-score[0]).mean() + F.softplus(score[1]).mean()
        return share.weigh(mean, int(real.sum()), whole)

    def validate(self) -> float:
        scores = score_rows(self.module, *self.validation, device=self.device)
        return float(metrics.ndcg(metrics.ranks(scores), 10).mean())


def train_sequential(model: SequentialModel, sequences: Sequences, validation: Candidates, seed: int = 0,
                     folder: Path | None = None, device: str = "cpu", label: str = "training") -> History:  # fmt: skip
    """Train a model, stopping early on validation NDCG@10; the best weights stay in it, frozen."""
    config = model.config
    task = SequentialTask(model, sequences, validation, device)
    with cpu_threads(model.threads):
        history = fit(task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed,
                      folder=folder, label=label, weight_decay=config.weight_decay, betas=(0.9, 0.98))  # fmt: skip
    model.requires_grad_(False)
    return history
