"""Amazon Reviews, raw: one JSON object a line, plain or gzipped, reviews and metadata (2018: Ni et al. 2019; 2014: McAuley
et al. 2015, whose metadata are Python literals).

The authors' filter, one pass: events stay whose user and item both have at least ``threshold`` interactions; what is left
may have fewer. For Beauty and Toys ratings under 3 are not *counted* towards the threshold of 4 and yet their rows are
kept (``count_from=3``): that gives the paper's Table 2, where the text says "fewer than 4 interactions removed". Title and
description are read independently of each other (in the authors' code an item without a description loses its title).
"""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .base import DataError, DataReport, Dataset, is_junk_title, plain_text
from .download import find
from .frames import from_frames

HOME = "The files are listed at https://nijianmo.github.io/amazon/ (2018) and mcauleylab.ucsd.edu/public_datasets."


@dataclass(frozen=True)
class Category:
    """Which raw files a source needs, and the authors' filter for them."""

    folder: str
    reviews: str
    domain: str
    threshold: int = 5
    count_from: float = 0.0

    @property
    def metadata(self) -> str:
        return f"meta_{self.reviews.removesuffix('_5')}"


CATEGORIES = {
    "gift_cards": Category("amazon2018_giftcards_raw", "Gift_Cards_5", "item"),
    "beauty_raw": Category("amazon2018_luxury_beauty_raw", "Luxury_Beauty", "item", threshold=4, count_from=3),
    "toys": Category("amazon2018_toys_raw", "Toys_and_Games", "item", threshold=4, count_from=3),
    "video_games": Category("amazon2018_video_games_raw", "Video_Games", "game"),
    "movies_and_tv": Category("amazon2018_movies_and_tv_raw", "Movies_and_TV", "movie"),
}


class LineReader:
    """The JSON objects of a file, one a line, with their line numbers; what is wrong is counted in the report.

    ``strict``: the first bad line raises :class:`DataError` instead. A file that ends early always raises.
    """

    def __init__(self, path: Path, report: DataReport, strict: bool = False):
        self.path, self.report, self.strict = path, report, strict
        self.bad: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        number = 0
        try:
            with gzip.open(self.path) if _gzipped(self.path) else open(self.path, "rb") as file:
                for number, line in enumerate(file, 1):
                    record = _parse(line)
                    if record is None:
                        self.reject(number, "holds no JSON object")
                    else:
                        yield number, record
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{self.path.name} is damaged or ends early, after line {number} ({error}); fetch it again"
            ) from error
        shown = ", ".join(map(str, self.bad[:10])) + (" ..." if len(self.bad) > 10 else "")
        self.report.add(f"bad lines in {self.path.name}", len(self.bad), f"skipped: lines {shown}" if self.bad else "")

    def reject(self, number: int, what: str) -> None:
        if self.strict:
            raise DataError(f"{self.path.name}, line {number}: it {what}; mend or delete the line, or pass strict=False")
        self.bad.append(number)


