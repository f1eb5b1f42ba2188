"""MovieLens-100K (Harper & Konstan 2015): real, with genres, and nothing needed but pip.

From the GroupLens zip; where that host does not answer, from the ``recbole`` wheel, which carries the same files and is
opened as a zip, never imported. Every rating is an interaction. There are no descriptions: the genres stand in for them.
"""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pandas as pd

from .base import DataError, DataReport, Dataset, item_table
from .download import data_root, fetch, fetch_wheel

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
WHEEL = "recbole==1.2.1"
MEMBERS = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
          "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]  # fmt: skip


def load_movielens() -> Dataset:
    """943 users, 1,682 movies, 100,000 ratings."""
    raw = data_root() / "raw"
    try:
        with zipfile.ZipFile(fetch(URL, SHA256, raw)) as archive:
            return from_grouplens(archive)
    except (OSError, ValueError) as error:
        if isinstance(error, (DataError, zipfile.BadZipFile)):
            raise
        with zipfile.ZipFile(fetch_wheel(WHEEL, raw)) as archive:
            return from_recbole(archive)


def from_grouplens(archive: zipfile.ZipFile) -> Dataset:
    """From ``u.data`` and ``u.item`` of the GroupLens zip."""
    events = pd.read_csv(io.BytesIO(archive.read("ml-100k/u.data")), sep="\t", header=None)
    names = ["item", "title", "date", "video", "url", *GENRES]
    items = pd.read_csv(io.BytesIO(archive.read("ml-100k/u.item")), sep="|", header=None, names=names, encoding="latin-1")
    flags = items[GENRES].to_numpy().astype(bool)
    genres = ["|".join(np.array(GENRES)[row]) for row in flags]
    titles = [re.sub(r"\s+\((\d{4})\)$", r" (\1)", str(t).strip()) for t in items["title"]]
    return _dataset(events.iloc[:, :4].to_numpy(), items["item"].to_numpy(), titles, genres)


def from_recbole(archive: zipfile.ZipFile) -> Dataset:
    """From RecBole's copy of the same files, in its "atomic" format."""
    import hashlib

    def read(name: str) -> pd.DataFrame:
        data = archive.read(f"recbole/dataset_example/ml-100k/{name}")
        if hashlib.sha256(data).hexdigest() != MEMBERS[name]:
            raise DataError(f"{name} in {WHEEL} is not the known file: its SHA-256 differs; delete data/raw and try again")
        return pd.read_csv(io.BytesIO(data), sep="\t", keep_default_na=False, dtype=str)

    events, items = read("ml-100k.inter"), read("ml-100k.item")
    items.columns = [c.split(":")[0] for c in items.columns]
    titles = [f"{t} ({y})" if y else t for t, y in zip(items["movie_title"], items["release_year"], strict=True)]
    genres = ["|".join(g.split()) for g in items["class"]]
    return _dataset(events.astype(float).to_numpy(), items["item_id"].astype(int).to_numpy(), titles, genres)


def _dataset(events: np.ndarray, ids: np.ndarray, titles: list[str], genres: list[str]) -> Dataset:
    """``events``: columns user, item, rating, timestamp. Ratings of one second keep the file's order, which is random:
    ordered by item id they would tell a model which ids come next."""
    frame = pd.DataFrame(events[:, [0, 1, 3]], columns=["user", "item", "time"]).astype("int64")
    frame = frame.sort_values(["user", "time"], kind="stable", ignore_index=True)
    if not set(frame["item"]) <= set(ids.tolist()):
        unknown = sorted(set(frame["item"]) - set(ids.tolist()))[0]
        raise DataError(f"movielens: item {unknown} is rated but not in the item file")
    order = np.argsort(ids, kind="stable")
    report = DataReport()
    report.add("ratings read", len(events), "every rating is an interaction")
    same = frame.duplicated(["user", "time"], keep=False).sum()
    report.add("ratings at the same second as another of the user", int(same), "kept in the file's order, which is random")
    descriptions = [genres[i].replace("|", ", ") for i in order]
    items, empty = item_table([str(ids[i]) for i in order], [titles[i] for i in order], descriptions,
                              [genres[i] for i in order])  # fmt: skip
    report.add("empty titles", empty, "given the fallback 'No Title'")
    interactions = frame[["user", "item"]].astype("int32")
    return Dataset("movielens", "movie", interactions, items, report)
