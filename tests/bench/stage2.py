"""Stage 2 against the straightforward way: logits for every position, soft tokens spliced row by row, batches as they come.

Both sides compute equation 8 for the same rows with the same candidates and update F_U and F_I. The straightforward way is
that of most public code: cut each prompt at its slots, embed the pieces, project each item token where it stands, put the
row together again, pad to the longest row of an unsorted batch, have the LLM give logits for every position and mask the
prompt in the loss. Both in full precision on a CPU; where it computes bf16 itself the library is timed in that too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.config import Stage2Config
from allmrec_lib.llm.backbone import Backbone
from allmrec_lib.llm.soft_tokens import USER
from allmrec_lib.ranker import AnswerTask, training_candidates
from allmrec_lib.training import native_bf16

from .common import by_turns, compared, row
from .opt import llm_of, projection_for
from .worlds import World, allmrec, task_of

COMMAND = "python -m tests.bench stage2"


def spliced(model: ALLMRec, ids: list[int], x: torch.Tensor) -> torch.Tensor:
    """The input embeddings of one prompt, piece by piece. (T, d_token)."""
    pieces, words = [], []
    for token in [*ids, None]:
        if token is not None and token >= 0:
            words.append(token)
            continue
        if words:
            pieces.append(model.backbone.embedding(torch.tensor(words, device=model.backbone.device)))
            words = []
        if token == USER:
            pieces.append(model.heads["user"](x.to(model.backbone.device)[None]))
        elif token is not None:
            pieces.append(model.heads["item"](model.joint[-token - 1][None]))
    return torch.cat(pieces).to(model.backbone.embedding.weight.dtype)


def plain_loss(task: AnswerTask, rows: torch.Tensor) -> torch.Tensor:
    """Equation 8 by full logits and a mask: the same number as ``task.loss`` after the same seed."""
    model, part = task.model, task.rows.take(rows)
    drawn = training_candidates(task.sequences, part, task.negatives, int(torch.randint(2**31, (1,))))
    prompts = model.prompt_rows(part, drawn)
    embeds, labels = [], []
    for number, prompt in enumerate(prompts):
        answer = model.prompts.answer(int(part.targets[number]))
        embeds.append(spliced(model, prompt + answer, task.x[rows[number]]))
        labels.append(torch.tensor([-100] * len(prompt) + answer))
    longest = max(len(label) for label in labels)
    inputs = torch.stack([F.pad(e, (0, 0, 0, longest - len(e))) for e in embeds])
    wanted = torch.stack([F.pad(label, (0, longest - len(label)), value=-100) for label in labels]).to(inputs.device)
    mask = torch.stack([torch.arange(longest) < len(label) for label in labels]).long().to(inputs.device)
    logits = model.backbone.model(inputs_embeds=inputs, attention_mask=mask).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100, reduction="sum") / len(
        rows
    )


def train_on(task: AnswerTask, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor], loss=None) -> None:
    """An optimizer step a batch."""
    task.module.train()
    for number, rows in enumerate(batches):
        torch.manual_seed(number)
        value = task.loss(rows) if loss is None else loss(task, rows)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()


def spread(batches: list[torch.Tensor], lengths: torch.Tensor, count: int) -> list[torch.Tensor]:
    """``count`` of the batches at even distances from the shortest to the longest, whose mean time is near that of all."""
    by_length = sorted(batches, key=lambda rows: int(lengths[rows].max()))
    return [by_length[int((k + 0.5) * len(by_length) / count)] for k in range(count)]


def training_sides(world: World, backbone: Backbone, config: Stage2Config, batches: int, pool: int = 20) -> dict:
    """``pool`` batches' worth of rows, as many as the library sorts at once: in batches of like length, or in the order drawn.
    Of each side's, ``batches`` are run."""
    tasks = [task_of(world, allmrec(world, backbone, config), config) for _ in range(2)]
    optimizers = [torch.optim.Adam(task.parameters()) for task in tasks]
    drawn = torch.randperm(tasks[0].n_rows, generator=torch.Generator().manual_seed(0))[: pool * config.batch_size]
    cut = tasks[0].batches(drawn), list(drawn.split(config.batch_size))
    ours, theirs = (spread(side, tasks[0].lengths, batches) for side in cut)
    return {"ours": lambda: train_on(tasks[0], optimizers[0], ours),
            "theirs": lambda: train_on(tasks[1], optimizers[1], theirs, plain_loss)}  # fmt: skip


def stage2(world: World, batches: int = 5, rounds: int = 3, batch_size: int = 16, llm: str = "pocket", device: str = "cpu",
           command: str = COMMAND) -> list[dict]:  # fmt: skip
    config = Stage2Config(batch_size=batch_size, projection=projection_for(llm))
    backbone = llm_of(llm, device)
    sides = training_sides(world, backbone, config, batches)
    if device == "cpu" and native_bf16(device):
        sides["bf16"] = training_sides(world, replace(backbone, precision="bf16"), config, batches)["ours"]
    taken = by_turns(sides, rounds, device, warm=device.startswith("cuda"))
    numbers = compared(taken["ours"], taken["theirs"], batches * batch_size)
    also = [{"ours is": "in bf16, as the laptop profile computes on this CPU",
             **compared(taken["bf16"], taken["theirs"], batches * batch_size)}] if "bf16" in taken else []  # fmt: skip
    return [row("Stage 2", numbers, "rows/s", command, llm=llm, device=device, dataset=world.name, batch_size=batch_size,
                **({"also": also} if also else {}))]  # fmt: skip
