"""Files from elsewhere: found on this machine first, fetched otherwise, checked by hash wherever it is known."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import requests
from tqdm import tqdm

from ..config import quiet
from ..paths import project_root
from .base import DataError

PIECE = 1 << 16
BEGINS = {".gz": b"\x1f\x8b", ".json": b"{", ".jsonl": b"{"}  # what a file of an ending begins with


def data_root() -> Path:
    """The folder ``data/`` of the project."""
    return project_root() / "data"


def sha256(path: Path) -> str:
    """Of a file's content; a file that has not changed since this process asked is not read again."""
    about = path.stat()
    return _sha256(path.resolve(), about.st_size, about.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
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


def find_any(root: Path, folder: str, stem: str, endings: tuple[str, ...], hint: str = "") -> Path:
    """:func:`find` for a file under any of the endings."""
    for ending in endings:
        try:
            return find(root, folder, f"{stem}{ending}")
        except DataError:
            continue
    return find(root, folder, f"{stem}{endings[0]}", hint)


def adopt(root: Path, folder: str, path: Path, stem: str, endings: tuple[str, ...]) -> Path:
    """A user's own copy, under the name by which :func:`find_any` finds it: a link to it in ``data/raw``.

    Raises :class:`DataError` for a file that does not exist or has another ending, and where a real file has the name.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise DataError(f"{path} is no file; give the path of your copy of {stem}{endings[0]}")
    ending = next((ending for ending in endings if path.name.endswith(ending)), None)
    if ending is None:
        raise DataError(f"{path.name} does not end in {', '.join(endings)}; is it the right file? Rename it if it is")
    place = root / "raw" / folder
    place.mkdir(parents=True, exist_ok=True)
    for there in (place / f"{stem}{any_ending}" for any_ending in endings):
        if there.is_symlink():
            there.unlink()  # an earlier link
        elif there.exists():
            raise DataError(f"{there} is there already; delete it first if yours shall be used")
    link = place / f"{stem}{ending}"
    link.symlink_to(path)
    used = find_any(root, folder, stem, endings)
    if used.absolute() != link.absolute():
        link.unlink()
        raise DataError(f"{used} comes first; unset ALLMREC_DATA, or take that file away, if {path.name} shall be used")
    return link


def check(path: Path, expected: str) -> Path:
    """``path``, if its SHA-256 is the expected one; :class:`DataError` otherwise."""
    found = sha256(path)
    if found != expected:
        raise DataError(
            f"{path.name}: its SHA-256 is {found}, expected {expected}; the file is damaged or another version. "
            "Delete it and fetch it again"
        )
    return path


class Resuming:
    """A downloader for pooch that goes on where an earlier try stopped, with a progress bar.

    What came so far lies in ``<name>.<server>.part`` beside the file, and the server's mark of its version in
    ``....mark``: a file that changed in between, and a server that cannot send a part, start anew.
    """

    def __init__(self, timeout: float = 10.0):
        self.timeout = timeout

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        stem = f"{url.rsplit('/', 1)[1]}.{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        part, mark = (Path(output_file).parent / f"{stem}.{ending}" for ending in ("part", "mark"))
        have = part.stat().st_size if part.exists() and mark.exists() else 0
        # Encoding: the file's own bytes, else their number means nothing.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": mark.read_text()} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as answer:
            if have and answer.status_code == 416:  # the part is no part of this file
                part.unlink()
                return self(url, output_file, pooch)
            answer.raise_for_status()
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if version:
                mark.write_text(version)
            else:
                mark.unlink(missing_ok=True)
            self._write(answer, part, have if answer.status_code == 206 else 0)
        shutil.move(part, output_file)
        mark.unlink(missing_ok=True)

    def _write(self, answer: requests.Response, part: Path, have: int) -> None:
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(desc=part.name.split(".")[0], total=total, initial=have, unit="B", unit_scale=True, disable=quiet())
        with open(part, "ab" if have else "wb") as file, bar:
            for piece in answer.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))
        size = part.stat().st_size
        if total is not None and size != total:
            raise requests.ConnectionError(f"the connection broke after {size:,} of {total:,} bytes")


def fetch(url: str, expected: str | None, folder: Path, timeout: float = 10.0) -> Path:
    """Download, resumed where an earlier try stopped, checked by hash and renamed into place when whole.

    ``timeout`` is in seconds without an answer. Raises OSError when the host does not answer, ValueError when what it
    sent has another hash, or begins as no file of its ending does (a login page, say).
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    known, name = f"sha256:{expected}" if expected else None, url.rsplit("/", 1)[1]
    path = Path(pooch.retrieve(url, known, path=folder, fname=name, downloader=Resuming(timeout)))
    begins = BEGINS.get(path.suffix)
    with open(path, "rb") as file:
        first = file.read(8).lstrip()
    if begins and not first.startswith(begins):
        path.unlink()
        raise ValueError(f"what it sent as {name} begins with {first!r} (a login page?)")
    return path


def fetch_first(urls: list[str], hashes: dict[str, str], folder: Path) -> Path:
    """The file from the first mirror that has it; ``hashes`` holds the known SHA-256 of some names.

    Raises :class:`DataError` that says what every mirror answered.
    """
    failed = []
    for url in urls:
        try:
            return fetch(url, hashes.get(url.rsplit("/", 1)[1]), folder)
        except (OSError, ValueError) as error:
            failed.append(f"{url}: {_reason(error)}")
    raise DataError("no mirror sent the file:\n  " + "\n  ".join(failed))


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError) and not str(error).startswith(("the connection", "http")):
        return "cannot be reached"
    return " ".join(str(error).split())


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
