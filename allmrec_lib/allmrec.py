"""Stage 2: user representation and joint embeddings as soft tokens of a frozen LLM (section 4.2, equations 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import metrics
from .config import Stage2Config, quiet
from .llm import decoding
from .llm.backbone import Backbone
from .llm.soft_tokens import PromptBatch, PromptEncoder, embed, slot_items
from .sequences import Candidates, Rows, Sequences
from .training import History, bucketed_batches, fit


class Projection(nn.Module):
    """F_U or F_I: linear, layer norm, activation, linear, xavier-normal as in the authors' code. (..., d) -> (..., d_token).

    With ``start`` = (weight, bias) a linear path is added that starts there, and the MLP starts at zero. ``scale`` brings
    the output to the spread of the LLM's token embeddings.
    """

    def __init__(self, dim: int, token_dim: int, activation: nn.Module, scale: float,
                 start: tuple[Tensor, Tensor] | None = None):  # fmt: skip
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, token_dim), nn.LayerNorm(token_dim), activation, nn.Linear(token_dim, token_dim)
        )
        for layer in (self.mlp[0], self.mlp[3]):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.scale, self.skip = scale, None
        if start is not None:
            nn.init.zeros_(self.mlp[3].weight)
            self.skip = nn.Linear(dim, token_dim)
            with torch.no_grad():
                self.skip.weight.copy_(start[0])
                self.skip.bias.copy_(start[1])

    def forward(self, x: Tensor) -> Tensor:
        out = self.mlp(x) if self.skip is None else self.mlp(x) + self.skip(x)
        return out * self.scale


def linear_start(latent: Tensor, embeddings: Tensor, x: Tensor, token_dim: int,
                 likeness: float) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """Where the linear paths start: (weight, bias) for users and items.

    Two random maps with orthonormal columns put side by side into the token space what users and items are compared by,
    and what items are compared by among themselves: O_u = A U x^u, O_i = A V (E(latent_i) - mean) + B latent_i. E(.) is
    the best linear guess of the CF model's embeddings; U and V share out the CF model's scores evenly (both are the square
    root of the scores' singular values), so that O_u . O_i starts as the CF model's score, less what all items have in
    common, with as little else in the tokens as possible. B latent_i, of size ``likeness`` against the rest, makes tokens of
    like items alike. A small LLM, which finds the most similar token, then starts from that and not from noise.

    latent (n, d'), embeddings (n, d), x (N, d): some users' representations.
    """
    d, wide = x.shape[1], x.shape[1] + latent.shape[1]
    if token_dim < wide:
        raise ValueError(f"stage2.projection = skip needs token embeddings of at least {wide} dimensions, the LLM has "
                         f"{token_dim}; use stage2.projection = mlp")  # fmt: skip
    basis = torch.linalg.qr(torch.randn(token_dim, token_dim, dtype=torch.float64))[0] * token_dim**0.5
    latent, embeddings, x = latent.double(), embeddings.double(), x.double()  # single precision turns directions of like size differently from run to run
    solution = torch.linalg.lstsq(F.pad(latent, (0, 1), value=1.0), embeddings).solution
    guess, centre = solution[:-1], latent.mean(dim=0)
    centred = (latent - centre) @ guess
    (_, sx, vx), (_, se, ve) = (torch.linalg.svd(t / len(t) ** 0.5, full_matrices=False) for t in (x, centred))
    p, root, q = torch.linalg.svd((sx[:, None] * vx) @ (se[:, None] * ve).T)
    root = root.where(root > 1e-6 * root[0], 0.0) ** 0.5  # directions that no user or no item uses
    user = vx.T @ (p * root * _inverse(sx)[:, None])
    item = ve.T @ (q.T * root * _inverse(se)[:, None])
    user, item = user / (x @ user).norm(dim=1).mean(), guess @ item / (centred @ item).norm(dim=1).mean()
    alike = likeness * basis[:, d:wide].T / (latent - centre).norm(dim=1).mean()
    item = (item @ basis[:, :d].T + alike) / (1 + likeness**2) ** 0.5
    return {"user": ((user @ basis[:, :d].T).T, torch.zeros(token_dim)), "item": (item.T, -centre @ item)}


def _inverse(singular: Tensor) -> Tensor:
    """1 / s, and 0 for what is 0 but for rounding."""
    return torch.where(singular > 1e-6 * singular[0], 1.0 / singular, 0.0)


def projections(config: Stage2Config, latent: Tensor, embeddings: Tensor, x: Tensor, token_dim: int, spread: float,
                seed: int) -> nn.ModuleDict:  # fmt: skip
    """F_U and F_I. latent (n + 1, d') what the item tokens carry, embeddings (n + 1, d) the CF model's, x (N, d)."""
    if config.projection not in ("mlp", "skip"):
        raise ValueError(f"unknown stage2.projection {config.projection!r}; one of mlp, skip")
    torch.manual_seed(seed)
    start = linear_start(latent[1:], embeddings[1:], x, token_dim, config.likeness) if config.projection == "skip" else {}
    return nn.ModuleDict({
        "user": Projection(x.shape[1], token_dim, nn.LeakyReLU(), spread, start.get("user")),
        "item": Projection(latent.shape[1], token_dim, nn.GELU(), spread, start.get("item")),
    })  # fmt: skip


class ALLMRec:
    """The recommender of the paper: frozen LLM, frozen CF model (as x^u), frozen joint embeddings, two projections."""

    def __init__(self, backbone: Backbone, prompts: PromptEncoder, joint: Tensor, heads: nn.ModuleDict, history: int = 10):
        self.backbone, self.prompts, self.history = backbone, prompts, history
        self.joint, self.heads = joint.to(backbone.device), heads.to(backbone.device)

    def embeds(self, batch: PromptBatch, x: Tensor) -> Tensor:
        """Input embeddings; every distinct item of the batch is projected once."""
        items, _ = slot_items(batch.ids)
        users = self.heads["user"](x.to(self.backbone.device))
        return embed(self.backbone, batch.ids, users, self.heads["item"](self.joint[items.to(self.joint.device)]))

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

    def predict(self, rows: Rows, candidates: Candidates, x: Tensor, mode: str = "score", batch: int = 32,
                label: str = "A-LLMRec") -> np.ndarray:  # fmt: skip
        """Scores (N, C) of all candidates.

        ``score``: log-likelihood of each title. ``trie``: 1 for the candidate that greedy decoding among the titles
        writes, 0 for others; two candidates of one title share it, and a tie counts against the model. ``free``: 1 for
        candidates whose title plain generation wrote to the letter (no 1 in a row: an invalid answer).
        Rows of similar prompt length are read together.
        """
        prompts = self.prompt_rows(rows, candidates)
        order = torch.tensor([len(p) for p in prompts]).argsort(descending=True, stable=True)
        out = np.zeros((len(rows), candidates.items.shape[1]), dtype=np.float32)
        self.heads.eval()
        parts = order.split(batch)
        for part in tqdm(parts, desc=f"{label} ({mode})", disable=quiet(), leave=False, unit="batch"):
            block = PromptBatch.of([prompts[i] for i in part.tolist()])
            with torch.inference_mode():
                prefix = decoding.read(self.backbone, self.embeds(block, x[part]), block.lengths)
            out[part.numpy()] = self._decode(prefix, candidates.items[part], mode)
        return out

    def _decode(self, prefix: decoding.Prefix, items: Tensor, mode: str) -> np.ndarray:
        answers, sizes = self.answers(items)
        if mode == "score":
            return decoding.score(self.backbone, prefix, answers, sizes).cpu().numpy()
        if mode == "trie":
            return decoding.trie(self.backbone, prefix, answers, sizes).float().cpu().numpy()
        if mode == "free":
            written = decoding.free(self.backbone, prefix, self.prompts.end[0])
            titles = [[self.prompts.title_ids[i] for i in row] for row in items.tolist()]
            return np.array([[float(t == w) for t in row] for row, w in zip(titles, written, strict=True)], np.float32)
        raise ValueError(f"unknown decoding {mode!r}; one of score, trie, free")


@dataclass
class _Part:
    rows: Rows
    candidates: Candidates
    x: Tensor


def training_candidates(sequences: Sequences, rows: Rows, count: int, seed: int) -> Candidates:
    """Candidates for training rows: the target and ``count`` items the user never interacted with, in random order.

    Negatives are items that occur in training: one that does not is never a target here, and as a negative it would teach
    that an unknown item is a wrong one.
    """
    rng = np.random.default_rng([seed, 3])
    users, known = rows.users.numpy(), np.flatnonzero(sequences.train_counts())
    drawn = rng.choice(known, (len(users), count))
    while True:
        ordered = np.sort(drawn, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        wrong = sequences.interacted(users[:, None], drawn)
        wrong[twice] = True
        if not wrong.any():
            break
        drawn[wrong] = rng.choice(known, int(wrong.sum()))
    items = np.concatenate([rows.targets.numpy()[:, None], drawn], axis=1)
    order = rng.permuted(np.tile(np.arange(count + 1), (len(users), 1)), axis=1)
    return Candidates(rows.users, torch.from_numpy(items), torch.from_numpy(order))


class Stage2Task:
    """Equation 8: the log-probability of the next item's title. New negatives and a new order every epoch."""

    def __init__(self, model: ALLMRec, sequences: Sequences, rows: Rows, x: Tensor, validation: _Part, config: Stage2Config,
                 seed: int):  # fmt: skip
        self.model, self.module, self.config = model, model.heads, config
        self.sequences, self.rows, self.x, self.validation = sequences, rows, x, validation
        self.n_rows, self.seed = len(rows), seed
        self.negatives = validation.candidates.items.shape[1] - 1
        sizes = torch.tensor([len(t) for t in model.prompts.title_ids])
        self.lengths = sizes[rows.histories[:, -model.history :]].sum(dim=1)

    def parameters(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def batches(self, order: Tensor) -> list[Tensor]:
        return bucketed_batches(order, self.config.batch_size, self.lengths)

    def loss(self, rows: Tensor) -> Tensor:
        part = self.rows.take(rows)
        seed = int(torch.randint(2**31, (1,)))  # from the step's own seed
        drawn = training_candidates(self.sequences, part, self.negatives, seed)
        prompts = self.model.prompt_rows(part, drawn)
        answers = [self.model.prompts.answer(i) for i in part.targets.tolist()]
        block = PromptBatch.of([p + a[:-1] for p, a in zip(prompts, answers, strict=True)])
        place = torch.cat([torch.arange(len(p) - 1, len(p) - 1 + len(a)) for p, a in zip(prompts, answers, strict=True)])
        row = torch.cat([torch.full((len(a),), i) for i, a in enumerate(answers)])
        hidden = self.model.backbone.hidden(self.model.embeds(block, self.x[rows]))
        logits = self.model.backbone.logits(hidden[row.to(hidden.device), place.to(hidden.device)])
        wanted = torch.cat([torch.tensor(a) for a in answers]).to(logits.device)
        return F.cross_entropy(logits, wanted, reduction="sum") / len(rows)

    def validate(self) -> float:
        part = self.validation
        scores = self.model.predict(part.rows, part.candidates, part.x, batch=self.config.batch_size, label="validation")
        return float(metrics.ndcg(metrics.ranks(scores), 10).mean())


def train_stage2(model: ALLMRec, sequences: Sequences, train: tuple[Rows, Tensor], validation: tuple[Rows, Candidates, Tensor],
                 config: Stage2Config, seed: int = 0, folder: Path | None = None) -> History:  # fmt: skip
    """Train F_U and F_I, stopping early on validation NDCG@10. ``train``: rows and x^u; ``validation`` with candidates."""
    rows, x = train
    generator = torch.Generator().manual_seed(seed)
    if config.max_rows is not None and config.max_rows < len(rows):
        index = torch.randperm(len(rows), generator=generator)[: config.max_rows]
        rows, x = rows.take(index), x[index]
    held = _Part(*validation)
    if config.eval_users is not None and config.eval_users < len(held.rows):
        index = torch.randperm(len(held.rows), generator=generator)[: config.eval_users]
        held = _Part(held.rows.take(index), held.candidates.take(index), held.x[index])
    task = Stage2Task(model, sequences, rows, x, held, config, seed)
    return fit(task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed, folder=folder,
               label="Stage 2", evaluate_start=True)  # fmt: skip
