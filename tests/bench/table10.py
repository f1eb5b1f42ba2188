"""Table 10: A-LLMRec against TALLRec at the same LLM, a training step and inference.

TALLRec is a fair one: its adapters learn through the same loop, without logits for the prompt and in batches of like length,
and are merged into the LLM for inference. What the paper's ratio is made of is in the row's other numbers: tokens a row,
seconds of the forward and of the backward pass, and how many more rows there are where every position is a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.config import Stage2Config, TALLRecConfig
from allmrec_lib.ranker import AnswerTask, LLMRecommender
from allmrec_lib.speed import AIMS, INFERENCE, TRAINING

from .common import by_turns, compared, row, seconds
from .opt import llm_of, projection_for
from .worlds import World, allmrec, tallrec, task_of


def merge_adapters(model: LLMRecommender, merged: bool) -> None:
    """Multiply TALLRec's adapters into the LLM's weights, or take them out again."""
    from peft.tuners.lora import LoraLayer

    for layer in model.module.modules():
        if isinstance(layer, LoraLayer):
            layer.merge() if merged else layer.unmerge()


def step(task: AnswerTask, optimizer: torch.optim.Optimizer, rows: torch.Tensor) -> None:
    task.module.train()
    optimizer.zero_grad(set_to_none=True)
    task.loss(rows).backward()
    optimizer.step()


def passes(task: AnswerTask, rows: torch.Tensor, device: str, repeats: int = 2) -> dict[str, float]:
    """Median seconds of the loss and of its gradient."""
    taken: dict[str, list[float]] = {"forward_s": [], "backward_s": []}
    task.module.train()
    for _ in range(repeats):
        made: list[torch.Tensor] = []
        taken["forward_s"].append(seconds(lambda made=made: made.append(task.loss(rows)), device))
        taken["backward_s"].append(seconds(made[0].backward, device))
    return {name: statistics.median(values) for name, values in taken.items()}


def saved_bytes(loss: Callable[[], torch.Tensor], frozen: torch.nn.Module) -> int:
    """What a forward pass keeps for the backward pass, in bytes, the LLM's own weights left out; every storage once."""
    own = {p.untyped_storage().data_ptr() for p in frozen.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would hold the graph that holds it, and with it the LLM

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()  # alive while it is counted, so that no storage is used twice
        total = sum(kept.values())
    del value
    return total


def tokens(task: AnswerTask, rows: torch.Tensor) -> float:
    """Mean length of a prompt with its answer."""
    part, drawn = task.rows.take(rows), task.validation.candidates
    shown = drawn.take(torch.arange(len(rows)))
    prompts = task.model.prompt_rows(part, shown)
    answers = [task.model.prompts.answer(i) for i in part.targets.tolist()]
    return float(np.mean([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]))


def sides(world: World, llm: str, batch: int, device: str) -> dict[str, AnswerTask]:
    """Both models, each with an LLM of its own, since adapters change it."""
    made = {}
    for name, build, config in (("ours", allmrec, Stage2Config()), ("theirs", tallrec, TALLRecConfig())):
        config = replace(config, batch_size=batch, projection=projection_for(llm))
        made[name] = task_of(world, build(world, llm_of(llm, device), config), config)
    return made


def training(world: World, tasks: dict[str, AnswerTask], batch: int, rounds: int, device: str, command: str, llm: str) -> dict:
    rows = torch.randperm(tasks["ours"].n_rows, generator=torch.Generator().manual_seed(0))[:batch]
    steps = {}
    for name, task in tasks.items():
        optimizer = torch.optim.Adam(task.parameters())
        steps[name] = lambda task=task, optimizer=optimizer: step(task, optimizer, rows)
    taken = by_turns(steps, rounds, device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    more = {name: {"tokens": tokens(task, rows), **passes(task, rows, device),
                   "saved_gb": saved_bytes(lambda task=task: task.loss(rows), task.model.backbone.model) / 1e9,
                   "learning": sum(p.numel() for p in task.module.parameters() if p.requires_grad)}
            for name, task in tasks.items()}  # fmt: skip
    if device.startswith("cuda"):
        more["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    every = len(world.sequences.rows("train", 1, all_items=True)) / tasks["ours"].n_rows
    return row(TRAINING, compared(taken["ours"], taken["theirs"], batch), "rows/s", command, llm=llm, device=device,
               dataset=world.name, batch_size=batch, paper=AIMS[TRAINING], parts=more, positions_a_row=every)  # fmt: skip


def inference(world: World, tasks: dict[str, AnswerTask], batch: int, rounds: int, device: str, command: str, llm: str) -> dict:
    some, drawn = (part.take(torch.arange(batch)) for part in (world.test_rows, world.test))
    models = {name: task.model for name, task in tasks.items()}
    x = {name: world.x(some, device) if isinstance(m, ALLMRec) else torch.zeros(batch, 0) for name, m in models.items()}
    asked = {name: lambda name=name: models[name].predict(some, drawn, x[name], batch=batch) for name in models}
    merge_adapters(models["theirs"], True)
    taken = by_turns(asked, rounds, device)
    merge_adapters(models["theirs"], False)
    apart = by_turns({"theirs": asked["theirs"]}, 1, device, warm=False)["theirs"]
    also = {"theirs is": "TALLRec with its adapters beside the LLM", "theirs": batch / apart[0],
            "ratio": apart[0] / statistics.median(taken["ours"])}  # fmt: skip
    return row(INFERENCE, compared(taken["ours"], taken["theirs"], batch), "rows/s", command, llm=llm, device=device,
               dataset=world.name, batch_size=batch, paper=AIMS[INFERENCE], also=[also])  # fmt: skip


def table10(worlds: list[World], llm: str = "pocket", batch: int = 8, rounds: int = 2, device: str = "cpu",
            command: str = "python -m tests.bench table10") -> list[dict]:  # fmt: skip
    """The first dataset is the rows', others stand in ``also``."""
    found = []
    for world in worlds:
        tasks = sides(world, llm, batch, device)
        found.append([part(world, tasks, batch, rounds, device, command, llm) for part in (training, inference)])
    compared_in = ("dataset", "ours", "theirs", "ratio", "ratio_low", "ratio_high")
    return [first | {"also": first.get("also", []) + [{key: other[key] for key in compared_in} for other in others]}
            for first, *others in zip(*found, strict=True)]  # fmt: skip
