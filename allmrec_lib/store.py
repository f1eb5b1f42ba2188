"""Artifacts keyed by what made them: a chapter asks for a trained model and gets it, loaded or trained.

An artifact lives in ``<root>/<kind>-<key>/``; the key is a hash of its inputs (settings, data, seed, the code that makes
it). It is made in ``...partial`` beside it and renamed when complete: what is found under its name is whole, and an
interrupted training finds its checkpoint in the partial folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError

from . import processes
from .meter import Meter
from .paths import project_root


def code_digest(*modules: str) -> str:
    """A hash of the source of library modules, e.g. ``code_digest("training", "recommenders.sasrec")``."""
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(f"allmrec_lib.{module}")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:12]


Content = TypeVar("Content")


def readable(path: Path, read: Callable[[Path], Content]) -> Content:
    """``read(path)`` of an artifact's file; OSError that says what to delete where the file is damaged."""
    try:
        return read(path)
    except (SafetensorError, OSError, ValueError, EOFError) as error:
        raise OSError(f"{path.parent.name}/{path.name} cannot be read ({error}); delete {path.parent}, and the next run makes it "
                      "anew") from error  # fmt: skip


class Store:
    """The artifacts under ``root`` (default: ``data/artifacts`` of the project).

    ``used``: what this process got out of any store, by name, with what it had cost to make (``cost.json`` beside it).
    """

    used: dict[str, dict[str, Any]] = {}

    def __init__(self, root: Path | None = None):
        self.root = Path(root) if root else project_root() / "data" / "artifacts"

    def folder(self, kind: str, inputs: dict[str, Any]) -> Path:
        """Where the artifact of ``inputs`` (JSON values) lies or would lie."""
        text = json.dumps(inputs, sort_keys=True, default=str)
        return self.root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def get(self, kind: str, inputs: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of the artifact; ``make(folder)`` fills it when it is not there yet.

        Two processes that ask for the same artifact do not both make it: the second waits. Processes that work together
        (``processes``) make it together, in a folder that all can read; what others than the first write is thrown away.
        """
        final = self.folder(kind, inputs)
        if processes.from_main(final.exists()):
            return self._noted(final, kind, inputs)
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_suffix(".lock")) if processes.is_main() else nullcontext():
            if not processes.from_main(final.exists()):
                if processes.is_main():
                    self._make(final, inputs, make)
                else:
                    with TemporaryDirectory() as scratch:
                        make(Path(scratch))
                processes.wait()
        if processes.is_main():
            final.with_suffix(".lock").unlink(missing_ok=True)
        return self._noted(final, kind, inputs)

    def scores(self, inputs: dict[str, Any], score: Callable[[Path], np.ndarray]) -> np.ndarray:
        """What ``score(folder)`` gives, made once and kept as the artifact "scores" of ``inputs``; in ``folder`` it can leave
        files "checkpoint.*" for another try."""

        def make(folder: Path) -> None:
            np.save(folder / "scores.npy", score(folder), allow_pickle=False)

        return readable(self.get("scores", inputs, make) / "scores.npy", partial(np.load, allow_pickle=False))

    def _noted(self, final: Path, kind: str, inputs: dict[str, Any]) -> Path:
        cost = final / "cost.json"
        about = {"kind": kind} | {name: inputs[name] for name in ("model", "mode") if name in inputs}
        self.used[final.name] = about | (json.loads(cost.read_text()) if cost.exists() else {})
        return final

    @staticmethod
    def _make(final: Path, inputs: dict[str, Any], make: Callable[[Path], None]) -> None:
        begun = final.with_suffix(".partial")
        begun.mkdir(exist_ok=True)
        with Meter() as meter:
            make(begun)
        for checkpoint in begun.rglob("checkpoint.*"):  # a model trained in steps has one for each
            checkpoint.unlink()
        (begun / "cost.json").write_text(json.dumps(meter.made))
        (begun / "manifest.json").write_text(json.dumps(inputs, indent=1, sort_keys=True, default=str))
        begun.rename(final)

    def clear(self) -> None:
        """Delete every artifact."""
        shutil.rmtree(self.root, ignore_errors=True)
