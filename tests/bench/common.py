"""What the benchmarks share: sides timed by turns, medians, and rows merged into ``data/results/bench.json``."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from allmrec_lib.meter import device_name
from allmrec_lib.paths import project_root
from allmrec_lib.speed import read_rows, results_file

KEYS = ("what", "llm", "device")  # rows that agree in these are one measurement: the newer replaces the older


def seconds(side: Callable[[], Any], device: str = "cpu") -> float:
    """The time of one call. On a CPU with one thread the process's own time, in which other programs on the machine have
    no part; otherwise wall time, a GPU's queue waited for."""
    gpu = device.startswith("cuda")
    wait = torch.cuda.synchronize if gpu else lambda: None
    clock = time.process_time if not gpu and torch.get_num_threads() == 1 else time.perf_counter
    wait()
    begin = clock()
    side()
    wait()
    return clock() - begin


def by_turns(
    sides: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu", warm: bool = True
) -> dict[str, list[float]]:
    """The seconds of every side in every round. Sides take turns, and every second round goes backwards, so that what else
    the machine does slows all alike; ``warm``: each is called before, uncounted, on a GPU a few times, until its memory is
    cut to size."""
    for side in list(sides.values()) * (warm * (3 if device.startswith("cuda") else 1)):
        side()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            taken[name].append(seconds(sides[name], device))
    return taken


def compared(ours: list[float], theirs: list[float], count: float) -> dict[str, float]:
    """Rates (``count`` units of work in the median seconds), their ratio, and the smallest and largest ratio of a round."""
    fast, slow = statistics.median(ours), statistics.median(theirs)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours": count / fast,
        "theirs": count / slow,
        "ratio": slow / fast,
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def attention_order() -> str:
    """Which attention a card takes first."""
    return "flash" if os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1" else "cuDNN"


def row(what: str, numbers: dict[str, float], unit: str, command: str, llm: str | None = None, device: str = "cpu",
        **more: Any) -> dict[str, Any]:  # fmt: skip
    """A row of ``bench.json``; it is printed too."""
    made = {
        "what": what,
        **numbers,
        "unit": unit,
        "device": device_name(device),
        "llm": llm,
        "command": command,
        **({"attention": attention_order()} if device.startswith("cuda") else {}),
        **more,
    }
    print(f"{what}{f' ({llm})' if llm else ''}: {made['ours']:.2f} against {made['theirs']:.2f} {unit}, "
          f"{made['ratio']:.2f} times [{made['ratio_low']:.2f}, {made['ratio_high']:.2f}]", flush=True)  # fmt: skip
    return made


def merge(rows: list[dict[str, Any]], path: Path | None = None, keys: tuple[str, ...] = KEYS) -> Path:
    """Put rows into the file in the place of those with the same ``keys``; the others stay. Written beside and renamed."""
    path = path or results_file("bench")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with FileLock(lock):
        found = {tuple(each.get(key) for key in keys): each for each in [*read_rows(path), *rows]}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(list(found.values()), indent=1) + "\n")
        partial.replace(path)
    lock.unlink(missing_ok=True)
    return path


def real_dataset() -> str:
    """``beauty`` where its files are, else ``movielens``, which pip brings."""
    folders = [os.environ.get("ALLMREC_DATA") or project_root() / "data" / "raw", project_root() / "data" / "raw"]
    return "beauty" if any((Path(f) / "luxury_beauty_2018").is_dir() for f in folders) else "movielens"
