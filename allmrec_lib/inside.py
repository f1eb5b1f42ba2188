"""Looking into a trained A-LLMRec: what the answer attends to, what soft tokens are near, what breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .allmrec import ALLMRec
from .llm.backbone import Backbone
from .llm.prompts import Slot, Title
from .llm.soft_tokens import USER, PromptBatch, PromptEncoder
from .sequences import Candidates, Rows

PARTS = ("words between", "user token", "history: token", "history: title", "positive: token", "positive: title",
         "another candidate: token", "another candidate: title")  # fmt: skip


def parts(prompts: PromptEncoder, history: list[int], candidates: list[int], positive: int) -> Tensor:
    """What each token of a prompt belongs to, as a number of :data:`PARTS`. (T,)."""
    labels = [0] * len(prompts.backbone.start)
    met = len([item for item in history if item])
    slots = titles = 0
    for piece in prompts.pieces(history, candidates):
        if isinstance(piece, str):
            labels += [0] * len(prompts.backbone.encode(piece))
        elif isinstance(piece, Slot) and piece.kind == "user":
            labels.append(1)
        elif isinstance(piece, Slot):
            labels.append(2 if slots < met else 4 if piece.item == positive else 6)
            slots += 1
        elif isinstance(piece, Title):
            label = 3 if titles < met else 5 if piece.item == positive else 7
            labels += [label] * len(prompts.title_ids[piece.item])
            titles += 1
    return torch.tensor(labels)


@torch.inference_mode()
def attention(model: ALLMRec, rows: Rows, candidates: Candidates, x: Tensor, batch: int = 16) -> np.ndarray:
    """How much the position that writes the answer's first token attends to each of :data:`PARTS`: (layers, heads, parts),
    mean over the rows. What there are several of (history items, other candidates) counts as the mean of one."""
    prompts, past = model.prompt_rows(rows, candidates), rows.histories[:, -model.history :]
    shown, total = candidates.items.gather(1, candidates.order), 0.0
    lm, before = model.backbone.model, model.backbone.model.config._attn_implementation
    lm.set_attn_implementation("eager")  # the only one that returns its weights
    try:
        for part in torch.arange(len(rows)).split(batch):
            block = PromptBatch.of([prompts[i] for i in part.tolist()])
            embeds = model.embeds(block, x[part]).to(model.backbone.embedding.weight.dtype)
            layers = lm.base_model(inputs_embeds=embeds, output_attentions=True).attentions
            for place, row in enumerate(part.tolist()):
                size = int(block.lengths[place])
                weights = torch.stack([layer[place, :, size - 1, :size] for layer in layers]).float().cpu()
                kind = parts(model.prompts, past[row].tolist(), shown[row].tolist(), int(candidates.items[row, 0]))
                total = total + _by_part(weights, kind, int((past[row] != 0).sum()), candidates.items.shape[1] - 1)
    finally:
        lm.set_attn_implementation(before)
    return (total / len(rows)).numpy()


def _by_part(weights: Tensor, kind: Tensor, met: int, others: int) -> Tensor:
    """Weights (layers, heads, T) added up by part, and divided by the number of entries. (layers, heads, parts)."""
    many = torch.tensor([1, 1, max(met, 1), max(met, 1), 1, 1, others, others])
    return weights @ F.one_hot(kind, len(PARTS)).float() / many


def nearest_words(backbone: Backbone, vectors: Tensor, count: int = 5) -> list[list[tuple[str, float]]]:
    """The words of the LLM's vocabulary that are nearest to each vector (N, d_token), with their cosines."""
    table = F.normalize(backbone.embedding.weight.detach().float(), dim=1)
    near = (F.normalize(vectors.to(table), dim=1) @ table.T).topk(count)
    return [[(backbone.tokenizer.decode([token]), round(cosine, 3)) for token, cosine in zip(*row, strict=True)]
            for row in zip(near.indices.tolist(), near.values.tolist(), strict=True)]  # fmt: skip


