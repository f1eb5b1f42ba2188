"""Files from elsewhere: found on this machine first, fetched otherwise, checked by hash always."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from ..store import project_root
from .base import DataError


def data_root() -> Path:
    """The folder ``data/`` of the project."""
    return project_root() / "data"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(root: Path, folder: str, name: str, hint: str = "") -> Path:
    """A file of the user's own: in ``$ALLMREC_DATA/folder``, or in ``raw/folder`` under the data root.

    Raises :class:`DataError` that says what to put where; ``hint`` says where it comes from.
    """
    places = [root / "raw" / folder]
    if os.environ.get("ALLMREC_DATA"):
        places.insert(0, Path(os.environ["ALLMREC_DATA"]) / folder)
    for place in places:
        if (place / name).exists():
            return place / name
    where = f"Put it into data/raw/{folder}/, or set ALLMREC_DATA to the folder that holds {folder}/."
    raise DataError(f"{name} is not here. {where} {hint}".strip())


def check(path: Path, expected: str) -> Path:
    """``path``, if its SHA-256 is the expected one; :class:`DataError` otherwise."""
    found = sha256(path)
    if found != expected:
        raise DataError(
            f"{path.name}: its SHA-256 is {found}, expected {expected}; the file is damaged or another version. "
            "Delete it and fetch it again"
        )
    return path


def fetch(url: str, expected: str, folder: Path, timeout: float = 10.0) -> Path:
    """Download with a progress bar, checked by hash and renamed into place when whole.

    ``timeout`` is in seconds without an answer. Raises OSError when the host does not answer, ValueError when what it
    sent has another hash (a login page, say).
    """
    import pooch

    from ..config import quiet

    downloader = pooch.HTTPDownloader(progressbar=not quiet(), timeout=timeout)
    pooch.get_logger().setLevel("WARNING")
    return Path(pooch.retrieve(url, f"sha256:{expected}", path=folder, fname=url.rsplit("/", 1)[1], downloader=downloader))


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """A wheel from the package index that pip is set up for, e.g. ``recbole==1.2.1``; it is not installed."""
    existing = find_wheel(requirement, folder)
    if existing is None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--timeout", "10", "--retries", "1", "--dest", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        existing = find_wheel(requirement, folder)
        if existing is None:
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise DataError(f"pip could not fetch {requirement}: {reason}")
    return existing


def find_wheel(requirement: str, folder: Path) -> Path | None:
    """The wheel of ``requirement`` in ``folder``, if it is there."""
    name, version = requirement.split("==")
    return next(iter(sorted(folder.glob(f"{name}-{version}-*.whl"))), None)
