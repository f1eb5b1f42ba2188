"""Who may train: cold users (section 5.2.3) and few-shot training (5.2.4). The items stay the same."""

from __future__ import annotations

import hashlib

import numpy as np

from .config import DataConfig
from .sequences import Rows, Sequences


class LimitedSequences(Sequences):
    """All users are there; those of the mask ``trains`` (n_users,) have training and validation rows, those of ``tested``
    test rows."""

    def __init__(self, whole: Sequences, trains: np.ndarray, tested: np.ndarray):
        super().__init__(whole.flat, whole.starts, whole.n_items)
        self.trains, self.tested = trains, tested & (self.lengths >= 3)
        self.held_out = np.where(trains, self.held_out, self.lengths)

    def rows(self, part: str, max_len: int, all_items: bool = False) -> Rows:
        rows = super().rows(part, max_len, all_items)
        if part == "train":
            return rows
        keep = self.trains & (self.lengths >= 3) if part == "validation" else self.tested
        return rows.take(np.flatnonzero(keep[rows.users.numpy() - 1]))

    @property
    def digest(self) -> str:
        """A short hash of who trains and who is tested."""
        return hashlib.sha256(np.packbits([self.trains, self.tested]).tobytes()).hexdigest()[:12]


def limited(sequences: Sequences, config: DataConfig) -> Sequences:
    """The sequences as the profile's ``data.cold`` or ``data.few_shot`` want them; without these, as they are.

    Raises ValueError when there are no such users, or fewer than are to train, or when both are set.
    """
    if config.cold and config.few_shot is not None:
        raise ValueError(f"data.cold = {config.cold} and data.few_shot = {config.few_shot}: one of the two")
    everyone, rng = np.ones(sequences.n_users, dtype=bool), np.random.default_rng([config.few_shot_draw, config.few_shot or 0])
    if config.cold:
        cold = [_some(np.flatnonzero(sequences.lengths == n), config.cold_users, rng) for n in config.cold]
        tested = np.isin(np.arange(sequences.n_users), np.concatenate(cold))
        if not tested.any():
            there = np.unique(sequences.lengths)
            raise ValueError(f"data.cold = {config.cold}: no user has that many items; there are {there}")
        return LimitedSequences(sequences, ~tested, tested)
    if config.few_shot is None:
        return sequences
    able = np.flatnonzero(sequences.lengths >= 4)  # two items to train on, one to validate, one to test
    if len(able) < config.few_shot:
        raise ValueError(f"data.few_shot = {config.few_shot}, but only {len(able)} users have four items or more")
    trains = np.isin(np.arange(sequences.n_users), _some(able, config.few_shot, rng))
    return LimitedSequences(sequences, trains, everyone)


def _some(users: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return users if len(users) <= count else rng.choice(users, count, replace=False)
