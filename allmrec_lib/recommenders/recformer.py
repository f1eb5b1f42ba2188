"""RECFORMER: items and users are sentences, and nothing else (Li et al., KDD 2023, "Text is all you need").

An item is its attributes, each a key and a value; a user is <s> and the sentences of the items, newest first. Word, position,
token type (<s>, key, value) and item position are summed, a Longformer reads them with global attention on <s>, whose last
state is the representation; scores are cosines. Training has two stages: first the table of item representations is made
again with the model every epoch, then the best table is kept and the model goes on learning against it. Deviations: no
pre-training on other catalogues (its weights, and that of a Longformer, are to be had elsewhere: ``checkpoint``); words
that the catalogue lacks have no embedding; an epoch takes ``positions`` random positions of each user.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import metrics, processes
from ..config import RecFormerConfig
from ..datasets.base import Dataset
from ..sequences import Candidates, Sequences
from ..shares import Share, recomputing
from ..text import encoder_path
from ..training import History, autocast, bucketed_batches, fit
from .base import aligned, score_rows

if TYPE_CHECKING:
    from transformers import LongformerModel

START, KEY, VALUE, PAD = range(4)  # token types


def sentence_tokens(tokenizer, data: Dataset, limit: int) -> tuple[Tensor, Tensor]:
    """Token ids and token types of every item's sentence, both (n_items + 1, T), padded on the right; row 0 is empty."""
    columns = {"title": data.items["title"], "category": data.items["genres"].str.replace("|", " "),
               "description": data.items["description"]}  # fmt: skip
    read = lambda texts: tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=limit)["input_ids"]  # noqa: E731
    keys, values = read(columns), [read(texts) for texts in columns.values()]
    ids, types = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    for item in zip(*values, strict=True):
        pairs = [(key, value) for key, value in zip(keys, item, strict=True) if value]
        ids.append(torch.tensor([token for pair in pairs for part in pair for token in part]))
        types.append(torch.tensor([t for key, value in pairs for t in [KEY] * len(key) + [VALUE] * len(value)]))
    pad = lambda rows, value: nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)  # noqa: E731
    return pad(ids, tokenizer.pad_token_id), pad(types, PAD)


def longformer(config: RecFormerConfig, used: Tensor) -> LongformerModel:
    """A Longformer with four token types whose word embeddings are those of the tokens ``used``, in that order."""
    from transformers import AutoModel, LongformerConfig, LongformerModel  # not for those who only need SASRec: 3 s

    if config.checkpoint:
        model = LongformerModel.from_pretrained(config.checkpoint, attention_window=config.window, use_safetensors=True,
                                                add_pooling_layer=False)  # fmt: skip
        words = model.embeddings.word_embeddings.weight.detach()
    else:
        whole = AutoModel.from_pretrained(encoder_path(config.encoder), use_safetensors=True)
        words = whole.get_input_embeddings().weight.detach()
        shape = LongformerConfig(
            hidden_size=words.shape[1], num_hidden_layers=config.layers, num_attention_heads=config.heads,
            intermediate_size=config.inner, attention_window=config.window, vocab_size=len(used), pad_token_id=0,
            max_position_embeddings=config.max_tokens + config.window + 2, type_vocab_size=4,
        )  # fmt: skip
        model = LongformerModel(shape, add_pooling_layer=False)
    model.embeddings.word_embeddings = nn.Embedding.from_pretrained(words[used].clone(), freeze=False)
    if model.embeddings.token_type_embeddings.num_embeddings != 4:
        model.embeddings.token_type_embeddings = nn.Embedding(4, words.shape[1])
        nn.init.normal_(model.embeddings.token_type_embeddings.weight, std=0.02)
    if config.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": recomputing})
    return model


