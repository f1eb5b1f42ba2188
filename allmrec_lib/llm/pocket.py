"""How the small LLM that ships with the book is made: ``python -m allmrec_lib.llm.pocket --out data/pocket_llm``.

A GPT-NeoX of about 2.5 M parameters (Black et al. 2022; three quarters of each head's dimensions carry no position, so
that a vector can be found again at any distance). It learns two things from text alone: catalogue text, and to answer
"which entry of this list goes with this vector" (associative recall). Large LLMs bring that skill; without it soft
tokens cannot steer a model, however long Stage 2 trains.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..training import autocast, quiet
from .pocket_corpus import START, Lists, TitleSource, Writer, common_words, soft_vectors, train_tokenizer
from .prompts import clean_title


@dataclass(frozen=True)
class Recipe:
    """The mixture of documents and the length of training."""

    steps: int = 4000
    batch_tokens: int = 3000
    lr: float = 6e-4
    warmup: int = 100
    templates: dict[str, float] = field(
        default_factory=lambda: {"recall": 0.45, "item-first": 0.3, "text": 0.2, "text-only": 0.05, "paper": 0.6}
    )
    paper_from: int = 8  # tags after their titles come when lists of this size with tags before them are mastered
    hint_weight: float = 1.0
    largest: int = 22
    history: int = 10
    grow_at: float = 0.85
    seed: int = 0


def build_model(vocabulary: int, quotes: list[int], dim: int = 192, layers: int = 4, heads: int = 4):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=512, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        max_position_embeddings=2048, use_parallel_residual=False, tie_word_embeddings=True, hidden_dropout=0.0,
        attention_dropout=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    write_circuit(model, dim, dim // heads, quotes)
    return model


@torch.no_grad()
def write_circuit(model, dim: int, size: int, quotes: list[int]) -> None:
    """Start from the circuit that in-context look-up rests on (induction heads, Olsson et al. 2022), then train.

    Layer 0: two heads look one and two places back (rotary positions make that a constant) and note what was there.
    Layer 1: one head looks for places that came after the same token and copies the word there; one fetches what stands
    behind the start token, the user's vector, into the note of layer 0's second head.
    Layer 2: one head looks for places whose note two back (an item token before its title) is like the own note, one for
    places that *are* like the own note (an item token after its title); both copy.
    Found by gradient alone, this takes most of the training on a small machine.
    """
    rotary, content = size // 4, size - size // 4
    attention = [layer.attention for layer in model.gpt_neox.layers]
    weights = [a.query_key_value.weight.view(-1, 3, size, dim) for a in attention]
    outs = [a.dense.weight.view(dim, -1, size) for a in attention]
    biases = [a.query_key_value.bias.view(-1, 3, size) for a in attention]
    reads, notes = (torch.linalg.qr(torch.randn(dim, dim))[0] for _ in range(2))
    parts = [slice(0, size), slice(size, 2 * size)]

    def copies(layer: int, head: int) -> None:
        basis = torch.linalg.qr(torch.randn(dim, dim))[0][:size]
        weights[layer][head, 2], outs[layer][:, head] = basis, basis.T

    for head, distance in ((0, 1), (1, 2)):
        weights[0][head, :2] = 0.0
        weights[0][head, 2], outs[0][:, head] = reads[parts[head]], 0.15 * notes[parts[head]].T
        angle = distance * 10000.0 ** (-torch.arange(rotary // 2) * 2 / rotary)
        strength = (12.0 * size**0.5) ** 0.5
        biases[0][head, 0, :rotary] = strength * torch.cat([angle.cos(), -angle.sin()])
        biases[0][head, 1, : rotary // 2] = strength
    before, own, note = notes[parts[0]][:content], reads[parts[0]][:content], notes[parts[1]][:content]
    embedding = model.get_input_embeddings().weight
    start = F.layer_norm(embedding[0], (dim,))
    weights[1][0, 0], biases[1][0, 0, rotary:] = 0.0, 1.5 * (own @ start)
    weights[1][0, 1, rotary:] = 1.5 * (before - own)
    weights[1][0, 2], outs[1][:, 0] = reads[parts[1]], 0.15 * notes[parts[1]].T
    for head, query, key in ((0, note, note), (1, note, reads[parts[1]][:content]), (2, own, before)):
        weights[2][head, 0, rotary:], weights[2][head, 1, rotary:] = 1.4 * query, 1.4 * key
        copies(2, head)
        if head < 2:
            weights[2][head, 1, rotary:] += before
            biases[2][head, 0, rotary:] = 0.8 * sum(own @ F.layer_norm(embedding[q], (dim,)) for q in quotes)


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


class Maker:
    """The training loop with its curriculum: each template's lists grow when it is mastered."""

    def __init__(self, model, writer: Writer, recipe: Recipe):
        self.model, self.writer, self.recipe = model, writer, recipe
        self.size = {name: 3.0 for name in recipe.templates}
        self.right = {name: 0.0 for name in recipe.templates}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.seconds = 0, 0.0

    def _lists(self, name: str, rng: np.random.Generator) -> Lists:
        if name == "text":
            return self.writer.text(self.recipe.batch_tokens // 96)
        top = int(self.size[name])
        size = int(rng.integers(max(2, top // 2), top + 1))
        history = min(self.recipe.history, max(0, top - 3))
        batch = max(8, self.recipe.batch_tokens // (45 + 8 * (size + history // 2)))
        return self.writer.lists(name, batch, size, history, again=6 if name == "recall" else 0)

    def train_step(self) -> None:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.step])
        self.writer.rng = self.writer.titles.rng = rng
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        names = list(recipe.templates)
        early = self.size["item-first"] < recipe.paper_from
        weights = np.array([recipe.templates[n] * (n != "paper" or not early) for n in names])
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        lists = self._lists(name, rng)
        count = max(1, int(-lists.ids.min()) - 1)
        grown = min(1.0, (self.size[name] - 3) / 10)  # noise comes when the first lists are mastered
        items, users = soft_vectors(count, self.model.config.hidden_size, lists, -grown, generator, varied=grown > 0.2)
        rate = min(1.0, (self.step + 1) / recipe.warmup) * (0.5 + 0.5 * np.cos(np.pi * self.step / recipe.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * max(rate, 0.02)
        with autocast("cpu", "auto"):
            embeds = embed_lists(self.model, lists, items, users)
            hinted = lists.hints >= 0
            asked = (lists.labels >= 0) | hinted
            logits = answer_logits(self.model, lists, embeds, asked)
        wanted = torch.where(hinted, lists.hints, lists.labels)[asked]
        each = F.cross_entropy(logits, wanted, reduction="none")
        is_hint = hinted[asked]
        loss = each[~is_hint].mean()
        starts = torch.zeros_like(hinted)
        starts[torch.arange(len(starts)), lists.first] = True
        if name != "text":
            loss = loss + each[starts[asked]].mean()
        if bool(is_hint.any()):
            loss = loss + recipe.hint_weight * each[is_hint].mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._grow(name, lists, logits, wanted, starts[asked])
        self.step += 1

    def _grow(self, name, lists, logits, wanted, starts) -> None:
        if name in ("text", "text-only"):
            self.size[name] = self.recipe.largest
            return
        told = lists.target > 0
        right = (logits[starts].argmax(-1) == wanted[starts])[told].float().mean().item()
        self.right[name] = 0.9 * self.right[name] + 0.1 * right
        if self.right[name] > self.recipe.grow_at and self.size[name] < self.recipe.largest:
            self.size[name] = min(self.recipe.largest, self.size[name] * 1.15)
            self.right[name] -= 0.1

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "size": self.size,
                 "right": self.right, "step": self.step, "seconds": self.seconds}  # fmt: skip
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.size, self.right, self.step, self.seconds = (state[k] for k in ("size", "right", "step", "seconds"))

    def run(self, folder: Path, every: int = 100) -> None:
        path = folder / "checkpoint.pt"
        if path.exists():
            self.load(path)
        begin = time.monotonic() - self.seconds
        bar = tqdm(total=self.recipe.steps, initial=self.step, desc="pocket LLM", disable=quiet(), mininterval=5)
        while self.step < self.recipe.steps:
            self.train_step()
            bar.update()
            if self.step % every == 0:
                self.seconds = time.monotonic() - begin
                self.save(path)
                shown = {n: f"{self.right[n]:.2f}@{self.size[n]:.0f}" for n in self.right if not n.startswith("text")}
                tqdm.write(f"step {self.step} {self.seconds:.0f}s {shown}")
        self.save(path)


@torch.inference_mode()
def recall(model, writer: Writer, template: str, titles=None, size: int = 20, history: int = 10, noise: float = 0.0,
           told: float = 1.0, batch: int = 50, batches: int = 4, varied: bool = False, seed: int = 1) -> float:  # fmt: skip
    """Share of lists whose answer's first token is right (``told=0``: chance)."""
    rng = np.random.default_rng(seed)
    writer.rng = writer.titles.rng = rng
    generator = torch.Generator().manual_seed(seed)
    right = []
    for _ in range(batches):
        lists = writer.lists(template, batch, size, history, told, titles)
        count = max(1, int(-lists.ids.min()) - 1)
        items, users = soft_vectors(count, model.config.hidden_size, lists, noise, generator, varied)
        asked = torch.zeros_like(lists.ids, dtype=torch.bool)
        asked[torch.arange(batch), lists.first] = True
        logits = answer_logits(model, lists, embed_lists(model, lists, items, users), asked)
        right.append((logits.argmax(-1) == lists.labels[asked]).float())
    return float(torch.cat(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--titles", type=Path, nargs="*", default=[], help="files with one real title a line")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--vocabulary", type=int, default=4096)
    args = parser.parse_args()
    words = common_words()
    titles = [clean_title(line, 80) for path in args.titles for line in path.read_text(encoding="utf-8").splitlines()]
    titles = sorted({t for t in titles if t})
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(titles, words, args.vocabulary)
    train = [t for i, t in enumerate(titles) if i % 20]
    writer = Writer(tokenizer, TitleSource(words, train, np.random.default_rng(0)))
    quotes = [tokenizer.encode(f"a{mark}").ids[-1] for mark in ('"', ' "')]
    maker = Maker(build_model(args.vocabulary, quotes), writer, Recipe(steps=args.steps))
    maker.run(args.out)


if __name__ == "__main__":
    main()
