"""Cross-domain (section 5.2.5): what was learned on one dataset is asked about another, with no training there.

The item space is a new one. A model that reads text takes the new texts; A-LLMRec's Stage 1 gives them q, and f_I^dec(q) stands in
for the CF embedding E that they do not have, so that the frozen CF model can read the new histories too (the paper does not
say what x^u is there). A model that knows items by number alone has nothing to go by: it takes the new items by their numbers.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .alignment import Alignment
from .allmrec import ALLMRec
from .experiment import VARIANTS, Experiment, trained
from .ranker import LLMRecommender
from .recommenders.base import EmbeddingRecommender, represent, score_rows
from .recommenders.models import MODELS, model_named
from .store import code_digest
from .text import TextEncoder


class Foreign:
    """A trained CF model that reads items it never saw through vectors given for them, ``embeddings`` (n_items + 1, d).

    Raises ValueError for a model that reads no vectors: one that knows users by number (NCF), or one from outside.
    """

    def __init__(self, trained: EmbeddingRecommender, embeddings: Tensor):
        if not hasattr(trained, "last_state"):
            raise ValueError(f"{type(trained).__name__} cannot read another dataset's histories through vectors; SASRec, GRU4Rec, "
                             "NextItNet and CTRL can")  # fmt: skip
        self.trained, self.embeddings = trained, embeddings

    def item_embeddings(self) -> Tensor:
        """(n_items + 1, d)."""
        return self.embeddings

    def user_representation(self, histories: Tensor) -> Tensor:
        """x^u: (B, L) -> (B, d)."""
        histories = histories[:, -self.trained.config.max_len :]
        given = self.embeddings.to(histories.device)[histories]
        return self.trained.last_state(given, (histories != 0).unsqueeze(-1))

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """(B, L) and (B, C) -> (B, C)."""
        given = self.embeddings.to(candidates.device)[candidates]
        return torch.einsum("bd,bcd->bc", self.user_representation(histories), given)


class Transfer:
    """``source``: where everything was trained; ``target``: whose test users are asked for. Both of one profile and LLM."""

    def __init__(self, source: Experiment, target: Experiment):
        self.source, self.target = source, target

    @cached_property
    def texts(self) -> tuple[Tensor, Tensor]:
        """q (n + 1, d') and f_I^dec(q) (n + 1, d) of the target's items."""
        settings = self.source.profile.stage1
        text = TextEncoder(settings.encoder, self.target.texts, settings.max_text_tokens, settings.train_layers, settings.precision)
        model = Alignment(self.source.cf_model.item_embeddings().shape[1], text, settings)
        model.load_text_side(self.source.stage1_folder / "text_side.safetensors")
        return model.of_texts()

    def recommender(self, name: str) -> EmbeddingRecommender:
        """The source's recommender for the target's items: by their texts where it reads texts, else by their numbers."""
        learned, kind = self.source.recommender(name), model_named(name)
        if name not in ("MoRec", "RECFORMER"):  # CTRL forgets the texts after its pre-training
            known = learned.item_embeddings().detach()
            numbers = torch.arange(self.target.sequences.n_items) % (len(known) - 1) + 1
            return Foreign(learned, torch.cat([known[:1], known[numbers]]))
        model = kind.build(self.target.sequences, self.target.data, getattr(self.source.profile, kind.section))
        weights = {part: value.cpu() for part, value in learned.state_dict().items()}
        if name == "RECFORMER":
            words = "model.embeddings.word_embeddings.weight"
            weights[words] = _carried_over(weights[words], learned.used.cpu(), model.state_dict()[words], model.used)
            del weights["table"]  # of the source's items
        model.load_state_dict(weights, strict=name != "RECFORMER")
        model.to(self.target.device).eval().requires_grad_(False)
        if name == "RECFORMER":
            model.refresh()
        return model

    @property
    def through_text(self) -> EmbeddingRecommender:
        """The source's CF model on the target, with f_I^dec(q) for the embeddings that its items do not have."""
        decoded = self.texts[1].clone()
        decoded[0] = 0.0  # padding
        return Foreign(self.source.cf_model, decoded)

    def answering(self, name: str) -> LLMRecommender:
        """TALLRec's adapters, or A-LLMRec's projections, trained on the source, with the target's titles and items."""
        if name == "TALLRec":
            return trained(self.target.changed().adapted, self.source.tallrec_folder)  # the target's own stay as they are
        source = self.source.variant(name) if name in VARIANTS else self.source
        learned, q = source.allmrec, self.texts[0]
        latent = self.texts[1] if source.profile.stage2.joint == "cf" else q  # MLP-LLM reads E, which is guessed here
        if source.profile.stage2.joint == "both":  # of the CF side nothing is known: its mean, as for any unknown item
            latent = torch.cat([learned.joint[1:, : q.shape[1]].mean(dim=0).cpu().expand_as(q), q], dim=1)
        return ALLMRec(source.backbone, self.target.prompts, latent, learned.heads, learned.history)

    def scores(self, name: str, mode: str = "constrained") -> np.ndarray:
        """Scores (N, 20) on the target's stored test candidates; ``name`` as in :meth:`Experiment.scores`, or "Stage 1": x^u
        and f_I^dec(q) without an LLM. Made once and kept."""
        target = self.target
        made_by = {"model": name, "mode": mode, "from": self.source.record(name), "cf": self.source.cf_inputs(),
                   "stage1": self.source._inputs("stage1"),
                   "own": self.source.cf_inputs(name) if name in MODELS else None,
                   "data": target.digest, "test": target.candidates["test"].digest, "llm": target.backbone.mark,
                   "by": code_digest("transfer", "experiment")}  # fmt: skip
        return target.store.scores(made_by, lambda folder: self._score(name, mode, folder))

    def _score(self, name: str, mode: str, folder: Path) -> np.ndarray:
        rows, candidates, device = self.target.rows("test"), self.target.candidates["test"], self.target.device
        if name in ("TALLRec", "A-LLMRec", *VARIANTS):
            model = self.answering(name)
            x = represent(self.through_text, rows, device).cpu() if isinstance(model, ALLMRec) else torch.zeros(len(rows), 0)
            return model.predict_in_blocks(rows, candidates, x, mode, folder)
        return score_rows(self.through_text if name == "Stage 1" else self.recommender(name), rows, candidates, device)


def _carried_over(learned: Tensor, of: Tensor, fresh: Tensor, wanted: Tensor) -> Tensor:
    """Word embeddings of the tokens ``wanted``: the learned one where it is among ``of``, else the fresh one."""
    place = {token: i for i, token in enumerate(of.tolist())}
    out = fresh.clone()
    for row, token in enumerate(wanted.tolist()):
        if token in place:
            out[row] = learned[place[token]]
    return out
