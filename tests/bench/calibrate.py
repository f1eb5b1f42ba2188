"""The constants of ``allmrec_lib.cost``, and its predictions against runs that the constants were not taken from."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from allmrec_lib import cost, work
from allmrec_lib.config import SequentialConfig, Stage1Config, Stage2Config
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.llm.prompts import TEMPLATES, TEXT_ONLY
from allmrec_lib.llm.soft_tokens import PromptEncoder
from allmrec_lib.ranker import train_answers
from allmrec_lib.recommenders.base import score_rows
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.recommenders.sequential import SequentialTask, train_sequential
from allmrec_lib.sequences import Sequences, candidate_sets
from allmrec_lib.speed import read_rows, results_file

from .cf import steps_of, update
from .common import device_name, seconds
from .opt import opt, tokenizer
from .stage1 import encoder_of, tasks
from .table10 import saved_bytes, step
from .where import peaks
from .worlds import World, allmrec, task_of

SHAPES = ((4, 1000), (4, 12000), (40, 1000), (40, 12000))  # length of a history, items: what SASRec's constants are fitted on


def made_up(length: int, items: int, users: int = 256) -> Sequences:
    """Users of one length."""
    flat = np.random.default_rng(0).integers(1, items + 1, users * (length + 3))
    return Sequences(flat, np.arange(users + 1) * (length + 3), items)


def sasrec_constants(steps: int = 6) -> dict[str, float]:
    """Seconds of a step = calls + positions + parameters, by least squares."""
    config, lines, taken = SequentialConfig(), [], []
    for length, items in SHAPES:
        sequences = made_up(length, items)
        task = SequentialTask(SASRec(items, config), sequences, candidate_sets(sequences, "validation"), "cpu")
        optimizer, rows = steps_of(task.module), torch.arange(config.batch_size)
        taken.append(min(seconds(lambda t=task, o=optimizer, r=rows: update(o, t.loss(r))) for _ in range(steps)))
        lines.append([1.0, config.batch_size * length, items * config.dim])
    fit = np.linalg.lstsq(np.array(lines), np.array(taken), rcond=None)[0]
    return dict(zip(("step_s", "position_s", "parameter_s"), (float(max(value, 0.0)) for value in fit), strict=True))


def counted(world: World, encode, template, least: int | None, rows: int = 200) -> dict[str, float]:
    """Mean tokens of a prompt, of figure 6's prompt and of an answer, and the longest prompt."""
    made: dict[str, float] = {}
    some, shown = (part.take(torch.arange(min(rows, len(part)))) for part in (world.test_rows, world.test))
    for name, used in (("prompt", template), ("text_only", TEXT_ONLY)):
        asked = SimpleNamespace(encode=encode, template=used, title_tokens=least, start=[0])  # what a prompt needs of an LLM
        prompts = PromptEncoder(asked, world.data.titles, world.data.words)
        lengths = [len(prompts.prompt(h[-10:].tolist(), c.tolist())) for h, c in zip(some.histories, shown.items, strict=True)]
        made[name] = float(np.mean(lengths))
        made.setdefault("longest", float(max(lengths)))
    return made | {"answer": float(np.mean([len(ids) + 1 for ids in prompts.title_ids[1:]]))}


def token_counts(worlds: list[World]) -> dict[str, dict[str, dict[str, float]]]:
    pocket, gpt2 = load_backbone(), tokenizer()
    ids = lambda text: gpt2(text)["input_ids"]  # noqa: E731
    return {"pocket": {w.name: counted(w, pocket.encode, pocket.template, pocket.title_tokens) for w in worlds},
            "gpt2": {w.name: counted(w, ids, TEMPLATES["paper"], None) for w in worlds}}  # fmt: skip


def kept_floats(world: World) -> float:
    """Numbers kept for the backward pass, a token, layer and hidden dimension, of OPT-125M."""
    backbone = opt("opt-125m")
    task = task_of(world, allmrec(world, backbone, Stage2Config(projection="mlp")), Stage2Config(projection="mlp"))
    shape, rows = work.LLMS["opt-125m"], torch.arange(1)
    torch.manual_seed(0)
    lengths: list[int] = []
    hook = backbone.model.base_model.register_forward_pre_hook(
        lambda _, __, kw: lengths.append(kw["inputs_embeds"].shape[1]), with_kwargs=True
    )
    kept = saved_bytes(lambda: task.loss(rows), backbone.model)
    hook.remove()
    return kept / 4 / (lengths[0] * shape.layers * shape.hidden)


