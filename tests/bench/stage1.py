"""Stage 1 against the straightforward way: every row's text tokenised and read anew in every step, by all layers, repeats included.

Both sides compute the same loss (equation 6) of the same rows and update the same weights. The library tokenises a text
once, reads the distinct texts of a batch and no others, in chunks of like length, and keeps what frozen layers said.
"""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer

from allmrec_lib.alignment import Alignment, AlignmentTask, losses
from allmrec_lib.config import Stage1Config
from allmrec_lib.text import TextEncoder, encoder_path, item_texts

from .common import by_turns, compared, row, seconds
from .worlds import World

COMMAND = "python -m tests.bench stage1"


class EveryText(torch.nn.Module):
    """A sentence encoder asked with the texts themselves; ``train_layers`` topmost layers learn (None: all)."""

    def __init__(self, config: Stage1Config, texts: list[str]):
        super().__init__()
        self.model, self.texts = SentenceTransformer(encoder_path(config.encoder), device="cpu"), texts
        self.model.max_seq_length = config.max_text_tokens
        self.dim = self.model.get_embedding_dimension()
        if config.train_layers is not None:
            self.model.requires_grad_(False)
            layers = self.model[0].auto_model.encoder.layer
            layers[len(layers) - config.train_layers :].requires_grad_(True)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        tokens = self.model.preprocess([self.texts[item] for item in items.tolist()])
        return self.model(tokens)["sentence_embedding"]


class EveryRowTask(AlignmentTask):
    """The same loss with a text encoded for every row."""

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        batch = self.rows.take(rows)
        negatives, texts = self._negatives(batch), self.module.text(batch.targets)
        return losses(self.module, self.config, self.x[rows], self.embeddings[batch.targets], self.embeddings[negatives], texts)["total"]


def encoder_of(world: World, config: Stage1Config) -> TextEncoder:
    return TextEncoder(config.encoder, item_texts(world.data), config.max_text_tokens, config.train_layers)


def tasks(world: World, config: Stage1Config, fast: TextEncoder) -> tuple[AlignmentTask, EveryRowTask]:
    """Both sides with the same weights at the start."""
    sides = []
    for text, kind in ((fast, AlignmentTask), (EveryText(config, item_texts(world.data)), EveryRowTask)):
        torch.manual_seed(0)
        model = Alignment(world.cf.item_embeddings().shape[1], text, config)
        sides.append(kind(model, world.cf, world.sequences, config, world.max_len, "cpu"))
    return tuple(sides)


def training_sides(both: tuple[AlignmentTask, AlignmentTask], steps: int) -> dict:
    """Optimizer steps on the same rows in the same order."""
    sides = {}
    for name, task in zip(("ours", "theirs"), both, strict=True):
        optimizer = torch.optim.Adam(task.parameters())
        order = torch.randperm(task.n_rows, generator=torch.Generator().manual_seed(0))
        batches = task.batches(order[: steps * task.config.batch_size])

        def side(task=task, optimizer=optimizer, batches=batches) -> None:
            task.module.train()
            for part in batches:
                optimizer.zero_grad(set_to_none=True)
                task.loss(part).backward()
                optimizer.step()

        sides[name] = side
    return sides


def stage1(world: World, steps: int = 3, rounds: int = 2, max_text_tokens: int = 32, batch_size: int = 32) -> list[dict]:
    """With the topmost two layers learning (the profile ``laptop``), and with all (the paper's way).

    ``once_s``: what the library spends before the first step, on tokens and on what frozen layers say of every text.
    """
    found = []
    for layers in (2, None):
        config, made = Stage1Config(train_layers=layers, max_text_tokens=max_text_tokens, batch_size=batch_size), []
        once = seconds(lambda config=config, made=made: made.append(encoder_of(world, config)))
        taken = by_turns(training_sides(tasks(world, config, made[0]), steps), rounds)
        found.append({"train_layers": layers or "all", "once_s": once,
                      **compared(taken["ours"], taken["theirs"], steps * batch_size)})  # fmt: skip
    return [row("Stage 1", found[0], "rows/s", COMMAND, dataset=world.name, max_text_tokens=max_text_tokens, also=found[1:])]
