"""Everything that is asked of an LLM of true size, in one run: Table 10, Stage 2 and inference against the straightforward
way, a profile of each step, how much memory each takes, and the constants by which ``allmrec_lib.cost`` predicts hours.

Weights are random (``opt``). A step that fails leaves what was measured before it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from allmrec_lib import work
from allmrec_lib.config import LLMConfig, SequentialConfig, Stage2Config, load_profile
from allmrec_lib.memory import needed
from allmrec_lib.ranker import AnswerTask, train_answers
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.recommenders.sequential import SequentialTask
from allmrec_lib.speed import results_file

from .cf import steps_of, update
from .common import attention_order, device_name, merge, seconds
from .inference import inference
from .opt import projection_for
from .stage2 import stage2
from .table10 import sides, step, table10
from .where import llm_steps, peaks, profiled
from .worlds import World, allmrec

READ_AT_ONCE = LLMConfig().read_at_once
CARD_KEYS = ("device", "llm", "batch")


def free(device: str) -> None:
    """Give back what models before this one held."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def peak_gb(call: Callable[[], Any], device: str) -> float:
    """The most memory that is allocated on the GPU while ``call`` runs; not a number on a CPU."""
    if not device.startswith("cuda"):
        call()
        return float("nan")
    free(device)
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def longest(task: AnswerTask, batch: int) -> torch.Tensor:
    """The training rows of the longest prompts, as far as titles in the history tell."""
    return task.lengths.argsort(descending=True)[:batch]


