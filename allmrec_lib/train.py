"""Train what chapters ask for before they are run, with one process or several (GPUs); the chapters then find it in the store.

    python -m allmrec_lib.train SASRec A-LLMRec --dataset beauty --profile laptop
    accelerate launch --multi_gpu --num_processes 4 -m allmrec_lib.train A-LLMRec TALLRec --dataset beauty --profile paper \\
        --llm facebook/opt-6.7b --device cuda

What a model stands on (A-LLMRec: SASRec and Stage 1) is trained before it. An interrupted command goes on where it was.
The artifact is the same for any number of processes (``shares``), and lies under the same name.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import yaml

from . import processes
from .config import INTERRUPTED, ConfigError
from .datasets.base import DataError
from .experiment import VARIANTS, Experiment
from .paths import full_name
from .preflight import passed
from .recommenders.models import MODELS

NAMES = [*MODELS, "A-LLMRec", "TALLRec", *VARIANTS]
MODES = ["constrained", "score", "trie", "free"]


def train(models: list[str], run: Experiment, modes: list[str]) -> None:
    """Train ``models`` (:data:`NAMES`) one after another and score the test rows with each, as every one of ``modes`` where
    an LLM answers."""
    for name in models:
        begin = time.monotonic()
        folder = run.folder(name)
        trained = time.monotonic()
        for mode in modes[:1] if name in MODELS else modes:
            run.scores(name, mode)
        if processes.is_main():
            print(f"{name}: {folder.name}, {trained - begin:.0f} s to train, {time.monotonic() - trained:.0f} s to score "
                  f"({processes.count()} processes)", flush=True)  # fmt: skip


def parsed(options: list[str]) -> dict[str, object]:
    """``["stage2.epochs=1"]`` to ``{"stage2.epochs": 1}``. Raises ValueError for what has no "="."""
    for option in options:
        if "=" not in option:
            raise ValueError(f"--set {option!r}: write it as section.setting=value, e.g. stage2.epochs=1")
    return {name: yaml.safe_load(value) for name, _, value in (option.partition("=") for option in options)}


def here(args: argparse.Namespace) -> bool:
    """Whether what an LLM needs is here, by the checks of ``preflight``: not asked for small models, nor for the small LLM on a
    CPU. The first process asks, all go by its answer."""
    if set(args.models) <= set(MODELS) or (args.llm, args.device) == ("pocket", "cpu"):
        return True
    asked = {"dataset": args.dataset, "profile": args.profile, "llm": full_name(args.llm), "device": args.device,
             "overrides": parsed(args.set)}  # fmt: skip
    return processes.from_main(processes.is_main() and passed(**asked))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=NAMES, metavar="MODEL", help=", ".join(NAMES))
    for name, default in (("dataset", "movielens"), ("profile", "laptop"), ("llm", "pocket"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="*", default=MODES[:1], choices=MODES, help="how an LLM answers; none: do not score")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.SETTING=VALUE", help="change a setting")
    args = parser.parse_args(arguments)
    if not args.device.startswith("cuda"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    processes.together()  # which card is whose: before an LLM is loaded
    try:
        if not here(args):
            return 1
        run = Experiment(args.dataset, args.profile, args.seed, full_name(args.llm), args.device, parsed(args.set))
        train(args.models, run, args.modes)
    except (ValueError, OSError, ImportError, ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
