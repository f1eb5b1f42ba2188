"""Who may train: cold users (section 5.2.3) and few-shot training (5.2.4). Items, test rows and candidates stay the same."""

from __future__ import annotations

import hashlib

import numpy as np

from .config import DataConfig
from .sequences import Rows, Sequences


class LimitedSequences(Sequences):
    """All users are there and are tested; only those of the mask ``trains`` (n_users,) have training and validation rows."""

    def __init__(self, whole: Sequences, trains: np.ndarray):
        super().__init__(whole.flat, whole.starts, whole.n_items)
        self.trains = np.asarray(trains, dtype=bool)
        self.held_out = np.where(self.trains, self.held_out, self.lengths)

    def rows(self, part: str, max_len: int, all_items: bool = False) -> Rows:
        rows = super().rows(part, max_len, all_items)
        if part == "train":
            return rows
        users = rows.users.numpy() - 1
        keep = self.lengths[users] >= 3
        return rows.take(np.flatnonzero(keep & self.trains[users] if part == "validation" else keep))

    @property
    def digest(self) -> str:
        """A short hash of who trains."""
        return hashlib.sha256(np.packbits(self.trains).tobytes()).hexdigest()[:12]


def limited(sequences: Sequences, config: DataConfig) -> Sequences:
    """The sequences as the profile's ``data.cold_length`` and ``data.few_shot`` want them; without these, as they are.

    Raises ValueError when no user is left to train, or fewer than ``few_shot``.
    """
    if config.cold_length is None and config.few_shot is None:
        return sequences
    trains = np.ones(sequences.n_users, dtype=bool)
    if config.cold_length is not None:
        trains &= sequences.lengths != config.cold_length
    if config.few_shot is not None:
        able = np.flatnonzero(trains & (sequences.lengths >= 4))  # two items to train on, one to validate, one to test
        if len(able) < config.few_shot:
            raise ValueError(f"data.few_shot = {config.few_shot}, but only {len(able)} users have four items or more")
        rng = np.random.default_rng([config.few_shot_draw, config.few_shot])
        trains = np.isin(np.arange(sequences.n_users), rng.choice(able, config.few_shot, replace=False))
    if not trains.any():
        raise ValueError(f"data.cold_length = {config.cold_length} leaves no user to train on")
    return LimitedSequences(sequences, trains)
