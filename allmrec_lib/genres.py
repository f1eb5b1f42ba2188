"""The favourite genres of a user, asked of an LLM (section 5.4.4, appendix B), and how good the answer is.

Asked *in words*, the LLM writes genre names after the user's history. As a *look-up*, the genres are the entries of the
list that the LLM recommends from; the token of a genre is the mean token of its items, the user's own left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import quiet
from .datasets.base import DataError, Dataset
from .llm import decoding
from .llm.prompts import Template
from .llm.soft_tokens import USER, PromptBatch, PromptEncoder, embed, slot_items
from .ranker import LLMRecommender
from .sequences import Rows

NO_GENRE = "unknown"  # MovieLens' word for a film without a genre
MASK = "?"  # what a masked title is shown as
WORDS = 'This user has {done} {history} in the past. The {noun} genres that this user would enjoy are "'


@dataclass(frozen=True)
class GenreTable:
    """``names`` (G) and ``member`` (n_items + 1, G): 1 where an item has the genre."""

    names: list[str]
    member: Tensor

    @classmethod
    def of(cls, data: Dataset, most: int = 20) -> GenreTable:
        """The ``most`` commonest genres of a dataset. Raises DataError when its items have none."""
        sets = [[g for g in text.split("|") if g and g != NO_GENRE] for text in data.items["genres"]]
        counts = pd.Series([g for genres in sets for g in genres], dtype=str).value_counts()
        if len(counts) < 2:
            raise DataError(f"{data.name}: its items have {len(counts)} genres, so that none can be a favourite; use a dataset "
                            "whose item table has genres (movielens, simulated, or a frame with a column genres)")  # fmt: skip
        names = sorted(sorted(counts.index, key=lambda name: (-counts[name], name))[:most])
        member = torch.zeros(data.n_items + 1, len(names))
        for item, genres in enumerate(sets, 1):
            member[item, [names.index(g) for g in genres if g in names]] = 1.0
        return cls(names, member)

    def shares(self, histories: Tensor) -> Tensor:
        """How a history (N, L), padded with 0, divides among the genres: an item counts as one, shared out evenly among its
        genres. (N, G), rows add up to 1 (0 where no item has a genre)."""
        even = self.member / self.member.sum(1, keepdim=True).clamp(min=1)
        total = torch.stack([even[row].sum(0) for row in histories])
        return total / total.sum(1, keepdim=True).clamp(min=1e-9)


def mean_tokens(items: Tensor, member: Tensor, seen: Tensor) -> Tensor:
    """A token for each genre and user: the mean of ``items`` (n_items + 1, D) over those of the genre that the user has not
    ``seen`` (B, n_items + 1); over all of them where none is left. (B, G, D)."""
    member = member.to(items.dtype)
    left = member.T[None] * ~seen[:, None]
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, member.T[None])
    return (left @ items) / left.sum(-1, keepdim=True)


class GenreQuestion:
    """Asks a model for its users' genres.

    ``look_up``: as entries of the list that the LLM recommends from, otherwise in words. ``masked``: titles of the history
    are hidden, so that items are known by their soft tokens alone. ``random``: look-up tokens that say nothing (control).
    """

    def __init__(self, model: LLMRecommender, table: GenreTable, look_up: bool = False, masked: bool = False,
                 random: bool = False, seed: int = 0):  # fmt: skip
        self.model, self.table, self.look_up, self.random, self.seed = model, table, look_up, random, seed
        given, template = model.prompts, model.backbone.template
        if not look_up:
            told = "{user} is a user representation. " if "{user}" in template.body else ""
            template = Template(f"genres, {template.name}", told + WORDS, template.entry)
        titles = [MASK] * len(given.titles) if masked else given.titles
        words = replace(given.words, noun=f"{given.words.noun} genre") if look_up else given.words
        self.prompts = PromptEncoder(replace(model.backbone, template=template), [*titles, *table.names], words)
        self.first = len(titles)  # the genres' ids follow the items'

    def shown(self, histories: Tensor, orders: Tensor) -> list[list[int]]:
        """Token ids and slots of prompts. In a look-up the genres stand in the given order (N, G)."""
        past = histories[:, -self.model.history :].tolist()
        listed = (self.first + orders).tolist() if self.look_up else [[]] * len(past)
        return [self.prompts.prompt(history, genres) for history, genres in zip(past, listed, strict=True)]

    def _embeds(self, batch: PromptBatch, x: Tensor, seen: Tensor, number: Tensor) -> Tensor:
        """Input embeddings. The genre slots of row r are renumbered, since a genre's token is another one for every user."""
        model, count, ids = self.model, len(self.table.names), batch.ids.clone()
        if not bool((ids <= USER).any()):
            return embed(model.backbone, ids, None, None)
        every = model.heads["item"](model.joint)
        row = torch.arange(len(ids))[:, None].expand_as(ids)
        genre = -ids - 1 >= self.first
        ids[genre] -= count * row[genre]
        tokens = mean_tokens(every, self.table.member.to(every.device), seen.to(every.device))
        if self.random:
            tokens = self._noise(number, every).to(tokens)
        users = model.heads["user"](x.to(model.backbone.device))
        table = torch.cat([every, tokens.flatten(0, 1)])  # the genres' numbers follow the items', row after row
        return embed(model.backbone, ids, users, table[slot_items(ids)[0].to(every.device)])

    def _noise(self, number: Tensor, items: Tensor) -> Tensor:
        """For each user as many item tokens as there are genres, drawn at random: they look like tokens and say nothing."""
        drawn = [torch.randint(1, len(items), (len(self.table.names),), generator=torch.Generator().manual_seed(self.seed + n))
                 for n in number.tolist()]  # fmt: skip
        return items[torch.stack(drawn).to(items.device)]

    @torch.inference_mode()
    def ask(self, rows: Rows, x: Tensor, free: bool = False, batch: int = 32) -> np.ndarray | list[str]:
        """Log-probability of each genre's name when one of them must be written (N, G); with ``free``, what plain generation
        writes instead, N texts. ``rows`` hold the users' whole histories, x (N, d) their representations."""
        count, out = len(self.table.names), []
        generator = torch.Generator().manual_seed(self.seed)
        orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(len(rows))])
        prompts = self.shown(rows.histories, orders)
        names = PromptBatch.of([self.prompts.answer(self.first + genre) for genre in range(count)])
        self.model.module.eval()
        parts = torch.arange(len(rows)).split(batch)
        for part in tqdm(parts, desc="asking for genres", disable=quiet(), leave=False, unit="batch"):
            seen = torch.zeros(len(part), len(self.table.member), dtype=torch.bool)
            seen = seen.scatter_(1, rows.histories[part], True)
            block = PromptBatch.of([prompts[i] for i in part.tolist()])
            prefix = decoding.read(self.model.backbone, self._embeds(block, x[part], seen, part), block.lengths)
            if free:
                out += decoding.free(self.model.backbone, prefix)
            else:
                answers, sizes = names.ids.expand(len(part), -1, -1), names.lengths.expand(len(part), -1)
                out.append(decoding.constrained(self.model.backbone, prefix, answers, sizes).cpu().numpy())
        return out if free else np.concatenate(out)


