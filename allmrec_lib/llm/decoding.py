"""Answers from a frozen LLM: *trie* (greedy among the candidates' titles), *constrained*
(the probability of each when nothing else can be written), *score* (likelihood of each), *free*.

All compute the prompt's key-value cache once. Prompts are padded on the right, which a causal model cannot see
from the left: the prompt pass needs no mask; later passes hide the padding and count positions from the true length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone


@dataclass
class Prefix:
    """B prompts read: their cache, true lengths (B,), padded length T and the next token's log-probabilities (B, V)."""

    cache: object
    lengths: Tensor
    width: int
    log_probs: Tensor

    def keep(self, rows: Tensor) -> None:
        """Keep only some rows (an index tensor)."""
        for layer in self.cache.layers:  # which may lie on several cards
            layer.batch_select_indices(rows.to(layer.keys.device))
        self.lengths, self.log_probs = self.lengths[rows], self.log_probs[rows]


def sight(config) -> int | None:
    """How many tokens back the layers of an LLM see that see least; None: all."""
    from transformers import DynamicCache

    windows = [layer.sliding_window for layer in DynamicCache(config=config).layers if getattr(layer, "is_sliding", False)]
    return min(windows, default=None)


@torch.inference_mode()
def read(backbone: Backbone, embeds: Tensor, lengths: Tensor) -> Prefix:
    """Run the prompts (B, T, d_token) once. Raises ValueError where some layers of the LLM cannot see a whole prompt."""
    from transformers import DynamicCache

    window = sight(backbone.model.config)
    if window is not None and embeds.shape[1] > window:
        raise ValueError(f"{backbone.name}: some layers see {window} tokens back, and a prompt has {embeds.shape[1]}; lower "
                         "stage2.history or data.negatives, or take an LLM without a sliding window")  # fmt: skip
    cache, lengths = DynamicCache(), lengths.to(backbone.device)
    hidden = backbone.hidden(embeds, cache=cache, use_cache=True)
    last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
    return Prefix(cache, lengths, embeds.shape[1], backbone.logits(last).log_softmax(-1))


def _mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean (B, Q, K) as the additive (B, 1, Q, K) mask that the models take."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def _visible(prefix: Prefix) -> Tensor:
    """Which cached positions of the prompt are real. (B, T)."""
    return torch.arange(prefix.width, device=prefix.lengths.device) < prefix.lengths[:, None]


@torch.inference_mode()
def score(backbone: Backbone, prefix: Prefix, answers: Tensor, sizes: Tensor) -> Tensor:
    """Log-likelihood of every candidate's answer given the prompt: a full ranking. (B, C).

    ``answers`` (B, C, A) token ids padded with 0, ``sizes`` (B, C) their lengths.
    """
    return token_log_probs(backbone, prefix, answers, sizes).sum(-1)


@torch.inference_mode()
def constrained(backbone: Backbone, prefix: Prefix, answers: Tensor, sizes: Tensor) -> Tensor:
    """Log-probability of every candidate when only candidates can be written: a full ranking. (B, C).

    What :func:`trie` decodes greedily: at each token the probability is shared among the tokens with which some candidate
    goes on. A token that no other candidate could have instead is certain, so that how well the LLM copies the rest of a
    title does not count, only which title it picks, and nothing is read behind the token that tells a title from the
    others. A row's candidates with different titles sum to 1. Arguments as for :func:`score`.
    """
    answers, sizes = answers.to(backbone.device), sizes.to(backbone.device)
    until = torch.minimum(sizes, _alike(answers, sizes).sum(-1).masked_fill(_same(answers, sizes), 0).amax(-1) + 1)
    each = token_log_probs(backbone, prefix, answers[:, :, : int(until.max())], until)
    return among_candidates(each, answers[:, :, : each.shape[2]], until).sum(-1)


def _alike(answers: Tensor, sizes: Tensor) -> Tensor:
    """Whether two candidates are alike up to and with a token. (B, C, C, A)."""
    real = torch.arange(answers.shape[2], device=answers.device) < sizes[:, :, None]
    tokens = answers.masked_fill(~real, -1)
    return ((tokens[:, :, None] == tokens[:, None]).long().cumprod(-1).bool()) & real[:, :, None]


