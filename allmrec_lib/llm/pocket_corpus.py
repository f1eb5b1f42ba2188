"""What the small LLM reads while it is made: titles, and documents that ask for one entry of a list.

No user's interactions are in it. Lists are drawn at random; half of the titles are real (if a file of titles is given),
half are random words, so that copying works on catalogues it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from .pocket_model import DIM, IS_SOFT, ITEM_PART, MARK, USER_PART
from .prompts import ANSWER_END, DOMAINS, TEMPLATES, TEXT_ONLY, Slot, Title, clean_title, recommendation_prompt

START = "<|start|>"
TELLERS = ("user", "history", "both")


def common_words() -> list[str]:
    """Whole English words, the commonest first: the vocabulary of the sentence encoder that pip installed."""
    from ..text import encoder_path

    lines = (Path(encoder_path("all-MiniLM-L6-v2")) / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [word for word in lines if word.isascii() and word.isalpha() and len(word) > 2]


class TitleSource:
    """Draws titles: real ones, random words with years, numbers and marks, and families that share a beginning."""

    def __init__(self, words: list[str], real: list[str], rng: np.random.Generator):
        self.words, self.real, self.rng = words, real, rng

    def _invented(self) -> str:
        rng = self.rng
        rank = (len(self.words) ** rng.random(rng.integers(1, 7))).astype(int) - 1  # log-uniform: common words oftener
        words = [self.words[r] for r in rank]
        style = rng.random()
        words = [w.title() for w in words] if style < 0.6 else [w.upper() for w in words] if style < 0.7 else words
        if rng.random() < 0.2:
            words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(["-", "&", "The", "of", ":", "and"])))
        if rng.random() < 0.3:
            ends = [f"({rng.integers(1900, 2026)})", str(rng.integers(1, 500)), f"{rng.integers(1, 20)} oz"]
            words.append(str(rng.choice(ends)))
        return " ".join(words)

    def one(self) -> str:
        if self.real and self.rng.random() < 0.5:
            return self.real[self.rng.integers(len(self.real))]
        return self._invented()

    def several(self, count: int) -> list[str]:
        """Different titles; in most lists many begin alike, as the products of one maker do."""
        titles: dict[str, None] = {}
        family = self.rng.random() < 0.7
        stem = " ".join(self.one().split()[: self.rng.integers(1, 4)])
        while len(titles) < count:
            title = self.one()
            titles[clean_title(f"{stem} {title}" if family and self.rng.random() < 0.5 else title, 80)] = None
        titles.pop("", None)
        return list(titles) if len(titles) == count else self.several(count)


def train_tokenizer(titles: list[str], words: list[str], size: int) -> Tokenizer:
    """Byte-level BPE: any text can be written. Words weigh by their rank, real titles as they are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    weighted = [f"{w} {w.title()}" for rank, w in enumerate(words) for _ in range(1 + 3000 // (rank + 30))]
    prompts = [t.body for t in [*TEMPLATES.values(), TEXT_ONLY] for _ in range(500)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[START], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([*titles, *weighted, *prompts], trainer)
    return tokenizer


@dataclass
class Lists:
    """B documents: ``ids`` (B, T) with slots as in ``soft_tokens`` but items numbered within the document, the ``size``
    candidates first; ``labels`` (B, T) the token that should follow (-100: not asked), ``hints`` (B, T) at a token *after*
    its title, the title's first token, ``target`` (B,) the asked item or 0 where nothing tells, ``by_user`` (B,) whether the
    user's vector tells, ``near`` (B, H) the items of the history that resemble the target (0: none), ``first`` (B,) the
    position that asks."""

    ids: Tensor
    labels: Tensor
    hints: Tensor
    target: Tensor
    by_user: Tensor
    near: Tensor
    first: Tensor
    size: int = 0


class _Document(NamedTuple):
    """One row of :class:`Lists`, not yet padded."""

    ids: list[int]
    hints: dict[int, int]
    target: int
    by_user: bool
    near: list[int]
    first: int


class Writer:
    """Writes documents in the templates of ``prompts``."""

    def __init__(self, tokenizer, titles: TitleSource, max_title_tokens: int = 10):
        self.tokenizer, self.titles, self.limit = tokenizer, titles, max_title_tokens
        self.rng = titles.rng
        self._cache: dict[str, list[int]] = {}
        self.start, self.end = tokenizer.token_to_id(START), self._text(ANSWER_END)

    def _text(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text).ids
        return self._cache[text]

    def _render(self, pieces, ids_of: dict[int, list[int]]) -> tuple[list[int], dict[int, int]]:
        """Ids, and for each position that holds an item token after its title, the title's first token."""
        ids, hints, last = [self.start], {}, None
        for piece in pieces:
            if isinstance(piece, Title):
                ids += ids_of[piece.item]
                last = ids_of[piece.item][0]
            elif isinstance(piece, Slot):
                if piece.kind == "item" and last is not None:
                    hints[len(ids)] = last
                ids.append(-1 if piece.kind == "user" else -(piece.item + 1))
            else:
                ids += self._text(piece)
        return ids, hints

    def lists(self, template: str, batch: int, size: int, history: int, told: float = 0.9, titles=None,
              who: str | None = None) -> Lists:  # fmt: skip
        """``batch`` documents with ``size`` candidates and up to ``history`` items before them.

        In a share 1 - ``told`` of them nothing tells which candidate is asked; ``who`` tells in the others is one of
        :data:`TELLERS` (None: any). ``titles`` draws other titles.
        """
        draw = titles or self.titles.several
        past = history if who else int(self.rng.integers(0, history + 1))
        rows = [self._one(template, size, past, told, draw, who) for _ in range(batch)]
        width = max(len(row.ids) for row in rows)
        blank = torch.full((batch, width), -100)
        near = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.near, dtype=torch.long) for row in rows], batch_first=True)
        target, by_user, first = (torch.tensor([getattr(row, name) for row in rows]) for name in ("target", "by_user", "first"))
        ids = torch.zeros(batch, width, dtype=torch.long)
        out = Lists(ids, blank, blank.clone(), target, by_user, near, first, size)
        for number, row in enumerate(rows):
            out.ids[number, : len(row.ids)] = torch.tensor(row.ids)
            wanted = torch.tensor(row.ids[row.first + 1 :])
            out.labels[number, row.first : len(row.ids) - 1] = wanted.where(wanted >= 0, -100)
            for place, token in row.hints.items():
                out.hints[number, place] = token
        return out

    def _one(self, template: str, size: int, history: int, told: float, draw, who: str | None) -> _Document:
        rng = self.rng
        texts = draw(size + history)
        ids_of = {item: self._text(t)[: self.limit] for item, t in enumerate(texts, 1)}
        if len(self._cache) > 200_000:
            self._cache.clear()
        pairs = [(item, text) for item, text in enumerate(texts, 1)]
        candidates, past = pairs[:size], pairs[size:]
        shape = TEXT_ONLY if template == TEXT_ONLY.name else TEMPLATES[template]
        target = int(rng.integers(1, size + 1))
        by_user, near = self._tellers(told if shape is not TEXT_ONLY else 0.0, history, who)
        near = [size + place for place in near]
        repeated = bool(near) and rng.random() < 0.2  # the target itself was met before
        if repeated:
            past[near.pop() - size - 1] = candidates[target - 1]
        words = list(DOMAINS.values())[rng.integers(len(DOMAINS))]
        ids, hints = self._render(recommendation_prompt(shape, words, past, candidates), ids_of)
        first = len(ids) - 1
        ids += ids_of[target] + self.end
        after = shape is not TEXT_ONLY and shape.entry.index("{item}") > shape.entry.index("{title}")
        known = by_user or bool(near) or repeated
        return _Document(ids, hints if after else {}, target if known else 0, by_user, near, first)

    def _tellers(self, told: float, history: int, who: str | None) -> tuple[bool, list[int]]:
        """Whether the user's vector tells the target, and which entries of the history (numbered from 1) do."""
        rng = self.rng
        if rng.random() >= told:
            return False, []
        who = who or TELLERS[rng.integers(3)]
        if who == "user" or not history:
            return True, []
        count = int(rng.integers(1, min(3, history) + 1))
        return who == "both", (rng.permutation(history)[:count] + 1).tolist()

    def catalogue(self, titles: list[str], length: int) -> Tensor:
        """Rows (N, length) of titles in quotes, one after the other; what does not fill a row is left out."""
        rows, ids = [], [self.start]
        for title in titles:
            ids += self._text('"') + self._text(title)[: self.limit] + self._text('", ')
            if len(ids) >= length:
                rows.append(ids[:length])
                ids = [self.start]
        return torch.tensor(rows)

    def text(self, batch: int, length: int = 96) -> Lists:
        """Plain catalogue text, title after title: every next token is asked. Half of it comes twice, shuffled, which
        teaches copying."""
        rows = []
        for _ in range(batch):
            ids, seen = [self.start], []
            twice = self.rng.random() < 0.5
            while len(ids) < length:
                title = self.titles.one() if len(seen) < 4 or not twice else seen[self.rng.integers(len(seen))]
                seen.append(title)
                ids += self._text('"') + self._text(title)[: self.limit] + self._text('", ')
            rows.append(ids[:length])
        ids = torch.tensor(rows)
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = ids[:, 1:]
        zero = torch.zeros(batch, dtype=torch.long)
        return Lists(ids, labels, torch.full_like(ids, -100), zero, zero.bool(), zero[:, None][:, :0], zero)


