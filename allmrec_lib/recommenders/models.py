"""The trained recommenders by their names in the paper's tables: how each is built and trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.base import Dataset
from ..sequences import Candidates, Rows, Sequences
from ..training import History
from .base import EmbeddingRecommender, represent, score_rows
from .ctrl import CTRL, train_ctrl
from .gru4rec import GRU4Rec
from .morec import MoRec
from .ncf import NCF, train_ncf
from .nextitnet import NextItNet
from .recformer import RecFormer, train_recformer
from .sasrec import SASRec
from .sequential import train_sequential

BASE = ("sequences", "training", "metrics", "recommenders.base")
SASREC = ("recommenders.sequential", "recommenders.sasrec")


@dataclass(frozen=True)
class Model:
    """``section`` of the profile, ``build(sequences, dataset, config)``, ``train(model, sequences, ...)``, and the modules
    whose source the result depends on."""

    section: str
    build: Callable[[Sequences, Dataset, object], nn.Module]
    train: Callable[..., History]
    code: tuple[str, ...]


def _by_number(kind: type) -> Model:
    """A sequential model that knows items by their numbers."""
    section = kind.__name__.lower()
    code = (*BASE, "recommenders.sequential", f"recommenders.{section}")
    return Model(section, lambda sequences, _, config: kind(sequences.n_items, config), train_sequential, code)


def _by_text(kind: type, train: Callable[..., History], *modules: str) -> Model:
    """A model that is built from the items' texts too."""
    section = kind.__name__.lower()
    code = (*BASE, "text", f"recommenders.{section}", *modules)
    return Model(section, lambda sequences, data, config: kind(sequences.n_items, config, data), train, code)


MODELS = {
    "NCF": Model("ncf", lambda s, _, c: NCF(s.n_users, s.n_items, c), train_ncf, (*BASE, "recommenders.ncf")),
    "NextItNet": _by_number(NextItNet),
    "GRU4Rec": _by_number(GRU4Rec),
    "SASRec": _by_number(SASRec),
    "MoRec": _by_text(MoRec, train_sequential, *SASREC),
    "CTRL": _by_text(CTRL, train_ctrl, *SASREC),
    "RECFORMER": _by_text(RecFormer, train_recformer),
}


def model_named(name: str) -> Model:
    """Raises ValueError naming the known ones."""
    if name not in MODELS:
        raise ValueError(f"unknown recommender {name!r}; one of {', '.join(MODELS)}")
    return MODELS[name]


def train_recommender(name: str, sequences: Sequences, data: Dataset, validation: Candidates, config, seed: int = 0,
                      folder: Path | None = None, device: str = "cpu") -> tuple[nn.Module, History]:  # fmt: skip
    """Build and train a recommender; returns the best epoch's model by validation NDCG@10, frozen, in evaluation mode.

    Warns where that is 0: the model gives every candidate the same score (a dead network), and should not enter a mean.
    """
    kind = model_named(name)
    torch.manual_seed(seed)
    model = kind.build(sequences, data, config)
    history = kind.train(model, sequences, validation, seed, folder, device, label=name)
    if history.best == 0.0:
        warnings.warn(f"{name} with seed {seed} ranks no validation item above any other (NDCG@10 is 0): it learned nothing; "
                      f"lower {kind.section}.lr or take another seed", RuntimeWarning, stacklevel=2)  # fmt: skip
    return model, history


def answers_of(model: EmbeddingRecommender, rows: Rows, candidates: Candidates, n_items: int,
               device: str = "cpu") -> tuple[Tensor, Tensor, np.ndarray]:  # fmt: skip
    """E (n_items + 1, d), x^u (N, d) and scores (N, C) that a model gives.

    Raises ValueError, naming the method, where they are not finite float32 tensors of these shapes.
    """
    items = model.item_embeddings()
    if not isinstance(items, Tensor) or items.ndim != 2 or len(items) != n_items + 1:
        found = tuple(items.shape) if hasattr(items, "shape") else type(items).__name__
        raise ValueError(f"item_embeddings() gives {found}, not a tensor ({n_items + 1}, d): row 0 is padding, row i item i")
    users = represent(model, rows, device)
    if tuple(users.shape) != (len(rows), items.shape[1]):
        raise ValueError(f"user_representation(histories) gives {tuple(users.shape)} for {len(rows)} histories, "
                         f"not {(len(rows), items.shape[1])}")  # fmt: skip
    scores = score_rows(model, rows, candidates, device)
    for method, values in (("item_embeddings()", items), ("user_representation()", users), ("score()", torch.from_numpy(scores))):
        if values.dtype != torch.float32 or not torch.isfinite(values).all():
            raise ValueError(f"{method} gives {values.dtype} with {int((~torch.isfinite(values)).sum())} values that are not "
                             "finite; finite float32 is needed")  # fmt: skip
    return items, users, scores
