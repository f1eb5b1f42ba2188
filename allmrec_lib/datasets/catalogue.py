"""The Amazon categories: which files each needs, the authors' filter for it, and where the files can be had.

``load`` never downloads them, since they are large; ``python -m allmrec_lib data <name>`` does. A dataset named after a
category alone is of 2018, which the authors used; ``..._2014`` and ``..._2023`` are the other editions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .amazon import from_amazon
from .base import DataError, Dataset
from .download import fetch_first, find_any

ENDINGS = (".json.gz", ".json", ".jsonl.gz", ".jsonl")
# Tried in this order; the lab's files have moved three times. {kind}: see KINDS; {file}: the name without its ending.
MIRRORS = {
    2018: (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/{kind}/{file}.json.gz",
        "https://jmcauley.ucsd.edu/data/amazon_v2/{kind}/{file}.json.gz",
        "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2/{kind}/{file}.json.gz",
        "http://deepyeti.ucsd.edu/jianmo/amazon/{kind}/{file}.json.gz",
    ),
    2014: (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon/categoryFiles/{file}.json.gz",
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/{file}.json.gz",
    ),
    2023: (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/{kind}/{file}.jsonl.gz",
        "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/main/raw/{kind}/{file}.jsonl",
    ),
}
KINDS = {2018: ("categoryFiles", "metaFiles2"), 2014: ("", ""), 2023: ("review_categories", "meta_categories")}
# Of the edition of 2018. Gift cards: our copies. The others: from the records of copies in public repositories (Git LFS).
# The lab publishes none.
HASHES = {
    "Gift_Cards_5.json.gz": "8122cc1059445c7880f6d740744887aaf697507a6cb6e62d0c66a0aaa3a4cb08",
    "meta_Gift_Cards.json.gz": "24ac90af3eb47d9c04458a61a44a76a882419190e027c6ec14ee0a993549c34a",
    "Video_Games.json.gz": "6f549cc3c3b2f557f37e89f87b073cd40a273dfa89fec9b9aab0a2da8747fe95",
    "meta_Video_Games.json.gz": "45637fb16e705393faa39c50f75790b33b2665c3675a1a23a84dd47a22ad684d",
    "meta_Luxury_Beauty.json.gz": "4891082bbbacecd5d708cbd73e653c0f95bed270c6b944613abcc8e100b3a7bc",
}


@dataclass(frozen=True)
class Category:
    """The two raw files of a source, and the authors' filter for them."""

    folder: str
    reviews: str
    metadata: str
    domain: str = "item"
    threshold: int = 5
    count_from: float = 0.0
    edition: int = 2018

    @property
    def stems(self) -> tuple[str, str]:
        return self.reviews, self.metadata

    def urls(self, stem: str, mirrors: tuple[str, ...] = ()) -> list[str]:
        """Where the file may be had, the caller's own mirrors (templates as in :data:`MIRRORS`) first."""
        kind = KINDS[self.edition][stem == self.metadata]
        kind += "Small" if stem.endswith("_5") and self.edition == 2018 else ""
        try:
            return [mirror.format(kind=kind, file=stem) for mirror in (*mirrors, *MIRRORS[self.edition])]
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"a mirror holds {{kind}} and {{file}} and no other name in braces, not {error}") from error


def _editions(name: str, file: str, **options) -> dict[str, Category]:
    meta = f"meta_{file}"
    return {
        name: Category(f"amazon2018_{name}_raw", file, meta, **options),
        f"{name}_2014": Category(f"amazon2014_{name}_raw", f"reviews_{file}", meta, edition=2014, **options),
        f"{name}_2023": Category(f"amazon2023_{name}_raw", file, meta, edition=2023, **options),
    }


CATEGORIES = {
    "gift_cards": Category("amazon2018_giftcards_raw", "Gift_Cards_5", "meta_Gift_Cards"),
    "beauty_raw": Category("amazon2018_luxury_beauty_raw", "Luxury_Beauty", "meta_Luxury_Beauty", threshold=4, count_from=3),
    **_editions("toys", "Toys_and_Games", threshold=4, count_from=3),
    **_editions("video_games", "Video_Games", domain="game"),
    **_editions("movies_and_tv", "Movies_and_TV", domain="movie"),
}


def find_raw(root: Path, name: str, stem: str) -> Path:
    """The file of a category, under any of the endings; :class:`DataError` with the command that fetches it."""
    command = f"`python -m allmrec_lib data {name}` fetches it, or links your own copy (--reviews, --metadata)."
    return find_any(root, CATEGORIES[name].folder, stem, ENDINGS, command)


def category_files(name: str) -> Callable[..., list[Path]]:
    """The function that finds a category's two files."""
    return lambda root, **options: [find_raw(root, name, stem) for stem in CATEGORIES[name].stems]


def category_builder(category: str, name: str | None = None) -> Callable[..., Dataset]:
    """The function that builds a category's dataset, called ``name``, with the authors' filter for it."""
    known = CATEGORIES[category]

    def build(
        files: list[Path], threshold: int = known.threshold, count_from: float = known.count_from, iterative: bool = False,
        description: str = "first", strict: bool = False,
    ) -> Dataset:  # fmt: skip
        return from_amazon(*files, name or category, known.domain, threshold, count_from, iterative, description, strict)

    return build


def fetch_raw(root: Path, name: str, mirrors: tuple[str, ...] = ()) -> list[Path]:
    """The category's files: those that are here, and the others from the first mirror that sends them."""
    known, files = CATEGORIES[name], []
    for stem in known.stems:
        try:
            files.append(find_raw(root, name, stem))
        except DataError:
            hashes = HASHES if known.edition == 2018 else {}  # an edition's files have the names of another's
            files.append(fetch_first(known.urls(stem, mirrors), hashes, root / "raw" / known.folder))
    return files
