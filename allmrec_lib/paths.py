"""Where the project lies. Apart from what needs torch, so that commands which only start others begin at once."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The folder that holds ``data/``: ``ALLMREC_HOME`` or the repository this file lies in."""
    return Path(os.environ.get("ALLMREC_HOME") or Path(__file__).resolve().parent.parent)
