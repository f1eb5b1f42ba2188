"""The frozen LLM: any ``AutoModelForCausalLM``, with a card that says how it wants to be asked."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import processes
from ..config import LLMConfig
from ..meter import Meter
from ..paths import shipped
from ..shares import recomputing
from ..training import autocast
from .prompts import ANSWER_END, TEMPLATES, TEXT_ONLY, Template

POCKET = "pocket"


@dataclass(frozen=True)
class Reads:
    """Which of a token embedding's dimensions an LLM compares: ``user`` those of users with items, ``item`` those of items
    among themselves; ``constant`` is one that every soft token has and no word, with the value ``mark`` where the rest of
    a token has length 1."""

    user: slice
    item: slice
    constant: int
    mark: float = 1.0

    @classmethod
    def of(cls, card: dict) -> Reads | None:
        """From a card's "reads", {"user": [first, end], "item": [first, end], "constant": n, "mark": v}; None: it has none."""
        if "reads" not in card:
            return None
        return cls(**{name: slice(*value) if isinstance(value, list) else value for name, value in card["reads"].items()})


@dataclass
class Backbone:
    """A causal LM whose weights never change.

    ``template`` is the prompt it can follow (``paper`` unless its card says otherwise), ``title_tokens`` how many tokens
    of a title a prompt shows at least (None: all), ``spread`` the standard deviation of its token embeddings, ``read_at_once``
    how many prompts are read side by side where rows are scored.
    """

    name: str
    model: nn.Module
    tokenizer: object
    template: Template
    title_tokens: int | None
    precision: str = "fp32"
    reads: Reads | None = None
    read_at_once: int = 32

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        for setting in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(self.model.config, setting, None) not in (None, 1, 0):
                raise ValueError(f"{self.name}: its logits go through {setting}; answers are scored and learned without that")

    def twin(self) -> Backbone:
        """The same LLM with modules of its own, for adapters to go into; the weights are the same in memory."""
        shared = {id(weight): weight for weight in self.model.parameters()}
        for module in self.model.modules():  # 8 bits: who is called first would take codes and scales away from the shared weight
            if getattr(getattr(module, "weight", None), "CB", None) is not None:
                module.init_8bit_state()
            state = getattr(module, "state", None)
            shared |= {id(held): held for held in (getattr(state, "CB", None), getattr(state, "SCB", None)) if held is not None}
        return replace(self, model=copy.deepcopy(self.model, shared))

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    @property
    def spread(self) -> float:
        every = torch.arange(self.embedding.num_embeddings, device=self.device)
        return float(self.embedding(every).float().std())  # some LLMs scale what they look up

    @cached_property
    def mark(self) -> str:
        """What tells this LLM from any other: template, a hash of configuration and card, one of each weight's beginning."""
        about = (self.model.config.to_json_string(use_diff=True), self.title_tokens, self.reads)
        weights = hashlib.sha256()
        for weight in self.model.parameters():
            weights.update(weight.detach().flatten()[:4096].float().cpu().numpy().tobytes())
        return f"{self.template.name} {hashlib.sha256(repr(about).encode()).hexdigest()[:12]} {weights.hexdigest()[:12]}"

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def ends(self) -> Tensor:
        """Which tokens end an answer, bool (V,): those that hold a closing quote, alone or with a full stop, and the end of text."""
        held = [token for text, token in self.tokenizer.get_vocab().items() if ANSWER_END in text]
        end = self.tokenizer.eos_token_id
        found = torch.zeros(len(self.model.get_output_embeddings().weight), dtype=torch.bool)
        found[[token for token in (*held, *([] if end is None else [end])) if token < len(found)]] = True
        return found.to(self.device)

    def written(self, ids: list[int]) -> str:
        """The text of an answer's tokens, up to the closing quote (which some tokenizers write with a blank before it)."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).partition(ANSWER_END)[0].rstrip()

    @property
    def start(self) -> list[int]:
        """The beginning-of-sequence token, where the LLM was trained with one."""
        token = self.tokenizer.bos_token_id
        return [] if token is None else [token]

    def hidden(self, embeds: Tensor, **cache) -> Tensor:
        """Last hidden states (B, T, d_token) for input embeddings (B, T, d_token); no logits are computed."""
        Meter.read(embeds.shape[0] * embeds.shape[1])
        options = {"use_cache": False} | cache  # a cache that nobody reads would be filled again with every recomputed layer
        with autocast(self.device.type, self.precision):
            out = self.model.base_model(inputs_embeds=embeds.to(self.embedding.weight.dtype), **options).last_hidden_state
        return out.to(embeds.device)  # an LLM over several cards ends on another one

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary for chosen positions: (..., d_token) -> (..., V).

        At least in float32, whatever the LLM computes in: a logit of 20 has steps of 1/8 in bfloat16, and candidates would tie.
        """
        head = self.model.get_output_embeddings()
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        wanted, bias = hidden.to(head.weight.device, wide), None if head.bias is None else head.bias.to(wide)
        with autocast(self.device.type, "fp32"):
            return F.linear(wanted, head.weight.to(wide), bias).to(hidden.device)


