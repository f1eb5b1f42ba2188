"""CTRL: a recommender that first learns to agree with a language model (Li et al., arXiv 2306.02841).

First a contrast: a history with its next item, as SASRec sees it and told in words, are two views of one sample; each view
is cut into ``parts`` sub-representations, and the likeness of two views is the sum over the parts of one of their best match
among the other's (fine-grained alignment). Then ordinary training on the next item. Only SASRec and a last linear layer are
there afterwards. Deviation: the texts of samples are encoded once where the sentence encoder is frozen (``train_layers`` 0).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import CTRLConfig
from ..datasets.base import Dataset
from ..sequences import Candidates, Sequences
from ..text import TextEncoder
from ..training import History, fit, split_batches
from .sasrec import SASRec
from .sequential import train_sequential


class CTRL(SASRec):
    """SASRec and a linear layer; what the contrast needs besides is thrown away after it."""

    def __init__(self, n_items: int, config: CTRLConfig, data: Dataset):
        super().__init__(n_items, config)
        self.final = nn.Linear(config.dim, config.dim)
        self.titles, self.words = data.titles, data.words

    def read(self, inputs: Tensor, real: Tensor, wanted: slice) -> Tensor:
        return self.final(super().read(inputs, real, wanted)) * real[:, wanted]

    def view(self, histories: Tensor) -> Tensor:
        """SASRec's own state after a history, before the last layer: (B, L) -> (B, d)."""
        real = (histories != 0).unsqueeze(-1)
        return super().read(self.embed(histories), real, slice(-1, None))[:, -1]

    def told(self, items: list[int]) -> str:
        """A history whose last item is the one to predict, in words."""
        before = "|".join(self.titles[i] for i in items[:-1] if i)
        done, noun = self.words.done, self.words.noun
        noun = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
        return f"This is a user, who has recently {done} {before}. This is {noun}, title is {self.titles[items[-1]]}."


class Contrast(nn.Module):
    """Two views of a batch of samples to the likeness of every pair."""

    def __init__(self, dim: int, text_dim: int, parts: int):
        super().__init__()
        self.table, self.text = (nn.Sequential(nn.Linear(d, dim), nn.Linear(dim, parts * dim)) for d in (dim, text_dim))
        self.parts = parts

    def forward(self, table: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) and (B, D) -> for each sample's table view (rows) and text view (columns), the likeness seen from the table
        and from the text, both (B, B), between -parts and parts."""
        table, text = (F.normalize(layers(x).unflatten(-1, (self.parts, -1)), dim=-1)
                       for layers, x in ((self.table, table), (self.text, text)))  # fmt: skip
        pairs = torch.einsum("imd,jnd->ijmn", table, text)
        return pairs.amax(dim=3).sum(2), pairs.amax(dim=2).sum(2)


def contrast_loss(seen: tuple[Tensor, Tensor], kind: str, temperature: float) -> Tensor:
    """``infonce``: each view picks its partner out of the batch; ``bce``: every pair alone, partners 1 and others 0."""
    from_table, from_text = (likeness / temperature for likeness in seen)
    own = torch.arange(len(from_table), device=from_table.device)
    if kind == "infonce":
        return (F.cross_entropy(from_table, own) + F.cross_entropy(from_text.T, own)) / 2
    wanted = torch.eye(len(own), device=own.device)
    return sum(F.binary_cross_entropy_with_logits(seen, wanted) for seen in (from_table, from_text)) / 2


class ContrastTask:
    """Samples are training histories with their next item; one in ten is kept to see when to stop."""

    def __init__(self, model: CTRL, sequences: Sequences, device: str, seed: int):
        config = self.config = model.config
        if config.contrast not in ("infonce", "bce"):
            raise ValueError(f"unknown ctrl.contrast {config.contrast!r}; one of infonce, bce")
        rows = sequences.rows("train", config.max_len, all_items=True)
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: config.samples]
        samples = torch.cat([rows.histories, rows.targets[:, None]], dim=1)[drawn, 1:]
        told = [model.told(items) for items in samples[:, -config.text_history - 1 :].tolist()]
        text = TextEncoder(config.encoder, told, config.max_text_tokens, config.train_layers, config.precision)
        self.features = text.encode_all().to(device) if config.train_layers == 0 else None
        parts = {"model": model, "contrast": Contrast(config.dim, text.dim, config.parts)}
        self.module = nn.ModuleDict(parts if self.features is not None else parts | {"text": text}).to(device)
        self.samples, self.n_rows = samples.to(device), len(samples) - len(samples) // 10

    def parameters(self) -> list[dict]:
        own = [*self.module["model"].parameters(), *self.module["contrast"].parameters()]
        groups = [{"params": own, "lr": self.config.lr}]
        if "text" in self.module:
            learning = [p for p in self.module["text"].parameters() if p.requires_grad]
            groups.append({"params": learning, "lr": self.config.encoder_lr})
        return groups

    def batches(self, order: Tensor) -> list[Tensor]:
        return split_batches(order, self.config.contrast_batch)

    def loss(self, rows: Tensor) -> Tensor:
        samples = self.samples[rows.to(self.samples.device)]
        text = self.module["text"](rows) if self.features is None else self.features[rows.to(self.features.device)]
        seen = self.module["contrast"](self.module["model"].view(samples), text)
        return contrast_loss(seen, self.config.contrast, self.config.temperature)

    @torch.no_grad()
    def validate(self) -> float:
        """Minus the loss on the samples kept."""
        kept = self.batches(torch.arange(self.n_rows, len(self.samples)))
        return -float(torch.stack([self.loss(rows) for rows in kept]).mean())


def train_ctrl(model: CTRL, sequences: Sequences, validation: Candidates, seed: int = 0, folder: Path | None = None,
               device: str = "cpu", label: str = "CTRL") -> History:  # fmt: skip
    """The contrast, then training on the next item as for SASRec. Returns the second's history."""
    config, aligned = model.config, folder / "contrast" if folder else None
    fit(ContrastTask(model, sequences, device, seed), epochs=config.contrast_epochs, patience=2, seed=seed, folder=aligned,
        label=f"{label}, contrast")  # fmt: skip
    return train_sequential(model, sequences, validation, seed, folder, device, label)
