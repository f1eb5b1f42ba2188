"""Raw files of any size in the format of Amazon Reviews 2018, for benchmarks: ``write_raw(folder, 5_000_000)``.

As in the real files, reviews lie in the order of their items, popularity and activity have long tails, most fields are
not wanted, and some are missing here and there. A review takes about 430 bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

POOL = 20_000  # different texts: far more than a compressor's window holds
BLOCK = 100_000


def write_raw(folder: Path, reviews: int, seed: int = 0, zipped: bool = True) -> tuple[Path, Path]:
    """Write ``reviews`` reviews and the metadata of their items; returns the two paths. The same arguments, the same files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    users = _long_tail(rng, reviews, max(reviews // 3, 2), 0.6)
    items = np.sort(_long_tail(rng, reviews, max(reviews // 30, 2), 0.7))
    texts, titles = _texts(rng, 2.9), _texts(rng, 1.2)
    ending = ".json.gz" if zipped else ".json"
    paths = folder / f"Synthetic{ending}", folder / f"meta_Synthetic{ending}"
    contents = _reviews(rng, users, items, texts, titles), _metadata(rng, np.unique(items), texts, titles)
    for path, blocks in zip(paths, contents, strict=True):
        with gzip.open(path, "wb", compresslevel=4) if zipped else open(path, "wb") as file:
            for block in blocks:
                file.write(block.encode())
    return paths


def _long_tail(rng: np.random.Generator, size: int, kinds: int, exponent: float) -> np.ndarray:
    """Draws from ``kinds`` things, the k-th with a chance of about k**-exponent, by the inverse of their distribution."""
    return rng.permutation(kinds)[(kinds * rng.random(size) ** (1 / (1 - exponent))).astype(np.int64)]


def _texts(rng: np.random.Generator, log_words: float) -> list[str]:
    """JSON strings of words of a long-tailed vocabulary; a few hold entities, quotes and letters that JSON escapes."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(letters[_long_tail(rng, n, 26, 0.5)]) for n in rng.integers(2, 10, 5000)]
    words[10], words[30], words[50], words[70] = "&amp;", '"so', "caf\u00e9", "fine.\n"
    lengths = np.clip(rng.lognormal(log_words, 0.9, POOL).astype(int), 1, 800)
    return [json.dumps(" ".join(words[w] for w in (5000 * rng.random(n) ** 3).astype(int))) for n in lengths]


def _reviews(
    rng: np.random.Generator, users: np.ndarray, items: np.ndarray, texts: list[str], titles: list[str]
) -> Iterator[str]:
    for start in range(0, len(users), BLOCK):
        block = slice(start, start + BLOCK)
        count = len(users[block])
        rating = rng.choice([1, 2, 3, 4, 5], count, p=[0.08, 0.05, 0.09, 0.18, 0.6])
        time = rng.integers(946_684_800, 1_538_352_000, count)
        text, title, other = (rng.integers(0, POOL, count) for _ in range(3))
        columns = users[block], items[block], rating, time, text, title, other
        yield "".join(
            f'{{"overall": {r}.0, {_vote(o)}"verified": {"true" if o % 4 else "false"}, "reviewTime": "{1 + o % 12:02d} {1 + o % 28}, 2015", '
            f'"reviewerID": "A{u:013d}", "asin": "B{i:09d}", {_style(o)}"reviewerName": "Reader {o}", "reviewText": {texts[t]}, '
            f'"summary": {titles[s]}, "unixReviewTime": {when}}}\n'
            for u, i, r, when, t, s, o in zip(*(column.tolist() for column in columns), strict=True)
        )


def _vote(number: int) -> str:
    return f'"vote": "{number % 90}", ' if number % 7 == 0 else ""


def _style(number: int) -> str:
    return f'"style": {{"Format:": " Kind {number % 40}"}}, ' if number % 2 else ""


def _metadata(rng: np.random.Generator, items: np.ndarray, texts: list[str], titles: list[str]) -> Iterator[str]:
    for item in items.tolist():
        a, b, c = rng.integers(0, POOL, 3).tolist()
        bought = json.dumps([f"B{(item * k) % 10**9:09d}" for k in range(a % 30)])
        yield (
            f'{{"category": ["Things", "Kind {a % 40}", "Sort {b % 300}"], "tech1": "", "description": [{texts[a]}, {texts[b]}], '
            f'"fit": "", "title": {titles[c]}, "also_buy": {bought}, "tech2": "", "brand": "Maker {c % 900}", "feature": [{texts[c]}], '
            f'"rank": "{a} in Things", "main_cat": "Things", "date": "", "price": "${a % 90}.99", "asin": "B{item:09d}", '
            '"imageURL": [], "imageURLHighRes": []}\n'
        )
