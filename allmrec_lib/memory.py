"""How much memory an LLM takes, before any of its weights are there: counted on PyTorch's meta device from its config.

Parameters and what the backward pass keeps are counted on the very model that would run, without values. Attention is taken
as fused (it keeps its inputs and its output, not the attention weights), as it is on CUDA and on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import Profile
from .llm.backbone import recompute_layers
from .tallrec import with_adapters

BYTES = {"fp32": 4, "bf16": 2, "int8": 2}  # of what is computed with
ADAM = 16  # bytes for a parameter that learns: weight, gradient and two moments, fp32
SLACK = 1.1  # what the allocator and the device's own libraries take besides


def empty_model(config) -> nn.Module:
    """The causal LM of a configuration without values."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def parameters(model: nn.Module) -> int:
    """How many; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module, weights: str) -> int:
    """Of the weights in fp32, bf16 or int8 (one byte in the linear layers, two elsewhere and in the output layer)."""
    eighth = 0
    if weights == "int8":
        output = model.get_output_embeddings()
        eighth = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not output)
    return (parameters(model) - eighth) * BYTES[weights] + eighth


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs and its output."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        raise NotImplementedError("counted, never run")


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **kwargs or {})


def kept_bytes(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that the backward pass of ``run()`` needs besides the weights; what several operations keep counts once."""
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), _FusedAttention():
        out = run()
    del out
    return sum(storage.nbytes() for storage in kept.values())


def activation_bytes(model: nn.Module, rows: int, tokens: int, dtype: torch.dtype) -> int:
    """What a training step on ``rows`` prompts of ``tokens`` tokens keeps for the gradient of the soft tokens."""
    size, device = model.get_input_embeddings().embedding_dim, next(model.parameters()).device
    embeds = torch.empty(rows, tokens, size, dtype=dtype, device=device, requires_grad=True)
    # given, so that the model does not look into values, which are not there, to make them; attention is not to keep the mask
    made = {"attention_mask": torch.zeros(rows, 1, tokens, tokens, dtype=dtype, device=device),
            "position_ids": torch.arange(tokens, device=device).expand(rows, -1)}  # fmt: skip
    return kept_bytes(lambda: model.base_model(inputs_embeds=embeds, use_cache=False, **made).last_hidden_state, model)


def cache_bytes(config, rows: int, tokens: int, each: int) -> int:
    """Keys and values of ``rows`` prompts of ``tokens`` tokens."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kept * size * rows * tokens * each


@dataclass(frozen=True)
class Need:
    """GB of one process's device: the most that each step takes, weights included. ``heads``: how many parameters Stage 2 and
    TALLRec train."""

    parameters: int
    heads: int
    weights: float
    stage2: float
    tallrec: float
    scoring: float

    @property
    def most(self) -> float:
        return max(self.stage2, self.tallrec, self.scoring)


def needed(config, profile: Profile, prompt: int, answer: int) -> Need:
    """For prompts of ``prompt`` tokens and answers of ``answer``; candidates are read side by side when rows are scored."""
    settings, candidates = profile.llm, profile.data.negatives + 1
    each, dtype = BYTES[settings.weights], torch.float32 if settings.weights == "fp32" else torch.bfloat16
    model = empty_model(config).to(dtype)
    held, count = weight_bytes(model, settings.weights), parameters(model)
    copied = 0 if dtype == torch.float32 else 4 * model.get_output_embeddings().weight.numel()  # logits are computed in fp32
    size, learns = model.get_input_embeddings().embedding_dim, profile.sasrec.dim + profile.stage1.dim
    heads = (learns + 2 * size) * size  # F_U and F_I
    if settings.checkpointing:
        recompute_layers(model)
    batches = profile.stage2.batch_size, profile.tallrec.batch_size
    logits = [3 * 4 * rows * answer * config.vocab_size for rows in (*batches, settings.read_at_once * candidates)]
    stage2 = held + copied + ADAM * heads + activation_bytes(model, batches[0], prompt + answer, dtype) + logits[0]
    read = cache_bytes(config, settings.read_at_once, prompt + candidates * answer, each)
    scoring = held + copied + read + min(logits[2], 3 * 4 * 4096 * config.vocab_size)
    adapted = with_adapters(model, profile.tallrec)
    own = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    tallrec = held + copied + ADAM * own + activation_bytes(adapted, batches[1], prompt + answer, dtype) + logits[1]
    return Need(count, heads + own, held / 1e9, *(SLACK * n / 1e9 for n in (stage2, tallrec, scoring)))