def _gzipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _parse(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        try:
            record = ast.literal_eval(line.decode()) if line.startswith(b"{'") else None
        except (ValueError, SyntaxError):
            record = None
    return record if isinstance(record, dict) else None


def read_reviews(path: Path, report: DataReport, strict: bool = False) -> pd.DataFrame:
    """All reviews in the file's order: columns user, item (strings), rating, timestamp (seconds)."""
    rows = []
    reader = LineReader(path, report, strict)
    for number, record in reader:
        try:
            user, item = record["reviewerID"], record["asin"]
            rows.append((str(user), str(item), float(record["overall"]), int(record["unixReviewTime"])))
        except (KeyError, TypeError, ValueError):
            reader.reject(number, "lacks one of reviewerID, asin, overall, unixReviewTime")
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


def read_texts(
    path: Path, wanted: set[str], report: DataReport, strict: bool = False, description: str = "first"
) -> pd.DataFrame:
    """Title, description and genres (the categories under the first) of the wanted items; of two records the last counts.

    ``description``: a record holds a list of paragraphs; "first" takes the first, as the authors' code, "all" joins them.
    """
    texts: dict[str, tuple[str, str, str]] = {}
    twice, junk = 0, set()
    for _, record in LineReader(path, report, strict):
        item = str(record.get("asin", ""))
        if item not in wanted:
            continue
        twice += item in texts
        title = str(record.get("title") or "")
        (junk.add if is_junk_title(title) else junk.discard)(item)
        texts[item] = ("" if item in junk else plain_text(title), _description(record, description), _genres(record))
    report.add("items with two metadata records", twice, "the last one counts")
    report.add("titles that are pieces of a page", len(junk), "treated as missing")
    frame = pd.DataFrame.from_dict(texts, orient="index", columns=["title", "description", "genres"])
    return frame.rename_axis("item").reset_index()


def _description(record: dict, rule: str) -> str:
    value = record.get("description") or ""
    if isinstance(value, list):
        value = " ".join(str(part) for part in (value if rule == "all" else value[:1]))
    return plain_text(str(value))


def _genres(record: dict) -> str:
    value = record.get("category") or record.get("categories") or []
    if value and isinstance(value[0], list):  # 2014: a list of paths
        value = value[0]
    return "|".join(plain_text(str(part)) for part in value[1:]) if isinstance(value, list) else ""


def filter_mask(events: pd.DataFrame, threshold: int, count_from: float = 0.0, iterative: bool = False) -> np.ndarray:
    """Which events (user, item, rating) the filter keeps; ``iterative`` repeats it until nothing falls (a k-core)."""
    users, items = pd.factorize(events["user"])[0], pd.factorize(events["item"])[0]
    counted = events["rating"].to_numpy() >= count_from
    keep = np.ones(len(events), dtype=bool)
    while keep.any():
        here = keep & counted
        enough = [np.bincount(ids[here], minlength=ids.max() + 1) >= threshold for ids in (users, items)]
        kept = keep & enough[0][users] & enough[1][items]
        if not iterative or (kept == keep).all():
            return kept
        keep = kept
    return keep


def from_amazon(
    reviews: Path, metadata: Path, name: str, domain: str = "item", threshold: int = 5, count_from: float = 0.0,
    iterative: bool = False, description: str = "first", strict: bool = False,
) -> Dataset:  # fmt: skip
    """A dataset from raw review and metadata files, by the authors' filter (see the module).

    Users and items are numbered by their first review in the file, and a user's reviews of one second keep the file's
    order, as in the authors' code. Raises :class:`DataError` when nothing is left after the filter.
    """
    report = DataReport()
    events = read_reviews(reviews, report, strict)
    report.add("reviews read", len(events), "each is an interaction, repeats included")
    kept = filter_mask(events, threshold, count_from, iterative)
    low = f", counting ratings of {count_from:g} and more" if count_from else ""
    why = f"their user or item has fewer than {threshold} interactions{low}"
    report.add("reviews dropped by the filter", int((~kept).sum()), why)
    events = events[kept].reset_index(drop=True)
    if events.empty:
        raise DataError(f"{name}: no review is left with threshold {threshold}; lower the threshold")
    order = events["item"].drop_duplicates()
    found = read_texts(metadata, set(order), report, strict, description).set_index("item")
    report.add("items without metadata", int((~order.isin(found.index)).sum()), "kept; title and description are missing")
    items = found.reindex(order).fillna("").rename_axis("item").reset_index()
    dataset = from_frames(events, items, name, domain)
    dataset.report.rows[:1] = report.rows
    return dataset


def category_files(category: str):
    """The function that finds a category's two files, compressed or not."""
    known = CATEGORIES[category]

    def either(root: Path, stem: str) -> Path:
        try:
            return find(root, known.folder, f"{stem}.json.gz", HOME)
        except DataError as error:
            try:
                return find(root, known.folder, f"{stem}.json")
            except DataError:
                raise error from None

    return lambda root, **options: [either(root, known.reviews), either(root, known.metadata)]


def category_builder(category: str):
    """The function that builds a category's dataset with the authors' filter for it."""
    known = CATEGORIES[category]

    def build(
        files: list[Path], threshold: int = known.threshold, count_from: float = known.count_from, iterative: bool = False,
        description: str = "first", strict: bool = False,
    ) -> Dataset:  # fmt: skip
        return from_amazon(*files, category, known.domain, threshold, count_from, iterative, description, strict)

    return build
