"""A user's own tables: interactions and items as data frames, CSV or Parquet files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .base import DataError, DataReport, Dataset, count_events, count_texts, item_table
from .download import adopt, find_any

OWN = "own"  # the dataset made of the tables that lie in the folder of this name
ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def read_frame(path: Path | str) -> pd.DataFrame:
    """A table from ``.csv``, ``.tsv`` or ``.parquet`` (the first two may be compressed). Ids keep leading zeros."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        if ".parquet" in path.suffixes:
            return pd.read_parquet(path)
        ids = {"user": str, "item": str}
        return pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", dtype=ids)
    except EOFError as error:
        raise DataError(f"{path.name} ends early ({error}); it was not copied completely: fetch it again") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} is no readable table: {error}") from error


def from_frames(
    interactions: pd.DataFrame, items: pd.DataFrame, name: str = "own", domain: str = "item", unknown_items: str = "error"
) -> Dataset:
    """A dataset from ``user, item, timestamp`` and ``item, title[, description, genres]``; ids may be anything.

    Users are numbered in the order of the table, items in the order of theirs. Each user's events are put in time order
    (ties keep the table's order); a timestamp is a number or a date. Items that nobody met are kept: they can be
    candidates. Raises :class:`DataError` for a missing column or value, an item listed twice, and an event of an item
    that ``items`` lacks (``unknown_items="untitled"`` keeps such events and titles the item "No Title").
    """
    if unknown_items not in ("error", "untitled"):
        raise DataError(f"unknown_items is {unknown_items!r}; it must be 'error' or 'untitled'")
    _require(interactions, ("user", "item", "timestamp"), f"{name}: the table of interactions")
    _require(items, ("item", "title"), f"{name}: the table of items", filled=("item",))
    twice = items["item"].duplicated()
    if twice.any():
        raise DataError(f"{name}: item {items.loc[twice, 'item'].iloc[0]!r} is listed twice; keep one of the rows")
    report = DataReport()
    report.add("interactions read", len(interactions), "all kept")
    unknown = ~interactions["item"].isin(items["item"])
    if unknown.any():
        items = _with_unknown(interactions, items, unknown, name, unknown_items, report)
    keys = items["item"].tolist()
    numbered = pd.DataFrame(
        {
            "user": pd.factorize(interactions["user"])[0] + 1,
            "item": pd.Index(keys).get_indexer(interactions["item"]) + 1,
            "time": _times(interactions["timestamp"], name).to_numpy(),
        }
    )
    numbered = numbered.sort_values(["user", "time"], kind="stable", ignore_index=True)[["user", "item"]].astype("int32")

    def column(title: str) -> list[str]:
        return items[title].fillna("").astype(str).tolist() if title in items else [""] * len(items)

    table, empty = item_table([str(key) for key in keys], column("title"), column("description"), column("genres"))
    count_texts(report, table, empty)
    count_events(report, numbered)
    return Dataset(name, domain, numbered, table, report)


def _require(table: pd.DataFrame, columns: tuple[str, ...], what: str, filled: tuple[str, ...] | None = None) -> None:
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{what} has no column {column!r}; it has {', '.join(map(str, table.columns))}")
        empty = table[column].isna()
        if column in (columns if filled is None else filled) and empty.any():
            raise DataError(f"{what}: row {table.index[empty][0]} has no {column}; fill it in or delete the row")
    if table.empty:
        raise DataError(f"{what} is empty")


def _with_unknown(
    interactions: pd.DataFrame, items: pd.DataFrame, unknown: pd.Series, name: str, rule: str, report: DataReport
) -> pd.DataFrame:
    row = interactions.index[unknown][0]
    if rule == "error":
        raise DataError(
            f"{name}: row {row} of the interactions names item {interactions.loc[unknown, 'item'].iloc[0]!r}, which the table "
            "of items does not have; add the item, delete the row, or pass unknown_items='untitled'"
        )
    missing = interactions.loc[unknown, "item"].drop_duplicates()
    report.add("items that the table of items lacks", len(missing), "added without a title")
    return pd.concat([items, pd.DataFrame({"item": missing, "title": ""})], ignore_index=True)


def _times(times: pd.Series, name: str) -> pd.Series:
    """Numbers as they are, dates as numbers; an unreadable one is an error that names its row."""
    if pd.api.types.is_numeric_dtype(times):
        return times
    read = pd.to_datetime(times, errors="coerce", utc=True, format="mixed")
    if read.isna().any():
        row = times.index[read.isna()][0]
        raise DataError(f"{name}: row {row} has timestamp {times[read.isna()].iloc[0]!r}, neither a number nor a date")
    return read.astype("int64")


def frame_files(root: Path, interactions: Path | str, items: Path | str, **options: str) -> list[Path]:
    for path in (interactions, items):
        if not Path(path).exists():
            raise DataError(f"{path} does not exist")
    return [Path(interactions), Path(items)]


def build_frames(
    files: list[Path], interactions: Path | str, items: Path | str, name: str = "own", domain: str = "item",
    unknown_items: str = "error",
) -> Dataset:  # fmt: skip
    """Your own CSV or Parquet: ``load("frames", interactions="events.csv", items="items.csv", name="own", domain="item")``."""
    return from_frames(read_frame(files[0]), read_frame(files[1]), name, domain, unknown_items)


def own_tables(root: Path) -> list[Path]:
    """``interactions`` and ``items`` in ``own/``, and ``domain.txt`` as --domain wrote it or, failing that, as it lies beside
    them."""
    hint = f"`python -m allmrec_lib data {OWN} --interactions events.csv --items items.csv` links your tables there."
    tables = [find_any(root, OWN, stem, ENDINGS, hint) for stem in ("interactions", "items")]
    words = [folder / "domain.txt" for folder in (root / "raw" / OWN, tables[0].parent)]
    return tables + [path for path in words if path.exists()][:1]


def build_own_tables(files: list[Path]) -> Dataset:
    """The tables of :func:`own_tables`, as a dataset that chapters can run on by its name."""
    return build_frames(files, *files[:2], OWN, files[2].read_text().strip() if len(files) > 2 else "item")


def adopt_tables(root: Path, interactions: Path | None, items: Path | None, domain: str | None) -> None:
    """Link a user's tables into ``data/raw/own``; ``domain`` says what a prompt calls the items (movie, game, item)."""
    for stem, path in (("interactions", interactions), ("items", items)):
        if path is not None:
            adopt(root, OWN, path, stem, ENDINGS)
    if domain is not None:
        (root / "raw" / OWN).mkdir(parents=True, exist_ok=True)
        (root / "raw" / OWN / "domain.txt").write_text(domain + "\n")
