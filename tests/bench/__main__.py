"""Run the benchmarks and keep what they find.

python -m tests.bench                      # all of `make bench`, and both pages
python -m tests.bench stage2 inference     # some of them
python -m tests.bench paper --llm opt-350m --batch 2            # all that asks an LLM, at an OPT of that size (`make bench-paper`)
python -m tests.bench paper --llm opt-6.7b --batch 4 --device cuda
"""

from __future__ import annotations

import argparse
import sys
import time

from allmrec_lib import cost_page, speed

from . import calibrate, cf, inference, stage1, stage2, table10, where
from .common import merge, real_dataset
from .opt import SIZES
from .paper_size import paper_size
from .worlds import World

ALL = ("sasrec", "evaluation", "stage1", "stage2", "inference", "table10", "profiles", "constants")
QUICK = {"sasrec": {"steps": 5, "rounds": 2}, "evaluation": {"users": 30, "rounds": 1}, "stage1": {"steps": 1, "rounds": 1},
         "stage2": {"batches": 2, "rounds": 1, "batch_size": 4}, "inference": {"rows": 4, "rounds": 1, "batch": 4, "longest": 64},
         "table10": {"rounds": 1, "batch": 4}, "profiles": {"batch": 4}, "constants": {"batch": 4, "rows": 4}}  # fmt: skip


def run(name: str, world: World, films: World, quick: bool = False) -> None:
    """One benchmark; its rows are merged into what was recorded. ``quick``: few rows once, to see that it works."""
    sizes = QUICK[name] if quick else {}
    both = [world, films] if world.name != films.name else [world]
    made = {"sasrec": lambda: cf.sasrec(both, **sizes), "evaluation": lambda: cf.evaluation(both, **sizes),
            "stage1": lambda: stage1.stage1(films, **sizes), "stage2": lambda: stage2.stage2(world, **sizes),
            "inference": lambda: inference.inference(world, **sizes), "table10": lambda: table10.table10(both, **sizes)}  # fmt: skip
    if name == "profiles":
        merge(where.where(world, films, **sizes), speed.results_file("profiles"), ("what", "llm"))
    elif name == "constants":
        calibrate.write(world, films, **sizes)
    else:
        merge(made[name]())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join((*ALL, "paper")))
    parser.add_argument("--quick", action="store_true", help="few rows, once: to see that it works, not for the record")
    parser.add_argument("--llm", default="opt-6.7b", choices=SIZES, help="paper: which OPT")
    parser.add_argument("--batch", type=int, default=4, help="paper: rows a step (the paper's 4)")
    parser.add_argument("--rounds", type=int, help="paper: how often each side is timed (15 on a GPU, 2 on a CPU)")
    parser.add_argument("--device", default="cpu", help="paper: cpu (full precision) or cuda (bf16)")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in (*ALL, "paper")]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; one of {', '.join((*ALL, 'paper'))}")
    world, films = World(real_dataset()), World("movielens")
    begin = time.monotonic()
    for name in args.names or ALL:
        if name == "paper":
            rounds = args.rounds or (15 if args.device.startswith("cuda") else 2)
            paper_size(world, films, args.llm, args.batch, rounds, args.device)
        else:
            run(name, world, films, args.quick)
        print(f"{name}: {time.monotonic() - begin:.0f} s so far", flush=True)
    print(f"written: {speed.write().name}, {cost_page.write().name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
