"""One dataset, one profile, one seed: everything a chapter asks for, loaded if it was made before, made otherwise.

    run = Experiment("movielens", profile="laptop")
    run.recommender("SASRec")   # trained, or read from the store
    run.scores("SASRec")        # (N, 20), on the stored test candidates

``cf`` names the recommender that A-LLMRec stands on (Table 11 changes it).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import metrics
from .alignment import JointEmbeddings, joint_embeddings, train_alignment
from .allmrec import VARIANTS, ALLMRec
from .llm.backbone import Backbone, frozen_backbone
from .llm.prompts import TEXT_ONLY
from .llm.soft_tokens import PromptEncoder
from .prepared import Prepared
from .projections import projections
from .ranker import AnswerTask, LLMRecommender, train_answers
from .recommenders.base import EmbeddingRecommender, represent, score_rows
from .recommenders.floors import FLOORS
from .recommenders.models import MODELS, answers_of, model_named, train_recommender
from .results import versions
from .sequences import Rows
from .store import Store, code_digest, readable
from .tallrec import TALLRec
from .text import TextEncoder, encoder_mark
from .training import load_trainable, trainable_state, write_history

ASKING = ("sequences", "training", "metrics", "ranker", "llm.prompts", "llm.soft_tokens", "llm.backbone", "llm.decoding")
FLOOR_CODE = ("sequences", "recommenders.base", "recommenders.floors")
CODE = {
    "stage1": ("sequences", "training", "text", "alignment"),
    "stage2": (*ASKING, "experiment", "projections", "allmrec"),  # experiment: what is trained on which rows
    "tallrec": (*ASKING, "experiment", "tallrec"),
}


def trained(model: LLMRecommender, folder: Path) -> LLMRecommender:
    """``model`` with the weights of its artifact, frozen."""
    load_trainable(model.module, readable(folder / "trained.safetensors", load_file))
    model.module.eval().requires_grad_(False)
    return model


class Experiment(Prepared):
    """The road from raw files to scores, each step made once and kept in the store: chapters share artifacts, two experiments
    with the same settings, data and seed are the same."""

    def __init__(self, dataset: str = "movielens", profile: str = "laptop", seed: int = 0, llm: str = "pocket",
                 device: str = "cpu", overrides: dict[str, Any] | None = None, store: Store | None = None,
                 cf: str = "SASRec"):  # fmt: skip
        super().__init__(dataset, profile, overrides, store)
        self.seed, self.llm, self.device, self.cf = seed, llm, device, cf
        self._recommenders: dict[str, EmbeddingRecommender] = {}
        self._outside: dict[str, str] = {}  # recommenders that the library did not train: name -> hash

    def about(self) -> str:
        """One line for the head of a chapter: what runs, on what, with which versions."""
        shown = ", ".join(f"{name} {version}" for name, version in versions().items())
        return f"{self.name}, profile {self.profile.name}, seed {self.seed}, LLM {self.llm}, device {self.device}; {shown}"

    def record(self, *models: str) -> dict[str, Any]:
        """What a result of A-LLMRec and ``models`` depends on: settings, data and candidate hashes, the library's code."""
        modules = {module for group in CODE.values() for module in group}
        modules |= {module for name in (self.cf, *models) if name in MODELS for module in MODELS[name].code}
        return {"config": asdict(self.profile), "seed": self.seed, "llm": self.llm, "device": self.device,
                "data": self.digest, "candidates": self.candidates["test"].digest,
                "code": code_digest(*sorted(modules))}  # fmt: skip

    # -- models --------------------------------------------------------------------------------------------------------

    def use(self, name: str, model: EmbeddingRecommender) -> None:
        """Let a trained model from outside the library be ``name``: the protocol is enough (ValueError where it is broken).
        What is made with it is kept under a hash of the vectors and scores that it gives on the validation rows."""
        rows, candidates = self.rows("validation"), self.candidates["validation"]
        *given, scores = answers_of(model, rows, candidates, self.sequences.n_items, self.device)
        digest = hashlib.sha256(scores.tobytes())
        for vectors in given:
            digest.update(vectors.detach().cpu().numpy().tobytes())
        self._recommenders[name], self._outside[name] = model, digest.hexdigest()[:16]

    def cf_inputs(self, name: str | None = None) -> dict[str, Any]:
        """All that a trained recommender depends on (none named: the one under A-LLMRec)."""
        name = name or self.cf
        if name in self._outside:
            return {"from outside": self._outside[name], "seed": self.seed, "data": self.digest,
                    "candidates": self.candidates["validation"].digest}  # fmt: skip
        kind, settings = model_named(name), getattr(self.profile, model_named(name).section)
        read = [getattr(settings, field, "") for field in ("encoder", "checkpoint")]
        return {kind.section: asdict(settings), "reads": [encoder_mark(n) for n in read if n], "data": self.digest,
                "code": code_digest(*kind.code), "candidates": self.candidates["validation"].digest, "seed": self.seed}  # fmt: skip

    def _inputs(self, kind: str) -> dict[str, Any]:
        own = {kind: asdict(getattr(self.profile, kind)), f"{kind} code": code_digest(*CODE[kind])}
        own[kind].pop("inference", None)  # what is trained does not depend on it
        own["max_len"] = self.profile.sasrec.max_len  # of the histories in all rows
        asked = {"stage1 reads": encoder_mark(self.profile.stage1.encoder)}
        if kind != "stage1":
            asked = {"llm": self.llm, "llm card": self.backbone.mark}
        if kind == "tallrec":
            before = {"seed": self.seed, "data": self.digest, "candidates": self.candidates["validation"].digest}
        elif kind == "stage1" or self.profile.stage2.joint == "cf":
            before = self.cf_inputs()
        else:
            before = self._inputs("stage1")
        return own | before | asked

    def recommender_folder(self, name: str) -> Path:
        """The artifact of a trained recommender (a name of ``recommenders.models.MODELS``)."""
        kind = model_named(name)

        def make(folder: Path) -> None:
            model, history = train_recommender(name, self.sequences, self.data, self.candidates["validation"],
                                               getattr(self.profile, kind.section), self.seed, folder, self.device)  # fmt: skip
            save_file(model.state_dict(), folder / "model.safetensors")
            write_history(history, folder)

        return self.store.get(kind.section, self.cf_inputs(name), make)

    def recommender(self, name: str) -> EmbeddingRecommender:
        """A trained recommender, frozen and in evaluation mode."""
        if name not in self._recommenders:
            kind = model_named(name)
            model = kind.build(self.sequences, self.data, getattr(self.profile, kind.section))
            model.load_state_dict(readable(self.recommender_folder(name) / "model.safetensors", load_file))
            self._recommenders[name] = model.to(self.device).eval().requires_grad_(False)
        return self._recommenders[name]

    @property
    def cf_model(self) -> EmbeddingRecommender:
        """The pre-trained, frozen CF model that A-LLMRec stands on."""
        return self.recommender(self.cf)

    @cached_property
    def stage1_folder(self) -> Path:
        settings = self.profile.stage1

        def make(folder: Path) -> None:
            text = TextEncoder(settings.encoder, self.texts, settings.max_text_tokens, settings.train_layers,
                               settings.precision)  # fmt: skip
            model, history = train_alignment(self.cf_model, text, self.sequences, settings, self.profile.sasrec.max_len,
                                             self.seed, folder, self.device)  # fmt: skip
            joint_embeddings(model, self.cf_model).save(folder / "joint.safetensors")
            model.save_text_side(folder / "text_side.safetensors")
            write_history(history, folder)

        return self.store.get("stage1", self._inputs("stage1"), make)

    @cached_property
    def joint(self) -> JointEmbeddings:
        """e and q of every item, from Stage 1."""
        return readable(self.stage1_folder / "joint.safetensors", JointEmbeddings.load)

    @cached_property
    def backbone(self) -> Backbone:
        return frozen_backbone(self.llm, self.device, self.profile.stage2.precision, self.profile.llm)

    @cached_property
    def prompts(self) -> PromptEncoder:
        return PromptEncoder(self.backbone, self.data.titles, self.data.words)

    def x(self, rows: Rows) -> Tensor:
        """x^u of every row, on the CPU."""
        return represent(self.cf_model, rows, self.device).cpu()

    def _x(self, model: LLMRecommender, rows: Rows) -> Tensor:
        """x^u for a model that looks at it (the mean, where ``stage2.user`` is off); nothing, (N, 0), for others."""
        if not isinstance(model, ALLMRec):
            return torch.zeros(len(rows), 0)
        return self.x(rows) if self.profile.stage2.user else self.x(self.train_rows("stage2")).mean(0).repeat(len(rows), 1)

    def train_rows(self, section: str) -> Rows:
        """What Stage 2 ("stage2") or TALLRec ("tallrec") is trained on."""
        return self.sequences.rows("train", self.profile.sasrec.max_len, all_items=getattr(self.profile, section).all_items)

    def carried(self, joint: str) -> Tensor:
        """What item tokens carry, (n_items + 1, d'), for a value of ``stage2.joint``."""
        if joint == "cf":
            return self.cf_model.item_embeddings().cpu()
        counts = torch.from_numpy(self.sequences.train_counts())
        found = self.joint.carried("auto" if joint in ("none", "random") else joint, counts)
        return torch.randn(found.shape, generator=torch.Generator().manual_seed(self.seed)) if joint == "random" else found

    def untrained(self) -> ALLMRec:
        """A-LLMRec before Stage 2: its projections as they start, from known items and all that their tokens may carry."""
        settings, known, train_x = self.profile.stage2, self.sequences.known, self.x(self.train_rows("stage2"))
        latent, embeddings = self.carried(settings.joint), self.cf_model.item_embeddings().cpu()[known]
        shown = [latent[known], self.joint.q[known]] if settings.joint == "auto" else [latent[known]]
        heads = projections(settings, torch.cat(shown), embeddings.repeat(len(shown), 1), train_x, self.backbone, self.seed)
        if settings.joint == "none":
            latent = latent[1:].mean(0).expand_as(latent)
        return ALLMRec(self.backbone, self.prompts, latent, heads, settings.history)

    def learn_answers(self, section: str, model: LLMRecommender, folder: Path, label: str,
                      kind: type[AnswerTask] = AnswerTask) -> None:  # fmt: skip
        """Train what learns in a model that asks an LLM, with the settings of ``section``, into an artifact's ``folder``."""
        rows, train = self.rows("validation"), self.train_rows(section)
        validation = (rows, self.candidates["validation"], self._x(model, rows))
        history = train_answers(model, self.sequences, (train, self._x(model, train)), validation,
                                getattr(self.profile, section), self.seed, folder, label, kind)  # fmt: skip
        save_file({n: p.detach().cpu().contiguous() for n, p in trainable_state(model.module).items()},
                  folder / "trained.safetensors")  # fmt: skip
        write_history(history, folder)

    @cached_property
    def stage2_folder(self) -> Path:
        return self.store.get("stage2", self._inputs("stage2"),
                              lambda folder: self.learn_answers("stage2", self.untrained(), folder, "Stage 2"))  # fmt: skip

    @cached_property
    def allmrec(self) -> ALLMRec:
        """A-LLMRec after both stages."""
        model, asked_with = trained(self.untrained(), self.stage2_folder), self.profile.stage2.inference
        return model.carrying(self.carried(asked_with)) if asked_with else model

    @cached_property
    def adapted(self) -> TALLRec:
        """The LLM with adapters that have learned nothing yet: modules of its own, the frozen weights of all others."""
        torch.manual_seed(self.seed)
        backbone = replace(self.backbone.twin(), template=TEXT_ONLY, precision=self.profile.tallrec.precision)
        return TALLRec(backbone, PromptEncoder(backbone, self.data.titles, self.data.words), self.profile.tallrec)

    @cached_property
    def tallrec_folder(self) -> Path:
        return self.store.get("tallrec", self._inputs("tallrec"),
                              lambda folder: self.learn_answers("tallrec", self.adapted, folder, "TALLRec"))  # fmt: skip

    @cached_property
    def tallrec(self) -> TALLRec:
        """The LLM with trained adapters."""
        return trained(self.adapted, self.tallrec_folder)

    def folder(self, model: str) -> Path:
        """The artifact of a trained model, by its name in the tables; its training history lies in it."""
        if model in VARIANTS:
            return self.variant(model).folder("A-LLMRec")
        asked = {"A-LLMRec": "stage2_folder", "TALLRec": "tallrec_folder"}
        return getattr(self, asked[model]) if model in asked else self.recommender_folder(model)

    @cached_property
    def llm_only(self) -> LLMRecommender:
        """The LLM as it is, asked with titles alone (figure 6)."""
        backbone = replace(self.backbone, template=TEXT_ONLY)
        return LLMRecommender(backbone, PromptEncoder(backbone, self.data.titles, self.data.words), self.profile.stage2.history)

    def changed(self, overrides: dict[str, Any] | None = None, seed: int | None = None) -> Experiment:
        """The same experiment with other settings or another seed; the two share the store, and models from outside."""
        other = Experiment(self.name, self.profile.name, self.seed if seed is None else seed, self.llm, self.device,
                           self.overrides | (overrides or {}), self.store, self.cf)  # fmt: skip
        other._outside = dict(self._outside)
        other._recommenders |= {name: self._recommenders[name] for name in self._outside}
        return other

    def variant(self, model: str) -> Experiment:
        """The experiment in which ``model``, a name of :data:`VARIANTS`, is A-LLMRec."""
        other = self.changed(VARIANTS[model])
        other._recommenders = self._recommenders
        return other

    # -- scores on the test rows ---------------------------------------------------------------------------------------

    def scores(self, model: str, mode: str = "constrained") -> np.ndarray:
        """Scores (N, 20) on the stored test candidates, positive in column 0; made once and kept.

        ``model`` is a name of the paper's tables; ``mode`` how an LLM answers (constrained, score, trie, free).
        """
        if model in VARIANTS:
            return self.variant(model).scores("A-LLMRec", mode)
        inputs = {"model": model, "data": self.digest, "test": self.candidates["test"].digest,
                  "max_len": self.profile.sasrec.max_len, "scored by": code_digest("experiment", *FLOOR_CODE)}  # fmt: skip
        if model == "Random":
            inputs["seed"] = self.seed
        elif model in MODELS or model in self._outside:
            inputs |= self.cf_inputs(model)
        elif model == "LLM-Only":
            settings = {"history": self.profile.stage2.history, "precision": self.profile.stage2.precision}
            inputs |= {"mode": mode, "llm": self.backbone.mark, "code": code_digest(*ASKING)} | settings
        elif model in ("A-LLMRec", "TALLRec"):
            inputs |= {"mode": mode, "inference": self.profile.stage2.inference}
            inputs |= self._inputs("stage2" if model == "A-LLMRec" else "tallrec")
        return self.store.scores(inputs, lambda folder: self._score(model, mode, folder))

    def _score(self, model: str, mode: str, folder: Path) -> np.ndarray:
        rows, candidates = self.rows("test"), self.candidates["test"]
        if model == "Random":
            return np.random.default_rng(self.seed).random(candidates.items.shape)
        if model in FLOORS:
            return score_rows(FLOORS[model](self.sequences), rows, candidates)
        if model in MODELS or model in self._outside:
            return score_rows(self.recommender(model), rows, candidates, self.device)
        asked = {"A-LLMRec": "allmrec", "TALLRec": "tallrec", "LLM-Only": "llm_only"}
        if model in asked:
            answering = getattr(self, asked[model])
            return answering.predict_in_blocks(rows, candidates, self._x(answering, rows), mode, folder)
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
