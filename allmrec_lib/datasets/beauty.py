"""Luxury Beauty under one name: the authors' preprocessed files where they are, Amazon's raw ones otherwise.

Both give the paper's Table 2. The texts differ (from the raw files no title is lost), and so do the datasets' digests.
"""

from __future__ import annotations

from pathlib import Path

from .authors import beauty_files, build_beauty
from .base import DataError, Dataset
from .catalogue import category_builder, category_files

RAW = "beauty_raw"


def either_files(root: Path, **options) -> list[Path]:
    try:
        return beauty_files(root)
    except DataError as first:
        try:
            return category_files(RAW)(root)
        except DataError as second:
            from_raw = str(second).replace("data beauty_raw`", "data beauty`")
            raise DataError(f"{first} Or from Amazon's raw files: {from_raw}") from None


def build_either(files: list[Path], strict: bool = False) -> Dataset:
    """Amazon Luxury Beauty 2018, the paper's Table 2."""
    if files[0].suffix == ".txt":
        return build_beauty(files)  # strict always
    return category_builder(RAW, "beauty")(files, strict=strict)
