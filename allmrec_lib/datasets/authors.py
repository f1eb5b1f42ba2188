"""Files in the authors' format: ``<name>.txt`` ("user item" a line, in time order) and the items' texts as a pickle.

The texts' file is called ``.json.gz`` and is a pickle. Loading a pickle runs whatever it holds, so it is read by an
unpickler that knows containers, strings and numbers, and nothing else; then everything is kept as Parquet.
"""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .base import DataError, DataReport, Dataset, item_table
from .download import check, find

LUXURY_BEAUTY = {
    "Luxury_Beauty.txt": "6fd1acd255c5fa29fe313190e74cf340b4b21c82f582c2fd849ae7aed5dd17c3",
    "Luxury_Beauty_text_name_dict.json.gz": "b623dc212eaeabc92b1f09bff142a83bc9a52331f9403737172578634d140fef",
}
TABLE_2 = {"users": 9930, "items": 6141, "interactions": 63953}
ALLOWED = {("builtins", name) for name in ("dict", "list", "tuple", "set", "str", "int", "float", "bool")} | {
    ("collections", "defaultdict"),
    ("collections", "OrderedDict"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Refuses every name but plain containers', strings' and numbers'."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise DataError(
                f"the pickle asks for {module}.{name}, which a file of texts has no use for; it was not run. "
                "Do not trust this file; fetch it again from where the authors keep it"
            )
        return super().find_class(module, name)


def read_pickle(path: Path) -> Any:
    """The object in a pickle of plain containers, compressed by gzip or not.

    Raises :class:`DataError` for anything else in it, and for a file that ends early.
    """
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return RestrictedUnpickler(io.BytesIO(data)).load()
    except (EOFError, pickle.UnpicklingError, gzip.BadGzipFile, ValueError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name} cannot be read ({error}): it is damaged or ends early; fetch it again") from error


def from_authors(text: Path, names: Path, name: str, domain: str = "item") -> Dataset:
    """A dataset from the two files. Raises :class:`DataError` naming the line or item that is wrong."""
    events = _read_events(text)
    texts = read_pickle(names)
    if not isinstance(texts, dict) or not {"title", "description"} <= set(texts):
        raise DataError(f"{names.name} holds no dictionaries 'title' and 'description'; is it the authors' text file?")
    n_items = int(max(events["item"].max(), max((int(i) for i in texts["title"]), default=0)))
    ids = range(1, n_items + 1)
    report = DataReport()
    report.add("interactions read", len(events), "one a line")
    items, empty = item_table(
        [str(i) for i in ids],
        [str(texts["title"].get(i) or "") for i in ids],
        [_description(texts["description"].get(i)) for i in ids],
    )
    report.add("items without a title", empty, "given the fallback 'No Title'")
    report.add("items without a description", int((items["description"] == "").sum()), "their text is the title alone")
    lengths = np.bincount(events["user"])[1:]
    report.add("users with fewer than 3 interactions", int((lengths < 3).sum()), "kept for training, no test row")
    return Dataset(name, domain, events, items, report)


def _description(value: Any) -> str:
    text = "" if value is None else str(value[0] if isinstance(value, (list, tuple)) and value else value)
    return "" if text in ("[]", "No Description", "nan") else text


def _read_events(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, sep=r"\s+", header=None, names=["user", "item"], dtype=str, keep_default_na=False)
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name} cannot be read: {error}; fetch it again") from error
    wrong = ~(frame["user"].str.isdecimal() & frame["item"].str.isdecimal())
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{path.name}, line {line + 1}: {' '.join(frame.iloc[line])!r} is not 'user item' (two numbers)")
    return frame.astype("int32")


def load_beauty() -> Dataset:
    """Amazon Luxury Beauty 2018 as the authors preprocessed it; asserted to be the paper's Table 2 row."""
    text, names = (check(find("luxury_beauty_2018", n), h) for n, h in LUXURY_BEAUTY.items())
    dataset = from_authors(text, names, "beauty")
    found = {key: dataset.statistics()[key] for key in TABLE_2}
    if found != TABLE_2:
        raise DataError(f"beauty: {found}, but Table 2 of the paper has {TABLE_2}")
    return dataset
