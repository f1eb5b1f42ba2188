"""The LLM baselines without soft tokens: what learns in TALLRec, its adapters merged by hand, and LLM-Only's prompt."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TITLES, random_sequences

from allmrec_lib.config import TALLRecConfig
from allmrec_lib.llm.prompts import TEXT_ONLY
from allmrec_lib.llm.soft_tokens import PromptBatch, PromptEncoder
from allmrec_lib.ranker import LLMRecommender, train_answers
from allmrec_lib.sequences import candidate_sets
from allmrec_lib.tallrec import TALLRec

pytestmark = pytest.mark.parametrize("backbone", ["opt", "llama"], indirect=True)
CONFIG = TALLRecConfig(batch_size=4, epochs=1, lr=1e-2, history=3, rank=2, dropout=0.0)


@pytest.fixture
def world():
    return random_sequences(np.random.default_rng(0), users=12, items=len(TITLES) - 1, longest=6)


@pytest.fixture
def text_only(backbone, prompts):
    """A copy of its own, since adapters go into the model."""
    own = replace(backbone, model=copy.deepcopy(backbone.model), template=TEXT_ONLY)
    return own, PromptEncoder(own, prompts.titles, prompts.words)


def trained(text_only, world) -> TALLRec:
    torch.manual_seed(0)
    model = TALLRec(*text_only, CONFIG)
    rows, held = world.rows("train", 8), world.rows("validation", 8)
    nothing = [torch.zeros(len(part), 0) for part in (rows, held)]
    drawn = candidate_sets(world, "validation", 4)
    train_answers(model, world, (rows, nothing[0]), (held, drawn, nothing[1]), CONFIG, label="TALLRec")
    return model


def test_before_training_it_answers_like_the_llm_alone(text_only, world):
    rows, drawn = world.rows("test", 8), candidate_sets(world, "test", 4)
    nothing = torch.zeros(len(rows), 0)
    alone = LLMRecommender(*text_only, history=3).predict(rows, drawn, nothing)
    model = TALLRec(*text_only, CONFIG)
    model.module.eval()
    assert np.allclose(model.predict(rows, drawn, nothing), alone, atol=1e-5)


def test_only_adapters_of_query_and_value_learn(text_only, world):
    start = {n: p.clone() for n, p in text_only[0].model.named_parameters()}
    model = trained(text_only, world)
    learning = {n for n, p in model.module.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in n and ("q_proj" in n or "v_proj" in n) for n in learning)
    after = {n.replace(".base_layer", ""): p for n, p in model.module.named_parameters() if "lora_" not in n}
    assert set(after) == set(start) and all(torch.equal(after[n], start[n]) for n in start)


def test_the_adapters_are_a_low_rank_sum(text_only, world):
    """W + alpha / r B A, multiplied out, answers as the adapted model does, and not as the LLM alone."""
    plain = copy.deepcopy(text_only[0].model)
    model = trained(text_only, world)
    state = dict(model.module.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            key = name.removesuffix(".weight")
            if f"{key}.lora_A.default.weight" in state:
                weight += 8.0 * state[f"{key}.lora_B.default.weight"] @ state[f"{key}.lora_A.default.weight"]  # 16 / 2
    rows, drawn = world.rows("test", 8), candidate_sets(world, "test", 4)
    nothing = torch.zeros(len(rows), 0)
    merged = LLMRecommender(replace(model.backbone, model=plain), model.prompts, 3).predict(rows, drawn, nothing)
    assert np.allclose(model.predict(rows, drawn, nothing), merged, atol=1e-4)


def test_soft_tokens_without_vectors_are_refused(backbone, prompts):
    model = LLMRecommender(backbone, prompts)  # a template with slots
    with pytest.raises(ValueError, match="use the text-only template"):
        model.embeds(PromptBatch.of([prompts.prompt([1], [2, 3])]), torch.zeros(1, 0))
