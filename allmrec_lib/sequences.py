"""The leave-last-out split, padded tensors and stored candidate sets. No Python loop over users.

Section 5.1 of the paper: a user's last item is the test item, the one before the validation item, the rest is training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .datasets.base import DataError, Dataset

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rows:
    """N prediction tasks: ``users`` (N,), ``histories`` (N, L) padded with 0 on the left, ``targets`` (N,)."""

    users: Tensor
    histories: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def take(self, index: Tensor) -> Rows:
        return Rows(self.users[index], self.histories[index], self.targets[index])


@dataclass(frozen=True)
class Candidates:
    """What is ranked for N users: ``items`` (N, C) with the positive in column 0; ``order`` (N, C) is the permutation
    in which a prompt shows them, so that the positive's place in the list tells nothing."""

    users: Tensor
    items: Tensor
    order: Tensor

    def __post_init__(self) -> None:
        ordered = self.items.sort(dim=1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero()
        if len(twice):
            row = int(twice[0])
            raise DataError(
                f"candidate row {row} (user {int(self.users[row])}) holds an item twice: "
                f"{sorted(self.items[row].tolist())}; delete the stored candidates and draw them again"
            )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def digest(self) -> str:
        stacked = torch.cat([self.users[:, None], self.items, self.order], dim=1).to(torch.int32)
        return hashlib.sha256(stacked.numpy().tobytes()).hexdigest()[:16]

    def take(self, index: Tensor) -> Candidates:
        return Candidates(self.users[index], self.items[index], self.order[index])

    def save(self, path: Path) -> None:
        np.savez_compressed(path, users=self.users.numpy(), items=self.items.numpy(), order=self.order.numpy())

    @classmethod
    def load(cls, path: Path) -> Candidates:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(*(torch.from_numpy(arrays[name]) for name in ("users", "items", "order")))


class Sequences:
    """All users' item sequences, one after another in ``flat``; user u's lie at ``starts[u-1]:starts[u]``.

    Users with fewer than three interactions have no validation and no test row; all their items are training.
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray, n_items: int):
        self.flat = np.asarray(flat, dtype=np.int64)
        self.starts = np.asarray(starts, dtype=np.int64)
        self.n_items = int(n_items)
        self.lengths = np.diff(self.starts)
        self.held_out = np.where(self.lengths >= 3, 2, 0)  # events kept from training
        self._met: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> Sequences:
        """Group the interactions by user; each user's order is kept."""
        users = dataset.interactions["user"].to_numpy()
        order = np.argsort(users, kind="stable")
        lengths = np.bincount(users, minlength=dataset.n_users + 1)[1:]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return cls(dataset.interactions["item"].to_numpy()[order], starts, dataset.n_items)

    @property
    def n_users(self) -> int:
        return len(self.starts) - 1

    def interacted(self, users: np.ndarray, items: np.ndarray, where: str = "anywhere") -> np.ndarray:
        """Whether each (user, item) pair occurs ``where``: "anywhere" (training, validation or test) or in "training", which is
        all that what trains may ask. Any shape, broadcast."""
        pairs = self._pairs[where]
        keys = np.asarray(users) * (self.n_items + 1) + np.asarray(items)
        place = np.searchsorted(pairs, keys)
        return pairs[np.minimum(place, len(pairs) - 1)] == keys

    def _before(self, stops: np.ndarray, firsts: np.ndarray, max_len: int) -> np.ndarray:
        """The ``max_len`` items before position ``stops`` (exclusive), 0 where that is before ``firsts``. (N, L)."""
        positions = stops[:, None] - np.arange(max_len, 0, -1)
        inside = positions >= firsts[:, None]
        return np.where(inside, self.flat[np.maximum(positions, 0)], 0)

    def rows(self, part: str, max_len: int, all_items: bool = False) -> Rows:
        """The prediction tasks of a part.

        ``train``: each user's last *training* item after those before it (section 4.1.3: "we only considered the last
        item"), or every position after the first with ``all_items`` (section 5.4.2). ``validation``, ``test``: one row
        a user, the history being all that came before.
        """
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; one of {', '.join(PARTS)}")
        users = np.arange(self.n_users)
        if part == "train":
            stops = self.starts[1:] - self.held_out
            if all_items:
                sizes = np.maximum(stops - self.starts[:-1] - 1, 0)
                users = np.repeat(users, sizes)
                offsets = np.arange(len(users)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                targets = self.starts[users] + 1 + offsets
            else:
                users = users[stops - self.starts[:-1] >= 2]
                targets = stops[users] - 1
        else:
            users = users[self.held_out > 0]
            targets = self.starts[users + 1] - (1 if part == "test" else 2)
        histories = self._before(targets, self.starts[users], max_len)
        return Rows(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (users + 1, histories, self.flat[targets])))

    def train_windows(self, max_len: int) -> tuple[Tensor, Tensor]:
        """The last ``max_len + 1`` training items of every user with at least two, padded on the left:
        inputs (U, L) and the items that follow them, targets (U, L). Where a target is 0 nothing is predicted."""
        stops = self.starts[1:] - self.held_out
        keep = stops - self.starts[:-1] >= 2
        window = torch.from_numpy(self._before(stops[keep], self.starts[:-1][keep], max_len + 1))
        inputs, targets = window[:, :-1].contiguous(), window[:, 1:].clone()
        targets[inputs == 0] = 0
        return inputs, targets

    def train_counts(self) -> np.ndarray:
        """How often each item occurs in training. (n_items + 1,), entry 0 is padding's and 0."""
        return self._train_counts.copy()

    def train_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct (user, item) pairs of training, sorted: users (P,), items (P,)."""
        return np.divmod(self._pairs["training"], self.n_items + 1)

    @cached_property
    def known(self) -> np.ndarray:
        """The items that occur in training, sorted."""
        return np.flatnonzero(self._train_counts)

    def met(self, pool: np.ndarray, where: str = "anywhere") -> np.ndarray:
        """How many items of ``pool`` each user interacted with: (n_users + 1,). Kept for the pool asked for last."""
        if where not in self._met or self._met[where][0] is not pool:
            users, items = np.divmod(self._pairs[where], self.n_items + 1)
            self._met[where] = pool, np.bincount(users[np.isin(items, pool)], minlength=self.n_users + 1)
        return self._met[where][1]

    @cached_property
    def _pairs(self) -> dict[str, np.ndarray]:
        """The distinct (user, item) pairs that occur anywhere and in training, as sorted numbers user * (n_items + 1) + item."""
        keys = np.repeat(np.arange(1, self.n_users + 1), self.lengths) * (self.n_items + 1) + self.flat
        return {"anywhere": np.unique(keys), "training": np.unique(keys[self._in_training])}

    @cached_property
    def _in_training(self) -> np.ndarray:
        return np.arange(len(self.flat)) < np.repeat(self.starts[1:] - self.held_out, self.lengths)

    @cached_property
    def _train_counts(self) -> np.ndarray:
        return np.bincount(self.flat[self._in_training], minlength=self.n_items + 1)


def candidate_sets(
    sequences: Sequences, part: str, n_negatives: int = 19, seed: int = 0, max_users: int | None = None
) -> Candidates:
    """One positive and ``n_negatives`` different items the user never interacted with, for each row of a part.

    Training, validation and test items are all excluded. ``max_users`` draws that many users with the seed (None: all).
    Raises :class:`DataError` as :func:`with_negatives` does.
    """
    rows = sequences.rows(part, 1)
    rng = np.random.default_rng([seed, PARTS.index(part)])
    if max_users is not None and max_users < len(rows):
        rows = rows.take(torch.from_numpy(np.sort(rng.choice(len(rows), max_users, replace=False))))
    return with_negatives(sequences, rows, n_negatives, rng, np.arange(1, sequences.n_items + 1))


def with_negatives(sequences: Sequences, rows: Rows, count: int, rng: np.random.Generator, pool: np.ndarray,
                   where: str = "anywhere") -> Candidates:  # fmt: skip
    """The rows' targets, each with ``count`` different items of ``pool`` that the user did not interact with, ``where`` as in
    :meth:`Sequences.interacted`.

    Raises :class:`DataError` naming a user for whom the pool has too few other items.
    """
    users = rows.users.numpy()
    met = sequences.met(pool, where)
    short = users[len(pool) - met[users] < count]
    if len(short):
        raise DataError(
            f"user {short[0]} interacted with {met[short[0]]} of {len(pool)} items, which leaves fewer than {count} "
            "negatives; lower data.negatives or drop the user"
        )
    drawn = rng.choice(pool, (len(users), count))
    while True:
        wrong = sequences.interacted(users[:, None], drawn, where)
        order = np.argsort(drawn, axis=1, kind="stable")
        ordered = np.take_along_axis(drawn, order, axis=1)
        again = np.concatenate([np.zeros((len(users), 1), bool), ordered[:, 1:] == ordered[:, :-1]], axis=1)
        np.put_along_axis(wrong, order, again | np.take_along_axis(wrong, order, axis=1), axis=1)
        if not wrong.any():
            break
        drawn[wrong] = rng.choice(pool, int(wrong.sum()))
    items = np.concatenate([rows.targets.numpy()[:, None], drawn], axis=1)
    order = rng.permuted(np.tile(np.arange(count + 1), (len(users), 1)), axis=1)
    return Candidates(rows.users, torch.from_numpy(items), torch.from_numpy(order))
