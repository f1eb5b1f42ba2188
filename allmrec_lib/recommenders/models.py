"""The trained recommenders by their names in the paper's tables: how each is built and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..sequences import Candidates, Sequences
from ..training import History
from .gru4rec import GRU4Rec
from .morec import MoRec
from .ncf import NCF, train_ncf
from .nextitnet import NextItNet
from .sasrec import SASRec
from .sequential import train_sequential

BASE = ("sequences", "training", "metrics", "recommenders.base")


@dataclass(frozen=True)
class Model:
    """``section`` of the profile, ``build(sequences, texts, config)``, ``train(model, sequences, ...)``, and the modules
    whose source the result depends on. ``texts``: of all items, entry 0 for padding."""

    section: str
    build: Callable[[Sequences, list[str], object], nn.Module]
    train: Callable[..., History]
    code: tuple[str, ...]


def _sequential(kind: type, *modules: str, texts: bool = False) -> Model:
    def build(sequences: Sequences, words: list[str], config) -> nn.Module:
        return kind(sequences.n_items, config, words) if texts else kind(sequences.n_items, config)

    section = kind.__name__.lower()
    code = (*BASE, "recommenders.sequential", f"recommenders.{section}", *modules)
    return Model(section, build, train_sequential, code)


MODELS = {
    "NCF": Model("ncf", lambda s, _, c: NCF(s.n_users, s.n_items, c), train_ncf, (*BASE, "recommenders.ncf")),
    "NextItNet": _sequential(NextItNet),
    "GRU4Rec": _sequential(GRU4Rec),
    "SASRec": _sequential(SASRec),
    "MoRec": _sequential(MoRec, "recommenders.sasrec", "text", texts=True),
}


def model_named(name: str) -> Model:
    """Raises ValueError naming the known ones."""
    if name not in MODELS:
        raise ValueError(f"unknown recommender {name!r}; one of {', '.join(MODELS)}")
    return MODELS[name]


def train_recommender(name: str, sequences: Sequences, texts: list[str], validation: Candidates, config, seed: int = 0,
                      folder: Path | None = None, device: str = "cpu") -> tuple[nn.Module, History]:  # fmt: skip
    """Build and train a recommender; returns the best epoch's model by validation NDCG@10, frozen, in evaluation mode."""
    kind = model_named(name)
    torch.manual_seed(seed)
    model = kind.build(sequences, texts, config)
    return model, kind.train(model, sequences, validation, seed, folder, device, label=name)
