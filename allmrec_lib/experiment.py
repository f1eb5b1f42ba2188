"""One dataset, one profile, one seed: everything a chapter asks for, loaded if it was made before, made otherwise.

    run = Experiment("movielens", profile="laptop")
    run.sasrec            # trained, or read from the store
    run.scores("SASRec")     # (N, 20), on the stored test candidates
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import datasets, metrics
from .alignment import JointEmbeddings, joint_embeddings, represent, train_alignment
from .allmrec import ALLMRec, train_stage2
from .config import Profile, load_profile
from .llm.backbone import Backbone, load_backbone
from .llm.soft_tokens import PromptEncoder
from .projections import projections
from .recommenders.base import aligned, score_rows
from .recommenders.floors import FLOORS
from .recommenders.sasrec import SASRec, train_sasrec
from .results import versions
from .sequences import Candidates, Rows, Sequences, candidate_sets
from .store import Store, code_digest
from .text import TextEncoder, item_texts
from .training import History

CODE = {
    "candidates": ("sequences",),
    "sasrec": ("sequences", "training", "metrics", "recommenders.sasrec", "recommenders.base"),
    "stage1": ("sequences", "training", "text", "alignment"),
    "stage2": ("sequences", "training", "projections", "allmrec", "llm.prompts", "llm.soft_tokens", "llm.backbone",
               "llm.decoding"),  # fmt: skip
}


def _write_history(history: History, folder: Path) -> None:
    (folder / "history.json").write_text(json.dumps({"rows": history.rows, "best": history.best,
                                                     "best_epoch": history.best_epoch}))  # fmt: skip


def read_history(folder: Path) -> History:
    """The training history that lies with an artifact."""
    return History(**json.loads((folder / "history.json").read_text()))


# What a name in a table stands for, where it is A-LLMRec with other settings.
VARIANTS = {"A-LLMRec (SBERT)": {"stage2.joint": "q"}, "A-LLMRec (e+q)": {"stage2.joint": "both"}}


class Experiment:
    """The road from raw files to scores, each step made once and kept in the store.

    ``overrides`` maps "section.setting" to a value (see ``config``). Chapters share artifacts: two experiments with the
    same settings, data and seed are the same.
    """

    def __init__(self, dataset: str = "movielens", profile: str = "laptop", seed: int = 0, llm: str = "pocket",
                 device: str = "cpu", overrides: dict[str, Any] | None = None, store: Store | None = None):  # fmt: skip
        self.overrides = overrides or {}
        self.profile: Profile = load_profile(profile, dataset, overrides)
        self.name, self.seed, self.llm, self.device = dataset, seed, llm, device
        self.store = store or Store()

    def about(self) -> str:
        """One line for the head of a chapter: what runs, on what, with which versions."""
        shown = ", ".join(f"{name} {version}" for name, version in versions().items())
        return f"{self.name}, profile {self.profile.name}, seed {self.seed}, LLM {self.llm}, device {self.device}; {shown}"

    def record(self) -> dict[str, Any]:
        """What a result depends on: settings, data and candidate hashes, the library's code."""
        return {"config": asdict(self.profile), "seed": self.seed, "llm": self.llm, "device": self.device,
                "data": self.data.digest, "candidates": self.candidates["test"].digest,
                "code": code_digest(*sorted({m for modules in CODE.values() for m in modules}))}  # fmt: skip

    # -- data ----------------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> datasets.Dataset:
        return datasets.load(self.name)

    @cached_property
    def sequences(self) -> Sequences:
        return Sequences.from_dataset(self.data)

    @cached_property
    def candidates(self) -> dict[str, Candidates]:
        """The stored candidate sets of the parts "validation" and "test": drawn once, used by every model."""
        return {part: self._candidates(part) for part in ("validation", "test")}

    def _candidates(self, part: str) -> Candidates:
        data = self.profile.data
        drawn_by = {"negatives": data.negatives, "seed": data.candidate_seed, "max_users": data.max_test_users}
        inputs = {"data": self.data.digest, "part": part, "code": code_digest(*CODE["candidates"]), **drawn_by}

        def make(folder: Path) -> None:
            drawn = candidate_sets(self.sequences, part, data.negatives, data.candidate_seed, data.max_test_users)
            drawn.save(folder / "candidates.npz")

        return Candidates.load(self.store.get("candidates", inputs, make) / "candidates.npz")

    def rows(self, part: str) -> Rows:
        """The rows of the stored candidates' users."""
        return aligned(self.sequences.rows(part, self.profile.sasrec.max_len), self.candidates[part])

    # -- models --------------------------------------------------------------------------------------------------------

    def _inputs(self, kind: str) -> dict[str, Any]:
        own = {kind: asdict(getattr(self.profile, kind)), "seed": self.seed, f"{kind} code": code_digest(*CODE[kind])}
        if kind == "sasrec":
            return own | {"data": self.data.digest, "candidates": self.candidates["validation"].digest}
        if kind == "stage1":
            return own | self._inputs("sasrec")
        return own | self._inputs("stage1") | {"llm": self.llm, "llm card": self._llm_mark}

    @cached_property
    def _llm_mark(self) -> str:
        card = self.backbone.model.config.to_json_string(use_diff=True)
        weights = next(self.backbone.model.parameters()).detach().float().cpu().numpy().tobytes()
        return f"{self.backbone.template.name} {hash_text(card)} {hashlib.sha256(weights).hexdigest()[:12]}"

    @cached_property
    def sasrec_folder(self) -> Path:
        def make(folder: Path) -> None:
            model, history = train_sasrec(self.sequences, self.candidates["validation"], self.profile.sasrec, self.seed,
                                          folder, self.device)  # fmt: skip
            save_file(model.state_dict(), folder / "model.safetensors")
            _write_history(history, folder)

        return self.store.get("sasrec", self._inputs("sasrec"), make)

    @cached_property
    def sasrec(self) -> SASRec:
        """The pre-trained, frozen CF model."""
        model = SASRec(self.sequences.n_items, self.profile.sasrec)
        model.load_state_dict(load_file(self.sasrec_folder / "model.safetensors"))
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def stage1_folder(self) -> Path:
        settings = self.profile.stage1

        def make(folder: Path) -> None:
            text = TextEncoder(settings.encoder, item_texts(self.data), settings.max_text_tokens, settings.train_layers,
                               settings.precision)  # fmt: skip
            model, history = train_alignment(self.sasrec, text, self.sequences, settings, self.profile.sasrec.max_len,
                                             self.seed, folder, self.device)  # fmt: skip
            joint_embeddings(model, self.sasrec).save(folder / "joint.safetensors")
            _write_history(history, folder)

        return self.store.get("stage1", self._inputs("stage1"), make)

    @cached_property
    def joint(self) -> JointEmbeddings:
        """e and q of every item, from Stage 1."""
        return JointEmbeddings.load(self.stage1_folder / "joint.safetensors")

    @cached_property
    def backbone(self) -> Backbone:
        return load_backbone(self.llm, self.device, precision=self.profile.stage2.precision)

    @cached_property
    def prompts(self) -> PromptEncoder:
        return PromptEncoder(self.backbone, self.data.titles, self.data.words)

    def x(self, rows: Rows) -> Tensor:
        """x^u of every row, on the CPU."""
        return represent(self.sasrec, rows, self.device).cpu()

    @cached_property
    def train_rows(self) -> Rows:
        return self.sequences.rows("train", self.profile.sasrec.max_len, all_items=self.profile.stage2.all_items)

    def untrained(self) -> ALLMRec:
        """A-LLMRec before Stage 2: its projections as they start."""
        settings, train_x = self.profile.stage2, self.x(self.train_rows)
        latent = self.joint.carried(settings.joint, torch.from_numpy(self.sequences.train_counts()))
        heads = projections(settings, latent, self.sasrec.item_embeddings().cpu(), train_x, self.backbone, self.seed)
        return ALLMRec(self.backbone, self.prompts, latent, heads, settings.history)

    @cached_property
    def stage2_folder(self) -> Path:
        def make(folder: Path) -> None:
            model, rows = self.untrained(), self.rows("validation")
            train = (self.train_rows, self.x(self.train_rows))
            validation = (rows, self.candidates["validation"], self.x(rows))
            history = train_stage2(model, self.sequences, train, validation, self.profile.stage2, self.seed, folder)
            save_file({n: p.detach().cpu().contiguous() for n, p in model.heads.state_dict().items()},
                      folder / "projections.safetensors")  # fmt: skip
            _write_history(history, folder)

        return self.store.get("stage2", self._inputs("stage2"), make)

    @cached_property
    def allmrec(self) -> ALLMRec:
        """A-LLMRec after both stages."""
        model = self.untrained()
        model.heads.load_state_dict(load_file(self.stage2_folder / "projections.safetensors"))
        model.heads.eval().requires_grad_(False)
        return model

    def variant(self, model: str) -> Experiment:
        """The experiment in which ``model``, a name of :data:`VARIANTS`, is A-LLMRec."""
        changed = self.overrides | VARIANTS[model]
        return Experiment(self.name, self.profile.name, self.seed, self.llm, self.device, changed, self.store)

    # -- scores on the test rows ---------------------------------------------------------------------------------------

    def scores(self, model: str, mode: str = "constrained") -> np.ndarray:
        """Scores (N, 20) on the stored test candidates, positive in column 0; made once and kept.

        ``model`` is a name of the paper's tables; ``mode`` how an LLM answers (constrained, score, trie, free).
        """
        if model in VARIANTS:
            return self.variant(model).scores("A-LLMRec", mode)
        inputs = {"model": model, "test": self.candidates["test"].digest, "code": code_digest("experiment")}
        if model == "A-LLMRec":
            inputs |= {"mode": mode} | self._inputs("stage2")
        elif model == "SASRec":
            inputs |= self._inputs("sasrec")

        def make(folder: Path) -> None:
            np.save(folder / "scores.npy", self._score(model, mode), allow_pickle=False)

        return np.load(self.store.get("scores", inputs, make) / "scores.npy", allow_pickle=False)

    def _score(self, model: str, mode: str) -> np.ndarray:
        rows, candidates = self.rows("test"), self.candidates["test"]
        if model == "Random":
            return np.random.default_rng(self.seed).random(candidates.items.shape)
        if model in FLOORS:
            return score_rows(FLOORS[model](self.sequences), rows, candidates)
        if model == "SASRec":
            return score_rows(self.sasrec, rows, candidates, self.device)
        if model == "A-LLMRec":
            return self.allmrec.predict(rows, candidates, self.x(rows), mode)
        raise ValueError(f"unknown model {model!r}")

    def table(self, models: list[str]) -> pd.DataFrame:
        """Hit@1, Hit@5, NDCG@10 and MRR of some models on the test rows, Hit@1 with its 95% interval."""
        lines = []
        for model in models:
            values = metrics.per_user(self.scores(model))
            hit = metrics.bootstrap(values["hit@1"])
            lines.append({"model": model, "hit@1": hit.value, "low": hit.low, "high": hit.high}
                         | {m: float(values[m].mean()) for m in ("hit@5", "ndcg@10", "mrr")})  # fmt: skip
        return pd.DataFrame(lines).set_index("model")


def hash_text(text: str) -> str:
    """A short hash of a text, the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
