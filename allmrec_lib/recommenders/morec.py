"""MoRec: a recommender whose items are their texts (Yuan et al., SIGIR 2023, "ID- vs. modality-based").

The item table of SASRec is replaced by a sentence embedding, a dense layer and GELU, trained with the recommender end to end.
``train_layers`` (None: all) of the sentence encoder learn too, at ``encoder_lr``; with 0 the texts are encoded once, and the
embeddings are what A-LLMRec's authors say of their MoRec: made from Sentence-BERT's.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MoRecConfig
from ..datasets.base import Dataset
from ..text import TextEncoder, item_texts
from .sasrec import SASRec


@lru_cache(maxsize=1)
def encoded(texts: tuple[str, ...], name: str, max_tokens: int, precision: str) -> Tensor:
    """Q of all texts by a frozen encoder, each of length sqrt(D), so that an entry is about 1. (len(texts), D)."""
    encoder = TextEncoder(name, texts, max_tokens, 0, precision)
    return F.normalize(encoder.encode_all(), dim=1) * encoder.dim**0.5


class MoRec(SASRec):
    """SASRec over E_i = GELU(W Q_i + b); Q_i is the sentence embedding of item i's text."""

    def __init__(self, n_items: int, config: MoRecConfig, data: Dataset):
        if config.loss == "ce" and config.train_layers != 0:
            raise ValueError("morec.loss = 'ce' would read every text at every step; take 'bce', or morec.train_layers = 0")
        super().__init__(n_items, config)
        del self.items
        texts, self.text = tuple(item_texts(data)), None
        if config.train_layers == 0:
            features = encoded(texts, config.encoder, config.max_text_tokens, config.precision)
            self.register_buffer("features", features, persistent=False)
        else:
            self.text = TextEncoder(config.encoder, texts, config.max_text_tokens, config.train_layers, config.precision,
                                    config.checkpointing)  # fmt: skip
            self.threads = None
        self.dense = nn.Linear(self.features.shape[1] if self.text is None else self.text.dim, config.dim)
        nn.init.xavier_normal_(self.dense.weight)

        self._catalogue: Tensor | None = None  # what a learning encoder said of all items, until it learns again

    def train(self, mode: bool = True) -> MoRec:
        self._catalogue = None
        return super().train(mode)

    def _embedded(self, features: Tensor, items: Tensor) -> Tensor:
        return F.gelu(self.dense(features)) * (items != 0).unsqueeze(-1)

    def item_embeddings(self) -> Tensor:
        if self.text is None:
            return self._embedded(self.features, torch.arange(len(self.features), device=self.features.device))
        if self._catalogue is None:
            features = self.text.encode_all().to(self.dense.weight.device)
            self._catalogue = self._embedded(features, torch.arange(len(features), device=features.device)).detach()
        return self._catalogue

    def embed(self, items: Tensor) -> Tensor:
        if self.text is None:
            return self._embedded(self.features[items], items)
        if not self.training:
            return super().embed(items)
        distinct, place = items.unique(return_inverse=True)
        return self._embedded(self.text(distinct).to(items.device), distinct)[place]

    def groups(self) -> list[dict]:
        text = [p for name, p in self.named_parameters() if name.startswith("text.") and p.requires_grad]
        own = [p for name, p in self.named_parameters() if not name.startswith("text.")]
        return [{"params": own, "lr": self.config.lr}, *([{"params": text, "lr": self.config.encoder_lr}] if text else [])]