def lengths(world: World, task: AnswerTask, rows: torch.Tensor) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest answer of some training rows."""
    part = task.rows.take(rows)
    prompts = task.model.prompt_rows(part, task.validation.candidates.take(torch.arange(len(rows))))
    return max(map(len, prompts)), max(len(task.model.prompts.answer(i)) for i in part.targets.tolist())


def memory(world: World, tasks: dict[str, AnswerTask], batch: int, device: str) -> list[dict[str, Any]]:
    """What a step takes with the one LLM that it needs (of the two in memory the other is left out), and what is counted for
    prompts of that length before a run."""
    models = {name: task.model for name, task in tasks.items()}
    weights = {
        name: sum(p.numel() * p.element_size() for p in m.backbone.model.parameters()) / 1e9 for name, m in models.items()
    }
    asked = torch.arange(min(READ_AT_ONCE, len(world.test)))
    some, drawn = world.test_rows.take(asked), world.test.take(asked)
    x, profile, found = (
        world.x(some, device),
        load_profile("paper", world.name, {"stage2.batch_size": batch, "tallrec.batch_size": batch}),
        [],
    )
    config = models["ours"].backbone.model.config
    for what, name in (("Stage 2", "ours"), ("TALLRec", "theirs")):
        rows, optimizer = longest(tasks[name], batch), torch.optim.Adam(tasks[name].parameters())
        gb = peak_gb(lambda n=name, r=rows, o=optimizer: step(tasks[n], o, r), device)
        optimizer.zero_grad(set_to_none=True)
        need = needed(config, profile, *lengths(world, tasks[name], rows))
        found.append({"what": what, "gb": gb - weights["theirs" if name == "ours" else "ours"],
                      "counted_gb": need.stage2 if name == "ours" else need.tallrec})  # fmt: skip
    gb = peak_gb(lambda: models["ours"].predict(some, drawn, x, "score", READ_AT_ONCE), device)
    prompt = max(len(p) for p in models["ours"].prompt_rows(some, drawn))
    answer = int(max(models["ours"].answers(drawn.items)[1].float().mean(1).max(), 1))
    found.append({"what": f"scoring, {len(some)} prompts", "gb": gb - weights["theirs"],
                  "counted_gb": needed(config, profile, prompt, answer).scoring})  # fmt: skip
    return found


def shares(world: World, tasks: dict[str, AnswerTask], llm: str, batch: int, device: str) -> dict[str, float]:
    """GFLOP/s that training and answering reach, by the FLOPs that the cost page counts."""
    model, shape = tasks["ours"].model, work.LLMS[llm]
    rows = torch.arange(batch)
    some, drawn = world.test_rows.take(rows), world.test.take(rows)
    prompt = float(np.mean([len(p) for p in model.prompt_rows(some, drawn)]))
    answer = float(np.mean([len(model.prompts.answer(i)) for i in drawn.items.flatten().tolist()]))
    x, optimizer = world.x(some, device), torch.optim.Adam(tasks["ours"].parameters())

    def trained_once() -> None:
        torch.manual_seed(0)  # the same negatives, so that the lengths are no news to the card
        step(tasks["ours"], optimizer, rows)

    trained = min(seconds(trained_once, device) for _ in range(3))
    answered = min(seconds(lambda: model.predict(some, drawn, x, "score", batch), device) for _ in range(3))
    return {"train": batch * work.step_flops(shape, prompt, answer) / trained / 1e9,
            "answer": batch * work.answer_flops(shape, prompt, answer) / answered / 1e9}  # fmt: skip


def sasrec_step(world: World, device: str) -> float:
    """Seconds of a SASRec step, which is nothing but calls: what a call takes at least."""
    config = SequentialConfig()
    task = SequentialTask(SASRec(world.sequences.n_items, config), world.sequences, world.validation, device)
    optimizer, rows = steps_of(task.module), task.batches(torch.arange(task.n_rows))[0]
    task.module.train()
    taken = [seconds(lambda: update(optimizer, task.loss(rows)), device) for _ in range(20)]
    return statistics.median(taken[5:])


def attention_ms(device: str, lengths: range = range(500, 510)) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of attention forward and backward (4 rows, 32 heads of 128, bf16) at lengths that a process has not seen
    ("new"), and at the same again, by cuDNN and by flash attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def once(length: int) -> float:
        q = torch.randn(4, 32, length, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
        return 1e3 * seconds(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward(), device)

    found = {}
    for name, kind in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
        with sdpa_kernel(kind):
            found[name] = {part: [once(length) for length in lengths] for part in ("new", "again")}
    return found


def steps_ms(tasks: dict[str, AnswerTask], batch: int, device: str, count: int = 18) -> dict[str, list[float]]:
    """Milliseconds of training steps by turns: the same rows with negatives of their own, hence of lengths of their own."""
    rows = torch.randperm(tasks["ours"].n_rows, generator=torch.Generator().manual_seed(0))[:batch]
    optimizers = {name: torch.optim.Adam(task.parameters()) for name, task in tasks.items()}
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(count):
        for name, task in tasks.items():
            taken[name].append(1e3 * seconds(lambda n=name, t=task: step(t, optimizers[n], rows), device))
    return taken


def whole_run(world: World, model, rows: int, batch: int) -> float:
    """Seconds of an epoch of ``rows`` training rows, with validation on as many before and after it."""
    config = Stage2Config(max_rows=rows, eval_users=rows, epochs=1, batch_size=batch, projection="mlp")
    held = world.held[0], world.validation, world.held[1]
    device = str(model.backbone.device)
    return seconds(lambda: train_answers(model, world.sequences, world.train, held, config, label="whole run"), device)


def card(world: World, other: World, tasks: dict[str, AnswerTask], llm: str, batch: int, device: str,
         count: int = 160) -> dict[str, Any]:  # fmt: skip
    """A row of ``data/results/card.json``. ``count``: rows of the whole run."""
    best = peaks(device)
    reached = shares(world, tasks, llm, batch, device)
    made = {"device": device_name(device), "llm": llm, "batch": batch, "dataset": world.name, **best, "reached": reached,
            "sasrec_step_s": sasrec_step(world, device), "memory": memory(world, tasks, batch, device)}  # fmt: skip
    if device.startswith("cuda"):
        made |= {
            "attention": attention_order(),
            "attention_ms": attention_ms(device),
            "steps_ms": steps_ms(tasks, batch, device),
        }
    backbone = tasks["ours"].model.backbone
    model = allmrec(other, backbone, Stage2Config(projection=projection_for(llm)))
    took = whole_run(other, model, count, batch)
    return made | {"run": {"dataset": other.name, "rows": count, "seconds": took}}


def paper_size(world: World, other: World, llm: str, batch: int, rounds: int, device: str, **size: int) -> None:
    """All of it; each part's rows are kept as soon as they are there."""
    command = f"make bench-paper SIZE={llm} BATCH={batch} DEVICE={device}"
    merge(table10([world], llm, batch, rounds, device, command))
    free(device)
    merge(stage2(world, 3, rounds, batch, llm, device, command))
    free(device)
    merge(inference(world, batch, rounds, batch, None, llm, device, command))
    free(device)
    tasks = sides(world, llm, batch, device)
    seen = [profiled(what, call, rows, device, llm) for what, call, rows in llm_steps(world, tasks, batch, device)]
    best = peaks(device)
    merge([row | best | {"of_peak": row["gflop_s"] / best["gflops"]} for row in seen], results_file("profiles"),
          ("what", "llm", "device"))  # fmt: skip
    merge([card(world, other, tasks, llm, batch, device, **size)], results_file("card"), CARD_KEYS)
