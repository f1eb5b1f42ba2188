"""Amazon Reviews, raw: one JSON object a line, plain or gzipped, reviews and metadata (Ni et al. 2019).

The authors' filter, one pass: users and items with at least ``threshold`` interactions stay. For Beauty and Toys ratings
under 3 are not *counted* towards the threshold and yet their rows are kept (``count_from=3``), which is what gives Table 2.
Titles and descriptions are read independently of each other (in the authors' code an item without description loses its
title too).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from .base import DataError, DataReport, Dataset
from .download import find
from .frames import from_frames

JUNK_TITLE = 250  # longer "titles" are pieces of the page


def read_lines(path: Path, report: DataReport, strict: bool = False) -> Iterator[dict]:
    """The JSON objects of a file, one a line.

    Bad lines are counted in ``report`` with their numbers and skipped; under ``strict``, and for a file that ends early,
    :class:`DataError` names file and line.
    """
    bad: list[int] = []
    opened = gzip.open(path, "rb") if _gzipped(path) else open(path, "rb")
    number = 0
    with opened as file:
        try:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError("not an object")
                    yield value
                except ValueError as error:
                    if strict:
                        raise DataError(f"{path.name}, line {number}: {error}; mend or delete the line") from error
                    bad.append(number)
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{path.name} ends early after line {number} ({error}); fetch it again") from error
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (" ..." if len(bad) > 10 else "")
        report.add(f"bad lines in {path.name}", len(bad), f"no JSON object, skipped: {shown}")


def _gzipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _reviews(path: Path, report: DataReport, strict: bool) -> pd.DataFrame:
    rows, missing = [], 0
    for record in read_lines(path, report, strict):
        try:
            rows.append((str(record["reviewerID"]), str(record["asin"]), float(record["overall"]), int(record["unixReviewTime"])))
        except (KeyError, TypeError, ValueError):
            missing += 1
    if missing:
        report.add("reviews without user, item, rating or time", missing, "skipped")
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def _texts(path: Path, wanted: set[str], report: DataReport, strict: bool) -> pd.DataFrame:
    texts: dict[str, tuple[str, str, str]] = {}
    junk = 0
    for record in read_lines(path, report, strict):
        item = str(record.get("asin", ""))
        if item not in wanted or item in texts:
            continue
        title = str(record.get("title") or "")
        if len(title) > JUNK_TITLE or title.startswith("<"):
            title, junk = "", junk + 1
        description = record.get("description") or ""
        if isinstance(description, list):
            description = " ".join(str(part) for part in description)
        texts[item] = (title, str(description), "")
    if junk:
        report.add("titles that are pieces of a page", junk, "treated as missing")
    frame = pd.DataFrame.from_dict(texts, orient="index", columns=["title", "description", "genres"])
    return frame.rename_axis("item").reset_index()


def from_amazon(reviews: Path, metadata: Path, name: str, domain: str = "item", threshold: int = 4, count_from: float = 0.0,
                strict: bool = False) -> Dataset:  # fmt: skip
    """A dataset from raw review and metadata files. Raises :class:`DataError` when nothing is left after the filter."""
    report = DataReport()
    events = _reviews(reviews, report, strict)
    report.add("reviews read", len(events), "")
    counted = events[events["rating"] >= count_from]
    kept = [counted.groupby(side)["rating"].size().loc[lambda s: s >= threshold].index for side in ("user", "item")]
    inside = events["user"].isin(kept[0]) & events["item"].isin(kept[1])
    report.add("reviews dropped by the filter", int((~inside).sum()), f"user or item with fewer than {threshold} interactions")
    events = events[inside]
    if events.empty:
        raise DataError(f"{name}: no review is left with threshold {threshold}; lower the threshold")
    twice = events.duplicated(["user", "item", "timestamp"])
    report.add("reviews repeated to the letter", int(twice.sum()), "the second one dropped")
    events = events[~twice]
    found = _texts(metadata, set(events["item"]), report, strict)
    missing = sorted(set(events["item"]) - set(found["item"]))
    report.add("items without metadata", len(missing), "kept, with the title 'No Title'")
    blank = pd.DataFrame({"item": missing, "title": "", "description": "", "genres": ""})
    items = pd.concat([found, blank], ignore_index=True).set_index("item").loc[events["item"].unique()].reset_index()
    dataset = from_frames(events, items, name, domain)
    report.rows += dataset.report.rows[1:]
    lengths = dataset.interactions.groupby("user").size()
    report.add("users with fewer than 3 interactions", int((lengths < 3).sum()), "kept for training, no test row")
    return Dataset(name, domain, dataset.interactions, dataset.items, report)


def load_gift_cards() -> Dataset:
    """Amazon 2018 Gift Cards: a tiny raw source."""
    folder = "amazon2018_giftcards_raw"
    return from_amazon(find(folder, "Gift_Cards_5.json.gz"), find(folder, "meta_Gift_Cards.json.gz"), "gift_cards")
