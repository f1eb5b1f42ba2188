"""A user's own tables: interactions and items as data frames, CSV or Parquet files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .base import DataError, DataReport, Dataset, item_table


def read_frame(path: Path | str) -> pd.DataFrame:
    """A table from ``.csv``, ``.tsv`` or ``.parquet`` (the first two may be compressed)."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if ".parquet" in path.suffixes:
        return pd.read_parquet(path)
    try:
        return pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",")
    except EOFError as error:
        raise DataError(f"{path.name} ends early ({error}); it was not downloaded completely: fetch it again") from error


def from_frames(interactions: pd.DataFrame, items: pd.DataFrame, name: str = "own", domain: str = "item") -> Dataset:
    """A dataset from ``user, item, timestamp`` and ``item, title[, description, genres]``; ids may be anything.

    Events are put in time order (ties keep the table's order). Items nobody met are kept: they can be candidates.
    Raises :class:`DataError` for a missing column, an event of an unknown item, or an item listed twice.
    """
    for table, columns, what in ((interactions, ("user", "item", "timestamp"), "interactions"), (items, ("item", "title"), "items")):
        missing = [c for c in columns if c not in table.columns]
        if missing:
            raise DataError(f"{name}: the table of {what} has no column {missing[0]!r}; it has {', '.join(table.columns)}")
    twice = items["item"].duplicated()
    if twice.any():
        raise DataError(f"{name}: item {items.loc[twice, 'item'].iloc[0]!r} is listed twice; keep one of the rows")
    unknown = ~interactions["item"].isin(items["item"])
    if unknown.any():
        row = interactions.index[unknown][0]
        raise DataError(f"{name}: row {row} names item {interactions.at[row, 'item']!r}, which the table of items does not have")
    report = DataReport()
    report.add("interactions read", len(interactions), "all kept")
    events = interactions.sort_values("timestamp", kind="stable")
    keys = items["item"].tolist()
    item_id = pd.Series(range(1, len(keys) + 1), index=keys)
    users = pd.factorize(events["user"])[0] + 1
    numbered = pd.DataFrame({"user": users, "item": item_id[events["item"]].to_numpy()}).astype("int32")
    numbered = numbered.sort_values("user", kind="stable", ignore_index=True)

    def column(title: str) -> list[str]:
        return items[title].fillna("").astype(str).tolist() if title in items else [""] * len(items)

    table, empty = item_table([str(k) for k in keys], column("title"), column("description"), column("genres"))
    report.add("items without a title", empty, "given the fallback 'No Title'")
    return Dataset(name, domain, numbered, table, report)
