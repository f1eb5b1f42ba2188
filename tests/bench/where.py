"""Where the time of each hot step goes: torch.profiler, and how fast this machine multiplies and copies at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from allmrec_lib import metrics
from allmrec_lib.alignment import AlignmentTask
from allmrec_lib.config import SequentialConfig, Stage1Config, Stage2Config, TALLRecConfig
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.ranker import AnswerTask
from allmrec_lib.recommenders.base import score_rows
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.recommenders.sequential import SequentialTask

from .cf import steps_of, update
from .common import device_name, seconds
from .stage1 import encoder_of, tasks
from .table10 import step
from .worlds import World, allmrec, tallrec, task_of

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "mkldnn")  # whose FLOPs the profiler counts
ATTENTION = ("attention",)


def peaks(device: str = "cpu") -> dict[str, float]:
    """GFLOP/s of a matrix product (a GPU's in bf16) and GB/s of a large copy, the best of a few."""
    gpu = device.startswith("cuda")
    sizes, dtype = ((4096, 8192), torch.bfloat16) if gpu else ((512, 1024, 2048), torch.float32)
    squares = [torch.randn(size, size, device=device, dtype=dtype) for size in sizes]
    flat = torch.randn(1_000_000_000 if gpu else 16_000_000, device=device)
    out = torch.empty_like(flat)
    product = max(2 * len(a) ** 3 / seconds(lambda a=a: a @ a, device) for _ in range(5) for a in squares)
    copy = min(seconds(lambda: out.copy_(flat), device) for _ in range(5))  # a warm one among them
    return {"gflops": product / 1e9, "gb_s": 2 * flat.nbytes / copy / 1e9}


def profiled(what: str, work: Callable[[], Any], rows: int, device: str = "cpu", llm: str | None = None) -> dict[str, Any]:
    """``work``, one batch: what a call takes, and which operations that time goes to (the profiler slows them alike). On a GPU
    that time is the GPU's, and ``busy`` is its share of the batch's."""
    gpu = device.startswith("cuda")
    work()
    took = min(seconds(work, device) for _ in range(3 if gpu else 1))
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])], with_flops=True) as seen:
        work()
    own = (lambda e: e.self_device_time_total) if gpu else (lambda e: e.self_cpu_time_total)
    events = [e for e in seen.key_averages() if e.key.startswith("aten::") and own(e) > 0]
    total, calls = sum(own(e) for e in events), sum(e.count for e in events)
    products, counted = (sum(own(e) for e in events if any(name in e.key for name in names)) / total
                         for names in (PRODUCTS + ATTENTION, PRODUCTS))  # fmt: skip
    flops = sum(e.flops for e in events)
    top = [{"op": e.key.removeprefix("aten::"), "share": own(e) / total, "calls": e.count}
           for e in sorted(events, key=own, reverse=True)[:6]]  # fmt: skip
    spent = total / 1e6 if gpu else took  # a GPU waits where calls come too slowly
    made = {"what": what, "device": device_name(device), "rows": rows, "seconds": took, "calls": calls, "products": products,
            "flops": flops, "gflop_s": flops / (counted * spent) / 1e9 if counted else 0.0,
            "us_a_call": took / calls * 1e6, "top": top}  # fmt: skip
    made |= ({"llm": llm} if llm else {}) | ({"busy": spent / took} if gpu else {})
    return made | {"bound": bound(made)}


def bound(found: dict[str, Any]) -> str:
    """Calls where a GPU waits for them half of the time or more. Matrix products where they take half of the time or more;
    otherwise calls where one lasts less than 25 microseconds on average, which is about what calling it costs; otherwise memory."""
    if "busy" in found:
        return (
            "the number of calls"
            if found["busy"] < 0.5
            else "matrix products"
            if found["products"] >= 0.5
            else "memory traffic"
        )
    if found["products"] >= 0.5:
        return "matrix products"
    return "the number of calls" if found["us_a_call"] < 25 else "memory traffic"


def _training(task, rows: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(task.parameters())
    return lambda: step(task, optimizer, rows)


def hot_steps(world: World, films: World, batch: int = 8) -> list[tuple[str, Callable[[], Any], int]]:
    """(name, one batch of it, rows) of everything that takes time in the book."""
    config = SequentialConfig()
    cf = SequentialTask(SASRec(world.sequences.n_items, config), world.sequences, world.validation, "cpu")
    optimizer, first = steps_of(cf.module), cf.batches(torch.arange(cf.n_rows))[0]
    short = world.test_rows.take(torch.arange(1024)) if len(world.test_rows) > 1024 else world.test_rows
    shown = world.test.take(torch.arange(len(short)))
    one = Stage1Config(train_layers=2, max_text_tokens=32)
    align: AlignmentTask = tasks(films, one, encoder_of(films, one))[0]
    two = Stage2Config(batch_size=batch)
    ours = allmrec(world, load_backbone(), two)
    second = task_of(world, ours, two)
    theirs = tallrec(world, load_backbone(), TALLRecConfig(batch_size=batch))
    rows = torch.arange(batch)
    some, drawn = world.test_rows.take(rows), world.test.take(rows)
    asked = {mode: (lambda mode=mode: ours.predict(some, drawn, world.x(some), mode, batch)) for mode in ("trie", "score")}
    return [
        ("SASRec training", lambda: update(optimizer, cf.loss(first)), len(first)),
        ("evaluation", lambda: metrics.per_user(score_rows(world.cf, short, shown)), len(short)),
        ("Stage 1", _training(align, torch.arange(32)), 32),
        ("Stage 2", _training(second, rows), batch),
        ("TALLRec training", _training(task_of(world, theirs, TALLRecConfig(batch_size=batch)), rows), batch),
        ("inference: trie", asked["trie"], batch),
        ("inference: score", asked["score"], batch),
    ]


def llm_steps(world: World, tasks: dict[str, AnswerTask], batch: int, device: str) -> list[tuple[str, Callable[[], Any], int]]:
    """As :func:`hot_steps`, those that ask an LLM: of A-LLMRec ("ours") and TALLRec ("theirs")."""
    rows = torch.arange(batch)
    some, drawn = world.test_rows.take(rows), world.test.take(rows)
    ours, x = tasks["ours"].model, world.x(some, device)
    return [("Stage 2", _training(tasks["ours"], rows), batch), ("TALLRec training", _training(tasks["theirs"], rows), batch),
            *((f"inference: {mode}", lambda mode=mode: ours.predict(some, drawn, x, mode, batch), batch)
              for mode in ("trie", "score"))]  # fmt: skip


def where(world: World, films: World, batch: int = 8) -> list[dict]:
    """A profile a hot step. What the machine can do is measured before and after each, since others may use it too."""
    found, measured = [], [peaks()]
    for what, work, rows in hot_steps(world, films, batch):
        found.append(profiled(what, work, rows))
        measured.append(peaks())
    best = {name: max(each[name] for each in measured) for name in measured[0]}
    return [row | best | {"of_peak": row["gflop_s"] / best["gflops"]} for row in found]
