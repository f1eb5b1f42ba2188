"""TALLRec's own question: the scores by hand, what is learned from, and the road through the store."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TITLES, random_sequences

from allmrec_lib import shares, yes_no
from allmrec_lib.config import TALLRecConfig
from allmrec_lib.experiment import Experiment
from allmrec_lib.llm.prompts import TEXT_ONLY
from allmrec_lib.llm.soft_tokens import PromptEncoder
from allmrec_lib.ranker import _Part
from allmrec_lib.sequences import candidate_sets
from allmrec_lib.tallrec import TALLRec
from allmrec_lib.training import fit

CONFIG = TALLRecConfig(batch_size=4, epochs=3, lr=2e-2, history=3, rank=4, dropout=0.0)
on_two = pytest.mark.parametrize("backbone", ["opt", "llama"], indirect=True)


@pytest.fixture
def world():
    return random_sequences(np.random.default_rng(0), users=16, items=len(TITLES) - 1, longest=6)


@pytest.fixture
def model(backbone, prompts) -> yes_no.YesNo:
    own = replace(backbone, model=copy.deepcopy(backbone.model), template=TEXT_ONLY)
    torch.manual_seed(0)
    return yes_no.YesNo(TALLRec(own, PromptEncoder(own, prompts.titles, prompts.words), CONFIG))


def task_of(model, world, config=CONFIG) -> yes_no.YesNoTask:
    rows, held, drawn = world.rows("train", 8), world.rows("validation", 8), candidate_sets(world, "validation", 4)
    return yes_no.YesNoTask(model, world, rows, torch.zeros(len(rows), 0), _Part(held, drawn, torch.zeros(len(held), 0)), config, 0)


@on_two
def test_the_scores_are_those_of_one_question_after_another(model, world):
    rows, drawn = world.rows("test", 8), candidate_sets(world, "test", 4)
    scores = model.predict(rows, drawn, torch.zeros(len(rows), 0), batch=5)
    words = [model.backbone.encode(word)[0] for word in ("Yes", "No")]
    for user, (past, items) in enumerate(zip(rows.histories[:, -3:].tolist(), drawn.items.tolist(), strict=True)):
        for column, item in enumerate(items):
            question = torch.tensor([model.opening(past) + model.question(item)])
            with torch.inference_mode():
                hidden = model.backbone.hidden(model.backbone.embedding(question))
                by_hand = model.backbone.logits(hidden[:, -1])[0].double().log_softmax(-1)[words]
            assert scores[user, column] == pytest.approx(float(by_hand[0] - by_hand[1]), abs=1e-4)


@on_two
def test_the_question_reads_as_it_should(model):
    asked = model.opening([0, 8, 4]) + model.question(9)
    text = model.backbone.tokenizer.decode(asked[len(model.backbone.start) :])
    assert text == (
        'Given the user\'s preference, identify whether the user will like the target movie by answering "Yes" or "No".\n'
        'User Preference: "Babe (1995)", "Brazil"\nWhether the user will like the target movie "Zulu"?\nAnswer: '
    )


@on_two
def test_it_learns_to_say_yes_to_targets(model, world):
    task = task_of(model, world)
    rows = torch.arange(task.n_rows)

    def loss() -> float:
        torch.manual_seed(5)
        with torch.no_grad():
            return float(task.loss(rows))

    before = loss()
    fit(task, epochs=3, patience=3, eval_every=1, seed=0, evaluate_start=True)
    assert loss() < before
    learning = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert learning and all("lora_" in n for n in learning)


@on_two
@pytest.mark.parametrize("kind", ["title", "constrained"])
def test_shares_of_a_batch_have_its_mean(model, world, monkeypatch, kind):
    task = task_of(model, world, replace(CONFIG, loss=kind))
    rows = torch.arange(5)
    torch.manual_seed(3)
    whole = task.loss(rows)
    monkeypatch.setattr(shares, "count", lambda: 2)
    parts = []
    for number in range(2):
        monkeypatch.setattr(shares, "number", lambda number=number: number)
        torch.manual_seed(3)
        parts.append(task.loss(rows))
    assert torch.allclose(sum(parts) / 2, whole, atol=1e-6)


@on_two
def test_no_title_can_be_asked_for(model, world):
    rows, drawn = world.rows("test", 8), candidate_sets(world, "test", 4)
    with pytest.raises(ValueError, match="yes/no question"):
        model.predict(rows, drawn, torch.zeros(len(rows), 0), "trie")


def test_from_an_experiment_to_stored_scores(home):
    short = {"tallrec.max_rows": 32, "tallrec.epochs": 1, "tallrec.eval_users": 8, "data.max_test_users": 8}
    run = Experiment("simulated", "smoke", overrides=short)
    scores = yes_no.yes_no_scores(run)
    assert scores.shape == (8, 20) and np.isfinite(scores).all()
    assert (yes_no.yes_no_folder(run) / "trained.safetensors").exists()
    again = Experiment("simulated", "smoke", overrides=short)
    assert np.array_equal(yes_no.yes_no_scores(again), scores)
    base = {p.data_ptr() for p in run.backbone.model.parameters()}
    frozen = [p for n, p in yes_no.yes_no(run).module.named_parameters() if "lora_" not in n]
    assert frozen and all(p.data_ptr() in base for p in frozen)  # one LLM in memory, not two
    assert not any("lora_" in n for n, _ in run.backbone.model.named_parameters())  # the LLM of others is left alone
