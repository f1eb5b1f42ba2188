"""A batch shared out among processes so that together they compute what one does.

What is random or looks at a whole batch (its order, the negatives, dropout masks, how far rows are padded) is made by every
process for the whole batch, from the step's own seed; then each runs the network on its :class:`Share` of the rows. A
share's mean loss is weighed by how much of the batch's mean it holds, so that the mean of the processes' gradients, which
DDP takes, is the gradient of the batch. A task that knows nothing of shares (a contrast of all rows of a batch with each
other, a task of your own) is computed whole by every process: not faster, and right.

The result is one process's up to the order of sums. The exceptions draw other dropout masks, as another seed would: attention
that CUDA fuses (with one process), dropout between the layers of a GRU that has several, MoRec's sentence encoder where it
learns. Numbers are not to depend on this module, so that it keys no artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .processes import count, number, together


@dataclass(frozen=True)
class Share:
    """Which ``rows`` of a batch of ``whole`` rows this process computes: neighbours (:meth:`of_batch`), or any.

    As a context (``with share:``) dropout draws masks for the whole batch, of which the share's rows are used: the masks of
    one process that computes all rows.
    """

    whole: int
    rows: slice | Tensor

    @classmethod
    def of_batch(cls, whole: int) -> Share:
        """A batch of fewer rows than processes is not shared out: every process computes all of it."""
        if whole < count():
            return cls(whole, slice(0, whole))
        return cls(whole, slice(whole * number() // count(), whole * (number() + 1) // count()))

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)

    def of(self, *batch: Tensor) -> Any:
        """The share's rows of one tensor of the batch, or of several."""
        shared = [t if len(self) == self.whole else t[self.rows] for t in batch]
        return shared[0] if len(shared) == 1 else shared

    def weigh(self, mean: Tensor, own: int | None = None, whole: int | None = None) -> Tensor:
        """A mean over the share's ``own`` terms (rows, if not given), so weighed that the mean of what all processes give is
        the mean over the batch's ``whole`` terms."""
        if len(self) == self.whole:
            return mean
        return mean * (count() * (own or len(self)) / (whole or self.whole))

    def __enter__(self) -> None:
        if count() > 1:
            _current.append(self)
            if len(_current) == 1:
                _draws.__enter__()

    def __exit__(self, *error: object) -> None:
        if count() > 1:
            _current.pop()
            if not _current:
                _draws.__exit__(*error)


_current: list[Share] = []  # the shares entered, the innermost last


def recomputing() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts for ``torch.utils.checkpoint``: what is computed again in the backward pass draws as it did before."""
    return nullcontext(), (_current[-1] if _current else nullcontext())


class _WholeDraws(TorchFunctionMode):
    """Dropout, wherever it is called (the models of other libraries included), by masks drawn for the whole batch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """``x`` (share, ...), or with several entries a row one after another, as (share x heads, ...)."""
        if not training or p == 0.0:
            return x
        share = _current[-1]
        each, rest = divmod(len(x), len(share))
        if rest:  # not the share's rows
            return F.dropout(x, p, True)
        drawn = F.dropout(x.new_ones(share.whole * each, *x.shape[1:]), p, True)
        return x * share.of(drawn.unflatten(0, (share.whole, each))).flatten(0, 1)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                   is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
        """What PyTorch computes where no fused kernel does, step by step."""
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], dim=-3) for t in (key, value))
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return self._dropout(scores.softmax(-1), dropout_p) @ value


_draws = _WholeDraws()


class _Step(nn.Module):
    """A task as the module that DDP wraps: batch in, loss out."""

    def __init__(self, task):
        super().__init__()
        self.module, self.loss = task.module, task.loss

    def forward(self, rows: Tensor) -> Tensor:
        return self.loss(rows.cpu())  # DDP moves what it is given to the GPU; rows are numbers into tables on the CPU


def step_of(task) -> Callable[[Tensor], Tensor]:
    """``task.loss``; with several processes in DDP, which averages the gradients of all when they are computed."""
    if together() is None:
        return task.loss
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # parameters that a step does not use (a text model's pooler, a layer that joins later) get no gradient, as with one process
    plain = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=together().device.type == "cpu", mixed_precision="no", kwargs_handlers=[plain])
    step = accelerator.prepare_model(_Step(task))
    step.broadcast_buffers = False  # every process computes its buffers itself
    return step
