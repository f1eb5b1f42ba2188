"""TALLRec: an LLM tuned to recommend, by low-rank adapters (Bao et al., RecSys 2023; LoRA: Hu et al., ICLR 2022).

As A-LLMRec's authors run it: the prompt of figure 6 with titles alone, the list of candidates, the title as the answer. LoRA
on the attention's query and value projections, r = 8, alpha = 16, dropout 0.05, as TALLRec has it; where an LLM has no
projections of these names, on those that peft names for its family.
"""

from __future__ import annotations

from torch import nn

from .config import TALLRecConfig
from .llm.backbone import Backbone
from .llm.soft_tokens import PromptEncoder
from .ranker import LLMRecommender


class TALLRec(LLMRecommender):
    """The LLM of ``backbone`` gets adapters *in place*: load it for this model alone."""

    def __init__(self, backbone: Backbone, prompts: PromptEncoder, config: TALLRecConfig):
        super().__init__(backbone, prompts, config.history)
        self.module = with_adapters(backbone.model, config)


def with_adapters(model: nn.Module, config: TALLRecConfig) -> nn.Module:
    """``model`` with adapters in place, in fp32 whatever its own weights are: a step of lr 1e-4 is lost in bf16."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    own = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= own else None
    adapters = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets)
    model = inject_adapter_in_model(adapters, model)
    cast_adapter_dtype(model, "default")
    return model
