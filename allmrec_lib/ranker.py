"""A frozen or tuned LLM as a recommender: it is asked for the next item's title and ranks the candidates by its answer.

``LLMRecommender`` alone, with titles in the prompt and nothing else, is the baseline LLM-Only (section 5.1, figure 6).
A-LLMRec and MLP-LLM add soft tokens, TALLRec tunes the LLM. All are trained by :class:`AnswerTask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import metrics, processes
from .config import Stage2Config, quiet
from .llm import decoding
from .llm.backbone import Backbone
from .llm.soft_tokens import PromptBatch, PromptEncoder, embed
from .meter import give_back_memory
from .sequences import Candidates, Rows, Sequences, with_negatives
from .shares import Share
from .training import History, bucketed_batches, fit

BLOCK = 16_384  # rows that are scored before what they gave is kept: about an hour of OPT-6.7B on a small card


class LLMRecommender:
    """Asks the LLM with titles alone. ``module`` holds what learns: here nothing."""

    def __init__(self, backbone: Backbone, prompts: PromptEncoder, history: int = 10):
        self.backbone, self.prompts, self.history = backbone, prompts, history
        self.module: nn.Module = nn.Module()

    def embeds(self, batch: PromptBatch, x: Tensor) -> Tensor:
        """Input embeddings of a batch of prompts; ``x`` (B, d), the users' representations, is not looked at."""
        return embed(self.backbone, batch.ids, None, None)

    def prompt_rows(self, rows: Rows, candidates: Candidates) -> list[list[int]]:
        """The tokenised prompts of some rows, candidates in their stored order."""
        shown = candidates.items.gather(1, candidates.order).tolist()
        past = rows.histories[:, -self.history :].tolist()
        return [self.prompts.prompt(h, c) for h, c in zip(past, shown, strict=True)]

    def answers(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (B, C, A), padded with 0, and lengths (B, C) of the candidates' answers."""
        distinct, place = candidates.unique(return_inverse=True)
        batch = PromptBatch.of([self.prompts.answer(i) for i in distinct.tolist()])
        sizes = batch.lengths[place]
        return batch.ids[place][:, :, : int(sizes.max())], sizes

    def predict(self, rows: Rows, candidates: Candidates, x: Tensor, mode: str = "constrained", batch: int | None = None,
                label: str | None = None) -> np.ndarray:  # fmt: skip
        """Scores (N, C) of all candidates.

        ``constrained``: log-probability of each title when one of them must be written; ``score``: its log-likelihood;
        ``trie``: 1 for the candidate that greedy decoding among the titles writes, 0 for others (two candidates of one
        title share it, and a tie counts against the model); ``free``: 1 for candidates whose title plain generation wrote
        to the letter (no 1 in a row: an invalid answer).
        Rows of similar prompt length are read together; several processes share these batches out.
        """
        prompts = self.prompt_rows(rows, candidates)
        order = torch.tensor([len(p) for p in prompts]).argsort(descending=True, stable=True)
        out = np.zeros((len(rows), candidates.items.shape[1]), dtype=np.float32)
        self.module.eval()
        parts = list(order.split(batch or self.backbone.read_at_once))
        shown = f"{label or type(self).__name__} ({mode})"
        bar = tqdm(total=len(parts), desc=shown, disable=quiet(), leave=False, unit="batch")

        def answer(part: Tensor) -> np.ndarray:
            block = PromptBatch.of([prompts[i] for i in part.tolist()])
            with torch.inference_mode():
                prefix = decoding.read(self.backbone, self.embeds(block, x[part]), block.lengths)
            bar.update(processes.count())
            give_back_memory()
            return self._decode(prefix, candidates.items[part], mode)

        with bar:
            for part, scores in zip(parts, processes.each_once(answer, parts), strict=True):
                out[part.numpy()] = scores
        return out

    def predict_in_blocks(self, rows: Rows, candidates: Candidates, x: Tensor, mode: str, folder: Path,
                          size: int = BLOCK) -> np.ndarray:  # fmt: skip
        """:meth:`predict`, ``size`` rows after another: after an interruption those that ``folder`` has are not asked again."""
        blocks = []
        for number, part in enumerate(torch.arange(len(rows)).split(size)):
            kept = folder / f"checkpoint.{number}.npy"
            done = processes.from_main(np.load(kept, allow_pickle=False) if kept.exists() else None)
            if done is None:
                done = self.predict(rows.take(part), candidates.take(part), x[part], mode)
                np.save(kept.with_name("checkpoint.begun.npy"), done, allow_pickle=False)
                kept.with_name("checkpoint.begun.npy").replace(kept)
            blocks.append(done)
        return np.concatenate(blocks)

    def _decode(self, prefix: decoding.Prefix, items: Tensor, mode: str) -> np.ndarray:
        answers, sizes = self.answers(items)
        if mode == "score":
            return decoding.score(self.backbone, prefix, answers, sizes).cpu().numpy()
        if mode == "constrained":
            return decoding.constrained(self.backbone, prefix, answers, sizes).cpu().numpy()
        if mode == "trie":
            return decoding.trie(self.backbone, prefix, answers, sizes).float().cpu().numpy()
        if mode == "free":
            return self.named(items, decoding.free(self.backbone, prefix))
        raise ValueError(f"unknown decoding {mode!r}; one of constrained, score, trie, free")

    def named(self, items: Tensor, texts: list[str]) -> np.ndarray:
        """1.0 for the candidates (B, C) whose title is a row's text to the letter; no 1.0 in a row: an invalid answer."""
        titles = [[self.backbone.written(self.prompts.title_ids[item]) for item in row] for row in items.tolist()]
        return np.array([[float(t == text) for t in row] for row, text in zip(titles, texts, strict=True)], np.float32)


@dataclass
class _Part:
    rows: Rows
    candidates: Candidates
    x: Tensor


def training_candidates(sequences: Sequences, rows: Rows, count: int, seed: int) -> Candidates:
    """Candidates for training rows: the target and ``count`` items the user has not in training, in random order.

    Negatives are items that occur in training: one that does not is never a target here, and as a negative it would teach
    that an unknown item is a wrong one. The items held out for validation and test may be drawn: to avoid them would tell
    of them.
    """
    return with_negatives(sequences, rows, count, np.random.default_rng([seed, 3]), sequences.known, "training")


class AnswerTask:
    """Equation 8: the log-probability of the next item's title. New negatives and a new order every epoch.

    With ``loss="constrained"`` a token competes with those that continue another candidate, not with the whole vocabulary:
    what a small LLM gets wrong in copying a title is nothing that the projections could put right.
    """

    def __init__(self, model: LLMRecommender, sequences: Sequences, rows: Rows, x: Tensor, validation: _Part,
                 config: Stage2Config, seed: int):  # fmt: skip
        if config.loss not in ("title", "constrained"):
            raise ValueError(f"unknown loss {config.loss!r} (of stage2 or tallrec); one of title, constrained")
        self.model, self.module, self.config = model, model.module, config
        self.sequences, self.rows, self.x, self.validation = sequences, rows, x, validation
        self.n_rows, self.seed = len(rows), seed
        self.negatives = validation.candidates.items.shape[1] - 1
        sizes = torch.tensor([len(t) for t in model.prompts.title_ids])
        self.lengths = sizes[rows.histories[:, -model.history :]].sum(dim=1)

    def parameters(self) -> list[dict]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "lr": self.config.lr}]

    def batches(self, order: Tensor) -> list[Tensor]:
        return bucketed_batches(order, self.config.batch_size, self.lengths)

    def loss(self, rows: Tensor) -> Tensor:
        part = self.rows.take(rows)
        seed = int(torch.randint(2**31, (1,)))  # from the step's own seed
        drawn = training_candidates(self.sequences, part, self.negatives, seed)
        prompts = self.model.prompt_rows(part, drawn)
        answers = [self.model.prompts.answer(i) for i in part.targets.tolist()]
        ids = PromptBatch.of([p + a[:-1] for p, a in zip(prompts, answers, strict=True)]).ids
        share = Share.of_batch(len(rows))
        prompts, answers = prompts[share.rows], answers[share.rows]
        ids, x, items = share.of(ids, self.x[rows], drawn.items)
        block = PromptBatch(ids, torch.tensor([len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True)]))
        place = torch.cat([torch.arange(len(p) - 1, len(p) - 1 + len(a)) for p, a in zip(prompts, answers, strict=True)])
        row = torch.cat([torch.full((len(a),), i) for i, a in enumerate(answers)])
        with share:
            hidden = self.model.backbone.hidden(self.model.embeds(block, x))
        logits = self.model.backbone.logits(hidden[row.to(hidden.device), place.to(hidden.device)])
        wanted = torch.cat([torch.tensor(a) for a in answers]).to(logits.device)
        if self.config.loss == "constrained":
            total = self._constrained(logits, row, items)
        else:
            total = F.cross_entropy(logits, wanted, reduction="sum")
        return share.weigh(total / len(share))

    def _constrained(self, logits: Tensor, row: Tensor, items: Tensor) -> Tensor:
        """Minus the log-probability of the targets (column 0 of ``items``) when only the candidates can be written.

        logits (n, V) at the targets' tokens, ``row`` (n,) whose they are: a candidate that goes on as the target up to a
        place is asked for its next token there, so that nothing but the target's own logits is needed.
        """
        answers, sizes = (t.to(logits.device) for t in self.model.answers(items))
        row = row.to(logits.device)
        depth = torch.arange(len(row), device=row.device) - (sizes[:, 0].cumsum(0) - sizes[:, 0])[row]
        each = logits.new_zeros(answers.shape)
        each[row, :, depth] = logits.gather(1, answers[row, :, depth])
        return -decoding.among_candidates(each, answers, sizes)[:, 0].sum()

    def validate(self) -> float:
        part = self.validation
        scores = self.model.predict(part.rows, part.candidates, part.x, batch=self.config.batch_size, label="validation")
        return float(metrics.ndcg(metrics.ranks(scores), 10).mean())


def train_answers(model: LLMRecommender, sequences: Sequences, train: tuple[Rows, Tensor],
                  validation: tuple[Rows, Candidates, Tensor], config: Stage2Config, seed: int = 0,
                  folder: Path | None = None, label: str = "Stage 2", kind: type[AnswerTask] = AnswerTask) -> History:  # fmt: skip
    """Train what learns in ``model`` (A-LLMRec: F_U and F_I), stopping early on validation NDCG@10.

    ``train``: rows and x^u; ``validation``: rows, candidates and x^u; ``kind``: what a row asks of the LLM.
    """
    rows, x = train
    generator = torch.Generator().manual_seed(seed)
    if config.max_rows is not None and config.max_rows < len(rows):
        index = torch.randperm(len(rows), generator=generator)[: config.max_rows]
        rows, x = rows.take(index), x[index]
    held = _Part(*validation)
    if config.eval_users is not None and config.eval_users < len(held.rows):
        index = torch.randperm(len(held.rows), generator=generator)[: config.eval_users]
        held = _Part(held.rows.take(index), held.candidates.take(index), held.x[index])
    task = kind(model, sequences, rows, x, held, config, seed)
    return fit(task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed, folder=folder,
               label=label, evaluate_start=True)  # fmt: skip