def _same(answers: Tensor, sizes: Tensor) -> Tensor:
    """Whether two candidates have the same title, each with itself included. (B, C, C)."""
    return (_alike(answers, sizes).sum(-1) == sizes[:, :, None]) & (sizes[:, :, None] == sizes[:, None])


def among_candidates(each: Tensor, answers: Tensor, sizes: Tensor) -> Tensor:
    """Log-probabilities (B, C, A) of the answers' tokens, shared out among the tokens that continue some candidate."""
    real = torch.arange(answers.shape[2], device=answers.device) < sizes[:, :, None]
    equal = _alike(answers, sizes)
    before = torch.cat([torch.ones_like(equal[..., :1]), equal[..., :-1]], dim=-1) & real[:, None]
    times = equal.sum(2)  # how many candidates go on with the same token: it counts once
    reach = (each - times.clamp(min=1).log())[:, None].expand(-1, each.shape[1], -1, -1)
    return (each - reach.masked_fill(~before, -torch.inf).logsumexp(2)).masked_fill(~real, 0.0)


def token_log_probs(backbone: Backbone, prefix: Prefix, answers: Tensor, sizes: Tensor) -> Tensor:
    """Log-probability of every token of every candidate's answer, 0 behind its end. (B, C, A).

    The candidates lie side by side in one pass over the prompt's cache; a candidate's tokens see the prompt and their own
    beginning only.
    """
    answers, sizes = answers.to(backbone.device), sizes.to(backbone.device)
    first = prefix.log_probs.gather(1, answers[:, :, 0])
    read = torch.arange(answers.shape[2] - 1, device=sizes.device) < sizes[:, :, None] - 1  # the last needs no successor
    if not bool(read.any()):
        return first.unsqueeze(-1)
    hidden, owner = _continued(backbone, prefix, answers[:, :, :-1], read)
    wanted = answers[:, :, 1:][read]
    picked = [
        part.log_softmax(-1).gather(1, token[:, None])[:, 0]
        for part, token in zip(_logit_chunks(backbone, hidden[owner >= 0]), wanted.split(4096), strict=True)
    ]
    later = first.new_zeros(read.shape)
    later[read] = torch.cat(picked)
    return torch.cat([first.unsqueeze(-1), later], dim=-1)


@torch.inference_mode()
def behind(backbone: Backbone, prefix: Prefix, asked: Tensor, sizes: Tensor) -> Tensor:
    """Logits (B, C, V) of the token behind each of C continuations of a row's prompt. Arguments as for :func:`score`."""
    asked, sizes = asked.to(backbone.device), sizes.to(backbone.device)
    read = torch.arange(asked.shape[2], device=sizes.device) < sizes[:, :, None]
    hidden, _ = _continued(backbone, prefix, asked, read)
    ends = sizes.cumsum(1) - 1  # without gaps, in the continuations' order
    return backbone.logits(hidden.gather(1, ends[:, :, None].expand(-1, -1, hidden.shape[-1])))


