"""A generated world with known truth, written in the raw Amazon format and read back as such.

Every item has a *group*, which only interactions show (users stay with two of them, texts do not tell; the item table has
it as the genre, which no model reads), and a *maker*, which stands in the title and of which every user prefers one (texts
tell, also where interactions are few). Popularity follows Zipf's law with exponent 0.7. A few items share their title, as in
every real catalogue.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .amazon import from_amazon
from .base import Dataset

MAKERS = ["Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Hazel", "Ivy"]
THINGS = ["Lamp", "Chair", "Kettle", "Mirror", "Basket", "Clock", "Blanket", "Bottle", "Candle", "Notebook"]
COLOURS = ["Red", "Blue", "Green", "White", "Black", "Amber", "Grey", "Violet"]
ROOMS = ["Kitchen", "Garden", "Attic", "Study", "Porch", "Cellar"]  # what a group is called as a genre


@dataclass(frozen=True)
class World:
    """The truth. By item key ("I0000" ...): ``group``, ``maker``, ``title``, ``appeal`` (relative popularity); by user
    ("U0000" ...): ``groups`` (two), ``likes`` (a maker) and ``history`` (item numbers in time order)."""

    group: np.ndarray
    maker: np.ndarray
    title: list[str]
    appeal: np.ndarray
    groups: list[np.ndarray]
    likes: list[int]
    history: list[np.ndarray]


def make_world(users: int = 300, items: int = 120, groups: int = 6, seed: int = 0) -> World:
    """A world; the same arguments make the same one."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(items) % groups)
    maker = rng.integers(len(MAKERS), size=items)
    names = rng.permutation([f"{t} {c}" for t in THINGS for c in COLOURS] * (items // 80 + 1))[:items]
    appeal = 1.0 / np.arange(1, items + 1) ** 0.7
    two, likes, history = [], [], []
    for _ in range(users):
        two.append(rng.choice(groups, 2, replace=False))
        likes.append(int(rng.integers(len(MAKERS))))
        weight = appeal * np.where(np.isin(group, two[-1]), 12.0, 1.0) * np.where(maker == likes[-1], 4.0, 1.0)
        count = int(rng.integers(5, 16))
        history.append(rng.choice(items, count, replace=False, p=weight / weight.sum()))
    return World(group, maker, [f"{MAKERS[m]} {n}" for m, n in zip(maker, names, strict=True)], appeal, two, likes, history)


def _room(group: int) -> str:
    return ROOMS[group] if group < len(ROOMS) else f"Room {group + 1}"


def write_world(folder: Path, world: World) -> tuple[Path, Path]:
    """Write the world's ``reviews.json`` and ``meta.json``; returns the two paths."""
    meta = []
    for i, title in enumerate(world.title):
        maker, name = title.split(" ", 1)
        meta.append({"asin": f"I{i:04d}", "title": title, "description": [f"A {name.lower()} by {maker}."],
                     "category": ["Simulated", _room(int(world.group[i]))]})  # fmt: skip
    reviews = [
        {"reviewerID": f"U{u:04d}", "asin": f"I{item:04d}", "overall": 5.0, "unixReviewTime": 10_000 * u + place}
        for u, history in enumerate(world.history)
        for place, item in enumerate(history)
    ]
    for name, records in (("reviews.json", reviews), ("meta.json", meta)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "reviews.json", folder / "meta.json"


def build_simulated(files: list[Path], users: int = 300, items: int = 120, groups: int = 6, seed: int = 0) -> Dataset:
    """The world of ``seed``, by way of raw files."""
    with tempfile.TemporaryDirectory() as folder:
        return from_amazon(*write_world(Path(folder), make_world(users, items, groups, seed)), "simulated", threshold=4)