class RecFormer(nn.Module):
    """``table`` (n_items + 1, d): the items' representations when :meth:`refresh` was last called."""

    def __init__(self, n_items: int, config: RecFormerConfig, data: Dataset):
        from transformers import AutoTokenizer

        super().__init__()
        self.config = config
        tokenizer = AutoTokenizer.from_pretrained(config.checkpoint or encoder_path(config.encoder))
        ids, types = sentence_tokens(tokenizer, data, config.attribute_tokens)
        special = [tokenizer.pad_token_id, tokenizer.cls_token_id]
        used = torch.tensor([*special, *(token for token in ids.unique().tolist() if token not in special)])
        place = torch.zeros(int(used.max()) + 1, dtype=torch.long)
        place[used] = torch.arange(len(used))
        self.register_buffer("ids", place[ids], persistent=False)
        self.register_buffer("types", types, persistent=False)
        self.used, self.model = used, longformer(config, used)  # which tokens of the tokenizer have a word embedding here
        d = self.model.config.hidden_size
        self.item_positions = nn.Embedding(config.max_len + 1, d)
        nn.init.normal_(self.item_positions.weight, std=0.02)
        self.register_buffer("table", torch.zeros(n_items + 1, d))

    def encode(self, items: Tensor, share: Share | None = None) -> Tensor:
        """Sequences of items, newest first, 0 where there is none: (B, n) -> (B, d), of length 1; or a share of the B."""
        items = items[:, : self.config.max_len]
        types, ids = self.types[items].flatten(1), self.ids[items].flatten(1)
        which = torch.arange(1, items.shape[1] + 1, device=items.device).repeat_interleave(self.types.shape[1]).expand_as(ids)
        start = [torch.full_like(ids[:, :1], value) for value in (1, START, 0)]
        ids, types, which = (torch.cat([a, b], dim=1) for a, b in zip(start, (ids, types, which), strict=True))
        order = (types == PAD).to(torch.int8).argsort(dim=1, stable=True)  # the holes between sentences to the end
        longest = min(int((types != PAD).sum(dim=1).max()), self.config.max_tokens)
        short = -longest % self.config.window  # the Longformer reads whole windows
        ids, types, which = (F.pad(t.gather(1, order[:, :longest]), (0, short), value=v)
                             for t, v in ((ids, 0), (types, PAD), (which, 0)))  # fmt: skip
        share = Share(len(ids), slice(0, len(ids))) if share is None else share
        ids, types, which = share.of(ids, types, which)
        looks_everywhere = torch.zeros_like(ids)
        looks_everywhere[:, 0] = 1
        with share, autocast(ids.device.type, self.config.precision):
            seen = self.model(
                inputs_embeds=self.model.embeddings.word_embeddings(ids) + self.item_positions(which),
                token_type_ids=types, attention_mask=(types != PAD).long(), global_attention_mask=looks_everywhere,
            ).last_hidden_state  # fmt: skip
        return F.normalize(seen[:, 0].float(), dim=1)

    @torch.no_grad()
    def refresh(self, batch: int = 128) -> None:
        """Make the table of items again with the model as it is; several processes share the items out."""
        training = self.training
        self.eval()
        every = torch.arange(1, len(self.table), device=self.table.device)[:, None]
        parts = processes.each_once(lambda part: self.encode(part).cpu(), list(every.split(batch)))
        self.table[1:] = torch.cat(parts)
        self.train(training)

    def item_embeddings(self) -> Tensor:
        """(n_items + 1, d)."""
        return self.table

    def user_representation(self, histories: Tensor) -> Tensor:
        """x^u: (B, L) -> (B, d)."""
        return self.encode(histories.flip(1))

    def score(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """Cosines. (B, L) and (B, C) -> (B, C)."""
        return torch.einsum("bd,bcd->bc", self.user_representation(histories), self.table[candidates])


class RecFormerTask:
    """Every user is ``positions`` rows: of their training items a random one is to be told from all by those before it."""

    def __init__(self, model: RecFormer, sequences: Sequences, candidates: Candidates, device: str, moving: bool):
        self.module, self.config, self.device, self.moving = model.to(device), model.config, device, moving
        self.inputs, self.targets = (t.to(device) for t in sequences.train_windows(model.config.max_len))
        lengths = (self.inputs != 0).sum(dim=1).cpu()
        self.lengths = lengths.repeat(model.config.positions)
        self.n_rows, self.fresh = len(self.lengths), False  # whether the table is of the weights as they are
        self.validation = aligned(sequences.rows("validation", model.config.max_len), candidates), candidates

    def parameters(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def batches(self, order: Tensor) -> list[Tensor]:
        return bucketed_batches(order, self.config.batch_size, self.lengths)

    def begin_epoch(self) -> None:
        """The first stage's table is made again every epoch (by validation, where that came last)."""
        if self.moving and not self.fresh:
            self.module.refresh()

    def loss(self, rows: Tensor) -> Tensor:
        self.fresh = False
        share, rows = Share.of_batch(len(rows)), (rows % len(self.inputs)).to(self.device)
        inputs, targets = self.inputs[rows], self.targets[rows]
        place = torch.multinomial((targets != 0).float(), 1)
        back = torch.arange(inputs.shape[1], device=self.device) - (inputs.shape[1] - 1 - place)
        histories = inputs.gather(1, back.clamp(min=0)) * (back >= 0)
        cosines = self.module.encode(histories.flip(1), share) @ self.module.table[1:].T
        wanted = share.of(targets.gather(1, place)[:, 0]) - 1
        return share.weigh(F.cross_entropy(cosines / self.config.temperature, wanted))

    def validate(self) -> float:
        if self.moving:
            self.module.refresh()
            self.fresh = True
        scores = score_rows(self.module, *self.validation, device=self.device, batch=128)
        return float(metrics.ndcg(metrics.ranks(scores), 10).mean())


def train_recformer(model: RecFormer, sequences: Sequences, validation: Candidates, seed: int = 0, folder: Path | None = None,
                    device: str = "cpu", label: str = "RECFORMER") -> History:  # fmt: skip
    """Both stages, each stopping early on validation NDCG@10. Returns one history, in which the second follows the first."""
    config, stages = model.config, []
    for stage, moving in enumerate((True, False)):
        task = RecFormerTask(model, sequences, validation, device, moving)
        stages.append(fit(
            task, epochs=config.epochs, patience=config.patience, eval_every=config.eval_every, seed=seed + stage,
            folder=folder / f"stage{stage + 1}" if folder else None, label=f"{label}, stage {stage + 1}",
            weight_decay=config.weight_decay, evaluate_start=not moving,
        ))  # fmt: skip
        if moving:
            model.refresh()
    model.requires_grad_(False)
    return joined(*stages)


def joined(first: History, second: History) -> History:
    """One history of two that follow each other; the second's start is the first's best."""
    last, seconds = first.rows[-1]["epoch"], first.rows[-1]["seconds"]
    later = [row | {"epoch": last + row["epoch"], "seconds": seconds + row["seconds"]} for row in second.rows if row["epoch"]]
    best = second if second.best_epoch else first
    return History([*first.rows, *later], best.best, best.best_epoch + (last if best is second else 0))
