"""Several seeds side by side give what one after another gives."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from allmrec_lib import results, seeds, seeds_page
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


def test_a_failing_seed_is_an_error_that_names_its_cause(tmp_path, monkeypatch):
    run = Experiment("simulated", "laptop", overrides=SHORT | {"data.seeds": 2}, store=Store(tmp_path))
    monkeypatch.setattr(seeds, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="unknown recommender 'SASRek'"):
        seeds.scores_by_seed(run, ["SASRek"])
    assert not os.listdir(tmp_path)


def test_the_page_of_seeds_says_what_each_seed_gave(monkeypatch, home):
    """Recorded by seed; the mean over seeds is the mean of what was recorded; the page shows both. Hits are drawn here."""
    drawn = lambda run: np.random.default_rng(run.seed).integers(0, 2, (4, 32)).astype(float)  # noqa: E731
    monkeypatch.setattr(seeds_page, "hits_of", lambda run: dict(zip(seeds_page.MODELS, drawn(run), strict=True)))
    monkeypatch.setattr(seeds_page, "DATASETS", {"simulated": "Simulated"})
    seeds_page.train("simulated", "smoke", 2, "pocket", "cpu")
    rows = results.read(seeds_page.TABLE, "smoke", "simulated")
    hit, claims = rows[rows.metric == "hit@1"], rows[rows.model == "A-LLMRec > SASRec"]
    each = hit[hit.condition.notna()].groupby("model").value.agg(["mean", "size"])
    mean = hit[hit.condition.isna()].set_index("model")
    assert list(each["size"]) == [2] * 4 and np.allclose(mean.value[each.index], each["mean"]) and set(mean.seeds) == {2}
    last = claims[claims.condition.isna()].iloc[0]
    assert np.isclose(last.value, mean.value["A-LLMRec"] - mean.value["SASRec"]) and last.seeds == 2
    text = seeds_page.page("smoke")
    assert "## Simulated" in text and f"{mean.value['TALLRec']:.4f}" in text
    assert f"| A-LLMRec > SASRec | {claims.value.iloc[0]:+.4f} [" in text
