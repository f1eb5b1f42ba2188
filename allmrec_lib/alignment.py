"""Stage 1: collaborative and textual knowledge in one latent space (section 4.1, equations 2 to 6).

Two autoencoders with 1-layer encoders and decoders meet in the middle: e_i = f_I^enc(E_i) and q_i = f_T^enc(Q_i). As in
the authors' code an encoder is a linear layer and a sigmoid, a decoder a linear layer (the paper names no activation).
Deviations from that code, all towards the paper: the score of equation 5 is the dot product (``score="mean"`` is the
code's), matching and reconstruction are taken on the positives only, the CF model is always in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import processes
from .config import Stage1Config
from .recommenders.base import EmbeddingRecommender, represent
from .sequences import Rows, Sequences
from .shares import Share
from .text import TextEncoder
from .training import History, fit, split_batches


def encoder(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.Sigmoid())


class Alignment(nn.Module):
    """The two autoencoders and the sentence encoder that learns with them. d: CF model, d': latent, D: sentence."""

    TEXT_SIDE = ("text_encoder.", "item_decoder.")

    def __init__(self, cf_dim: int, text: TextEncoder, config: Stage1Config):
        super().__init__()
        self.text = text
        self.item_encoder, self.item_decoder = encoder(cf_dim, config.dim), nn.Linear(config.dim, cf_dim)
        self.text_encoder, self.text_decoder = encoder(text.dim, config.dim), nn.Linear(config.dim, text.dim)
        learned = [f"text.{name}" for name, weight in text.named_parameters() if weight.requires_grad]
        self.text_side = [n for n in self.state_dict() if n in learned or n.startswith(self.TEXT_SIDE)]

    def save_text_side(self, path: Path) -> None:
        """What it takes to give q, and f_I^dec(q), to a text that was not there in training."""
        weights = self.state_dict()
        save_file({name: weights[name].cpu().contiguous() for name in self.text_side}, path)

    def load_text_side(self, path: Path) -> None:
        """Raises ValueError when the file is of another encoder or other sizes."""
        found, own = load_file(path), self.state_dict()
        differ = set(found) ^ set(self.text_side) or {n for n, value in found.items() if value.shape != own[n].shape}
        if differ:
            raise ValueError(f"{path} holds another text side: {sorted(differ)[:3]} differ")
        self.load_state_dict(found, strict=False)

    @torch.no_grad()
    def of_texts(self) -> tuple[Tensor, Tensor]:
        """q (n, d') and f_I^dec(q) (n, d) of all texts, on the CPU."""
        self.eval()
        q = self.text_encoder(self.text.encode_all().to(self.text_encoder[0].weight.device))
        return q.float().cpu().clone(), self.item_decoder(q).float().cpu().clone()


@dataclass(frozen=True)
class JointEmbeddings:
    """What Stage 2 takes from Stage 1, for every item; row 0 is padding.

    ``e`` (n+1, d') from the CF embedding, ``q`` (n+1, d') from the text, ``decoded`` (n+1, d) = f_I^dec(e), whose dot
    product with x^u is the score of equation 5, and ``decoded_q`` the same from q.
    """

    e: Tensor
    q: Tensor
    decoded: Tensor
    decoded_q: Tensor

    def carried(self, joint: str, train_counts: Tensor) -> Tensor:
        """What the item tokens carry (section 4.1.4): "e", "q", "auto": e where training knows the item and q where not, or
        "both": e and q side by side, an item that training does not know having the mean e.

        train_counts (n+1,): how often each item occurs in training. (n+1, d'), "both": (n+1, 2 d').
        """
        known = (train_counts > 0)[:, None]
        if joint == "auto":
            return torch.where(known, self.e, self.q)
        if joint == "both":
            return torch.cat([torch.where(known, self.e, self.e[known[:, 0]].mean(dim=0)), self.q], dim=1)
        if joint not in ("e", "q"):
            raise ValueError(f"unknown stage2.joint {joint!r}; one of e, q, auto, both, cf, none, random")
        return getattr(self, joint)

    def save(self, path: Path) -> None:
        save_file({name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}, path)

    @classmethod
    def load(cls, path: Path) -> JointEmbeddings:
        return cls(**load_file(path))


