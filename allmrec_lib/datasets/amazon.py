"""Amazon Reviews, raw: one JSON object a line, reviews and metadata, of 2014 (McAuley et al. 2015; metadata are Python
literals), 2018 (Ni et al. 2019) and 2023 (Hou et al. 2024). Which of them a file is, its first record tells.

The authors' filter, one pass: events stay whose user and item both have at least ``threshold`` interactions; what is left
may have fewer. For Beauty and Toys ratings under 3 are not *counted* towards the threshold of 4 and yet their rows are
kept (``count_from=3``): that gives the paper's Table 2, where the text says "fewer than 4 interactions removed". Title and
description are read independently of each other (in the authors' code an item without a description loses its title).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from .base import (
    MAX_TEXT,
    DataError,
    DataReport,
    Dataset,
    count_events,
    count_texts,
    is_junk_title,
    item_table,
    plain_text,
    tidied,
)
from .jsonlines import BadLine, Fields, JsonLines

REVIEW_NAMES = {  # by a field that only this edition has: user, item, rating, time (seconds; 2023: milliseconds)
    "reviewerID": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "user_id": ("user_id", "parent_asin", "rating", "timestamp"),
}
TEXT_NAMES = {
    "asin": ("asin", "title", "description", "category"),
    "parent_asin": ("parent_asin", "title", "description", "categories"),
}
# How polars shows a list, an object or half a character where a text should be.
STRUCTURE = r'^(\[["\[{\d\]]|\{["}])|\x00'
LONGEST_ID, HIGHEST_RATING, LATEST = 64, 5.0, 1e13


def _names(first: dict, known: dict[str, tuple[str, ...]], path: Path, what: str) -> tuple[str, ...]:
    # Reviews of 2023 have an "asin" beside the "parent_asin" that is the item.
    found = next((names for mark, names in reversed(known.items()) if mark in first), None)
    if what == "metadata" and {"reviewerID", "user_id"} & set(first):
        raise DataError(f"{path.name} holds reviews where metadata is wanted")
    if first and found is None:
        has = ", ".join(map(str, list(first)[:12]))
        raise DataError(f"{path.name} holds no {what} in a format of Amazon 2014, 2018 or 2023: its first record has {has}")
    return found or next(iter(known.values()))


def _scalar(record: dict, name: str, longest: int | None = None) -> str:
    value = record.get(name)
    if isinstance(value, (list, dict)):
        raise BadLine(f"has a {type(value).__name__} for {name}")
    if value is None or value == "":
        raise BadLine(f"lacks {name}")
    if isinstance(value, float):
        text = np.format_float_positional(value, trim="-")  # as polars writes it
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    if longest and len(text.encode("utf-8", "replace")) > longest:
        raise BadLine(f"has a {name} of over {longest} bytes")
    return _storable(text)


def _storable(text: str) -> str:
    """Without the halves of characters that JSON can escape and no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _number(record: dict, name: str, highest: float) -> float:
    value = record.get(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= highest:
        what = f"has {str(value)[:20]!r} for {name}, no number from 0 to {highest:g}"
        raise BadLine(f"lacks {name}" if value is None else what)
    return number


def _doubtful(name: str) -> pl.Expr:
    """Ids that are missing, absurdly long, or lists and objects (which polars reads as their JSON text)."""
    column = pl.col(name)
    return column.is_null() | ~column.str.len_bytes().is_between(1, LONGEST_ID) | column.str.contains(STRUCTURE)


def review_fields(names: tuple[str, ...]) -> Fields:
    user, item, rating, time = names

    def row(record: dict) -> tuple:
        ids = _scalar(record, user, LONGEST_ID), _scalar(record, item, LONGEST_ID)
        return *ids, _number(record, rating, HIGHEST_RATING), int(_number(record, time, LATEST))

    outside = [~pl.col(name).is_between(0, high).fill_null(False) for name, high in ((rating, HIGHEST_RATING), (time, LATEST))]
    odd = _doubtful(user) | _doubtful(item) | outside[0] | outside[1]
    return Fields({user: pl.String, item: pl.String, rating: pl.Float64, time: pl.Int64}, odd, row)


def text_fields(names: tuple[str, ...]) -> Fields:
    item, title, description, category = names

    def row(record: dict) -> tuple:
        try:
            shown = _scalar(record, title)
        except BadLine:
            shown = None  # a record without a title may have a description
        genres = record.get("category") or record.get("categories")
        if isinstance(genres, list) and genres and isinstance(genres[0], list):  # 2014: a list of paths
            genres = genres[0]
        return _scalar(record, item, LONGEST_ID), shown, _texts(record.get(description)), _texts(genres)

    schema = {item: pl.String, title: pl.String, description: pl.List(pl.String), category: pl.List(pl.String)}
    odd = pl.col(category).is_null() | pl.col(title).str.contains(STRUCTURE).fill_null(False)
    return Fields(schema, odd | _doubtful(item), row)


def _texts(value: Any) -> list[str | None]:
    parts = value if isinstance(value, list) else [] if value is None else [value]
    return [None if part is None else _storable(str(part)) for part in parts]


def read_reviews(path: Path, report: DataReport, strict: bool = False) -> tuple[pd.DataFrame, pl.Series]:
    """All reviews in the file's order, columns user, item, rating, timestamp, and the items' ids by their numbers.

    An event takes 20 bytes in memory, whatever the length of its ids.
    """
    lines = JsonLines(path, report, strict)
    names = _names(lines.head(), REVIEW_NAMES, path, "reviews")
    users, items = pl.Categories.random(), pl.Categories.random()
    kept = {names[0]: pl.Categorical(users), names[1]: pl.Categorical(items), names[2]: pl.Float32}
    tables = [table.cast(kept) for table in lines.tables(review_fields(names))]
    events = pl.concat(tables) if tables else pl.DataFrame(schema=kept | {names[3]: pl.Int64})
    columns = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
    frame = pd.DataFrame({name: events[:, place].to_physical().to_numpy() for name, place in columns.items()})
    return frame, items.to_series()


def read_texts(
    path: Path, wanted: list[str], report: DataReport, strict: bool = False, description: str = "first"
) -> pd.DataFrame:
    """Title, description and genres (the categories under the first) of the wanted items; of two records the last counts.

    ``description``: a record holds a list of paragraphs; "first" takes the first, as the authors' code, "all" joins them.
    """
    lines = JsonLines(path, report, strict)
    names = _names(lines.head(), TEXT_NAMES, path, "metadata")
    paragraphs = pl.col(names[2]).list
    about = paragraphs.join(" ", ignore_nulls=True) if description == "all" else paragraphs.first()
    columns = {"item": pl.col(names[0]), "title": pl.col(names[1]), "description": about,
               "genres": pl.col(names[3]).list.slice(1)}  # fmt: skip
    these = pl.col(names[0]).is_in(pl.Series(wanted, dtype=pl.String).implode())
    found = [table.filter(these).select(**columns) for table in lines.tables(text_fields(names))]
    schema = dict.fromkeys(columns, pl.String) | {"genres": pl.List(pl.String)}
    records = pl.concat([pl.DataFrame(schema=schema), *found])
    last = records.unique("item", keep="last", maintain_order=True)
    titles = last["title"].fill_null("").to_list()
    junk = [is_junk_title(title) for title in titles]
    report.add("items with two metadata records", len(records) - len(last), "the last one counts")
    report.add("titles that are pieces of a page", sum(junk), "treated as missing")
    titles = ["" if bad else title for title, bad in zip(titles, junk, strict=True)]
    texts = {"title": _plain(titles), "description": _plain(last["description"].fill_null("").to_list())}
    kinds = last["genres"].explode().fill_null("").unique().to_list()
    plain = dict(zip(kinds, _plain(kinds), strict=True))
    genres = ["|".join(plain[kind or ""] for kind in path or []) for path in last["genres"].to_list()]
    return pd.DataFrame(texts | {"genres": genres}, index=pd.Index(last["item"].to_list(), name="item"))


def _plain(texts: list[str]) -> list[str]:
    return tidied(texts, plain_text, MAX_TEXT)


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


def _why(report: DataReport) -> str:
    """What the report has counted so far, in brackets."""
    found = [f"{count:,} {what}{': ' if why else ''}{why}" for what, count, why in report.rows if count]
    return f" ({'; '.join(found)})" if found else ""


def from_amazon(
    reviews: Path, metadata: Path, name: str, domain: str = "item", threshold: int = 5, count_from: float = 0.0,
    iterative: bool = False, description: str = "first", strict: bool = False,
) -> Dataset:  # fmt: skip
    """A dataset from raw review and metadata files, by the authors' filter (see the module).

    Users and items are numbered by their first review in the file, and a user's reviews of one second keep the file's
    order, as in the authors' code. Raises :class:`DataError` when nothing is left after the filter.
    """
    report = DataReport()
    events, ids = read_reviews(reviews, report, strict)
    report.add("reviews read", len(events), "each is an interaction, repeats included")
    if events.empty:
        raise DataError(f"{reviews.name} holds no review that can be read{_why(report)}")
    kept = filter_mask(events, threshold, count_from, iterative)
    low = f", counting ratings of {count_from:g} and more" if count_from else ""
    why = f"their user or item has fewer than {threshold} interactions{low}"
    report.add("reviews dropped by the filter", int((~kept).sum()), why)
    events = events[kept]
    if events.empty:
        raise DataError(f"{name}: no review is left with threshold {threshold}; lower the threshold")
    users, (items, order) = pd.factorize(events["user"])[0] + 1, pd.factorize(events["item"])
    numbered = pd.DataFrame({"user": users, "item": items + 1}).astype("int32")
    in_time = np.lexsort((events["timestamp"].to_numpy(), users))  # stable
    numbered = numbered.take(in_time).reset_index(drop=True)
    keys = ids.gather(order.to_numpy()).to_list()
    found = read_texts(metadata, keys, report, strict, description)
    report.add("items without metadata", len(keys) - len(found), "kept; title and description are missing")
    if not (found["title"] != "").any():
        raise DataError(f"{metadata.name} has a title for none of the {len(keys):,} items; is it the metadata file?{_why(report)}")
    texts = found.reindex(keys).fillna("")
    table, empty = item_table(keys, *(texts[column].tolist() for column in ("title", "description", "genres")))
    count_texts(report, table, empty)
    count_events(report, numbered)
    return Dataset(name, domain, numbered, table, report)
