"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), the backbone of A-LLMRec.

As in the authors' copy: the query is layer-normalised and the keys are not, the residual goes around the normalised
query, dropout on embeddings, attention and feed-forward, a final layer norm. Deviations: the padding row is zero and
stays zero and is hidden from attention (the copy lets items attend to it, so that a result depends on how much padding
stands before a history), the last, smaller batch is kept, the best epoch by validation NDCG@10 is returned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SequentialConfig
from .sequential import SequentialModel


class Block(nn.Module):
    """Causal self-attention and a position-wise feed-forward network."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_norm = nn.LayerNorm(dim, eps=1e-8)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, seen: Tensor, visible: Tensor) -> Tensor:
        """``x`` (B, Q, d): positions to compute, of ``seen`` (B, L, d); ``visible`` (B, 1, Q, L): what each sees. (B, Q, d)."""
        normed = self.query_norm(x)
        query, (key, value) = self.query(normed), self.key_value(seen).chunk(2, dim=-1)
        heads = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value)]
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=visible, dropout_p=drop)
        x = self.norm(normed + self.out(mixed.transpose(1, 2).flatten(2)))
        hidden = F.dropout(self.inner(x), self.dropout, self.training).relu()
        return x + F.dropout(self.outer(hidden), self.dropout, self.training)


class SASRec(SequentialModel):
    """Item and position embeddings, ``blocks`` attention blocks."""

    def __init__(self, n_items: int, config: SequentialConfig):
        super().__init__(n_items, config)
        self.positions = nn.Embedding(config.max_len, config.dim)
        self.blocks = nn.ModuleList([Block(config.dim, config.heads, config.dropout) for _ in range(config.blocks)])
        self.final_norm = nn.LayerNorm(config.dim, eps=1e-8)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.xavier_normal_(parameter)
        with torch.no_grad():
            self.items.weight[0] = 0.0

    def read(self, inputs: Tensor, real: Tensor, wanted: slice) -> Tensor:
        """The states after the ``wanted`` positions, Q of L; the last block computes no others. (B, Q, d)."""
        length = inputs.shape[1]
        places = torch.arange(length, device=inputs.device)
        causal, itself = places[:, None] >= places, places[:, None] == places
        visible = causal & (real.transpose(1, 2) | itself)  # a padding row sees itself: no empty softmax
        visible = inputs.new_zeros(()).where(visible, -torch.inf).unsqueeze(1)  # once, and not in every block
        x = inputs * self.config.dim**0.5 + self.positions.weight[self.config.max_len - length :]
        x = F.dropout(x, self.config.dropout, self.training) * real
        for block in self.blocks[:-1]:
            x = block(x, x, visible) * real
        x = self.blocks[-1](x[:, wanted], x, visible[:, :, wanted]) * real[:, wanted]
        return self.final_norm(x)

    def states(self, inputs: Tensor, real: Tensor) -> Tensor:
        return self.read(inputs, real, slice(None))

    def last_state(self, inputs: Tensor, real: Tensor) -> Tensor:
        return self.read(inputs, real, slice(-1, None))[:, -1]
