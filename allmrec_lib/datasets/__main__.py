"""Get a dataset ready: download what is missing, read it into Parquet, and show it beside the paper's Table 2.

``python -m allmrec_lib data beauty`` uses files that are here already, and fetches an Amazon category's raw files otherwise
(resumed when interrupted). With your own copies: ``--reviews Toys_and_Games.json.gz --metadata meta_Toys_and_Games.json``.
Your own tables (user, item, timestamp and item, title[, description, genres]; CSV, TSV or Parquet) become the dataset ``own``, on
which chapters run like on any other: ``python -m allmrec_lib data own --interactions events.csv --items items.csv``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from ..config import INTERRUPTED
from ..llm.prompts import DOMAINS
from ..paths import shipped
from . import SOURCES, DataError, Dataset, data_root, load
from .authors import beauty_files
from .base import NO_TITLE
from .beauty import RAW
from .catalogue import CATEGORIES, ENDINGS, fetch_raw
from .download import adopt
from .frames import OWN, adopt_tables

PAPER_ROW = {"beauty_raw": "beauty"}


def paper_statistics(name: str) -> dict[str, float]:
    """The paper's Table 2 row of a dataset; empty when the paper does not use it."""
    table = pd.read_csv(shipped("data/paper") / "table_02.csv")
    return table[table["dataset"] == PAPER_ROW.get(name, name)].set_index("metric")["value"].to_dict()


def provide(name: str, reviews: Path | None, metadata: Path | None, mirrors: tuple[str, ...]) -> None:
    """See that a category's raw files are in their place: the user's own, those that are here, or downloads."""
    category = RAW if name == "beauty" else name
    if category not in CATEGORIES:
        if reviews or metadata or mirrors:
            made = ", ".join(CATEGORIES)
            raise DataError(f"{name} is not made of Amazon's raw files; --reviews, --metadata and --mirror are for {made}")
        return
    if name == "beauty" and _authors_files_are_here(data_root()):
        if reviews or metadata:
            raise DataError("the authors' files of beauty are here and come first; ask for beauty_raw to use yours")
        return
    for path, stem in zip((reviews, metadata), CATEGORIES[category].stems, strict=True):
        if path is not None:
            adopt(data_root(), CATEGORIES[category].folder, path, stem, ENDINGS)
    fetch_raw(data_root(), category, mirrors)


def _authors_files_are_here(root: Path) -> bool:
    try:
        return bool(beauty_files(root))
    except DataError:
        return False


def show(dataset: Dataset) -> None:
    ours, paper = dataset.statistics(), paper_statistics(dataset.name)
    print(f"{dataset.name} (domain: {dataset.domain}, digest {dataset.digest})\n")
    for key, value in ours.items():
        beside = f"{paper[key]:>14,.2f}   {value - paper[key]:+,.2f}" if key in paper else f"{'-':>14}"
        print(f"  {key:<14}{value:>14,.2f}   Table 2:{beside}")
    titled = (dataset.items["title"] != NO_TITLE).mean()
    described = (dataset.items["description"] != "").mean()
    print(f"\n  of the items {titled:.1%} have a title, {described:.1%} a description\n")
    for what, count, why in dataset.report.rows:
        print(f"  {count:>9,}  {what}{': ' if why else ''}{why}")


def main(arguments: list[str] | None = None, prog: str = "python -m allmrec_lib.datasets") -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(SOURCES))
    parser.add_argument("--reviews", type=Path, help="your own copy of the raw reviews, .json or .json.gz; linked, not copied")
    parser.add_argument("--metadata", type=Path, help="your own copy of the raw metadata")
    parser.add_argument("--interactions", type=Path, help=f"for {OWN}: your table of user, item, timestamp; linked, not copied")
    parser.add_argument("--items", type=Path, help=f"for {OWN}: your table of item, title[, description, genres]")
    parser.add_argument("--domain", choices=list(DOMAINS), help=f"for {OWN}: what a prompt calls an item (item unless said before)")
    parser.add_argument("--mirror", action="append", default=[], help="tried first: https://.../{kind}/{file}.json.gz")
    parser.add_argument("--strict", action="store_true", help="stop at the first bad line instead of skipping and counting it")
    asked = parser.parse_args(arguments)
    try:
        if asked.name == OWN:
            adopt_tables(data_root(), asked.interactions, asked.items, asked.domain)
        elif asked.interactions or asked.items or asked.domain:
            raise DataError(f"--interactions, --items and --domain are for {OWN}, not for {asked.name}")
        provide(asked.name, asked.reviews, asked.metadata, tuple(asked.mirror))
        show(load(asked.name, **({"strict": True} if asked.strict else {})))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
