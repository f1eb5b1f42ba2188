"""Where the project lies. Apart from what needs torch, so that commands which only start others begin at once."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def project_root() -> Path:
    """The folder that everything is written to: ``ALLMREC_HOME``, or the repository this file lies in."""
    return Path(os.path.abspath(os.environ.get("ALLMREC_HOME") or REPOSITORY))


def shipped(name: str) -> Path:
    """A file or folder that comes with the project: the one under :func:`project_root`, if it has one, or the repository's."""
    own = project_root() / name
    return own if own.exists() else REPOSITORY / name


def full_name(llm: str) -> str:
    """An LLM's folder by its full path, since a chapter runs in a folder of its own; hub names and "pocket" as they are."""
    return str(Path(llm).resolve()) if llm != "pocket" and Path(llm).is_dir() else llm


def inputs(llm: str) -> dict[str, list[int]]:
    """Size and time of every file that a run may read besides the library: raw data of all datasets, and the LLM's folder."""
    raw = [project_root() / "data" / "raw", Path(os.environ.get("ALLMREC_DATA") or "nowhere")]
    own = shipped("data/pocket_llm") if llm == "pocket" else Path(llm)
    files = sorted(file for file in [*(f for folder in raw for f in folder.glob("*/*")), *own.glob("*")] if file.is_file())
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