def soft_vectors(count: int, lists: Lists, noise: float, generator: torch.Generator,
                 varied: bool = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Random item vectors (B, count, D) of unit spread and the users' (B, D), in the parts that the small LLM reads.

    An item has a part that users are compared with and one that items are compared by; a user has the first only. A user who
    tells has the target's part plus noise, and the target's is of all candidates' the one with the largest inner product
    with it; a user who does not tell has nothing. Entries of the history that tell have the target's parts plus noise;
    everything else is unrelated. ``varied``: few directions hold most of the variance, as in trained embeddings (4 to 63
    directions, the n-th with a standard deviation of n ** -a, a up to 1), and items differ in length. ``noise`` in units of
    the spread (-n: uniform in 0..n, drawn for each teller).
    """
    batch, near = len(lists.ids), lists.near
    draw = {part: _spectrum(batch, size, varied, generator) for part, size in (("user", 64), ("item", 63))}
    longer = (0.15 * torch.randn(batch, count, 1, generator=generator)).exp() if varied else 1.0
    items = {part: draw[part](count) * longer for part in draw}
    drawn = torch.rand(batch, 1 + near.shape[1], 1, generator=generator)
    level = -noise * drawn if noise < 0 else noise * torch.ones_like(drawn)
    users = _at(items["user"], lists.target[:, None]) + level[:, :1] * draw["user"](1)
    if lists.size:
        closest = 1 + (items["user"][:, : lists.size] @ users.mT)[..., 0].argmax(1)
        closest = closest.where(lists.target > 0, 0)
        asked, other = _at(items["user"], lists.target[:, None]), _at(items["user"], closest[:, None])
        _put(items["user"], closest, asked[:, 0])
        _put(items["user"], lists.target, other[:, 0])
    users = torch.where(lists.by_user[:, None], users[:, 0], 0.0)
    alike = torch.rand(batch, near.shape[1], 1, generator=generator) < 0.5  # what is alike to users is like often, not always
    for part in draw:
        told = _at(items[part], lists.target[:, None]) + level[:, 1:] * draw[part](near.shape[1])
        told = told.where(alike, _at(items[part], near)) if part == "user" else told
        for place in range(near.shape[1]):
            _put(items[part], near[:, place], told[:, place])
    return _laid_out(items["user"], items["item"]), _laid_out(users, torch.zeros(batch, 63))


def _at(vectors: Tensor, numbers: Tensor) -> Tensor:
    """The vectors (B, k, d) of items (B, k), numbered from 1 in (B, count, d); any for 0."""
    return vectors.gather(1, (numbers - 1).clamp(min=0)[..., None].expand(-1, -1, vectors.shape[-1]))


def _put(vectors: Tensor, numbers: Tensor, value: Tensor) -> None:
    """Give the items (B,), numbered from 1, the vectors (B, d); nothing for 0."""
    rows = (numbers > 0).nonzero()[:, 0]
    vectors[rows, numbers[rows] - 1] = value[rows]


def _spectrum(batch: int, size: int, varied: bool, generator: torch.Generator):
    """Draws vectors (B, n, size) of mean length 1; a row's vectors share their directions and spectrum."""
    rank = int(torch.randint(4, size + 1, (1,), generator=generator)) if varied else size
    basis = torch.linalg.qr(torch.randn(batch, size, rank, generator=generator))[0]
    decay = torch.rand(batch, 1, generator=generator) if varied else torch.zeros(batch, 1)
    scale = torch.arange(1, rank + 1) ** -decay
    basis = basis * (scale / scale.norm(dim=1, keepdim=True))[:, None]
    return lambda count: torch.randn(batch, count, rank, generator=generator) @ basis.mT


def _laid_out(user_part: Tensor, item_part: Tensor) -> Tensor:
    out = torch.zeros(*user_part.shape[:-1], DIM)
    out[..., USER_PART], out[..., ITEM_PART], out[..., IS_SOFT] = user_part, item_part, MARK
    return out * (DIM / out.square().sum(-1).mean()) ** 0.5
