"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), the backbone of A-LLMRec.

As in the authors' copy: the query is layer-normalised and the keys are not, the residual goes around the normalised
query, dropout on embeddings, attention and feed-forward, a final layer norm. Deviations: the padding row is zero and
stays zero and is hidden from attention (the copy lets items attend to it, so that a result depends on how much padding
stands before a history), the last, smaller batch is kept, the best epoch by validation NDCG@10 is returned.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import metrics
from ..config import SASRecConfig
from ..sequences import Candidates, Sequences
from ..training import History, bucketed_batches, fit
from .base import aligned, score_rows


class Block(nn.Module):
    """Causal self-attention and a position-wise feed-forward network, (B, L, d) -> (B, L, d)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_norm = nn.LayerNorm(dim, eps=1e-8)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """``visible`` (B, 1, L, L): which position sees which."""
        normed = self.query_norm(x)
        query, (key, value) = self.query(normed), self.key_value(x).chunk(2, dim=-1)
        heads = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value)]
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=visible, dropout_p=drop)
        x = self.norm(normed + self.out(mixed.transpose(1, 2).flatten(2)))
        hidden = F.dropout(self.inner(x), self.dropout, self.training).relu()
        return x + F.dropout(self.outer(hidden), self.dropout, self.training)


class SASRec(nn.Module):
    """Item and position embeddings, ``blocks`` attention blocks; a score is the dot product of x^u and E_i."""

    def __init__(self, n_items: int, config: SASRecConfig):
        super().__init__()
        self.config = config
        self.items = nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        self.positions = nn.Embedding(config.max_len, config.dim)
        self.blocks = nn.ModuleList([Block(config.dim, config.heads, config.dropout) for _ in range(config.blocks)])
        self.final_norm = nn.LayerNorm(config.dim, eps=1e-8)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.xavier_normal_(parameter)
        with torch.no_grad():
            self.items.weight[0] = 0.0

    def hidden(self, histories: Tensor) -> Tensor:
        """The state after every position. (B, L) -> (B, L, d)."""
        real, length = (histories != 0).unsqueeze(-1), histories.shape[1]
        places = torch.arange(length, device=histories.device)
        causal, itself = places[:, None] >= places, places[:, None] == places
        visible = (causal & (real.transpose(1, 2) | itself)).unsqueeze(1)  # a padding row sees itself: no empty softmax
        x = self.items(histories) * self.config.dim**0.5
        x = x + self.positions.weight[self.config.max_len - length :]
        x = F.dropout(x, self.config.dropout, self.training) * real
        for block in self.blocks:
            x = block(x, visible) * real
        return self.final_norm(x)

    def item_embeddings(self) -> Tensor:
        return self.items.weight

    def user_representation(self, histories: Tensor) -> Tensor:
        return self.hidden(histories[:, -self.config.max_len :])[:, -1]

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        return torch.einsum("bd,bcd->bc", self.user_representation(histories), self.items(candidates))


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


class SASRecTask:
    """Every user's window is a row; every position predicts the next item (equation 1)."""

    def __init__(self, model: SASRec, sequences: Sequences, candidates: Candidates, device: str):
        self.module, self.config, self.device = model.to(device), model.config, device
        self.inputs, self.targets = (t.to(device) for t in sequences.train_windows(self.config.max_len))
        self.n_rows, self.n_items = len(self.inputs), sequences.n_items
        self.lengths = (self.inputs != 0).sum(dim=1).cpu()
        self.validation = aligned(sequences.rows("validation", self.config.max_len), candidates), candidates

    def parameters(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def batches(self, order: Tensor) -> list[Tensor]:
        return bucketed_batches(order, self.config.batch_size, self.lengths)

    def loss(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        inputs, targets = self.inputs[rows], self.targets[rows]
        longest = int((inputs != 0).sum(dim=1).max())  # columns that are padding in every row cost time for nothing
        inputs, targets = inputs[:, -longest:], targets[:, -longest:]
        real = targets != 0
        hidden = self.module.hidden(inputs)
        if self.config.loss == "ce":
            return F.cross_entropy(hidden[real] @ self.module.items.weight[1:].T, targets[real] - 1)
        negatives = draw_negatives(inputs, targets, self.n_items)
        score = [(hidden * self.module.items(items)).sum(-1)[real] for items in (targets, negatives)]
        return F.softplus(-score[0]).mean() + F.softplus(score[1]).mean()

    def validate(self) -> float:
        scores = score_rows(self.module, *self.validation, device=self.device)
        return float(metrics.ndcg(metrics.ranks(scores), 10).mean())


def train_sasrec(
    sequences: Sequences,
    validation: Candidates,
    config: SASRecConfig,
    seed: int = 0,
    folder: Path | None = None,
    device: str = "cpu",
) -> tuple[SASRec, History]:
    """Train SASRec, stopping early on validation NDCG@10; returns the best model, frozen and in evaluation mode."""
    torch.manual_seed(seed)
    task = SASRecTask(SASRec(sequences.n_items, config), sequences, validation, device)
    history = fit(
        task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed, folder=folder,
        label="SASRec", weight_decay=config.weight_decay, betas=(0.9, 0.98),
    )  # fmt: skip
    return task.module.requires_grad_(False), history
