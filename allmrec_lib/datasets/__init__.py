"""Sources of data by name: ``load("movielens")`` reads a source once and keeps it as Parquet under ``data/processed``.

A copy is keyed by the options, the hashes of the source's files and the library's code: when one of them changes, the
source is read again.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from ..store import code_digest
from .amazon import from_amazon
from .authors import build_own, from_authors, own_files
from .base import NO_TITLE, DataError, DataReport, Dataset
from .beauty import build_either, either_files
from .catalogue import CATEGORIES, category_builder, category_files
from .download import data_root, sha256
from .frames import build_frames, build_own_tables, frame_files, from_frames, own_tables, read_frame
from .llmrank import build_games, games_files
from .movielens import build_movielens, movielens_files
from .simulated import build_simulated

__all__ = ["NO_TITLE", "SOURCES", "DataError", "DataReport", "Dataset", "Source", "from_amazon", "from_authors", "from_frames",
           "load", "read_frame"]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """``files(root, **options)`` finds or fetches the raw files; ``build(files, **options)`` makes the dataset of them."""

    files: Callable[..., list[Path]]
    build: Callable[..., Dataset]


SOURCES = {
    "movielens": Source(movielens_files, build_movielens),
    "beauty": Source(either_files, build_either),
    "games_small": Source(games_files, build_games),
    "simulated": Source(lambda root, **options: [], build_simulated),
    **{name: Source(category_files(name), category_builder(name)) for name in CATEGORIES},
    "own": Source(own_tables, build_own_tables),
    "authors": Source(own_files, build_own),
    "frames": Source(frame_files, build_frames),
}
_CODE = ("amazon", "authors", "base", "beauty", "catalogue", "frames", "jsonlines", "llmrank", "movielens", "simulated")


def load(name: str, /, root: Path | None = None, **options: Any) -> Dataset:
    """The dataset ``name``; ``root`` is the data folder (default: ``data/`` of the project).

    ``options`` are those of the source, e.g. ``load("simulated", seed=1)``, ``load("gift_cards", threshold=4)``,
    ``load("frames", interactions="events.csv", items="items.csv", name="own", domain="game")``. Raises
    :class:`DataError` for an unknown name or option (naming the nearest) and for missing or damaged files.
    """
    source = SOURCES[_known(name, SOURCES, "dataset")]
    accepted = list(inspect.signature(source.build).parameters)[1:]
    for option in options:
        _known(option, accepted, f"option of {name}:")
    for option, parameter in inspect.signature(source.build).parameters.items():
        if option != "files" and parameter.default is parameter.empty and option not in options:
            raise DataError(f"{name} needs the option {option}: {inspect.getdoc(source.build)}")
    root = Path(root) if root else data_root()
    files = source.files(root, **options)
    made_of = _made_of(files, options)
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / "processed" / f"{name}-{key}"
    dataset = _read_whole(folder)
    if dataset is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock")
        with FileLock(lock):
            dataset = _read_whole(folder)  # another process may have made it while this one waited
            if dataset is None:
                _write(source.build(files, **options), folder, made_of)
                dataset = _read(folder)
        lock.unlink(missing_ok=True)
    return dataset


def _known(name: str, names: Iterable[str], what: str) -> str:
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown {what} {name!r}{hint} (known: {', '.join(names) or 'none'})")
    return name


def _made_of(files: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    """All that decides what a dataset holds, as JSON values."""
    code = code_digest(*(f"datasets.{module}" for module in _CODE), "llm.prompts")
    return {
        "code": code,
        "files": [[path.name, sha256(path)] for path in files],
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
    }


def _write(dataset: Dataset, folder: Path, made_of: dict[str, Any]) -> None:
    partial = folder.with_suffix(".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    dataset.interactions.to_parquet(partial / "interactions.parquet")
    dataset.items.to_parquet(partial / "items.parquet")
    about = {"name": dataset.name, "domain": dataset.domain, "digest": dataset.digest, **dataset.statistics()}
    (partial / "report.json").write_text(json.dumps(dataset.report.rows, indent=1))
    (partial / "manifest.json").write_text(json.dumps(about | {"made_of": made_of}, indent=1))
    partial.rename(folder)


def _read(folder: Path) -> Dataset:
    about = json.loads((folder / "manifest.json").read_text())
    report = DataReport([tuple(row) for row in json.loads((folder / "report.json").read_text())])
    events, items = (pd.read_parquet(folder / f"{table}.parquet") for table in ("interactions", "items"))
    dataset = Dataset(about["name"], about["domain"], events, items, report)
    if dataset.digest != about["digest"]:
        raise DataError(f"the copy in {folder.name} is damaged; delete the folder")
    return dataset


def _read_whole(folder: Path) -> Dataset | None:
    """The copy in ``folder``; None when there is none, or it cannot be read and must be made again."""
    try:
        return _read(folder) if folder.exists() else None
    except (OSError, KeyError, ValueError):  # ValueError: not JSON, not Parquet, not a dataset
        return None
