"""The small LLM's architecture and its first weights: a Nemotron that starts with the circuit of in-context look-up.

Large LLMs find in their context the entry that is like something (induction heads, Olsson et al. 2022). Found by gradient
alone, that takes most of the training on a small machine, and the result compares badly. So it is written down here, and
training goes on from it. The residual stream is laid out in parts, so that what one head notes is no noise to another:

    WORD        a word's own content                     IS_TEXT, IS_START   flags of words and of the start token
    BEFORE      the content of the word before           AFTER_START         the start token is just before
    USER_PART   what users and items are compared by     IN_TITLE            two back stands no item token
    ITEM_PART   what items are compared by               LISTED, LIKED       after the history; like an item of the history
    IS_SOFT     the constant of soft tokens              ALONE               no item token is near

Layer 0: one head notes the nearest soft token (at most eleven back), so that every word of a title carries its item, and
that the words of the answer, which stand no further from the word that announces them, carry none; others
note the word before, whether two back stands a word, and whether the history is over. Layer 1: words that are near no
item fetch the user's vector; a candidate that is like an item of the history is marked; an item token *after* its title
fetches the title's first word. Layer 2: the answer looks for the candidate that is like the user, or marked, and copies
its first word; later words copy what stood behind the same word of a title whose item is like the user. Layer 3, the other
heads and the feed-forward parts start at random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIM, LAYERS, HEADS, HEAD, ROTARY = 256, 4, 4, 128, 16
WORD, BEFORE, SOFT = slice(0, 60), slice(64, 124), slice(128, 255)
USER_PART, ITEM_PART, IS_SOFT = slice(128, 192), slice(192, 255), 255
MARK = 2.5  # the constant of soft tokens, in units of the rest: the longer it is, the more of their lengths layer norm leaves
READS = {"user": [128, 192], "item": [192, 255], "constant": IS_SOFT, "mark": MARK}  # for the card: what is compared where
IS_TEXT, IS_START, LISTED, LIKED = 60, 61, 62, 63
AFTER_START, IN_TITLE, ALONE = 125, 126, 127
NOTED = 0.25  # what words take over of the soft token that they note
NEAR = {2: 40.0, 3: 20.0, 4: 40.0}  # rotary pairs with periods of 63, 199 and 628 tokens, and what each adds at distance 0
SHARP, SOFT_MATCH = 8.0, 5.0  # how an answer compares candidates with the user while the rest learns, and afterwards
WRITTEN = (4, 3, 2, 0)  # heads a layer that hold the circuit


def build_model(vocabulary: int, quote: int, closing: int, following: int, asking: int):
    """The model with its first weights.

    ``quote``: the token that opens an answer; ``closing``: the one that closes a title; ``following``: one that stands
    between the history and the candidates; ``asking``: one that stands between the candidates and the answer.
    """
    from transformers import NemotronConfig, NemotronForCausalLM

    config = NemotronConfig(
        vocab_size=vocabulary, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, head_dim=HEAD,
        num_key_value_heads=HEADS, intermediate_size=512, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": ROTARY / HEAD},
        max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = NemotronForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.zero_()  # Nemotron's layer norms add one to their weight
        embedding = model.get_input_embeddings().weight
        embedding.zero_()
        embedding[:, WORD].normal_(std=0.1)
        embedding[:, IS_TEXT] = 0.7
        embedding[0, WORD], embedding[0, IS_START] = 0.0, 0.8
        words = {name: embedding[token, WORD] for name, token in
                 (("quote", quote), ("closing", closing), ("following", following), ("asking", asking))}  # fmt: skip
        heads = [[_Head(layer.self_attn, number) for number in range(count)]
                 for layer, count in zip(model.model.layers, WRITTEN, strict=True)]  # fmt: skip
        _note(heads[0], words)
        _fetch(heads[1], words)
        _answer(heads[2], words)
    return model


def written_parts(model) -> list[Tensor]:
    """Views of the weights that hold the circuit."""
    parts = []
    for layer, heads in zip(model.model.layers, WRITTEN, strict=True):
        attention, part = layer.self_attn, slice(0, heads * HEAD)
        for name in ("q_proj", "k_proj", "v_proj"):
            parts += [getattr(attention, name).weight[part], getattr(attention, name).bias[part]]
        parts.append(attention.o_proj.weight[:, part])
    return parts


def soften(model) -> None:
    """Compare candidates with the user less sharply than while the rest learned, so that the history counts for more."""
    attention = model.model.layers[2].self_attn
    place = slice(ROTARY, ROTARY + USER_PART.stop - USER_PART.start)  # of the first head
    with torch.no_grad():
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            weight[place, USER_PART] *= math.sqrt(SOFT_MATCH / SHARP)


class _Head:
    """Views of one head's weights, emptied. Logits add up what ``add``, ``rest``, ``compare``, ... contribute; each takes
    places of its own among the head's dimensions, the first :data:`ROTARY` of which turn with the position."""

    def __init__(self, attention, number: int):
        part = slice(number * HEAD, (number + 1) * HEAD)
        self.q, self.k, self.v = (getattr(attention, f"{n}_proj").weight[part] for n in "qkv")
        self.q_bias, self.k_bias, v_bias = (getattr(attention, f"{n}_proj").bias[part] for n in "qkv")
        self.o = attention.o_proj.weight[:, part]
        for weight in (self.q, self.k, self.v, self.o, self.q_bias, self.k_bias, v_bias):
            weight.zero_()

    def copy(self, source: slice, target: slice, gain: float) -> None:
        """What is attended to: its part ``source`` is added to the part ``target``."""
        every = torch.eye(source.stop - source.start)
        self.v[: len(every), source], self.o[target, : len(every)] = every, gain * every

    def flag(self, source: int, target: int, gain: float, place: int = 0) -> None:
        """The same for one dimension."""
        self.v[place, source], self.o[target, place] = 1.0, gain

    def look_back(self, distance: int) -> None:
        """Attend to the token ``distance`` back."""
        angle = distance * 10000.0 ** (-torch.arange(ROTARY // 2) * 2 / ROTARY)
        strength = math.sqrt(30.0 * HEAD**0.5)
        self.q_bias[:ROTARY] = strength * torch.cat([angle.cos(), -angle.sin()])
        self.k_bias[: ROTARY // 2] = strength

    def prefer_near(self) -> None:
        for pair, size in NEAR.items():
            self.q_bias[pair] = self.k_bias[pair] = math.sqrt(size * HEAD**0.5)

    def add(self, place: int, key: int | slice, size: float | Tensor) -> None:
        """What a dimension (or a direction in a part) of the key adds to the logit, whatever the query."""
        self.q_bias[place] = HEAD**0.5
        self.k[place, key] = size

    def rest(self, size: float, start: float) -> None:
        """The start token's logit; ``start`` is about its flag after layer norm."""
        self.add(119, IS_START, size / start)

    def compare(self, query: slice, size: float, key: slice | None = None, at: int = 0) -> None:
        """Queries and keys that are alike in a part of the stream (two parts) attract."""
        key = key or query
        place = torch.arange(query.stop - query.start)
        self.q[ROTARY + at + place, query.start + place] = math.sqrt(size)
        self.k[ROTARY + at + place, key.start + place] = math.sqrt(size)


def _note(heads: list[_Head], words: dict[str, Tensor]) -> None:
    near, back, two, seen = heads
    text, start = 10.7, 12.0  # the flags after layer norm, about
    asking = words["asking"] / words["asking"].norm()
    near.prefer_near()
    for pair in NEAR:
        near.k[pair, IS_TEXT] = -near.k_bias[pair] / text  # soft tokens only,
        near.k[pair, WORD] = near.k_bias[pair] * asking / 12.0  # and the word that ends the last title's reach
    near.rest(62.0, start)
    near.copy(SOFT, SOFT, NOTED)
    near.flag(IS_START, ALONE, 0.05, place=127)
    near.v[127, WORD] = asking
    back.look_back(1)
    back.copy(slice(0, 62), slice(64, 126), 0.15)
    two.look_back(2)
    two.flag(IS_TEXT, IN_TITLE, -0.045)
    seen.add(20, WORD, 4.0 * words["following"] / words["following"].norm())
    seen.rest(20.0, start)
    seen.flag(IS_START, LISTED, -0.05)


def _fetch(heads: list[_Head], words: dict[str, Tensor]) -> None:
    user, alike, gather = heads
    user.q[20, ALONE], user.k[20, AFTER_START], user.k[20, IS_START] = HEAD**0.5, 1.0, -2.0
    user.rest(25.0, 10.0)
    user.copy(SOFT, SOFT, NOTED)
    alike.compare(ITEM_PART, 5.0)
    alike.add(120, LISTED, -7.0)
    alike.add(121, IN_TITLE, 4.0)
    alike.add(122, BEFORE, 4.0 * words["closing"] / words["closing"].norm())
    alike.rest(108.0, 10.0)
    alike.flag(IS_START, LIKED, -0.05)
    gather.prefer_near()
    gather.q[20, BEFORE] = HEAD**0.5 * 0.75 * words["closing"]
    gather.k[20, BEFORE] = 3.5 * words["quote"]
    gather.rest(200.0, 5.0)
    gather.copy(WORD, WORD, 0.3)
    gather.flag(IS_TEXT, IN_TITLE, 0.1, place=60)


def _answer(heads: list[_Head], words: dict[str, Tensor]) -> None:
    match, follow = heads
    match.compare(USER_PART, SHARP)
    for place, flag, size in ((120, LIKED, 12.0), (121, IN_TITLE, 4.0), (122, LISTED, 12.0), (124, ALONE, -12.0)):
        match.add(place, flag, size)
    match.add(123, BEFORE, 4.0 * words["closing"] / words["closing"].norm())
    match.copy(WORD, WORD, 1.0)
    follow.add(117, LISTED, 12.0)
    follow.add(118, ALONE, -12.0)
    follow.compare(WORD, 7.0, BEFORE)
    follow.compare(slice(USER_PART.start, USER_PART.start + 40), 4.0, at=60)
    follow.rest(70.0, 10.0)
    follow.copy(WORD, WORD, 1.0)
