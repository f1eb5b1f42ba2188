"""Files in the authors' format: ``<stem>.txt`` ("user item" a line, in time order) and the items' texts as a pickle.

The texts' file is called ``.json.gz`` and is a pickle, not compressed. Loading a pickle runs whatever it holds, so it is
read by an unpickler that knows containers, strings and numbers, and nothing else; then everything is kept as Parquet.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .base import DataError, DataReport, Dataset, count_events, count_texts, is_junk_title, item_table, plain_text
from .download import check, find

BEAUTY_FOLDER, BEAUTY_STEM = "luxury_beauty_2018", "Luxury_Beauty"
BEAUTY_HASHES = (
    "6fd1acd255c5fa29fe313190e74cf340b4b21c82f582c2fd849ae7aed5dd17c3",
    "b623dc212eaeabc92b1f09bff142a83bc9a52331f9403737172578634d140fef",
)
BEAUTY_COUNTS = {"users": 9930, "items": 6141, "interactions": 63953}  # Table 2
NO_DESCRIPTION = {"Empty description", "No Description", "[]", "nan"}  # what the authors' code and its forks write for ""
ALLOWED = {("builtins", name) for name in ("dict", "list", "tuple", "set", "str", "int", "float", "bool")} | {
    ("collections", "defaultdict"),
    ("collections", "OrderedDict"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Refuses every name but those of plain containers, strings and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise DataError(
                f"the pickle asks for {module}.{name}, which a file of texts has no use for; nothing was run. "
                "Do not trust this file: fetch it again from where the authors keep it"
            )
        return super().find_class(module, name)


def read_pickle(path: Path) -> Any:
    """The object in a pickle of plain containers, compressed by gzip or not.

    Raises :class:`DataError` for anything else in it, and for a file that is damaged or ends early.
    """
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return RestrictedUnpickler(io.BytesIO(data)).load()
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise DataError(f"{path.name} is damaged or ends early ({type(error).__name__}: {error}); fetch it again") from error


def from_authors(text: Path, names: Path, name: str, domain: str = "item") -> Dataset:
    """A dataset from the two files.

    Items without a title are kept with the fallback "No Title", as in the authors' code; here they are counted. Raises
    :class:`DataError` naming the line or item that is wrong.
    """
    events = _read_events(text)
    n_items = int(events["item"].max())
    titles, descriptions = _read_texts(names)
    report = DataReport()
    report.add("interactions read", len(events), "one a line, all kept")
    report.add("texts of items without interactions", len(set(titles) - set(range(1, n_items + 1))), "dropped: never asked for")
    junk = {item for item, title in titles.items() if is_junk_title(title)}
    report.add("titles that are pieces of a page", len(junk), "treated as missing")
    ids = range(1, n_items + 1)
    items, empty = item_table(
        [str(item) for item in ids],
        ["" if item in junk else plain_text(titles.get(item, "")) for item in ids],
        [plain_text(descriptions.get(item, "")) for item in ids],
    )
    count_texts(report, items, empty)
    count_events(report, events)
    return Dataset(name, domain, events, items, report)


def _read_events(path: Path) -> pd.DataFrame:
    """User and item of every line, each user's lines in the file's order."""
    try:
        with open(path) as file:
            pairs = np.array([line.split() for line in file if line.strip()], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(_first_bad_line(path)) from error
    if pairs.shape[1:] != (2,) or pairs.min() < 1:
        raise DataError(_first_bad_line(path))
    for column, what in enumerate(("user", "item")):
        present = np.unique(pairs[:, column])
        if present[0] != 1 or present[-1] != len(present):
            missing = next(i for i, found in enumerate(present, 1) if i != found)
            raise DataError(f"{path.name}: {what} {missing} is missing; ids must run from 1 to the largest without gaps")
    frame = pd.DataFrame(pairs, columns=["user", "item"]).astype("int32")
    return frame.sort_values("user", kind="stable", ignore_index=True)


def _first_bad_line(path: Path) -> str:
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if line.strip() and not re.fullmatch(r"\s*[1-9][0-9]{0,8}\s+[1-9][0-9]{0,8}\s*", line):
            return f"{path.name}, line {number}: {line[:60]!r} is not 'user item' (two ids from 1); mend or delete the line"
    return f"{path.name} holds no line 'user item'"


def _read_texts(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Titles and descriptions by item id. A description may be a list, of which the first is taken."""
    texts = read_pickle(path)
    if not isinstance(texts, dict) or not all(isinstance(texts.get(part), dict) for part in ("title", "description")):
        raise DataError(f"{path.name} holds no dictionaries 'title' and 'description'; is it the authors' text file?")
    columns = []
    for part in ("title", "description"):
        column = {}
        for item, value in texts[part].items():
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if not isinstance(item, int) or not isinstance(value, (str, type(None), list, tuple)):
                raise DataError(f"{path.name}: the {part} of item {item!r} is a {type(value).__name__}, not a text")
            usable = isinstance(value, str) and value not in NO_DESCRIPTION
            column[item] = value if usable else ""
        columns.append(column)
    return columns[0], columns[1]


def author_files(root: Path, folder: str, stem: str, hint: str = "") -> list[Path]:
    """The two files of ``stem``; ``folder`` lies in ``$ALLMREC_DATA`` or in ``data/raw``, or is a path of its own."""
    return [find(root, folder, name, hint) for name in (f"{stem}.txt", f"{stem}_text_name_dict.json.gz")]


def beauty_files(root: Path) -> list[Path]:
    hint = "Both files are what the authors' data_preprocess.py makes of Amazon 2018 Luxury_Beauty (reviews and metadata)."
    return author_files(root, BEAUTY_FOLDER, BEAUTY_STEM, hint)


def build_beauty(files: list[Path]) -> Dataset:
    """Amazon Luxury Beauty 2018 as the authors preprocessed it; asserted to be the paper's Table 2 row."""
    for path, expected in zip(files, BEAUTY_HASHES, strict=True):
        check(path, expected)
    dataset = from_authors(*files, "beauty")
    found = {key: dataset.statistics()[key] for key in BEAUTY_COUNTS}
    if found != BEAUTY_COUNTS:
        raise DataError(f"beauty: {found}, but Table 2 of the paper has {BEAUTY_COUNTS}")
    return dataset


def own_files(root: Path, folder: str, stem: str, domain: str = "item") -> list[Path]:
    return author_files(root, folder, stem)


def build_own(files: list[Path], folder: str, stem: str, domain: str = "item") -> Dataset:
    """Your own files in the authors' format: ``load("authors", folder="my_folder", stem="My_Data", domain="item")``."""
    return from_authors(*files, stem.lower(), domain)