def losses(model: Alignment, config: Stage1Config, x: Tensor, positive: Tensor, negative: Tensor, q_text: Tensor):
    """The terms of equation 6 for B users.

    x (B, d): user representations; positive, negative (B, d): E of the item and of a sampled one; q_text (B, D): Q of
    the positives. Returns a dict of scalars: matching (2), item_recon (3), text_recon (4), rec (5), total (6).
    The text's reconstruction target is held fixed: otherwise the encoder could shrink Q to make it easy.
    """
    e, q = model.item_encoder(positive), model.text_encoder(q_text)
    decoded, decoded_negative = model.item_decoder(e), model.item_decoder(model.item_encoder(negative))
    scale = 1.0 if config.score == "dot" else 1.0 / x.shape[1]
    good, bad = ((x * d).sum(dim=1) * scale for d in (decoded, decoded_negative))
    terms = {
        "matching": F.mse_loss(e, q),
        "item_recon": F.mse_loss(decoded, positive),
        "text_recon": F.mse_loss(model.text_decoder(q), q_text.detach()),
        "rec": (F.softplus(-good) + F.softplus(bad)).mean(),
    }
    weights = {"matching": config.matching, "item_recon": config.alpha, "text_recon": config.beta}
    weights["rec"] = config.recommendation
    return terms | {"total": sum(weights[name] * value for name, value in terms.items())}


class AlignmentTask:
    """One row a user: the last training item (section 4.1.3), or every position with ``all_items``."""

    def __init__(self, model: Alignment, cf: EmbeddingRecommender, sequences: Sequences, config: Stage1Config, max_len: int,
                 device: str):  # fmt: skip
        self.module, self.config, self.device = model.to(device), config, device
        self.sequences, self.embeddings = sequences, cf.item_embeddings().detach()
        self.rows = sequences.rows("train", max_len, all_items=config.all_items)
        self.held = sequences.rows("validation", max_len)
        self.x, self.x_held = represent(cf, self.rows, device), represent(cf, self.held, device)
        self.n_rows = len(self.rows)

    def parameters(self) -> list[dict]:
        text = [p for p in self.module.text.parameters() if p.requires_grad]
        own = [p for name, p in self.module.named_parameters() if not name.startswith("text.")]
        groups = [{"params": own, "lr": self.config.lr}, {"params": text, "lr": self.config.encoder_lr}]
        return [group for group in groups if group["params"]]

    def batches(self, order: Tensor) -> list[Tensor]:
        return split_batches(order, self.config.batch_size)

    def _loss(self, batch: Rows, x: Tensor, **options) -> Tensor:
        """Of equation 6. x (B, d): user representations; ``options`` go to the sentence encoder."""
        share = Share.of_batch(len(batch))
        items, place = batch.targets.unique(return_inverse=True)
        place, wanted = share.of(place), None
        if len(share) < len(batch):
            wanted = torch.zeros(len(items), dtype=torch.bool).index_fill(0, place, True)
        q_text = self.module.text(items, wanted=wanted, **options)[place.to(self.device)]
        targets, negatives, x = share.of(batch.targets, self._negatives(batch), x)
        positive, negative = (self.embeddings[i.to(self.embeddings.device)] for i in (targets, negatives))
        return share.weigh(losses(self.module, self.config, x, positive, negative, q_text)["total"])

    def _negatives(self, rows: Rows) -> Tensor:
        """For every row an item that the user has not in training; to avoid what is held out would tell of it. (B,)."""
        negative = torch.randint(1, self.sequences.n_items + 1, rows.targets.shape)
        users, wrong = rows.users.numpy(), True
        while wrong:
            seen = torch.from_numpy(self.sequences.interacted(users, negative.numpy(), "training"))
            wrong = bool(seen.any())
            negative[seen] = torch.randint(1, self.sequences.n_items + 1, (int(seen.sum()),))
        return negative

    def loss(self, rows: Tensor) -> Tensor:
        return self._loss(self.rows.take(rows), self.x[rows.to(self.x.device)])

    @torch.no_grad()
    def validate(self) -> float:
        """Minus the loss of equation 6 on the validation items (at most 2,000 rows), negatives drawn with one seed."""
        torch.manual_seed(0)
        index = torch.randperm(len(self.held))[:2000]
        return -processes.mean(self._loss(self.held.take(index), self.x_held[index.to(self.x_held.device)], chunk=64))


@torch.no_grad()
def joint_embeddings(model: Alignment, cf: EmbeddingRecommender) -> JointEmbeddings:
    """e and q of every item in one pass, on the CPU."""
    model.eval()
    device = next(model.item_encoder.parameters()).device
    e = model.item_encoder(cf.item_embeddings().to(device))
    q, decoded_q = model.of_texts()
    return JointEmbeddings(e.float().cpu().clone(), q, model.item_decoder(e).float().cpu().clone(), decoded_q)


def train_alignment(cf: EmbeddingRecommender, text: TextEncoder, sequences: Sequences, config: Stage1Config, max_len: int,
                    seed: int = 0, folder: Path | None = None, device: str = "cpu") -> tuple[Alignment, History]:  # fmt: skip
    """Train Stage 1 on a frozen CF model; returns the best model by validation loss."""
    torch.manual_seed(seed)
    model = Alignment(cf.item_embeddings().shape[1], text, config)
    task = AlignmentTask(model, cf, sequences, config, max_len, device)
    history = fit(task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed,
                  folder=folder, label="Stage 1")  # fmt: skip
    return model.eval().requires_grad_(False), history
