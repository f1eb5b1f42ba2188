"""TALLRec with its own question (Bao et al., RecSys 2023): would the user like *this* item, Yes or No?

A-LLMRec's authors ask TALLRec for a title from a list (:mod:`allmrec_lib.tallrec`). TALLRec itself was made for one item at a
time: as many questions a user as there are candidates, which are ranked by the probability of "Yes". What a user disliked
(TALLRec's "unpreference") is not known where there are purchases only, and is left out of the prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .experiment import ASKING, Experiment, trained
from .llm import decoding
from .llm.decoding import Prefix
from .llm.soft_tokens import PromptBatch
from .ranker import AnswerTask, LLMRecommender, training_candidates
from .sequences import Candidates, Rows
from .shares import Share
from .store import code_digest
from .tallrec import TALLRec

BEFORE = """Given the user's preference, identify whether the user will like the target {noun} by answering "Yes" or "No".
User Preference: """
TARGET = """
Whether the user will like the target {noun} \""""
AFTER = '"?\nAnswer: '


class YesNo(LLMRecommender):
    """The LLM and adapters of ``adapted``, asked once for each candidate."""

    def __init__(self, adapted: TALLRec):
        super().__init__(adapted.backbone, adapted.prompts, adapted.history)
        self.module = adapted.module
        encode, noun = self.backbone.encode, self.prompts.words.noun
        self.before, self.target = (encode(text.format(noun=noun)) for text in (BEFORE, TARGET))
        self.after, self.quote, self.between = encode(AFTER), encode('"'), encode('", "')
        self.answer_ids = [encode(word)[0] for word in ("Yes", "No")]
        if len(set(self.answer_ids)) < 2:
            raise ValueError(f'the tokenizer writes "Yes" and "No" with the same first token, {self.answer_ids[0]}')

    def prompt_rows(self, rows: Rows, candidates: Candidates) -> list[list[int]]:
        """What is the same in a user's questions: all before the target's title."""
        return [self.opening(past) for past in rows.histories[:, -self.history :].tolist()]

    def opening(self, past: list[int]) -> list[int]:
        """Token ids up to the target's title, of a history (item ids, 0 for padding)."""
        titles = [self.prompts.title_ids[item] for item in past if item]
        listed = [token for title in titles for token in (*self.between, *title)][len(self.between) :]
        return [*self.backbone.start, *self.before, *self.quote, *listed, *self.quote, *self.target]

    def question(self, item: int) -> list[int]:
        """Token ids from the target's title to where Yes or No is written."""
        return [*self.prompts.title_ids[item], *self.after]

    def _decode(self, prefix: Prefix, items: Tensor, mode: str) -> np.ndarray:
        """log p(Yes) - log p(No) of every candidate; ``mode`` makes no difference between the two that rank all of them."""
        if mode not in ("constrained", "score"):
            raise ValueError(f"decoding {mode!r}: a yes/no question is answered as constrained or score, no title is written")
        batch = PromptBatch.of([self.question(item) for item in items.flatten().tolist()])
        asked, sizes = batch.ids.view(*items.shape, -1), batch.lengths.view(items.shape)
        yes, no = decoding.behind(self.backbone, prefix, asked, sizes)[..., self.answer_ids].unbind(-1)
        return (yes - no).cpu().numpy()


class YesNoTask(AnswerTask):
    """Each row asks twice: for its target (Yes) and for one item that the user never had (No)."""

    def loss(self, rows: Tensor) -> Tensor:
        part = self.rows.take(rows)
        drawn = training_candidates(self.sequences, part, 1, int(torch.randint(2**31, (1,))))
        openings = self.model.prompt_rows(part, drawn)
        pairs = zip(openings, drawn.items.tolist(), strict=True)
        asked = [opening + self.model.question(item) for opening, pair in pairs for item in pair]
        whole, share = PromptBatch.of(asked), Share.of_batch(len(rows))
        ids, lengths = share.of(whole.ids.unflatten(0, (-1, 2)), whole.lengths.unflatten(0, (-1, 2)))
        block = PromptBatch(ids.flatten(0, 1), lengths.flatten())
        with share:
            hidden = self.model.backbone.hidden(self.model.embeds(block, torch.zeros(len(block.ids), 0)))
        last = hidden[torch.arange(len(hidden), device=hidden.device), block.lengths.to(hidden.device) - 1]
        logits, words = self.model.backbone.logits(last), torch.tensor(self.model.answer_ids, device=last.device)
        if self.config.loss == "constrained":  # Yes against No alone
            return share.weigh(F.cross_entropy(logits[:, words], torch.arange(2, device=last.device).repeat(len(share))))
        return share.weigh(F.cross_entropy(logits, words.repeat(len(share))))


def _inputs(run: Experiment) -> dict[str, Any]:
    return run._inputs("tallrec") | {"yes/no code": code_digest(*ASKING, "tallrec", "yes_no")}


def yes_no_folder(run: Experiment) -> Path:
    """The artifact of the adapters, apart from those of ``run.tallrec``, trained with its settings on the same rows."""

    def make(folder: Path) -> None:
        run.learn_answers("tallrec", YesNo(run.changed().adapted), folder, "TALLRec (yes/no)", YesNoTask)

    return run.store.get("yes_no", _inputs(run), make)


def yes_no(run: Experiment) -> YesNo:
    """TALLRec (yes/no), trained, on ``run``'s data."""
    return trained(YesNo(run.changed().adapted), yes_no_folder(run))


def yes_no_scores(run: Experiment) -> np.ndarray:
    """log p(Yes) - log p(No), (N, 20), of the stored test candidates, positive in column 0; made once and kept."""
    rows, candidates = run.rows("test"), run.candidates["test"]
    inputs = {"model": "TALLRec (yes/no)", "test": candidates.digest} | _inputs(run)
    return run.store.scores(inputs, lambda _: yes_no(run).predict(rows, candidates, torch.zeros(len(rows), 0)))
