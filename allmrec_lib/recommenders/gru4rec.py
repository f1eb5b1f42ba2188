"""GRU4Rec: a recurrent network over the history (Hidasi et al., ICLR 2016).

Sources differ: the paper feeds one-hot items in session-parallel batches, re-implementations use embeddings and one to three
layers. Here: embeddings that serve as input and output (A-LLMRec needs one vector an item), one layer of d units, whole user
sequences, the loss of the other sequential models. Left padding does not move the state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SequentialConfig
from .sequential import SequentialModel


class GRU4Rec(SequentialModel):
    """``blocks`` GRU layers and a linear layer to the item space."""

    def __init__(self, n_items: int, config: SequentialConfig):
        super().__init__(n_items, config)
        between = config.dropout if config.blocks > 1 else 0.0
        self.gru = nn.GRU(config.dim, config.dim, config.blocks, batch_first=True, dropout=between)
        self.out = nn.Linear(config.dim, config.dim)

    def states(self, inputs: Tensor, real: Tensor) -> Tensor:
        inputs = F.dropout(inputs, self.config.dropout, self.training)
        lengths = real[..., 0].sum(dim=1)
        # the real items to the front, so that the recurrence starts at the first of them; then back
        length = inputs.shape[1]
        shift = (torch.arange(length, device=inputs.device) + (length - lengths)[:, None]) % length
        front = inputs.gather(1, shift.unsqueeze(-1).expand_as(inputs))
        states = self.gru(front)[0]
        states = torch.zeros_like(states).scatter(1, shift.unsqueeze(-1).expand_as(states), states)
        return self.out(F.dropout(states, self.config.dropout, self.training)) * real
