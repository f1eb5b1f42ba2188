"""Answers among the candidates (constrained, the library's way; trie; score) against free generation.

Free generation as in most public code: prompts padded on the left to the longest of an unsorted batch, then the
LLM's own ``generate``, greedy, with a key-value cache, until the end-of-text token or ``longest`` tokens.
"""

from __future__ import annotations

import numpy as np
import torch

from allmrec_lib.config import Stage2Config
from allmrec_lib.ranker import LLMRecommender
from allmrec_lib.sequences import Candidates, Rows

from .common import by_turns, compared, row
from .opt import llm_of, projection_for
from .stage2 import spliced
from .worlds import World, allmrec

COMMAND = "python -m tests.bench inference"
MODES = ("constrained", "trie", "score")


@torch.inference_mode()
def generated(model: LLMRecommender, rows: Rows, drawn: Candidates, x: torch.Tensor, batch: int, longest: int,
              stop: int | None = None) -> list[str]:  # fmt: skip
    """What the LLM writes after each prompt, up to the closing quote. ``stop``: the token that ends a row
    (None: the LLM's own end of text)."""
    llm, end, written = model.backbone.model, model.prompts.end[0], []
    for part in torch.arange(len(rows)).split(batch):
        prompts = model.prompt_rows(rows.take(part), drawn.take(part))
        embeds = [spliced(model, prompt, x[i]) for prompt, i in zip(prompts, part.tolist(), strict=True)]
        width = max(len(e) for e in embeds)
        inputs = torch.stack([torch.cat([e.new_zeros(width - len(e), e.shape[1]), e]) for e in embeds])
        mask = torch.stack([torch.arange(width) >= width - len(e) for e in embeds]).long().to(inputs.device)
        stop_at = model.backbone.tokenizer.eos_token_id if stop is None else stop
        out = llm.generate(inputs_embeds=inputs, attention_mask=mask, max_new_tokens=longest, do_sample=False,
                           eos_token_id=stop_at, pad_token_id=end)  # fmt: skip
        written += [model.backbone.written(row) for row in out.tolist()]
    return written


def agreement(free: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """The share of valid rows of free generation, and of these the share where ours answers the same."""
    valid = free.sum(axis=1) > 0
    best = ours == ours.max(axis=1, keepdims=True)
    same = (best & (free > 0)).any(axis=1)
    return float(valid.mean()), float(same[valid].mean()) if valid.any() else float("nan")


def inference(world: World, rows: int = 8, rounds: int = 2, batch: int = 8, longest: int | None = 512, llm: str = "pocket",
              device: str = "cpu", command: str = COMMAND) -> list[dict]:  # fmt: skip
    """``longest``: the authors' limit. Beside it, in ``also``, generation that is told to stop at the closing quote.

    None, for weights that say nothing and never end an answer: both stop behind as many tokens as the longest title of the
    rows' targets has, and whether the answers agree is not asked.
    """
    model = allmrec(world, llm_of(llm, device), Stage2Config(projection=projection_for(llm)))
    some, drawn = (part.take(torch.arange(min(rows, len(world.test)))) for part in (world.test_rows, world.test))
    x, written = world.x(some, device), []
    tokens = longest or max(len(model.prompts.answer(item)) for item in some.targets.tolist())
    answers = {mode: model.predict(some, drawn, x, mode, batch) for mode in MODES}
    sides = {mode: lambda mode=mode: model.predict(some, drawn, x, mode, batch) for mode in MODES}
    sides["free"] = lambda: written.append(generated(model, some, drawn, x, batch, tokens))
    if longest:
        sides["stopped"] = lambda: generated(model, some, drawn, x, batch, tokens, model.prompts.end[0])
    taken, found = by_turns(sides, rounds, device, warm=device.startswith("cuda")), []
    for mode in MODES:
        more: dict = {"longest": tokens, "rows": len(some)}
        if longest:
            valid, same = agreement(model.named(drawn.items, written[0]), answers[mode])
            more |= {"valid": valid, "same_where_valid": same, "also": [
                {"theirs is": "generation told to stop at the closing quote", **compared(taken[mode], taken["stopped"], len(some))}]}  # fmt: skip
        found.append(row(f"inference: {mode}", compared(taken[mode], taken["free"], len(some)), "rows/s", command, llm=llm,
                         device=device, dataset=world.name, **more))  # fmt: skip
    return found
