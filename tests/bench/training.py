"""What it takes to train each model: seconds, peak memory, numbers that learn. All in one run, each in a process of its own.

    python -m tests.bench.training --dataset movielens          # rows of data/results/training.json, and the cost page

A command that was interrupted goes on where it was; what it has trained lies apart from what the chapters use.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from allmrec_lib import cost_page
from allmrec_lib.experiment import Experiment
from allmrec_lib.paths import project_root
from allmrec_lib.recommenders.models import MODELS, model_named
from allmrec_lib.speed import results_file
from allmrec_lib.store import Store
from allmrec_lib.training import read_history

NOTHING = "data and libraries alone"  # the memory that every process has before it trains
NAMES = [NOTHING, *MODELS, "Stage 1", "Stage 2", "TALLRec", "TALLRec (yes/no)"]
KEYS = ("model", "dataset", "profile", "llm")
ROOT = Path(__file__).resolve().parents[2]


def trained(run: Experiment, name: str) -> Path:
    """The folder of a trained model; A-LLMRec's stages have theirs."""
    if name in MODELS:
        return run.recommender_folder(name)
    if name == "TALLRec (yes/no)":
        from allmrec_lib.yes_no import yes_no_folder

        return yes_no_folder(run)
    return getattr(run, {"Stage 1": "stage1_folder", "Stage 2": "stage2_folder", "TALLRec": "tallrec_folder"}[name])


def learning(run: Experiment, name: str, folder: Path) -> int:
    """How many numbers learn."""
    from safetensors.torch import load_file

    if name in MODELS:
        kind = model_named(name)
        module = kind.build(run.sequences, run.data, getattr(run.profile, kind.section))
    elif name == "Stage 1":
        from allmrec_lib.alignment import Alignment
        from allmrec_lib.text import TextEncoder

        settings = run.profile.stage1
        text = TextEncoder(settings.encoder, run.texts, settings.max_text_tokens, settings.train_layers, settings.precision)
        module = Alignment(run.cf_model.item_embeddings().shape[1], text, settings)
    else:
        return sum(weight.numel() for weight in load_file(folder / "trained.safetensors").values())
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def measure(run: Experiment, name: str) -> dict:
    """Train one model in this process, unless that was done, and tell what it took."""
    if name == NOTHING:
        folder = run.store.get("nothing", {"data": run.data.digest}, lambda _: [run.candidates, run.texts])
        return json.loads((folder / "cost.json").read_text()) | {"wall_s": None, "parameters": None, "epochs": None}
    _ = run.candidates, run.texts
    if name == "Stage 1":
        _ = run.cf_model
    folder = trained(run, name)
    epochs = read_history(folder).rows[-1]["epoch"]
    return json.loads((folder / "cost.json").read_text()) | {"parameters": learning(run, name, folder), "epochs": epochs}


def all_of_them(args: argparse.Namespace) -> list[dict]:
    rows = []
    for name in args.models or NAMES:
        command = [sys.executable, "-m", "tests.bench.training", "--one", name, "--dataset", args.dataset, "--profile",
                   args.profile, "--llm", args.llm, "--device", args.device, "--store", str(args.store)]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        if done.returncode:
            raise SystemExit(f"{name} failed; what was trained before it is kept, the same command goes on")
        about = {"model": name, "dataset": args.dataset, "profile": args.profile, "llm": args.llm,
                 "settings": cost_page.settings_of(name, args.dataset, args.profile)}  # fmt: skip
        rows.append(about | json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*NAMES, []], metavar="MODEL", help=", ".join(NAMES) + " (default: all)")
    for name, default in (("dataset", "movielens"), ("profile", "laptop"), ("llm", "pocket"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    own = project_root() / "data" / "artifacts" / "training_cost"
    parser.add_argument("--store", type=Path, default=own, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run = Experiment(args.dataset, args.profile, 0, args.llm, args.device, store=Store(args.store))
        print(json.dumps(measure(run, args.one)))
        return 0
    rows = all_of_them(args)

    from tests.bench.common import merge

    print(f"written: {merge(rows, results_file('training'), KEYS).name}, {cost_page.write().name}")
    shutil.rmtree(args.store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
