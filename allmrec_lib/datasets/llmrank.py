"""Files in LLMRank's format (Hou et al. 2024): whole histories as lists of ids, and titles. Ids count from 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .base import DataError, DataReport, Dataset, count_events, count_texts, item_table, plain_text
from .download import find

FOLDER = "amazon2018_games_llmrank"


def games_files(root: Path) -> list[Path]:
    return [find(root, FOLDER, name) for name in ("Games-6k.test.inter", "Games-6k.item")]


def build_games(files: list[Path]) -> Dataset:
    """Amazon 2018 Games with titles and no descriptions: each line a user's history and the item after it."""
    lines = _read(files[0], 3)
    histories = [f"{history} {last}" for _, history, last in lines]
    lengths = [history.count(" ") + 1 for history in histories]
    try:
        items = np.array(" ".join(histories).split(" "), dtype=np.int64) + 1
    except ValueError as error:
        raise DataError(f"{files[0].name}: an item id is not a number ({error})") from error
    events = pd.DataFrame({"user": np.repeat(np.arange(1, len(lines) + 1), lengths), "item": items}).astype("int32")
    titles = dict(_read(files[1], 2))
    if sorted(map(int, titles)) != list(range(len(titles))):
        raise DataError(f"{files[1].name}: item ids must run from 0 without gaps, each once")
    keys = [str(i) for i in range(len(titles))]
    table, empty = item_table(keys, [plain_text(titles[key]) for key in keys], [""] * len(keys))
    report = DataReport()
    report.add("interactions read", len(events), "all kept")
    report.add("items without interactions", len(titles) - events["item"].nunique(), "kept: they can be candidates")
    count_texts(report, table, empty)
    count_events(report, events)
    return Dataset("games_small", "game", events, table, report)


def _read(path: Path, columns: int) -> list[list[str]]:
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is no text in UTF-8 ({error}); fetch it again") from error
    for number, row in enumerate(rows, 2):
        if len(row) != columns:
            raise DataError(
                f"{path.name}, line {number}: {len(row)} columns where {columns} are expected; mend or delete the line"
            )
    return rows
