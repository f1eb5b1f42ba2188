"""Sources of data by name. ``load("movielens")`` reads the source once and keeps it as Parquet under ``data/processed``."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ..store import code_digest
from .amazon import load_gift_cards
from .authors import load_beauty
from .base import DataError, DataReport, Dataset
from .download import data_root
from .frames import from_frames, read_frame
from .movielens import load_movielens
from .simulated import load_simulated

__all__ = ["SOURCES", "DataError", "DataReport", "Dataset", "from_frames", "load", "read_frame"]

SOURCES: dict[str, Callable[[], Dataset]] = {
    "movielens": load_movielens,
    "beauty": load_beauty,
    "gift_cards": load_gift_cards,
    "simulated": load_simulated,
}
_CODE = ("base", "amazon", "authors", "download", "frames", "movielens", "simulated")


def load(name: str, root: Path | None = None) -> Dataset:
    """The dataset ``name``, from the Parquet copy if it was read before by the same code.

    Raises :class:`DataError` for an unknown name (naming the nearest) and for missing or damaged files.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown dataset {name!r}{hint} (known: {', '.join(SOURCES)})")
    code = code_digest(*(f"datasets.{module}" for module in _CODE))
    folder = (root or data_root() / "processed") / f"{name}-{code}"
    if not folder.exists():
        _write(SOURCES[name](), folder)
    return _read(name, folder)


def _write(dataset: Dataset, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dataset.interactions.to_parquet(partial / "interactions.parquet")
    dataset.items.to_parquet(partial / "items.parquet")
    about = {"domain": dataset.domain, "report": dataset.report.rows, "digest": dataset.digest}
    (partial / "about.json").write_text(json.dumps(about, indent=1))
    partial.rename(folder)


def _read(name: str, folder: Path) -> Dataset:
    about = json.loads((folder / "about.json").read_text())
    items = pd.read_parquet(folder / "items.parquet")
    report = DataReport([tuple(row) for row in about["report"]])
    return Dataset(name, about["domain"], pd.read_parquet(folder / "interactions.parquet"), items, report)
