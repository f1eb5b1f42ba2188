"""Tuning on validation: a grid of settings, driven by optuna; every run is an artifact of the store.

    python -m allmrec_lib.tune GRU4Rec --dataset beauty
    python -m allmrec_lib.tune SASRec --dataset beauty --grid sasrec.dropout=0.2,0.5 --grid sasrec.lr=0.001

Without ``--grid`` the learning rates of the paper (section 5.1) are tried. A command that was interrupted is given again:
runs that are in the store are read from it, the one that was cut off goes on from its checkpoint. The rows land in
``data/results/<profile>/<dataset>/tuning_<model>.json``; what is chosen is written into the profile by hand.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import optuna
import pandas as pd
import yaml

from . import results
from .config import INTERRUPTED, ConfigError
from .datasets.base import DataError
from .experiment import Experiment
from .paths import full_name
from .recommenders.models import MODELS
from .training import read_history

LEARNING_RATES = [0.01, 0.001, 0.0005, 0.0001]
SECTIONS = {name: kind.section for name, kind in MODELS.items()} | {"A-LLMRec": "stage2", "TALLRec": "tallrec"}


def tune(model: str, grid: dict[str, list[Any]] | None = None, dataset: str = "movielens", profile: str = "laptop",
         seed: int = 0, llm: str = "pocket", device: str = "cpu") -> pd.DataFrame:  # fmt: skip
    """Train ``model`` with every combination of ``grid`` ("section.setting" -> values); one row a combination, best first.

    The objective is the validation metric by which training stops early; ``curve`` holds it by epoch. Raises ValueError
    for an unknown model and :class:`ConfigError` for an unknown setting.
    """
    if model not in SECTIONS:
        raise ValueError(f"unknown model {model!r}; one of {', '.join(SECTIONS)}")
    grid = grid or {f"{SECTIONS[model]}.lr": LEARNING_RATES}
    rows: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        settings = {name: trial.suggest_categorical(name, values) for name, values in grid.items()}
        history = read_history(Experiment(dataset, profile, seed, llm, device, settings).folder(model))
        curve = [(row["epoch"], row["metric"]) for row in history.rows]
        rows.append({"settings": settings, "value": history.best, "epoch": history.best_epoch, "curve": curve})
        shown = ", ".join(f"{name} = {value}" for name, value in settings.items())
        print(f"{model} on {dataset}: {shown}: {history.best:.4f} at epoch {history.best_epoch}", flush=True)
        return history.best

    run = Experiment(dataset, profile, seed, llm, device)
    about = {"model": model, "dataset": dataset, "profile": profile, "llm": None if model in MODELS else llm, "low": None,
             "high": None, "metric": "validation", "n_users": len(run.candidates["validation"].users), "seeds": 1,
             "paper": None, "section": "5.1"}  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=seed)).optimize(objective)
    found = sorted(rows, key=lambda row: -row["value"])
    others = [name.partition(".")[2] for name in grid if name != f"{SECTIONS[model]}.lr"]  # a grid of its own, a file of its own
    results.record("_".join(["tuning", SECTIONS[model], *others]), [about | row for row in found], run.record(model))
    return pd.DataFrame(found)


def parsed(options: list[str]) -> dict[str, list[Any]]:
    """``["sasrec.lr=0.01,0.001"]`` to ``{"sasrec.lr": [0.01, 0.001]}``. Raises ValueError for what has no "="."""
    grid = {}
    for option in options:
        name, equals, values = option.partition("=")
        if not equals:
            raise ValueError(f"--grid {option!r}: write it as section.setting=value,value, e.g. sasrec.lr=0.01,0.001")
        grid[name] = [yaml.safe_load(value) for value in values.split(",")]
    return grid


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=", ".join(SECTIONS))
    for name, default in (("dataset", "movielens"), ("profile", "laptop"), ("llm", "pocket"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", action="append", default=[], metavar="SECTION.SETTING=VALUE,VALUE")
    args = parser.parse_args(arguments)
    try:
        found = tune(args.model, parsed(args.grid), args.dataset, args.profile, args.seed, full_name(args.llm),
                     args.device)  # fmt: skip
    except (ValueError, OSError, ImportError, ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    print(found[["settings", "value", "epoch"]].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
