"""Stage 2: user representation and joint embeddings as soft tokens of a frozen LLM (section 4.2, equations 7 and 8)."""

from __future__ import annotations

from torch import Tensor, nn

from .llm.backbone import Backbone
from .llm.soft_tokens import PromptBatch, PromptEncoder, embed, slot_items
from .ranker import LLMRecommender


class ALLMRec(LLMRecommender):
    """The recommender of the paper: frozen LLM, frozen CF model (as x^u), frozen joint embeddings, two projections.

    ``joint`` (n_items + 1, d') is what the item tokens carry. With the CF model's own item embeddings there instead, it is the
    baseline MLP-LLM, which has no Stage 1.
    """

    def __init__(self, backbone: Backbone, prompts: PromptEncoder, joint: Tensor, heads: nn.ModuleDict, history: int = 10):
        super().__init__(backbone, prompts, history)
        self.joint, self.heads = joint.to(backbone.device), heads.to(backbone.device)
        self.module = self.heads

    def embeds(self, batch: PromptBatch, x: Tensor) -> Tensor:
        """Input embeddings; every distinct item of the batch is projected once."""
        items, _ = slot_items(batch.ids)
        users = self.heads["user"](x.to(self.backbone.device))
        return embed(self.backbone, batch.ids, users, self.heads["item"](self.joint[items.to(self.joint.device)]))