def place_of(name: str) -> str:
    """The folder that holds an LLM, if ``name`` is one; otherwise ``name`` (a hub name)."""
    source = shipped("data/pocket_llm") if name == POCKET else Path(name)
    return str(source) if source.exists() else name


def load_backbone(name: str = POCKET, device: str = "cpu", dtype: torch.dtype | None = None, precision: str = "fp32",
                  template: str | None = None, settings: LLMConfig | None = None) -> Backbone:  # fmt: skip
    """Load an LLM by hub name or folder; ``pocket`` is the small one in ``data/pocket_llm``.

    Weights are read from safetensors only. ``settings`` say in how many bits and on which cards; ``dtype`` overrides the first.
    ``template`` (or ``text-only``) overrides what the card says.
    Raises OSError, naming what to do, when the LLM is neither a folder nor on this machine nor to be fetched, or where weights
    are missing, and ImportError for 8 bits without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings, place = settings or LLMConfig(), place_of(name)
    options = loading_options(settings, device)
    if dtype is not None:
        options["dtype"] = dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model, loaded = AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, output_loading_info=True, **options)
    except OSError as error:
        raise OSError(
            f"LLM {name!r} could not be loaded from {place}: {error}. Give a folder that holds config.json, the tokenizer "
            "and safetensors weights, or a hub name with network access (HF_HUB_OFFLINE unset)."
        ) from error
    absent = sorted(loaded["missing_keys"]) + sorted(str(key) for key in loaded["mismatched_keys"])
    if absent:  # transformers would go on with random numbers in their place
        raise OSError(f"LLM {name!r}: {place} lacks {len(absent)} weights, or has them in another shape: {', '.join(absent[:3])}. "
                      "Download or convert it again.")  # fmt: skip
    if "device_map" not in options:
        model.to(device)
    if settings.checkpointing:
        recompute_layers(model)
    card_path = Path(place) / "card.json"
    card = json.loads(card_path.read_text()) if card_path.exists() else {}
    known = TEMPLATES | {TEXT_ONLY.name: TEXT_ONLY}
    chosen = known[template or card.get("template", "paper")]
    return Backbone(name, model, tokenizer, chosen, card.get("max_title_tokens"), precision, Reads.of(card),
                    settings.read_at_once)


def frozen_backbone(name: str, device: str, precision: str, settings: LLMConfig) -> Backbone:
    """:func:`load_backbone`, once in a process: whoever asks for the same LLM reads the same weights."""
    return _loaded(place_of(name), name, device, precision, settings)


@cache
def _loaded(place: str, name: str, device: str, precision: str, settings: LLMConfig) -> Backbone:
    return load_backbone(name, device, precision=precision, settings=settings)


def loading_options(settings: LLMConfig, device: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told. Raises ValueError for unknown ``llm.weights``, ImportError without bitsandbytes."""
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
    if settings.weights not in known:
        raise ValueError(f"unknown llm.weights {settings.weights!r}; one of {', '.join(known)}")
    options: dict[str, Any] = {"dtype": known[settings.weights]}
    if settings.device_map and processes.count() > 1:
        raise ValueError("llm.device_map spreads an LLM over the cards of one process, and several are at work: leave one")
    if settings.device_map:
        options["device_map"] = settings.device_map
    if settings.weights == "int8":
        if find_spec("bitsandbytes") is None:
            raise ImportError("llm.weights = int8 needs bitsandbytes, which is not installed: pip install bitsandbytes "
                              "(and a CUDA card); llm.weights = bf16 needs nothing")  # fmt: skip
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        options.setdefault("device_map", {"": device})  # 8-bit weights cannot be moved later
    return options


def recompute_layers(model: nn.Module) -> None:
    """Gradient checkpointing: keep a layer's input only, and run the layer again in the backward pass.

    transformers' own switch works on a model in training mode only, which a frozen one never is. Raises ValueError where an LLM
    does not say which its layers are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"llm.checkpointing: no layer of a {type(model).__name__} can be recomputed; switch it off")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=recomputing)
