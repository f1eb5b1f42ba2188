"""Stage 2: user representation and joint embeddings as soft tokens of a frozen LLM (section 4.2, equations 7 and 8)."""

from __future__ import annotations

from torch import Tensor, nn

from .llm.backbone import Backbone
from .llm.soft_tokens import PromptBatch, PromptEncoder, embed, slot_items
from .ranker import LLMRecommender

# What a name in a table stands for, where it is A-LLMRec with other settings; MLP-LLM has no Stage 1.
VARIANTS = {"A-LLMRec (SBERT)": {"stage2.inference": "q"}, "A-LLMRec (e+q)": {"stage2.joint": "both"},
            "A-LLMRec_all": {"stage1.all_items": True, "stage2.all_items": True}, "MLP-LLM": {"stage2.joint": "cf"}}  # fmt: skip


class ALLMRec(LLMRecommender):
    """The recommender of the paper: frozen LLM, frozen CF model (as x^u), frozen joint embeddings, two projections.

    ``joint`` (n_items + 1, d') is what the item tokens carry. With the CF model's own item embeddings there instead, it is the
    baseline MLP-LLM, which has no Stage 1.
    """

    def __init__(self, backbone: Backbone, prompts: PromptEncoder, joint: Tensor, heads: nn.ModuleDict, history: int = 10):
        super().__init__(backbone, prompts, history)
        self.joint, self.heads = joint.to(backbone.device), heads.to(backbone.device)
        self.module = self.heads

    def carrying(self, joint: Tensor) -> ALLMRec:
        """The same projections, the item tokens carrying ``joint``. Raises ValueError for another number of items or dimensions."""
        if joint.shape != self.joint.shape:
            raise ValueError(f"item tokens were trained on {tuple(self.joint.shape)} vectors and cannot carry {tuple(joint.shape)}")
        return ALLMRec(self.backbone, self.prompts, joint.to(self.joint), self.heads, self.history)

    def embeds(self, batch: PromptBatch, x: Tensor) -> Tensor:
        """Input embeddings; every distinct item of the batch is projected once."""
        items, _ = slot_items(batch.ids)
        users = self.heads["user"](x.to(self.backbone.device))
        return embed(self.backbone, batch.ids, users, self.heads["item"](self.joint[items.to(self.joint.device)]))
