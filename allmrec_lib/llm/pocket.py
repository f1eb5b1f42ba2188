"""How the small LLM that ships with the book is made: ``python -m allmrec_lib.llm.pocket --out data/pocket_llm``.

A Nemotron of about 5 M parameters (heads wider than usual, most of whose dimensions carry no position, so that a vector
can be found again at any distance). It learns two things from text alone: catalogue text, and to answer "which entry of
this list goes with this vector" (associative recall). Large LLMs bring that skill; without it soft tokens cannot steer a
model, however long Stage 2 trains. ``pocket_model`` has the circuit that it starts from.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .. import datasets
from ..config import quiet
from ..training import autocast
from .pocket_corpus import START, Lists, TitleSource, Writer, common_words, soft_vectors, train_tokenizer
from .pocket_model import READS, build_model, soften, written_parts
from .pocket_skills import answer_logits, embed_lists, measure, perplexity
from .prompts import TEMPLATES, clean_title

SHOWN = 5  # tokens of a title that a prompt shows at least: the small LLM reads no meaning in more, and prompts stay short


@dataclass(frozen=True)
class Recipe:
    """The mixture of documents and the length of training."""

    steps: int = 800
    batch_tokens: int = 3000
    lr: float = 5e-4
    warmup: int = 100
    templates: dict[str, float] = field(
        default_factory=lambda: {"item-first": 0.5, "paper": 0.2, "text": 0.25, "text-only": 0.05}
    )
    hint_weight: float = 1.0
    largest: int = 22
    history: int = 10
    grow_at: float = 0.5
    seed: int = 0


class Maker:
    """The training loop with its curriculum: each template's lists grow when it is mastered. The weights of the circuit stay
    as they were written: gradients, noisy as they are on a small machine, would blur what it compares by."""

    def __init__(self, model, writer: Writer, recipe: Recipe):
        self.model, self.writer, self.recipe = model, writer, recipe
        self.size = {name: 12.0 for name in recipe.templates}
        self.right = {name: 0.0 for name in recipe.templates}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.circuit = [(part, part.detach().clone()) for part in written_parts(model)]
        self.step, self.seconds = 0, 0.0

    def _lists(self, name: str, rng: np.random.Generator) -> Lists:
        if name == "text":
            return self.writer.text(self.recipe.batch_tokens // 96)
        top = int(self.size[name])
        size = int(rng.integers(max(2, top // 2), top + 1))
        history = min(self.recipe.history, max(0, top - 3))
        batch = max(8, self.recipe.batch_tokens // (45 + 8 * (size + history // 2)))
        return self.writer.lists(name, batch, size, history)

    def train_step(self) -> None:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.step])
        self.writer.rng = self.writer.titles.rng = rng
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        names, weights = list(recipe.templates), np.array(list(recipe.templates.values()))
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        lists = self._lists(name, rng)
        count = max(1, int(-lists.ids.min()) - 1)
        grown = min(1.5, (self.size[name] - 3) / 5)  # noise comes when the first lists are mastered
        items, users = soft_vectors(count, lists, -grown, generator)
        rate = min(1.0, (self.step + 1) / recipe.warmup) * (0.5 + 0.5 * np.cos(np.pi * self.step / recipe.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = float(recipe.lr * max(rate, 0.02))
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
        with torch.no_grad():
            for part, as_written in self.circuit:
                part.copy_(as_written)
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


def save(maker: Maker, tokenizer, held_out: list[str], template: str, titles: str, folder: Path, lists: int = 500) -> None:
    """Weights (safetensors), tokenizer and card into ``folder``; each skill of the card is measured on ``lists`` lists."""
    from transformers import PreTrainedTokenizerFast

    model, writer = deepcopy(maker.model).eval(), maker.writer
    soften(model)
    model.half()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START).save_pretrained(folder)
    model.save_pretrained(folder)  # in half precision: half the size
    model.float()
    known = [name for name in TEMPLATES if name in maker.recipe.templates]
    skills = {name: measure(model, tokenizer, name, held_out, writer.limit, lists) for name in known}
    card = {
        "template": template, "max_title_tokens": SHOWN, "reads": READS,
        "parameters": sum(p.numel() for p in model.parameters()), "recipe": asdict(maker.recipe), "titles": titles,
        "lists grown to": {n: int(s) for n, s in maker.size.items()},
        "recall, first token, lists of 20 held-out titles": skills,
        "perplexity a token, held-out titles": round(perplexity(model, tokenizer, held_out), 1),
    }  # fmt: skip
    partial = folder / "card.json.partial"
    partial.write_text(json.dumps(card, indent=1) + "\n")
    partial.replace(folder / "card.json")


def landmarks(tokenizer) -> list[int]:
    """The tokens that open an answer, close a title, and stand before and behind the candidates."""
    return [tokenizer.encode(f"a{mark}").ids[-1] for mark in (' "', '"', " following", " recommendation")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (default: --out)")
    parser.add_argument("--dataset", help="a dataset whose titles are read (texts only, no interactions)")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--template", default="item-first", choices=sorted(TEMPLATES), help="what the card names")
    args = parser.parse_args()
    words = common_words()
    titles = sorted({clean_title(t, 80) for t in datasets.load(args.dataset).titles[1:]} - {""}) if args.dataset else []
    work = args.work or args.out
    for folder in (args.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(Recipe.seed)
    tokenizer = train_tokenizer(titles, words, args.vocabulary)
    train = [t for i, t in enumerate(titles) if i % 20]
    writer = Writer(tokenizer, TitleSource(words, train, np.random.default_rng(0)))
    maker = Maker(build_model(args.vocabulary, *landmarks(tokenizer)), writer, Recipe(steps=args.steps))
    maker.run(work)
    about = f"{len(train):,} titles of {args.dataset}" if args.dataset else "invented titles only"
    invented = TitleSource(words, [], np.random.default_rng(1))
    save(maker, tokenizer, titles[::20] or [invented.one() for _ in range(1000)], args.template, about, args.out)
    if work == args.out:
        (work / "checkpoint.pt").unlink()


if __name__ == "__main__":
    main()
