"""NextItNet: dilated causal convolutions over the history (Yuan et al., WSDM 2019).

As in the paper: residual blocks of two convolutions of width 3 with dilations n and 2n, layer norm and ReLU after each,
dilations 1 and 4 in turn, softmax over all items (``loss`` "ce"). Deviations: item embeddings serve as input and as the
softmax's weights (A-LLMRec needs one vector an item); padding is no target; dropout on the embeddings.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SequentialConfig
from .sequential import SequentialModel


class CausalConvolution(nn.Module):
    """A convolution of width 3 that sees a position and those ``dilation`` and 2 ``dilation`` before it. (B, L, d)."""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.convolution, self.reach = nn.Conv1d(dim, dim, 3, dilation=dilation), 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x.transpose(1, 2), (self.reach, 0))).transpose(1, 2)


class Block(nn.Module):
    """Two dilated convolutions around which the input is added."""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.convolutions = nn.ModuleList([CausalConvolution(dim, dilation * n) for n in (1, 2)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim, eps=1e-8) for _ in range(2)])

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        y = x
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            y = norm(convolution(y)).relu() * real  # padding stays zero: a result does not depend on how much there is
        return x + y


class NextItNet(SequentialModel):
    """``blocks`` residual blocks with dilations 1 and 4 in turn, and a linear layer to the item space."""

    def __init__(self, n_items: int, config: SequentialConfig):
        super().__init__(n_items, config)
        self.blocks = nn.ModuleList([Block(config.dim, (1, 4)[n % 2]) for n in range(config.blocks)])
        self.out = nn.Linear(config.dim, config.dim)

    def states(self, inputs: Tensor, real: Tensor) -> Tensor:
        x = F.dropout(inputs, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, real)
        return self.out(F.dropout(x, self.config.dropout, self.training)) * real
