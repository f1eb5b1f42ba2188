"""From prompts to input embeddings: soft tokens spliced in without a Python loop over rows.

A tokenised prompt is a row of integers. Tokens are what they are (>= 0); a slot is a negative number: ``USER`` for the
user's vector, ``-(item + 1)`` for an item's. So one integer tensor says everything about a batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Backbone
from .prompts import ANSWER_END, Domain, Piece, Slot, Title, recommendation_prompt

USER = -1


class PromptEncoder:
    """Tokenises prompts and answers; every title and every text between is tokenised once."""

    def __init__(self, backbone: Backbone, titles: list[str], words: Domain):
        self.backbone, self.titles, self.words = backbone, titles, words
        self._texts: dict[str, list[int]] = {}
        self.title_ids = shorten([backbone.encode(title) for title in titles], backbone.title_tokens)
        self.end = backbone.encode(ANSWER_END)

    def _ids(self, piece: Piece) -> list[int]:
        if isinstance(piece, Title):
            return self.title_ids[piece.item]
        if isinstance(piece, Slot):
            return [USER if piece.kind == "user" else -(piece.item + 1)]
        if piece not in self._texts:
            self._texts[piece] = self.backbone.encode(piece)
        return self._texts[piece]

    def pieces(self, history: list[int], candidates: list[int]) -> list[Piece]:
        """The prompt for items by id, in the order shown; padding (0) in the history is left out."""
        pairs = [[(item, self.titles[item]) for item in items if item] for items in (history, candidates)]
        return recommendation_prompt(self.backbone.template, self.words, *pairs)

    def prompt(self, history: list[int], candidates: list[int]) -> list[int]:
        """Token ids and slots of one prompt."""
        ids = list(self.backbone.start)
        for piece in self.pieces(history, candidates):
            ids += self._ids(piece)
        return ids

    def answer(self, item: int) -> list[int]:
        """Token ids of an item's title and the closing quote."""
        return self.title_ids[item] + self.end


def shorten(ids: list[list[int]], least: int | None) -> list[list[int]]:
    """Titles cut to the shortest beginning of at least ``least`` tokens that no other, different title shares.

    Small LLMs read short prompts. A cut title stays the title of one item, unless two items have the same whole title.
    """
    if least is None:
        return ids
    distinct = {tuple(title) for title in ids}
    starts = Counter(title[:n] for title in distinct for n in range(least, len(title) + 1))
    return [list(next((t[:n] for n in range(least, len(t)) if starts[t[:n]] == 1), t)) for t in map(tuple, ids)]


@dataclass(frozen=True)
class PromptBatch:
    """B prompts (and answers behind them), padded on the right: ``ids`` (B, T), ``lengths`` (B,)."""

    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, rows: list[list[int]], pad: int = 0) -> PromptBatch:
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
        return cls(ids, lengths)


def slot_items(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct items in a batch's slots (M,) and, for each item slot in reading order, its place among them."""
    items, place = (-ids[ids < USER] - 1).unique(return_inverse=True)
    return items, place


def embed(backbone: Backbone, ids: Tensor, users: Tensor | None, items: Tensor | None) -> Tensor:
    """Input embeddings (B, T, d_token) of a batch.

    ``users`` (B, d_token) go to the user slots; ``items`` (M, d_token), one vector for each of :func:`slot_items`' items,
    to the item slots. None: there must be no such slot, otherwise ValueError.
    """
    ids = ids.to(backbone.device)
    out = backbone.embedding(ids.clamp(min=0))
    for slots, vectors in ((ids == USER, users), (ids < USER, items)):
        if vectors is None:
            if bool(slots.any()):
                raise ValueError("the prompt holds a slot for which no vectors were given; use the text-only template")
            continue
        place = slot_items(ids)[1] if vectors is items else slots.nonzero()[:, 0]
        vectors = F.embedding(place, vectors)
        out = out.masked_scatter(slots.unsqueeze(-1), vectors.to(out.dtype))
    return out
