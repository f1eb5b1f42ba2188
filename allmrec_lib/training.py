"""One training loop for every model: progress bar, mixed precision, checkpoints, resume, early stopping.

A model is trained by handing :func:`fit` a :class:`Task`. Each step seeds the generator from (seed, epoch, step), so
that a run which was killed and resumed gives the same numbers as one that was not. Several processes (``shares``) train one
model together: each computes its share of every batch, the first one writes.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import processes
from .config import quiet
from .meter import give_back_memory
from .shares import step_of


class Task(Protocol):
    """What :func:`fit` trains. ``module`` holds all that learns; the rows are numbered 0..n_rows-1."""

    module: nn.Module
    n_rows: int

    def parameters(self) -> list[dict]:
        """Parameter groups for Adam, each {"params": ..., "lr": ...}."""

    def batches(self, order: Tensor) -> list[Tensor]:
        """The rows in ``order``, cut into batches of row numbers."""

    def begin_epoch(self) -> None:
        """Called before an epoch's first step, where a task has it; what it changes must lie in ``module``'s state."""

    def loss(self, rows: Tensor) -> Tensor:
        """The loss of a batch, a scalar. With several processes: of this one's :class:`~.shares.Share` of the rows, weighed
        so that the mean over the processes is the loss of the batch; or simply of the whole batch, in every process."""

    def validate(self) -> float:
        """The validation metric; higher is better. Called in every process; the first one's decides."""


@dataclass
class History:
    """One row an evaluation: epoch, mean training loss since the last, validation metric, seconds so far."""

    rows: list[dict] = field(default_factory=list)
    best: float = float("-inf")
    best_epoch: int = 0

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["epoch", "loss", "metric", "seconds"])


def write_history(history: History, folder: Path) -> None:
    """Beside a trained model, as ``history.json``."""
    (folder / "history.json").write_text(json.dumps(vars(history)))


def read_history(folder: Path) -> History:
    """The training history that lies with an artifact."""
    return History(**json.loads((folder / "history.json").read_text()))


def native_bf16(device: str) -> bool:
    """Whether "cpu" or "cuda" computes bf16 itself: a card from before Ampere (compute capability 8) does not."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()


def autocast(device: str, precision: str):
    """Mixed precision: "bf16", "fp32", or "auto" (bf16 where the device computes it natively, else fp32)."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"unknown precision {precision!r}; one of auto, bf16, fp32")
    use = precision == "bf16" or (precision == "auto" and native_bf16(device))
    return torch.autocast(device, torch.bfloat16, enabled=use)


@contextmanager
def repeatable():
    """Sums in a fixed order: without it, gradients that several rows add to one place differ in the last digit from run
    to run. On CUDA an operation that has no such order warns instead of failing."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


@contextmanager
def cpu_threads(count: int | None):
    """Computing with ``count`` CPU threads (None: as many as before). The order of sums, hence the last digit, depends on
    how many there are; a small model is fastest with one, and then its numbers do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seed_for(*parts: int | str) -> int:
    """A seed from several numbers or names: the same parts give the same seed everywhere."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Batches of ``size`` rows; the last may be smaller and is kept."""
    return list(order.split(size))


