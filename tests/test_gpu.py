"""On a CUDA card: every model trains there, and answers there as it does on the CPU. Skipped where there is none."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from allmrec_lib.allmrec import VARIANTS
from allmrec_lib.config import Stage2Config, load_profile
from allmrec_lib.experiment import Experiment
from allmrec_lib.llm.backbone import load_backbone, recompute_layers
from allmrec_lib.meter import Meter
from allmrec_lib.recommenders.models import MODELS, model_named
from allmrec_lib.training import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
TINY = {"data.max_test_users": 40, "sasrec.epochs": 2, "stage1.epochs": 1, "stage1.max_text_tokens": 8, "stage2.max_rows": 32,
        "stage2.eval_users": 16, "stage2.precision": "fp32", "tallrec.max_rows": 32, "tallrec.eval_users": 16,
        "tallrec.precision": "fp32"}  # fmt: skip


def both(changes: dict | None = None) -> dict[str, Experiment]:
    """The same experiment on the card and on the CPU; they share what was trained."""
    card = Experiment("simulated", "smoke", device="cuda", overrides=TINY | (changes or {}))
    return {"cuda": card, "cpu": Experiment("simulated", "smoke", overrides=TINY | (changes or {}), store=card.store)}


@pytest.mark.parametrize("name", MODELS)
def test_a_recommender_trains_on_the_card_and_scores_alike_on_both(home, name, tmp_path):
    section = model_named(name).section
    single = (
        {f"{section}.precision": "fp32"} if hasattr(getattr(load_profile("smoke", "simulated"), section), "precision") else {}
    )
    runs = both({f"{section}.epochs": 2} | single)
    scores = {device: run._score(name, "constrained", tmp_path) for device, run in runs.items()}
    assert np.isfinite(scores["cuda"]).all() and scores["cuda"].std() > 0
    assert np.allclose(scores["cuda"], scores["cpu"], rtol=1e-3, atol=1e-3 * float(np.abs(scores["cpu"]).max()))
    assert next(runs["cuda"].recommender(name).parameters()).is_cuda


@pytest.mark.parametrize("name", ["LLM-Only", "TALLRec", "A-LLMRec", *VARIANTS])
def test_an_llm_learns_and_answers_on_the_card_as_on_the_cpu(home, name, tmp_path):
    runs = {device: run.variant(name) if name in VARIANTS else run for device, run in both().items()}
    asked = "A-LLMRec" if name in VARIANTS else name
    for mode in ("constrained", "score", "trie", "free"):
        for device in runs:
            (tmp_path / device / mode).mkdir(parents=True)
        scores = {device: run._score(asked, mode, tmp_path / device / mode) for device, run in runs.items()}
        if mode in ("trie", "free"):  # one of two equally likely words may be the other here and there
            assert (scores["cuda"] == scores["cpu"]).all(axis=1).mean() > 0.9
        else:
            apart = np.abs(scores["cuda"] - scores["cpu"])
            assert apart.mean() < 0.01 and apart.max() < 0.2
            assert (scores["cuda"].argmax(axis=1) == scores["cpu"].argmax(axis=1)).mean() >= 0.9


def test_a_training_step_on_the_card_is_that_on_the_cpu():
    """The same rows, negatives and start: the same loss and gradient."""
    from bench.worlds import World, allmrec, task_of

    found = {}
    for device in ("cpu", "cuda"):
        task = task_of(
            world := World("simulated"), allmrec(world, load_backbone("pocket", device), config := Stage2Config()), config
        )
        torch.manual_seed(0)
        loss = task.loss(torch.arange(4))
        loss.backward()
        found[device] = loss.detach().cpu(), [p.grad.cpu() for p in task.module.parameters() if p.grad is not None]
    assert torch.allclose(found["cpu"][0], found["cuda"][0], rtol=1e-4)
    for mine, theirs in zip(found["cpu"][1], found["cuda"][1], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-3 * float(mine.abs().max()) + 1e-7)


def test_recomputed_layers_give_the_same_gradient_in_bf16():
    backbone, found = load_backbone("pocket", "cuda", torch.bfloat16), []
    embeds = 0.1 * torch.randn(2, 40, backbone.embedding.embedding_dim, device="cuda")
    for again in (False, True):
        if again:
            recompute_layers(backbone.model)
        given = embeds.clone().requires_grad_()
        backbone.hidden(given).float().square().sum().backward()
        found.append(given.grad)
    assert torch.equal(*found)


def test_an_interrupted_training_goes_on_on_the_card(home, tmp_path):
    """Weights, moments and the best so far come back to the card they were on."""
    from bench.worlds import World, allmrec, task_of

    def task():
        world, config = World("simulated"), Stage2Config(batch_size=8)
        made = task_of(world, allmrec(world, load_backbone("pocket", "cuda"), config), config)
        made.n_rows, made.validation.rows = 24, made.validation.rows.take(torch.arange(8))
        made.validation.candidates, made.validation.x = made.validation.candidates.take(torch.arange(8)), made.validation.x[:8]
        return made

    whole = task()
    fit(whole, epochs=2, patience=9)
    cut, count = task(), iter(range(5))
    loss = cut.loss

    def interrupted(rows: torch.Tensor) -> torch.Tensor:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return loss(rows)

    cut.loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        fit(cut, epochs=2, patience=9, folder=tmp_path, checkpoint_s=0.0)
    rest = task()
    fit(rest, epochs=2, patience=9, folder=tmp_path, checkpoint_s=0.0)
    for a, b in zip(whole.module.parameters(), rest.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_the_cards_memory_is_what_a_meter_shows():
    with Meter() as meter:
        torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    assert 256 <= meter.made["peak_mb"] < 8192 and meter.made["device"] == torch.cuda.get_device_name()


def test_training_warns_of_nothing(home):
    """A warning would stand in the chapters' pages."""
    code = ("from allmrec_lib.experiment import Experiment as E; "
            f"run = E('simulated', 'smoke', device='cuda', overrides={TINY}); run.scores('A-LLMRec'); run.scores('TALLRec')")  # fmt: skip
    for precision in ("fp32", "auto"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("fp32", precision)], capture_output=True, text=True, check=True
        )
        assert "Warning" not in done.stderr, done.stderr[-2000:]
