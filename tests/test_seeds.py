"""Several seeds side by side give what one after another gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from allmrec_lib import seeds
from allmrec_lib.experiment import Experiment
from allmrec_lib.store import Store

SHORT = {"data.seeds": 2, "data.max_test_users": 40, "sasrec.epochs": 2, "sasrec.eval_every": 1, "ncf.epochs": 1}


@pytest.fixture
def one_thread(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_side_by_side_is_the_same_as_one_after_another(tmp_path, monkeypatch, one_thread):
    run = Experiment("simulated", "laptop", overrides=SHORT, store=Store(tmp_path / "together"))
    monkeypatch.setattr(seeds, "cpu_count", lambda: 2)
    made = seeds.scores_by_seed(run, ["SASRec", "NCF"], once=("NCF",))
    assert {name: len(scores) for name, scores in made.items()} == {"SASRec": 2, "NCF": 1}
    for name, scores in made.items():
        for seed, given in enumerate(scores):
            alone = Experiment("simulated", "laptop", seed, overrides=SHORT, store=Store(tmp_path / "alone"))
            assert np.array_equal(given, alone.scores(name)), (name, seed)
    assert not np.array_equal(*made["SASRec"])


def test_only_what_is_missing_is_trained_and_elsewhere(tmp_path, monkeypatch):
    run = Experiment("simulated", "laptop", overrides=SHORT, store=Store(tmp_path))
    run.recommender_folder("SASRec")
    seen = []
    monkeypatch.setattr(seeds, "cpu_count", lambda: 2)
    monkeypatch.setattr(seeds, "Parallel", lambda workers, **_: lambda jobs: seen.append((workers, len(list(jobs)))) or [])
    monkeypatch.setattr(seeds, "_is_there", lambda name, run: (name, run.seed) == ("SASRec", 0))
    seeds.scores_by_seed(run, ["SASRec", "NCF"])
    assert seen == [(3, 3)]  # SASRec's second seed and NCF's two
    monkeypatch.setattr(seeds, "MEMORY", 2**60)
    seeds.scores_by_seed(run, ["SASRec", "NCF"])
    assert len(seen) == 1  # too little memory for two: one after another
    monkeypatch.undo()
    assert seeds._is_there("SASRec", run) and not seeds._is_there("SASRec", run.changed(seed=7))


def test_a_misspelt_model_is_an_error_before_any_is_trained(tmp_path):
    run = Experiment("simulated", "laptop", overrides=SHORT | {"data.seeds": 2}, store=Store(tmp_path))
    with pytest.raises(ValueError, match=r"unknown models \['MLP-LM', 'SASRek'\]; .* MLP-LLM"):
        seeds.scores_by_seed(run, ["SASRec", "SASRek", "MLP-LM"])
    assert not seeds._is_there("SASRec", run)


def test_a_failing_seed_is_an_error_that_names_its_cause(tmp_path, monkeypatch):
    run = Experiment("simulated", "laptop", overrides=SHORT | {"data.seeds": 2, "sasrec.loss": "nll"}, store=Store(tmp_path))
    monkeypatch.setattr(seeds, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="nll"):
        seeds.scores_by_seed(run, ["SASRec"])


def test_what_asks_an_llm_stands_on_the_recommender_of_its_seed(tmp_path):
    run = Experiment("simulated", "smoke", overrides={"data.seeds": 3, "data.llm_seeds": 2}, store=Store(tmp_path))
    made = seeds.scores_by_seed(run, ["SASRec", "MLP-LLM"])
    assert [len(made[name]) for name in ("SASRec", "MLP-LLM")] == [3, 2]
    for seed, scores in enumerate(made["MLP-LLM"]):
        assert np.array_equal(scores, run.changed(seed=seed).scores("MLP-LLM")), seed
    assert not np.array_equal(*made["MLP-LLM"])