def parse(text: str, names: list[str]) -> list[str] | None:
    """The genres that an answer names, in its order; None, an invalid answer, when anything else stands in it.

    >>> parse("Drama, comedy and War", ["Comedy", "Drama", "War"])
    ['Drama', 'Comedy', 'War']
    """
    known = {name.lower(): name for name in names}
    pieces = [piece.strip(" .").lower() for piece in re.split(r",|\band\b", text)]
    pieces = [piece for piece in pieces if piece]
    if not pieces or not all(piece in known for piece in pieces):
        return None
    return list(dict.fromkeys(known[piece] for piece in pieces))


def as_scores(answers: list[str], names: list[str]) -> np.ndarray:
    """Free answers as scores (N, G): earlier named is higher, not named 0; a row of NaN for an invalid answer."""
    out = np.zeros((len(answers), len(names)))
    for row, text in enumerate(answers):
        named = parse(text, names)
        if named is None:
            out[row] = np.nan
        for place, name in enumerate(named or []):
            out[row, names.index(name)] = len(names) - place
    return out


def told_apart(scores: np.ndarray) -> np.ndarray:
    """What an answer says of a user beyond what it says of all users: scores (N, G) less their mean over the users."""
    return scores - scores.mean(axis=0)


def measure(scores: np.ndarray, shares: np.ndarray, prior: np.ndarray) -> dict[str, np.ndarray]:
    """How good answers are against the genre shares (N, G) of the users' own histories; each (N,).

    ``genre hit@1``: the first genre is the user's most frequent (or one of several such). ``genre hit@3``: how much of the
    first three are among the user's three. ``rank correlation``: Spearman's, of scores and shares. ``taste correlation``: of
    what both say of this user beyond all users (``prior`` (G,): the shares of users who are not measured); an answer that
    is the same for everybody has 0. Ties count against the answer, and so does an invalid one (NaN).
    """
    invalid = np.isnan(scores).any(axis=1)
    filled = np.where(invalid[:, None], 0.0, scores).astype(np.float64)
    values = {"genre hit@1": _overlap(filled, shares, 1), "genre hit@3": _overlap(filled, shares, 3),
              "rank correlation": spearman(filled, shares),
              "taste correlation": spearman(told_apart(filled), shares - prior)}  # fmt: skip
    return {name: np.where(invalid, 0.0, value) for name, value in values.items()}


def _overlap(scores: np.ndarray, shares: np.ndarray, k: int) -> np.ndarray:
    """Share of the k best scored genres that are among the user's k most frequent, ties of scores against the answer."""
    favourite = (shares >= -np.sort(-shares, axis=1)[:, k - 1 : k]) & (shares > 0)
    most = np.clip((shares > 0).sum(axis=1), 1, k)  # of a user with fewer genres than k no more can be named
    order = np.lexsort((favourite, -scores), axis=1)[:, :k]  # among equal scores those that are no favourites come first
    return np.take_along_axis(favourite, order, axis=1).sum(axis=1) / most


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of each row of (N, G) arrays, ties sharing their mean rank; 0 where a row is constant."""
    a, b = (pd.DataFrame(values).round(9).rank(axis=1).to_numpy(copy=True) for values in (a, b))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), size, out=np.zeros(len(a)), where=size > 1e-9)


def with_prior(scores: np.ndarray, prior: np.ndarray, weight: float) -> np.ndarray:
    """The popular genres, moved by what an answer says of the user alone: log prior + weight x (that, at unit spread)."""
    own = told_apart(np.asarray(scores, dtype=np.float64))
    return np.log(prior + 1e-3) + weight * own / max(own.std(), 1e-9)
