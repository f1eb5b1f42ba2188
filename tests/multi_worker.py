"""Trains tiny models in double precision; run by one process and by two (``test_multi``), which must give the same.

    python tests/multi_worker.py OUT          torchrun --nproc_per_node 2 tests/multi_worker.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import TITLES, byte_tokenizer, random_sequences, tiny_model

from allmrec_lib import processes
from allmrec_lib.alignment import joint_embeddings, train_alignment
from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.config import MoRecConfig, NCFConfig, SequentialConfig, Stage1Config, Stage2Config, TALLRecConfig
from allmrec_lib.datasets.base import Dataset, item_table
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.llm.prompts import DOMAINS
from allmrec_lib.llm.soft_tokens import PromptEncoder
from allmrec_lib.projections import projections
from allmrec_lib.ranker import train_answers
from allmrec_lib.recommenders.base import aligned, represent, score_rows
from allmrec_lib.recommenders.morec import MoRec
from allmrec_lib.recommenders.ncf import NCF, train_ncf
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.recommenders.sequential import train_sequential
from allmrec_lib.sequences import candidate_sets
from allmrec_lib.store import Store
from allmrec_lib.tallrec import TALLRec
from allmrec_lib.text import TextEncoder
from allmrec_lib.training import History, trainable_state

ITEMS = 60
SEQUENTIAL = SequentialConfig(dim=8, max_len=10, batch_size=7, epochs=3, eval_every=1)  # 7: shares of unequal size


def told(out: dict, name: str, module: torch.nn.Module, history: History, scores: np.ndarray) -> None:
    out[name] = {"weights": trainable_state(module.requires_grad_(True)), "scores": torch.from_numpy(scores),
                 "history": torch.tensor([[r["loss"] or 0.0, r["metric"]] for r in history.rows])}  # fmt: skip


def encoder(folder: Path) -> TextEncoder:
    """A sentence encoder of two tiny BERT layers with dropout, of which one learns."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    shape = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=300)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<s>"
    if processes.is_main():
        BertModel(shape).save_pretrained(folder / "bert")
        tokenizer.save_pretrained(folder / "bert")
        SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16)], device="cpu").save(str(folder / "sbert"))
    processes.wait()
    texts = ["-", *(f"Title: item {i}, Description: {'what it is ' * (i % 4)}" for i in range(1, ITEMS + 1))]
    return TextEncoder(str(folder / "sbert"), texts, 24, 1).double()


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    out, sequences = {}, random_sequences(np.random.default_rng(0), users=23, items=ITEMS)
    held = candidate_sets(sequences, "validation", 19, 0)
    rows = aligned(sequences.rows("validation", 10), held)

    for name, config in (("SASRec", SEQUENTIAL), ("ce", SequentialConfig(**vars(SEQUENTIAL) | {"loss": "ce"}))):
        torch.manual_seed(0)
        cf = SASRec(ITEMS, config)
        history = train_sequential(cf, sequences, held, folder=folder / name)
        told(out, name, cf, history, score_rows(cf, rows, held, batch=4))
    torch.manual_seed(0)
    ncf = NCF(sequences.n_users, ITEMS, NCFConfig(dim=8, batch_size=9, epochs=1))
    told(out, "NCF", ncf, train_ncf(ncf, sequences, held), score_rows(ncf, rows, held, batch=4))

    torch.manual_seed(0)
    words = pd.DataFrame({"user": [1], "item": [1]}), item_table(list(map(str, range(ITEMS))), [f"item {i}" for i in range(ITEMS)], [""] * ITEMS)[0]
    encoder(folder)
    calm = vars(SEQUENTIAL) | {"epochs": 1, "dropout": 0.0}  # each process reads its own share's texts, with its own dropout
    reads = MoRecConfig(**calm, encoder=str(folder / "sbert"), train_layers=1, max_text_tokens=24)
    morec = MoRec(ITEMS, reads, Dataset("chain", "item", *words)).double()
    for module in morec.text.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    history = train_sequential(morec, sequences, held)  # validated by fewer batches than there are processes
    told(out, "MoRec", morec, history, score_rows(morec, rows, held))

    cf.requires_grad_(False)
    settings = Stage1Config(dim=12, batch_size=7, epochs=2, lr=1e-3, encoder_lr=1e-3)
    stage1, history = train_alignment(cf, encoder(folder), sequences, settings, 10)
    joint = joint_embeddings(stage1, cf)
    told(out, "Stage 1", stage1, history, joint.q.double().numpy())

    torch.set_default_dtype(torch.float32)  # the LLM is in double precision by itself; its logits are fp32
    if processes.is_main():
        tiny_model("opt").save_pretrained(folder / "llm")
        byte_tokenizer().save_pretrained(folder / "llm")
    processes.wait()
    titles = [TITLES[i % 13] + str(i) for i in range(ITEMS + 1)]
    x, train = represent(cf, rows), sequences.rows("train", 10)
    x_train = represent(cf, train)
    load = lambda template=None: load_backbone(str(folder / "llm"), dtype=torch.float64, template=template)  # noqa: E731
    backbone, config = load(), Stage2Config(batch_size=5, epochs=1, projection="mlp", lr=1e-3, history=3)
    heads = projections(config, joint.e[1:].double(), cf.item_embeddings()[1:], x_train, backbone, 0)
    model = ALLMRec(backbone, PromptEncoder(backbone, titles, DOMAINS["movie"]), joint.e.double(), heads.double(), 3)
    history = train_answers(model, sequences, (train, x_train), (rows, held, x), config, folder=folder / "Stage 2")
    told(out, "Stage 2", model.module, history, model.predict(rows, held, x, batch=4))

    torch.manual_seed(0)
    backbone, config = load("text-only"), TALLRecConfig(batch_size=5, epochs=1, lr=1e-3, history=3, max_rows=12)
    tallrec = TALLRec(backbone, PromptEncoder(backbone, titles, DOMAINS["movie"]), config)
    tallrec.module.double()
    history = train_answers(tallrec, sequences, (train, x_train), (rows, held, x), config, folder=folder / "TALLRec")
    out["TALLRec"] = {"weights": {n: p.detach().clone() for n, p in trainable_state(tallrec.module).items()},
                      "history": torch.tensor([[r["loss"] or 0.0, r["metric"]] for r in history.rows])}  # fmt: skip

    stored = Store(folder / "store").get("thing", {}, lambda made: (made / "x").write_text(str(processes.number())))
    assert (stored / "x").read_text() == "0", "the first process writes"
    torch.save(out, folder / f"out-{processes.number()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
