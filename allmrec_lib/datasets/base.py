"""What every source of data becomes: a :class:`Dataset`, and a report of what was dropped on the way."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import pandas as pd
import polars as pl

from ..llm.prompts import DOMAINS, Domain, clean_title

NO_TITLE = "No Title"
MAX_TEXT = 2000  # of a description is kept
MAX_TITLE = 250  # a longer "title" in a catalogue is a piece of the page
_SCRIPT = re.compile(r"<(script|style)\b.*?(</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-z!][^<>]*>", re.IGNORECASE)
_PLAIN = r"^[!#-%'-;=?-~]+( [!#-%'-;=?-~]+)*$"  # ASCII, without < > & and the double quote
_CODE = re.compile(r"<(script|style|link|div|span|img)\b|\bfunction\s*\(|getTime\(\)|\bvar \w+ ?=", re.IGNORECASE)


class DataError(ValueError):
    """Bad input data. The message names the record, what is wrong with it, and what to do."""


@dataclass
class DataReport:
    """Counts of what was read, dropped and repaired: nothing disappears silently.

    ``rows`` holds (what, count, why) in the order in which it happened.
    """

    rows: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, what: str, count: int, why: str) -> None:
        self.rows.append((what, int(count), why))

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["what", "count", "why"])


@dataclass(frozen=True)
class Dataset:
    """Interactions in the order in which they happened, and the items' texts.

    ``interactions``: columns ``user``, ``item`` (int32, both counted from 1 without gaps; 0 is padding), one row an
    event, each user's rows in time order. ``items``: index 1..n_items; columns ``key`` (the source's id), ``title``
    (cleaned, never empty), ``description`` (may be empty), ``genres`` (a "|"-separated string, may be empty).
    """

    name: str
    domain: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    report: DataReport = field(default_factory=DataReport)

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.domain not in DOMAINS:
            raise DataError(f"{self.name}: unknown domain {self.domain!r}; one of {', '.join(DOMAINS)}")
        for column, size in (("user", self.n_users), ("item", self.n_items)):
            ids = self.interactions[column].to_numpy()
            bad = np.flatnonzero((ids < 1) | (ids > size))
            if len(bad):
                row = int(bad[0])
                raise DataError(
                    f"{self.name}: interaction {row} has {column} id {ids[row]}, outside 1..{size}; "
                    f"renumber the ids from 1, or add the missing {column} to the item table"
                )
        if list(self.items.index) != list(range(1, self.n_items + 1)):
            raise DataError(f"{self.name}: the item table's index must be 1..{self.n_items} without gaps")
        empty = self.items.index[self.items["title"].str.len() == 0]
        if len(empty):
            raise DataError(
                f"{self.name}: item {empty[0]} ({self.items.at[empty[0], 'key']}) has an empty title; "
                f"give it one, or the fallback {NO_TITLE!r}"
            )

    @cached_property
    def n_users(self) -> int:
        return int(self.interactions["user"].max()) if len(self.interactions) else 0

    @cached_property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def words(self) -> Domain:
        """The prompt's verb and noun."""
        return DOMAINS[self.domain]

    @cached_property
    def titles(self) -> list[str]:
        """``titles[i]`` is the title of item i; ``titles[0]`` is padding's."""
        return [NO_TITLE, *self.items["title"].tolist()]

    @cached_property
    def digest(self) -> str:
        """A short hash of all that models see: interactions, texts, genres, and the words of the domain."""
        digest = hashlib.sha256(np.ascontiguousarray(self.interactions[["user", "item"]].to_numpy("int32")).tobytes())
        texts = zip(*(self.items[column] for column in ("title", "description", "genres")), strict=True)
        digest.update("\x1e".join([self.domain, *("\x1f".join(parts) for parts in texts)]).encode())
        return digest.hexdigest()[:16]

    def statistics(self) -> dict[str, float]:
        """The row of Table 2: users, items, interactions, average length."""
        events = len(self.interactions)
        return {"users": self.n_users, "items": self.n_items, "interactions": events, "avg_len": events / self.n_users}


def plain_text(text: str) -> str:
    """``text`` without HTML: entities unescaped, scripts, styles and tags taken out; "" when no letter or digit is left.

    >>> plain_text("<b>Soft &amp; warm</b><script>var x = 1</script>")
    'Soft & warm'
    """
    text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    text = " ".join(text.split())
    return text if any(letter.isalnum() for letter in text) else ""


def tidied(texts: Sequence[str], clean: Callable[[str], str], limit: int) -> list[str]:
    """``clean`` of every text. Most are ASCII words with one space between and no mark-up, at most ``limit`` long: those stay
    as they are, which is found out for all at once."""
    column = pl.Series(texts, dtype=pl.String)
    plain = column.str.contains(_PLAIN) & column.str.contains("[0-9A-Za-z]") & (column.str.len_bytes() <= limit)
    return [text if done else clean(text) for text, done in zip(texts, plain, strict=True)]


def is_junk_title(title: str) -> bool:
    """Whether a catalogue's "title" is a piece of the web page (a script, mark-up, over 250 characters) and no title."""
    return len(title) > MAX_TITLE or _CODE.search(title) is not None


def item_table(keys: list[str], titles: list[str], descriptions: list[str], genres: list[str] | None = None):
    """The item table from columns in id order; returns (table, number of empty titles given the fallback)."""
    cleaned = tidied(titles, partial(clean_title, limit=MAX_TITLE), MAX_TITLE)
    table = pd.DataFrame(
        {
            "key": keys,
            "title": [title or NO_TITLE for title in cleaned],
            "description": tidied(descriptions, partial(clean_title, limit=MAX_TEXT), MAX_TEXT),
            "genres": genres if genres is not None else [""] * len(keys),
        },
        index=pd.RangeIndex(1, len(keys) + 1, name="item"),
    )
    return table, sum(not title for title in cleaned)


def count_texts(report: DataReport, items: pd.DataFrame, empty: int) -> None:
    """What is weak in the items' texts: rows that explain a model which reads them."""
    report.add("items without a title", empty, f"kept, with the title {NO_TITLE!r}")
    shared = items["title"].duplicated(keep=False) & (items["title"] != NO_TITLE)
    report.add("items that share their title with another", int(shared.sum()), "kept; told apart by item, never by title")
    report.add("items without a description", int((items["description"] == "").sum()), "kept; their text is the title alone")


def count_events(report: DataReport, interactions: pd.DataFrame) -> None:
    """What is unusual in the interactions: users too short to be tested, and events that repeat an item."""
    lengths = np.bincount(interactions["user"])[1:]
    report.add("users with fewer than 3 interactions", int((lengths < 3).sum()), "kept for training; they have no test row")
    again = interactions.duplicated(["user", "item"]).sum()
    report.add("interactions that repeat an item of the user", int(again), "kept, as in the authors' data")
