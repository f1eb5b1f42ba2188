"""Rows of results in and out: one JSON file a table under ``data/results/<profile>/<dataset>/``."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import metrics
from .paths import project_root, shipped
from .store import Store

FIELDS = ("model", "dataset", "profile", "llm", "metric", "value", "low", "high", "n_users", "seeds", "paper", "section")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import torch
    import transformers

    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def paper_value(table: int, dataset: str, model: str | None, metric: str = "hit@1",
                condition: str | None = None) -> float | None:  # fmt: skip
    """The paper's number for a model under a condition of the table ("cold items"), or None where the paper has none for
    this dataset (``data/paper/table_NN.csv``)."""
    frame = pd.read_csv(shipped("data/paper") / f"table_{table:02d}.csv")
    same = frame["model"].isna() if model is None else frame["model"] == model
    if condition is not None:
        same &= frame["condition"] == condition
    found = frame[(frame["dataset"] == dataset) & same & (frame["metric"] == metric)]
    return None if found.empty else float(found["value"].iloc[0])


def row(model: str, values: list[np.ndarray], *, dataset: str, profile: str, llm: str | None, section: str, table: int = 1,
        metric: str = "hit@1", condition: str | None = None) -> dict[str, Any]:  # fmt: skip
    """One row: the mean over users of the mean over seeds, with its 95% interval over users.

    ``values``: one (N,) array of per-user values a seed, all on the same rows.
    """
    interval = metrics.bootstrap(np.mean(values, axis=0))
    line = {"model": model, "dataset": dataset, "profile": profile, "llm": llm, "metric": metric, "value": interval.value,
            "low": interval.low, "high": interval.high, "n_users": len(values[0]), "seeds": len(values),
            "paper": paper_value(table, dataset, model, metric, condition), "section": section}  # fmt: skip
    if len(values) > 1:
        line["by_seed"] = [float(np.mean(of_seed)) for of_seed in values]
    return line if condition is None else line | {"condition": condition}


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says of the claim that it is positive."""
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def claims(tests: dict[str, metrics.Comparison], users: int, *, dataset: str, profile: str, llm: str | None, section: str,
           seeds: dict[str, int] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """Rows for paired tests of claims "A > B" on ``users`` users, for the ledger; ``seeds``: how many each model is the mean
    of (one, where it is not named), of which a claim records the fewer."""
    about = {"dataset": dataset, "profile": profile, "llm": llm, "metric": "difference of hit@1", "n_users": users,
             "paper": None, "section": section}  # fmt: skip
    return [about | {"model": claim, "value": float(test.difference), "low": float(test.low), "high": float(test.high),
                     "p": float(test.p_value), "verdict": verdict(test.low, test.high),
                     "seeds": min((seeds or {}).get(model, 1) for model in claim.split(" > "))}
            for claim, test in tests.items()]  # fmt: skip


def path_of(table: str, profile: str, dataset: str, seed: int = 0, llm: str | None = None) -> Path:
    """Where the rows of a table lie; another seed than 0 and another LLM than the small one have a folder of their own."""
    folder = project_root() / "data" / "results" / profile / dataset
    if seed != 0 or llm not in (None, "pocket"):
        folder /= f"seed{seed}-{Path(llm or 'pocket').name}"
    return folder / f"{table}.json"


def record(table: str, rows: list[dict[str, Any]], run: dict[str, Any],
           wall_s: dict[str, float] | None = None) -> Path:  # fmt: skip
    """Write the rows of a table with how they came about; ``run`` holds code, config and data hashes. Added to it are
    versions, every artifact that this process has used with the seconds and the memory that it took to make, and
    ``wall_s``, times that the chapter took itself.

    A file that already holds the same rows from the same run is left as it is, so that repeating a command changes
    nothing. Raises ValueError for a row without one of :data:`FIELDS`.
    """
    for line in rows:
        missing = [name for name in FIELDS if name not in line]
        if missing:
            raise ValueError(f"{table}: the row of {line.get('model')!r} has no {missing[0]!r}")
    path = path_of(table, rows[0]["profile"], rows[0]["dataset"], run.get("seed", 0), run.get("llm"))
    run = {**run, "versions": versions()}
    if path.exists():
        old = json.loads(path.read_text())
        kept = {k: v for k, v in old["run"].items() if k not in ("started", "artifacts", "wall_s")}
        if [old["rows"], kept] == json.loads(json.dumps([rows, run])):
            return path
    run |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "artifacts": Store.used}
    run |= {} if wall_s is None else {"wall_s": wall_s}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"run": run, "rows": rows}, indent=1) + "\n")
    partial.replace(path)
    return path


def read(table: str, profile: str, dataset: str, seed: int = 0, llm: str | None = None) -> pd.DataFrame:
    """The rows of a table, here or as they came with the project; an empty frame when there are none yet."""
    path = shipped(path_of(table, profile, dataset, seed, llm).relative_to(project_root()))
    return pd.DataFrame(json.loads(path.read_text())["rows"]) if path.exists() else pd.DataFrame(columns=list(FIELDS))
