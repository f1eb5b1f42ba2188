"""F_U and F_I (equation 7): from the CF model's and Stage 1's vectors to soft tokens, and where they start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import Stage2Config
from .llm.backbone import Backbone, Reads


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


def linear_start(latent: Tensor, embeddings: Tensor, x: Tensor, token_dim: int, likeness: float,
                 reads: Reads | None = None, alike_from: int = 0) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """Where the linear paths start: (weight, bias) for users and items.

    O_u = A U x^u and O_i = A V (E(latent_i) - mean) + B W latent_i: A puts into the token space what users and items are
    compared by, B what items are compared by among themselves. E(.) is the best linear guess of the CF model's
    embeddings; U and V share out the CF model's scores evenly (both are the square root of the scores' singular values),
    so that O_u . O_i starts as the CF model's score, less what all items have in common, with as little else in the
    tokens as possible. W latent_i, the latent's principal components brought to one spread (whitening: Su et al. 2021) and
    of size ``likeness`` against the rest, makes tokens of like items alike and others not: as they are, a few directions in
    which all of a shop's items vary would decide. A and B have orthonormal columns: in the parts that the LLM reads, where
    its card names them (``reads``; then every token also has the constant that marks it), random and side by side otherwise.

    latent (n, d'), embeddings (n, d): of known items; x (N, d): some users' representations. Items are alike by the latent's
    columns from ``alike_from`` on.
    """
    at = places(x.shape[1], latent.shape[1] - alike_from, token_dim, reads)
    # in single precision, directions of like size turn from run to run
    latent, embeddings, x = latent.double(), embeddings.double(), x.double()
    centre = latent.mean(dim=0)
    guess = torch.linalg.pinv(latent - centre, rtol=1e-3) @ (embeddings - embeddings.mean(dim=0))  # least squares
    user, item = _shared_out(x, (latent - centre) @ guess)
    user, item = user / (x @ user).norm(dim=1).mean(), guess @ item / ((latent - centre) @ guess @ item).norm(dim=1).mean()
    alike = torch.zeros(latent.shape[1], at.item.shape[1], dtype=torch.float64)
    _, size, direction = torch.linalg.svd((latent - centre)[:, alike_from:], full_matrices=False)
    whiten = (direction.T * _inverse(size))[:, : at.item.shape[1]]
    alike[alike_from:, : whiten.shape[1]] = whiten  # fewer items than dimensions have fewer directions
    alike = likeness * alike / ((latent - centre) @ alike).norm(dim=1).mean()
    marked = at.constant.square().sum()
    to_user, to_item = ((token_dim / (1 + other + marked)) ** 0.5 for other in (0.0, likeness**2))  # to unit spread
    shared = at.user[:, : user.shape[1]].T
    user, item = to_user * user @ shared, to_item * (item @ shared + alike @ at.item.T)
    starts = {"user": (user.T, to_user * at.constant), "item": (item.T, to_item * at.constant - centre @ item)}
    # the last digits of a decomposition differ from run to run; rounded, two runs start from the same numbers
    return {name: (weight.round(decimals=6), bias.round(decimals=6)) for name, (weight, bias) in starts.items()}


@dataclass(frozen=True)
class Places:
    """Where in a token embedding soft tokens carry what: ``user`` (D, d) and ``item`` (D, k) have orthonormal columns;
    ``constant`` (D,) is what every soft token has."""

    user: Tensor
    item: Tensor
    constant: Tensor

    def tokens(self, user_part: Tensor, item_part: Tensor) -> Tensor:
        """Vectors (..., D) of unit spread that carry (..., d) and (..., k): for probes of what an LLM reads."""
        out = user_part.double() @ self.user.T + item_part.double() @ self.item.T + self.constant
        return (out * (out.shape[-1] / out.square().sum(-1).mean()) ** 0.5).float()


def places(d: int, k: int, token_dim: int, reads: Reads | None) -> Places:
    """In the parts that the LLM reads, where its card names them; random and side by side otherwise.

    With ``reads``, ``item`` has as many columns as there is room for, at most k. Raises ValueError when d (or, without
    ``reads``, d + k) dimensions are more than the LLM offers.
    """
    room, need = (token_dim, d + k) if reads is None else (reads.user.stop - reads.user.start, d)
    if need > room:
        raise ValueError(f"stage2.projection = skip needs {need} dimensions of the LLM's token embeddings, it offers {room}; "
                         "use stage2.projection = mlp")  # fmt: skip
    constant, every = torch.zeros(token_dim, dtype=torch.float64), torch.eye(token_dim, dtype=torch.float64)
    if reads is None:
        basis = torch.linalg.qr(torch.randn(token_dim, token_dim, dtype=torch.float64))[0]
        return Places(basis[:, :d], basis[:, d : d + k], constant)
    constant[reads.constant] = reads.mark
    return Places(every[:, reads.user][:, :d], every[:, reads.item][:, :k], constant)


def _shared_out(x: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """U and V with (x U) . (items V) = x . items and both sides of the same spectrum; both (d, r), r being d or, where that
    is less, the number of users or items."""
    (_, sx, vx), (_, se, ve) = (torch.linalg.svd(t / len(t) ** 0.5, full_matrices=False) for t in (x, items))
    p, root, q = torch.linalg.svd((sx[:, None] * vx) @ (se[:, None] * ve).T, full_matrices=False)
    root = root.where(root > 1e-6 * root[0], 0.0) ** 0.5  # directions that no user or no item uses
    return vx.T @ (p * root * _inverse(sx)[:, None]), ve.T @ (q.T * root * _inverse(se)[:, None])


def _inverse(singular: Tensor) -> Tensor:
    """1 / s, and 0 for what is 0 but for rounding."""
    return torch.where(singular > 1e-6 * singular[0], 1.0 / singular, 0.0)


def projections(config: Stage2Config, latent: Tensor, embeddings: Tensor, x: Tensor, backbone: Backbone,
                seed: int) -> nn.ModuleDict:  # fmt: skip
    """F_U and F_I. latent (n, d'): what the item tokens carry, embeddings (n, d): the CF model's, both of the items that
    training knows, since the others' embeddings were never learned; x (N, d): users."""
    if config.projection not in ("mlp", "skip"):
        raise ValueError(f"unknown stage2.projection {config.projection!r}; one of mlp, skip")
    torch.manual_seed(seed)
    token_dim, spread = backbone.embedding.embedding_dim, backbone.spread
    start = {}
    if config.projection == "skip":
        alike_from = latent.shape[1] // 2 if config.joint == "both" else 0  # items are alike by their texts
        start = linear_start(latent, embeddings, x, token_dim, config.likeness, backbone.reads, alike_from)
    return nn.ModuleDict({
        "user": Projection(x.shape[1], token_dim, nn.LeakyReLU(), spread, start.get("user")),
        "item": Projection(latent.shape[1], token_dim, nn.GELU(), spread, start.get("item")),
    })  # fmt: skip