def bucketed_batches(order: Tensor, size: int, lengths: Tensor, pool: int = 20) -> list[Tensor]:
    """Batches of rows of similar length, so that little is padding: every ``pool`` batches' worth of the shuffled
    ``order`` are sorted by ``lengths``, cut, and the batches of the pool shuffled again (seeded by the order itself)."""
    batches = []
    for part in order.split(size * pool):
        cut = part[lengths[part].argsort(stable=True)].split(size)
        shuffle = torch.Generator().manual_seed(int(part[0]))
        batches += [cut[i] for i in torch.randperm(len(cut), generator=shuffle)]
    return batches


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that learn; frozen ones are somebody else's and are not saved."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """What else a module's state holds: tensors that do not learn, and may change in training."""
    kept = module.state_dict()
    return {name: value for name, value in module.named_buffers() if name in kept}


def load_trainable(module: nn.Module, state: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


class _Checkpoint:
    """The state of a run in one file, written beside and renamed, so that a kill at any moment loses nothing."""

    def __init__(self, folder: Path | None, every_s: float):
        self.path = folder / "checkpoint.pt" if folder else None
        self.every_s = every_s
        self.written = time.monotonic()

    def load(self) -> dict | None:
        if self.path is None or not self.path.exists():
            return None
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def due(self) -> bool:
        return self.path is not None and processes.is_main() and time.monotonic() - self.written > self.every_s

    def save(self, state: dict) -> None:
        if self.path is None or not processes.is_main():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)
        self.written = time.monotonic()


class _Run:
    """A training under way, and what a checkpoint holds of it: weights, optimizer, the best weights so far and how far it is."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, checkpoint: _Checkpoint):
        self.task, self.optimizer, self.checkpoint = task, optimizer, checkpoint
        self.history, self.best = History(), trainable_state(task.module)
        self.epoch, self.step, self.total, self.stale, seconds = 1, 0, 0.0, 0, 0.0
        state = processes.from_main(checkpoint.load())
        if state:
            load_trainable(task.module, state["module"])
            for name, value in buffers(task.module).items():
                value.copy_(state["buffers"][name])
            optimizer.load_state_dict(state["optimizer"])
            self.best, self.history = state["best"], History(**state["history"])
            self.epoch, self.step, self.total, seconds, self.stale = state["progress"]
        self.begin = time.monotonic() - seconds

    def save(self) -> None:
        progress = (self.epoch, self.step, self.total, time.monotonic() - self.begin, self.stale)
        self.checkpoint.save({
            "module": trainable_state(self.task.module), "buffers": buffers(self.task.module), "best": self.best,
            "optimizer": self.optimizer.state_dict(), "progress": progress, "history": vars(self.history),
        })  # fmt: skip

    def save_if_due(self) -> None:
        if self.checkpoint.due():
            self.save()

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.total, self.step = self.total + processes.mean(loss.detach()), self.step + 1

    def evaluate(self, epoch: int, loss: float | None) -> float:
        """Validate; the weights are kept if they are the best so far, and counted as stale otherwise."""
        self.task.module.eval()
        metric = processes.from_main(self.task.validate())
        self.history.rows.append({"epoch": epoch, "loss": loss, "metric": metric, "seconds": time.monotonic() - self.begin})
        self.total, self.stale = 0.0, self.stale + 1
        if metric > self.history.best:
            self.history.best, self.history.best_epoch = metric, epoch
            self.best, self.stale = trainable_state(self.task.module), 0
        return metric


@repeatable()
def fit(
    task: Task,
    *,
    epochs: int,
    patience: int,
    eval_every: int = 1,
    seed: int = 0,
    folder: Path | None = None,
    label: str = "training",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    checkpoint_s: float = 30.0,
    evaluate_start: bool = False,
) -> History:
    """Train ``task`` for at most ``epochs`` epochs and leave the best weights by validation in ``task.module``.

    Stops when ``patience`` evaluations (one every ``eval_every`` epochs) brought nothing better. With ``folder`` the run
    is checkpointed every ``checkpoint_s`` seconds and resumes where it stopped. With ``evaluate_start`` the weights before
    the first step are a candidate too (epoch 0).
    """
    optimizer = torch.optim.Adam(task.parameters(), weight_decay=weight_decay, betas=betas)
    run, loss_of = _Run(task, optimizer, _Checkpoint(folder, checkpoint_s)), step_of(task)
    per_epoch = len(task.batches(torch.arange(task.n_rows)))
    bar = tqdm(total=epochs * per_epoch, initial=(run.epoch - 1) * per_epoch + run.step, desc=label, unit="step",
               disable=quiet(), smoothing=0.05, mininterval=0.5, leave=False)  # fmt: skip
    if evaluate_start and not run.history.rows:
        bar.set_postfix(metric=f"{run.evaluate(0, None):.4f}")
    while run.epoch <= epochs and run.stale < patience:
        order = torch.randperm(task.n_rows, generator=torch.Generator().manual_seed(seed_for(seed, run.epoch)))
        batches = task.batches(order)
        if run.step == 0 and hasattr(task, "begin_epoch"):
            task.begin_epoch()
        task.module.train()
        for number in range(run.step, len(batches)):
            torch.manual_seed(seed_for(seed, run.epoch, number))
            run.update(loss_of(batches[number]))
            bar.update()
            run.save_if_due()
            give_back_memory()
        if run.epoch % eval_every == 0 or run.epoch == epochs:
            since = (run.epoch - 1) % eval_every + 1  # epochs; fewer than eval_every at the end
            bar.set_postfix(metric=f"{run.evaluate(run.epoch, run.total / (since * len(batches))):.4f}")
        run.epoch, run.step = run.epoch + 1, 0
        run.save_if_due()
    run.save()
    bar.close()
    load_trainable(task.module, run.best)
    task.module.eval()
    return run.history
