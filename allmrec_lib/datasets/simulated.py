"""A generated world with known truth, written in the raw Amazon format and read back as such.

Every item has a *group*, which only interactions show (users stay with a group or two, texts do not tell), and a *maker*,
which stands in the title and which users also prefer (texts tell, and so it helps where interactions are few).
Popularity follows Zipf's law.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from .amazon import from_amazon
from .base import Dataset

MAKERS = ["Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Hazel", "Ivy"]
THINGS = ["Lamp", "Chair", "Kettle", "Mirror", "Basket", "Clock", "Blanket", "Bottle", "Candle", "Notebook"]
COLOURS = ["Red", "Blue", "Green", "White", "Black", "Amber", "Grey", "Violet"]


def write_world(folder: Path, users: int = 300, items: int = 120, groups: int = 6, seed: int = 0) -> tuple[Path, Path]:
    """Write ``reviews.json`` and ``meta.json``; the same seed writes the same bytes. Returns the two paths."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(items) % groups)
    maker = rng.integers(len(MAKERS), size=items)
    names = rng.permutation([f"{t} {c}" for t in THINGS for c in COLOURS] * (items // 80 + 1))[:items]
    appeal = 1.0 / np.arange(1, items + 1) ** 0.7
    with open(folder / "meta.json", "w") as file:
        for i in range(items):
            text = [f"A {names[i].lower()} by {MAKERS[maker[i]]}."]
            file.write(json.dumps({"asin": f"I{i:04d}", "title": f"{MAKERS[maker[i]]} {names[i]}", "description": text}) + "\n")
    with open(folder / "reviews.json", "w") as file:
        for u in range(users):
            liking = np.where(np.isin(group, rng.choice(groups, 2, replace=False)), 12.0, 1.0)
            liking *= np.where(maker == rng.integers(len(MAKERS)), 4.0, 1.0)
            weight = appeal * liking
            count = int(rng.integers(5, 16))
            chosen = rng.choice(items, count, replace=False, p=weight / weight.sum())
            for place, item in enumerate(chosen):
                row = {"reviewerID": f"U{u:04d}", "asin": f"I{item:04d}", "overall": 5.0, "unixReviewTime": 10_000 * u + place}
                file.write(json.dumps(row) + "\n")
    return folder / "reviews.json", folder / "meta.json"


def load_simulated() -> Dataset:
    """The world of seed 0."""
    with tempfile.TemporaryDirectory() as folder:
        return from_amazon(*write_world(Path(folder)), "simulated")
