"""What the small LLM can do, measured: looking entries up by their vectors, and reading catalogue text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .pocket_corpus import Lists, TitleSource, Writer, common_words, soft_vectors


def embed_lists(model, lists: Lists, items: Tensor, users: Tensor) -> Tensor:
    """Input embeddings with the soft vectors in their slots, scaled to the spread of the token embeddings."""
    table = model.get_input_embeddings().weight
    spread = table.detach().std()
    out = model.get_input_embeddings()(lists.ids.clamp(min=0))
    soft = torch.cat([users[:, None], items], dim=1) * spread
    slots = lists.ids < 0
    row = torch.arange(len(lists.ids))[:, None].expand_as(lists.ids)[slots]
    out = out.masked_scatter(slots.unsqueeze(-1), soft[row, (-lists.ids[slots] - 1)].to(out.dtype))
    return out


def answer_logits(model, lists: Lists, embeds: Tensor, asked: Tensor) -> Tensor:
    hidden = model.base_model(inputs_embeds=embeds).last_hidden_state[asked]
    return model.get_output_embeddings()(hidden).float()


@torch.inference_mode()
def recall(model, writer: Writer, template: str, titles=None, size: int = 20, history: int = 10, noise: float = 0.0,
           told: float = 1.0, batch: int = 50, batches: int = 4, varied: bool = False, seed: int = 1,
           who: str = "user", place: int = 0) -> float:  # fmt: skip
    """Share of lists whose answer's first token is right (``told=0``: chance), or the one at ``place``, given those before
    it; ``who`` tells it."""
    rng = np.random.default_rng(seed)
    writer.rng = writer.titles.rng = rng
    generator = torch.Generator().manual_seed(seed)
    right = []
    for _ in range(batches):
        lists = writer.lists(template, batch, size, history, told, titles, who=who)
        count = max(1, int(-lists.ids.min()) - 1)
        items, users = soft_vectors(count, lists, noise, generator, varied)
        asked = torch.zeros_like(lists.ids, dtype=torch.bool)
        asked[torch.arange(batch), lists.first + place] = True
        logits = answer_logits(model, lists, embed_lists(model, lists, items, users), asked)
        right.append((logits.argmax(-1) == lists.labels[asked]).float())
    return float(torch.cat(right).mean())


@torch.inference_mode()
def perplexity(model, tokenizer, titles: list[str], seed: int = 1, length: int = 96) -> float:
    """Perplexity a token of catalogue text, title after title, with nothing repeated."""
    rng = np.random.default_rng(seed)
    writer = Writer(tokenizer, TitleSource([], [], rng))
    rows = writer.catalogue([titles[i] for i in rng.permutation(len(titles))], length)
    logits = model(input_ids=rows).logits[:, :-1].float()
    return float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).exp())


def drawn_from(titles: list[str], rng: np.random.Generator) -> Callable[[int], list[str]]:
    """Draws lists of different titles out of a catalogue, for :func:`recall`."""
    distinct = np.array(sorted(set(titles)), dtype=object)
    return lambda count: rng.choice(distinct, count, replace=False).tolist()


def begun_alike(titles: list[str], rng: np.random.Generator) -> Callable[[int], list[str]]:
    """Draws lists of titles that all begin with one word, no two of them going on alike: only their second words differ."""
    return drawn_from(list({title.split()[0]: f"The {title}" for title in titles}.values()), rng)


def measure(model, tokenizer, template: str, titles: list[str], limit: int, lists: int = 500) -> dict[str, float]:
    """Recall at ``lists`` lists of 20 unseen titles: with the exact vector, a noisy one, and an unrelated one; of titles that
    begin with the same word, the second token."""
    rng = np.random.default_rng(2)
    writer = Writer(tokenizer, TitleSource(common_words(), [], rng), limit)
    draw = drawn_from(titles, rng)
    cases = {"exact": {}, "noise 0.5": {"noise": 0.5}, "noise 1.0": {"noise": 1.0},
             "history, noise 0.5": {"noise": 0.5, "who": "history"}, "both, noise 1.0": {"noise": 1.0, "who": "both"},
             "begun alike, second token": {"titles": begun_alike(titles, rng), "place": 1}, "unrelated": {"told": 0.0}}  # fmt: skip
    size = {"batch": min(lists, 50), "batches": max(lists // 50, 1)}
    return {name: round(recall(model, writer, template, **({"titles": draw} | size | case)), 4) for name, case in cases.items()}
