"""NCF: neural collaborative filtering (He et al., WWW 2017), the MLP over a user's and an item's embedding.

As in the paper: the two embeddings side by side go through ReLU layers of falling width to one logit; log loss with 4 new
negatives for each positive. ``neumf`` adds the paper's second tower, the elementwise product (GMF); its embeddings are then
of d / 2 each, so that a user and an item stay one vector of d. A user is known by number, not by history: a new user has no
representation. Deviation: d = 50 and batches of 128 positives as for the other models, the epoch chosen on validation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import metrics
from ..config import NCFConfig
from ..sequences import Candidates, Sequences
from ..shares import Share
from ..training import History, cpu_threads, fit, split_batches
from .base import aligned, score_rows


class NCF(nn.Module):
    """``by_user``: what other models take as histories are here user numbers (B,)."""

    by_user = True

    def __init__(self, n_users: int, n_items: int, config: NCFConfig):
        super().__init__()
        self.config = config
        self.users, self.items = (nn.Embedding(n + 1, config.dim, padding_idx=0) for n in (n_users, n_items))
        self.product = config.dim // 2 if config.neumf else 0
        widths = [2 * (config.dim - self.product), *config.layers]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
        self.mlp, self.out = nn.Sequential(*layers), nn.Linear(widths[-1] + self.product, 1)
        self._draw()

    def _draw(self) -> None:
        """Weights as the authors' code draws them. With PyTorch's own, whose biases are not zero, some trainings at a rate of
        0.01 end with all ReLUs off and one score for every item."""
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.01)
            with torch.no_grad():
                table.weight[0] = 0.0
        for layer, _ in self.mlp:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(self.out.weight, nonlinearity="linear")
        nn.init.zeros_(self.out.bias)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Logits of pairs of vectors, (..., d) and (..., d) -> (...)."""
        p = self.product
        deep = self.mlp(torch.cat([user[..., p:], item[..., p:]], dim=-1))
        return self.out(torch.cat([user[..., :p] * item[..., :p], deep], dim=-1)).squeeze(-1)

    def item_embeddings(self) -> Tensor:
        """(n_items + 1, d)."""
        return self.items.weight

    def user_representation(self, users: Tensor) -> Tensor:
        """x^u: (B,) -> (B, d)."""
        return self.users(users)

    def score(self, users: Tensor, candidates: Tensor) -> Tensor:
        """(B,) and (B, C) -> (B, C)."""
        items = self.items(candidates)
        return self(self.users(users)[:, None].expand_as(items), items)


class NCFTask:
    """Every training interaction is a row, with ``negatives`` items that the user has none of in training."""

    def __init__(self, model: NCF, sequences: Sequences, candidates: Candidates, device: str):
        self.module, self.config, self.device, self.n_items = model.to(device), model.config, device, sequences.n_items
        users, items = (torch.from_numpy(a).to(device) for a in sequences.train_pairs())
        self.users, self.positives, self.n_rows = users, items, len(users)
        self.keys = users * (self.n_items + 1) + items  # sorted: pairs come sorted by user, then item
        self.validation = aligned(sequences.rows("validation", 1), candidates), candidates

    def parameters(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def batches(self, order: Tensor) -> list[Tensor]:
        return split_batches(order, self.config.batch_size)

    def negatives(self, users: Tensor) -> Tensor:
        """(B,) -> (B, negatives). One that the user has is drawn again, three times at most."""
        drawn = torch.randint(1, self.n_items + 1, (len(users), self.config.negatives), device=self.device)
        for _ in range(3):
            keys = users[:, None] * (self.n_items + 1) + drawn
            place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
            drawn = torch.where(self.keys[place] == keys, torch.randint_like(drawn, 1, self.n_items + 1), drawn)
        return drawn

    def loss(self, rows: Tensor) -> Tensor:
        share, rows = Share.of_batch(len(rows)), rows.to(self.device)
        users = self.users[rows]
        users, items = share.of(users, torch.cat([self.positives[rows][:, None], self.negatives(users)], dim=1))
        wanted = torch.zeros(items.shape, device=self.device)
        wanted[:, 0] = 1.0
        return share.weigh(F.binary_cross_entropy_with_logits(self.module.score(users, items), wanted))

    def validate(self) -> float:
        scores = score_rows(self.module, *self.validation, device=self.device)
        return float(np.mean(metrics.ndcg(metrics.ranks(scores), 10)))


def train_ncf(model: NCF, sequences: Sequences, validation: Candidates, seed: int = 0, folder: Path | None = None,
              device: str = "cpu", label: str = "NCF") -> History:  # fmt: skip
    """Train NCF, stopping early on validation NDCG@10; the best weights stay in it, frozen."""
    config = model.config
    task = NCFTask(model, sequences, validation, device)
    with cpu_threads(1):
        history = fit(task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed,
                      folder=folder, label=label, weight_decay=config.weight_decay)  # fmt: skip
    model.requires_grad_(False)
    return history