def shares(world: World, films: World, gflops: float, batch: int = 8) -> dict[str, Any]:
    """How much of the machine's peak is reached by the LLM's training and answers, and by the sentence encoder's training."""
    model, config = allmrec(world, load_backbone(), Stage2Config()), Stage2Config(batch_size=batch)
    task, shape, rows = task_of(world, model, config), work.LLMS["pocket"], torch.arange(batch)
    optimizer = torch.optim.Adam(task.parameters())
    some, drawn = world.test_rows.take(rows), world.test.take(rows)
    prompt = np.mean([len(p) for p in model.prompt_rows(some, drawn)])
    answer = float(np.mean([len(model.prompts.answer(i)) for i in drawn.items.flatten().tolist()]))
    trained = min(seconds(lambda: step(task, optimizer, rows)) for _ in range(2))
    answered = min(seconds(lambda: model.predict(some, drawn, world.x(some), "score", batch)) for _ in range(2))
    one = Stage1Config(train_layers=None, max_text_tokens=32)
    align = tasks(films, one, encoder_of(films, one))[0]
    aligned = min(seconds(lambda: step(align, torch.optim.Adam(align.parameters()), torch.arange(32))) for _ in range(2))
    tokens = float(align.module.text.lengths[align.rows.targets[:32]].float().mean())
    of = lambda flops, took: flops / took / gflops / 1e9  # noqa: E731
    return {"train": of(batch * work.step_flops(shape, prompt, answer), trained),
            "answer": of(batch * work.answer_flops(shape, prompt, answer), answered),
            "encoder": of(32 * work.encoder_flops(one.encoder, None, tokens), aligned)}  # fmt: skip


def parquet_bytes(world: World) -> float:
    """Bytes of a dataset's Parquet copy, an interaction."""
    size = 0
    for frame in (world.data.interactions, world.data.items):
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        size += buffer.tell()
    return size / len(world.data.interactions)


def constants(world: World, films: World, batch: int = 8) -> dict[str, Any]:
    """Everything that ``allmrec_lib.cost`` reads."""
    worlds = [world, films] if world.name != films.name else [world]
    best = peaks()
    lengths = {w.name: float(encoder_of(w, Stage1Config(max_text_tokens=128)).lengths[1:].float().mean()) for w in worlds}
    rows = world.test_rows.take(torch.arange(512))
    shown = world.test.take(torch.arange(512))
    return {"device": device_name(), **best, "sasrec": sasrec_constants(),
            "evaluation_s": seconds(lambda: score_rows(world.cf, rows, shown)) / 512,
            "calls": {r["what"]: r["calls"] for r in read_rows(results_file("profiles")) if r.get("llm") in (None, "pocket")},
            "tokens": token_counts(worlds), "text_tokens": lengths, "kept_floats": kept_floats(world),
            "shares": shares(world, films, best["gflops"], batch),
            "sizes": {w.name: (w.sequences.n_users, w.sequences.n_items, len(w.sequences.flat)) for w in worlds},
            "parquet_bytes": parquet_bytes(world)}  # fmt: skip


def checks(measured: dict[str, Any], world: World, films: World, rows: int = 16) -> list[dict[str, Any]]:
    """Whole runs of the library against what is predicted of them; each on the dataset that its constants are not from."""
    found = []

    def check(what: str, dataset: str, predicted: float, run) -> None:
        found.append({"what": what, "dataset": dataset, "predicted_s": predicted, "measured_s": seconds(run)})

    config = SequentialConfig(epochs=2, eval_every=1, patience=9)
    for each in (world, films):
        inputs = each.sequences.train_windows(config.max_len)[0]
        positions = float((inputs != 0).sum(dim=1).float().mean()) * config.batch_size
        steps = -(-len(inputs) // config.batch_size) * config.epochs
        held = len(each.validation) * config.epochs * measured["evaluation_s"]
        step_s = cost.cf_step(positions, each.sequences.n_items * config.dim, measured)
        check("SASRec, 2 epochs", each.name, steps * step_s + held,
              lambda each=each: train_sequential(SASRec(each.sequences.n_items, config), each.sequences, each.validation))  # fmt: skip
    peak, share = measured["gflops"] * 1e9, measured["shares"]
    two = Stage2Config(max_rows=rows, eval_users=rows, epochs=1, batch_size=16)
    model = allmrec(films, load_backbone(), two)
    count, shape = measured["tokens"]["pocket"][films.name], work.LLMS["pocket"]
    predicted = rows * work.step_flops(shape, count["prompt"], count["answer"]) / (peak * share["train"])
    predicted += 2 * rows * work.answer_flops(shape, count["prompt"], count["answer"]) / (peak * share["answer"])
    check(f"Stage 2, {rows} rows and their validation", films.name, predicted,
          lambda: train_answers(model, films.sequences, films.train, (films.held[0], films.validation, films.held[1]), two))  # fmt: skip
    return found


def write(world: World, films: World, batch: int = 8, rows: int = 16) -> None:
    """Measure everything and keep it."""
    measured = constants(world, films, batch)
    measured["checks"] = checks(measured, world, films, rows)
    path = results_file("cost")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(measured, indent=1) + "\n")
    partial.replace(path)