def principal(matrix: Tensor, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Items (N, D) in their first principal directions (N, count), and every direction's share of the variance."""
    centred = (matrix - matrix.mean(0)).double()
    left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    return (left[:, :count] * size[:count]).numpy(), (size.square() / size.square().sum()).numpy()


def separation(matrix: Tensor, member: Tensor) -> float:
    """Mean cosine of two items of one genre less that of any two, both from the mean: 0 where a space knows no genres.

    matrix (N, D), member (N, G).
    """
    unit = F.normalize((matrix - matrix.mean(0)).double(), dim=1)
    alike = member.double() @ member.T.double() > 0
    off = ~torch.eye(len(unit), dtype=torch.bool)
    cosine = unit @ unit.T
    return float(cosine[alike & off].mean() - cosine[off].mean())


Edit = Callable[[list[int], list[int], np.random.Generator], list[int]]


def _slots(ids: list[int]) -> list[int]:
    return [place for place, token in enumerate(ids) if token < USER]


def another_item(ids: list[int], shown: list[int], rng: np.random.Generator, items: int) -> list[int]:
    """The positive's token (``shown[0]`` is the positive) becomes that of an item which is no candidate."""
    other = int(rng.choice(np.setdiff1d(np.arange(1, items + 1), shown)))
    return _renamed(ids, shown, {shown[0]: other})


def swapped(ids: list[int], shown: list[int], rng: np.random.Generator) -> list[int]:
    """The positive and the first negative have each other's token."""
    return _renamed(ids, shown, {shown[0]: shown[1], shown[1]: shown[0]})


def _renamed(ids: list[int], shown: list[int], new: dict[int, int]) -> list[int]:
    """The candidates' tokens by another name; the history, in which a candidate may stand too, stays."""
    out = list(ids)
    for place in _slots(ids)[-len(shown) :]:
        item = -ids[place] - 1
        out[place] = -(new.get(item, item) + 1)
    return out


def shuffled_history(ids: list[int], shown: list[int], rng: np.random.Generator) -> list[int]:
    """The history's tokens stand beside each other's titles."""
    places, out = _slots(ids)[: -len(shown)], list(ids)
    for place, source in zip(places, rng.permutation(places), strict=True):
        out[place] = ids[int(source)]
    return out


def foreign_history(ids: list[int], shown: list[int], rng: np.random.Generator, items: int) -> list[int]:
    """The history's tokens are those of items drawn at random."""
    out = list(ids)
    for place in _slots(ids)[: -len(shown)]:
        out[place] = -(int(rng.integers(1, items + 1)) + 1)
    return out


def edited(model: ALLMRec, edit: Edit, seed: int = 0) -> ALLMRec:
    """The same model, whose prompts go through ``edit(ids, candidates with the positive first, generator)``."""
    other, rng = copy.copy(model), np.random.default_rng(seed)

    def prompt_rows(rows: Rows, candidates: Candidates) -> list[list[int]]:
        prompts = model.prompt_rows(rows, candidates)
        return [edit(ids, shown, rng) for ids, shown in zip(prompts, candidates.items.tolist(), strict=True)]

    other.prompt_rows = prompt_rows
    return other


def interventions(model: ALLMRec, rows: Rows, candidates: Candidates, x: Tensor, q: Tensor,
                  seed: int = 0) -> dict[str, np.ndarray]:  # fmt: skip
    """Scores (N, C) of the model as it is and with one kind of soft token replaced. q (n_items + 1, d') as the joint embeddings."""
    items, number = len(model.joint) - 1, len(rows)
    other = torch.from_numpy((np.arange(number) + np.random.default_rng(seed).integers(1, number, number)) % number)
    edits: dict[str, Edit] = {
        "positive's token: another item's": lambda *given: another_item(*given, items),
        "positive's token: swapped with a negative's": swapped,
        "history's tokens shuffled": shuffled_history,
        "history's tokens: random items'": lambda *given: foreign_history(*given, items),
    }
    scores = {"as it is": model.predict(rows, candidates, x)}
    scores["user token: another user's"] = model.predict(rows, candidates, x[other])
    scores["all item tokens: q for e"] = model.carrying(q).predict(rows, candidates, x)
    return scores | {name: edited(model, edit, seed).predict(rows, candidates, x) for name, edit in edits.items()}