def _continued(backbone: Backbone, prefix: Prefix, tokens: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (B, Q, d) of the tokens (B, C, A) that are ``read``, each continuation seeing the prompt and its own
    beginning only, and the continuation (B, Q) that each belongs to. The prompt's cache is left as it was."""
    token, owner, depth = _side_by_side(tokens, read)
    own = (owner[:, :, None] == owner[:, None, :]) & (depth[:, :, None] >= depth[:, None, :])
    prompt = _visible(prefix)[:, None, :].expand(-1, owner.shape[1], -1)
    hidden = backbone.hidden(
        backbone.embedding(token), cache=prefix.cache, use_cache=True,
        attention_mask=_mask(torch.cat([prompt, own], dim=-1), backbone.embedding.weight.dtype),
        position_ids=prefix.lengths[:, None] + depth,
    )  # fmt: skip
    prefix.cache.crop(-token.shape[1])
    return hidden, owner


def _side_by_side(tokens: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens (B, C, A) that are ``read``, a row's candidates one after another without gaps, padded to (B, Q).

    Returns tokens, the candidate each belongs to (-1: padding) and its place in that candidate's answer.
    """
    width = read.flatten(1).sum(1).max()
    place = torch.arange(int(width), device=read.device) < read.flatten(1).sum(1)[:, None]
    owner = torch.arange(read.shape[1], device=read.device)[None, :, None].expand_as(read)
    depth = torch.arange(read.shape[2], device=read.device).expand_as(read)
    return tuple(
        torch.full(place.shape, fill, device=read.device).masked_scatter(place, values[read])
        for values, fill in ((tokens, 0), (owner, -1), (depth, 0))
    )


def _logit_chunks(backbone: Backbone, hidden: Tensor):
    return (backbone.logits(part) for part in hidden.split(4096))


def _advance(backbone: Backbone, prefix: Prefix, tokens: Tensor, past: int) -> None:
    """Feed one token a row (B,), the ``past``-th after the prompt, and update the log-probabilities."""
    seen = torch.ones(len(tokens), past + 1, dtype=torch.bool, device=tokens.device)
    allowed = torch.cat([_visible(prefix), seen], dim=1)[:, None, :]
    dtype = backbone.embedding.weight.dtype
    hidden = backbone.hidden(
        backbone.embedding(tokens[:, None]), cache=prefix.cache, use_cache=True,
        attention_mask=_mask(allowed, dtype), position_ids=prefix.lengths[:, None] + past,
    )  # fmt: skip
    prefix.log_probs = backbone.logits(hidden[:, 0]).log_softmax(-1)


@torch.inference_mode()
def trie(backbone: Backbone, prefix: Prefix, answers: Tensor, sizes: Tensor, early: bool = True) -> Tensor:
    """Greedy decoding that can only write a candidate's title. Returns which candidates were written, bool (B, C).

    More than one is true in a row only where candidates have the same title. With ``early`` a row stops as soon as one
    candidate is left, which changes nothing but the time. Consumes ``prefix``.
    """
    answers, sizes = answers.to(backbone.device), sizes.to(backbone.device)
    left = torch.ones(answers.shape[:2], dtype=torch.bool, device=answers.device)
    active = torch.arange(len(answers), device=answers.device)
    for step in range(answers.shape[2]):
        token, alive = answers[active, :, step], left[active]
        reach = prefix.log_probs.gather(1, token).masked_fill(~alive, -torch.inf)
        chosen = token.gather(1, reach.argmax(1, keepdim=True))
        alive = alive & (token == chosen)
        left[active] = alive
        ended = (alive & (sizes[active] == step + 1)).any(1)
        going = ~(ended | (alive.sum(1) == 1)) if early else ~ended
        if not bool(going.any()) or step + 1 == answers.shape[2]:
            break
        if not bool(going.all()):
            rows = going.nonzero()[:, 0]
            prefix.keep(rows)
            active, chosen = active[rows], chosen[rows]
        _advance(backbone, prefix, chosen[:, 0], step)
    return left


@torch.inference_mode()
def free(backbone: Backbone, prefix: Prefix, longest: int = 64) -> list[str]:
    """Plain greedy generation: the text of every row up to the closing quote (or of ``longest`` tokens).

    Consumes ``prefix``.
    """
    written: list[list[int]] = [[] for _ in range(len(prefix.lengths))]
    active = torch.arange(len(written), device=prefix.lengths.device)
    for step in range(longest):
        token = prefix.log_probs.argmax(-1)
        for row, value in zip(active.tolist(), token.tolist(), strict=True):
            written[row].append(value)
        rows = (~backbone.ends[token]).nonzero()[:, 0]
        if len(rows) == 0 or step + 1 == longest:
            break
        if len(rows) < len(token):
            prefix.keep(rows)
            active, token = active[rows], token[rows]
        _advance(backbone, prefix, token, step)
    return [backbone.written(ids) for ids in written]
