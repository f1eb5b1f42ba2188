"""A dataset split and with candidates, and models of the library with random weights: speed does not depend on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from allmrec_lib import datasets
from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.config import SequentialConfig, Stage2Config, TALLRecConfig
from allmrec_lib.llm.backbone import Backbone
from allmrec_lib.llm.prompts import TEXT_ONLY
from allmrec_lib.llm.soft_tokens import PromptEncoder
from allmrec_lib.projections import projections
from allmrec_lib.ranker import AnswerTask, LLMRecommender, _Part
from allmrec_lib.recommenders.base import aligned, represent
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.sequences import Candidates, Rows, Sequences, candidate_sets
from allmrec_lib.tallrec import TALLRec


@dataclass
class World:
    """One dataset as experiments see it, and a SASRec that learned nothing."""

    name: str
    max_len: int = 50

    @cached_property
    def data(self) -> datasets.Dataset:
        return datasets.load(self.name)

    @cached_property
    def sequences(self) -> Sequences:
        return Sequences.from_dataset(self.data)

    @cached_property
    def validation(self) -> Candidates:
        return candidate_sets(self.sequences, "validation")

    @cached_property
    def test(self) -> Candidates:
        return candidate_sets(self.sequences, "test")

    @cached_property
    def test_rows(self) -> Rows:
        return aligned(self.sequences.rows("test", self.max_len), self.test)

    @cached_property
    def cf(self) -> SASRec:
        torch.manual_seed(0)
        return SASRec(self.sequences.n_items, SequentialConfig(max_len=self.max_len)).eval().requires_grad_(False)

    @cached_property
    def latent(self) -> torch.Tensor:
        """What Stage 1 would give: (n_items + 1, 128)."""
        return torch.rand(self.sequences.n_items + 1, 128, generator=torch.Generator().manual_seed(0))

    def x(self, rows: Rows, device: str = "cpu") -> torch.Tensor:
        return represent(self.cf.to(device), rows, device).cpu()

    @cached_property
    def train(self) -> tuple[Rows, torch.Tensor]:
        """Every user's last training item, and x^u."""
        rows = self.sequences.rows("train", self.max_len)
        return rows, self.x(rows)

    @cached_property
    def held(self) -> tuple[Rows, torch.Tensor]:
        """The validation rows, and x^u."""
        rows = aligned(self.sequences.rows("validation", self.max_len), self.validation)
        return rows, self.x(rows)


def allmrec(world: World, backbone: Backbone, config: Stage2Config) -> ALLMRec:
    """A-LLMRec before Stage 2."""
    prompts = PromptEncoder(backbone, world.data.titles, world.data.words)
    of_known = (vectors[world.sequences.known] for vectors in (world.latent, world.cf.item_embeddings().cpu()))
    heads = projections(config, *of_known, world.train[1], backbone, 0)
    return ALLMRec(backbone, prompts, world.latent, heads, config.history)


def tallrec(world: World, backbone: Backbone, config: TALLRecConfig) -> TALLRec:
    """TALLRec before its training. The LLM of ``backbone`` gets adapters: it must be one of its own."""
    own = replace(backbone, template=TEXT_ONLY)
    torch.manual_seed(0)
    return TALLRec(own, PromptEncoder(own, world.data.titles, world.data.words), config)


def task_of(world: World, model: LLMRecommender, config: Stage2Config) -> AnswerTask:
    """What trains a model that asks an LLM: all training rows, their x^u (nothing for models that do not look at it)."""
    (train, x), (held, x_held) = world.train, world.held
    if not isinstance(model, ALLMRec):
        x, x_held = x[:, :0], x_held[:, :0]
    return AnswerTask(model, world.sequences, train, x, _Part(held, world.validation, x_held), config, 0)
