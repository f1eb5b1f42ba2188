"""SASRec training and evaluation against the usual public implementations' way: a Python loop over users.

Both sides train the same SASRec with the same batch size and optimizer. The slow side, like the public copies of SASRec,
draws users with replacement in Python, finds a negative for each position by trying, and pads every history to the full
length; it evaluates one user at a time and draws that user's negatives in a loop.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from allmrec_lib import metrics
from allmrec_lib.config import SequentialConfig
from allmrec_lib.recommenders.base import score_rows
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.recommenders.sequential import SequentialTask
from allmrec_lib.sequences import Rows, Sequences

from .common import by_turns, compared, row
from .worlds import World

COMMAND = "python -m tests.bench sasrec evaluation"


class PerUserSampler:
    """The public copies' sampler: one user at a time, one position at a time, negatives tried until one fits."""

    def __init__(self, sequences: Sequences, max_len: int, seed: int = 0):
        stops = sequences.starts[1:] - sequences.held_out
        ends = zip(sequences.starts[:-1], stops, strict=True)
        self.train = {user: sequences.flat[a:b].tolist() for user, (a, b) in enumerate(ends, 1)}
        self.n_users, self.n_items, self.max_len = sequences.n_users, sequences.n_items, max_len
        self.random = np.random.RandomState(seed)

    def unseen(self, seen: set[int]) -> int:
        item = self.random.randint(1, self.n_items + 1)
        while item in seen:
            item = self.random.randint(1, self.n_items + 1)
        return item

    def row(self, user: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets and negatives of a user, each (max_len,), filled from the right."""
        inputs, targets, negatives = (np.zeros(self.max_len, dtype=np.int64) for _ in range(3))
        following, place, seen = self.train[user][-1], self.max_len - 1, set(self.train[user])
        for item in reversed(self.train[user][:-1]):
            inputs[place], targets[place], negatives[place] = item, following, self.unseen(seen)
            following, place = item, place - 1
            if place == -1:
                break
        return inputs, targets, negatives

    def batch(self, size: int) -> tuple[torch.Tensor, ...]:
        """``size`` users drawn with replacement among those with at least two training items."""
        rows = []
        while len(rows) < size:
            user = self.random.randint(1, self.n_users + 1)
            if len(self.train[user]) > 1:
                rows.append(self.row(user))
        return tuple(torch.tensor(np.array(column)) for column in zip(*rows, strict=True))


def full_length_loss(model: SASRec, inputs: torch.Tensor, targets: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Equation 1 over all columns, padding masked at the end: what :class:`SequentialTask` computes without padding."""
    hidden = model.hidden(inputs)
    good, bad = ((hidden * model.embed(items)).sum(-1)[targets != 0] for items in (targets, negatives))
    return F.softplus(-good).mean() + F.softplus(bad).mean()


def steps_of(model: SASRec) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.groups(), betas=(0.9, 0.98))


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def training_sides(world: World, config: SequentialConfig, steps: int) -> tuple[dict, int]:
    """A whole epoch of the library, whose batches differ in length, and ``steps`` batches of the sampler, which are all alike;
    and how many rows the epoch has."""
    task = SequentialTask(SASRec(world.sequences.n_items, config), world.sequences, world.validation, "cpu")
    other, sampler = SASRec(world.sequences.n_items, config), PerUserSampler(world.sequences, config.max_len)
    optimizers = steps_of(task.module), steps_of(other)

    def ours() -> None:
        task.module.train()
        for rows in task.batches(torch.randperm(task.n_rows)):
            update(optimizers[0], task.loss(rows))

    def theirs() -> None:
        other.train()
        for _ in range(steps):
            update(optimizers[1], full_length_loss(other, *sampler.batch(config.batch_size)))

    return {"ours": ours, "theirs": theirs}, task.n_rows


def rank_by_loop(model: SASRec, rows: Rows, sequences: Sequences, negatives: int = 19, seed: int = 0,
                 candidates: torch.Tensor | None = None) -> list[int]:  # fmt: skip
    """The rank of each row's target, one user at a time; negatives are drawn in a loop, unless ``candidates`` are given."""
    random, found = np.random.RandomState(seed), []
    with torch.no_grad():
        tasks = zip(rows.users.tolist(), rows.histories, rows.targets.tolist(), strict=True)
        for number, (user, history, target) in enumerate(tasks):
            seen = set(sequences.flat[sequences.starts[user - 1] : sequences.starts[user]].tolist())
            items = [target]
            for _ in range(negatives):
                item = random.randint(1, sequences.n_items + 1)
                while item in seen:
                    item = random.randint(1, sequences.n_items + 1)
                items.append(item)
            shown = torch.tensor(items) if candidates is None else candidates[number]
            scores = model.embed(shown) @ model.hidden(history[None])[0, -1]  # all columns, as the public copies
            found.append(int((-scores).argsort().argsort()[0]))
    return found


def sasrec(worlds: list[World], steps: int = 10, rounds: int = 4) -> list[dict]:
    """The first dataset is the row's, others stand in ``also``."""
    config, found = SequentialConfig(), []
    for world in worlds:
        sides, rows = training_sides(world, config, steps)
        taken = by_turns(sides, rounds)
        slow = [t * rows / (steps * config.batch_size) for t in taken["theirs"]]
        found.append({"dataset": world.name, **compared(taken["ours"], slow, rows)})
    return [row("SASRec training", found[0], "users/s", COMMAND, also=found[1:])]


def evaluation(worlds: list[World], users: int = 200, rounds: int = 3) -> list[dict]:
    """All test users by the library against ``users`` of them by the loop, whose time is counted up to all."""
    found = []
    for world in worlds:
        model = SASRec(world.sequences.n_items, SequentialConfig()).eval().requires_grad_(False)
        some = world.test_rows.take(torch.arange(min(users, len(world.test_rows))))
        sides = {"ours": lambda w=world, m=model: metrics.per_user(score_rows(m, w.test_rows, w.test)),
                 "theirs": lambda w=world, m=model, some=some: rank_by_loop(m, some, w.sequences)}  # fmt: skip
        taken = by_turns(sides, rounds)
        slow = [t * len(world.test_rows) / len(some) for t in taken["theirs"]]
        found.append({"dataset": world.name, **compared(taken["ours"], slow, len(world.test_rows))})
    return [row("evaluation", found[0], "users/s", COMMAND, also=found[1:])]
