"""What a run costs: FLOPs against a counter's, the arithmetic by hand, errors that name what is known, the page."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from bench import opt, training
from torch.utils.flop_counter import FlopCounterMode

from allmrec_lib import cost, cost_page, work
from allmrec_lib.config import load_profile

ROOT = Path(__file__).resolve().parent.parent
PAPER = load_profile("paper", "beauty")


@pytest.fixture
def device() -> cost.Device:
    return cost.Device("a GPU", 48, 100.0, 1000.0, {"train": 0.5, "answer": 0.25, "encoder": 0.5}, 1e-5, 2)


@pytest.mark.parametrize("size", ["opt-125m", "opt-350m", "opt-6.7b"])
def test_flops_are_what_a_counter_counts(size, monkeypatch):
    monkeypatch.setattr(opt, "tokenizer", lambda: None)
    monkeypatch.setattr("allmrec_lib.llm.backbone.autocast", lambda *_: nullcontext())  # there is none for "meta"
    backbone, shape, tokens = opt.opt(size, "meta"), work.LLMS[size], 64
    embeds = torch.zeros(1, tokens, backbone.embedding.embedding_dim, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        backbone.logits(backbone.hidden(embeds)).sum().backward()
    # the counter counts attention as if it looked forward too, twice the work
    expected = 2 * shape.linear(tokens) + 2 * 3.5 * shape.attention(tokens) + 2 * shape.head(tokens)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)
    causal = work.step_flops(shape, tokens - 5, 5)
    assert causal < expected


def test_time_is_the_longest_of_arithmetic_reading_and_calling(device):
    assert device.seconds("train", 5e13) == pytest.approx(1.0)
    assert device.seconds("answer", 5e13) == pytest.approx(2.0)
    assert device.seconds("train", 5e13, calls=2e5) == pytest.approx(2.0)
    assert device.seconds("train", 5e13, calls=2e5, read_gb=3000.0) == pytest.approx(3.0)


def test_stage_2_by_hand(device, monkeypatch):
    """One layer, 10 users, one epoch, no validation to speak of: rows / batch steps of batch rows' FLOPs."""
    shape = work.Shape("one", 1, 8, 8, 100, 50, 8)
    measured = {
        "tokens": {"gpt2": {"beauty": {"prompt": 10, "text_only": 8, "answer": 2, "longest": 12}}},
        "kept_floats": 10.0,
        "calls": {"Stage 2": 0, "TALLRec training": 0, "inference: score": 0},
    }
    part = replace(PAPER.stage2, batch_size=5, epochs=1, eval_users=1)
    found = cost.llm_phases(replace(PAPER, stage2=part), shape, cost.Size(10, 20, 60), device, measured)[0]
    row = 2 * 2 * 100 * 12 + 3.5 * 2 * 8 * 144 + 2 * 2 * 50 * 8 * 2
    weights_gb = (100 + 50 * 8) * 2 / 1e9
    step = max(5 * row / 5e13, 2 * weights_gb / 1000)
    assert found["phase"] == "Stage 2" and found["rows"] == 10
    assert found["seconds"] == pytest.approx(2 * step)
    assert found["gb"] == pytest.approx(weights_gb + 10 * 8 * 2 * 12 * 5 / 1e9 + cost.CONTEXT_GB)


def test_a_measured_card_is_predicted_by_what_it_reached(monkeypatch):
    """Shares of what the card is sold as, and calls as long as a SASRec step's; another card is taken to reach the same share."""
    row = {"device": "NVIDIA H100 80GB HBM3", "llm": "opt-6.7b", "reached": {"train": 494_700.0, "answer": 247_350.0}, "sasrec_step_s": 0.01}
    monkeypatch.setattr(cost, "recorded", lambda name: [row, row | {"llm": "opt-1.3b", "sasrec_step_s": 1.0}])
    monkeypatch.setattr(cost, "constants", lambda: {"calls": {"SASRec training": 2000}})
    card = cost.device_named("H100")
    assert card.shares == pytest.approx({"train": 0.5, "answer": 0.25, "encoder": 0.5}, rel=1e-3)
    assert card.call_s == pytest.approx(5e-6)
    other = cost.device_named("A6000")
    assert cost.measured_card("A100 80GB") is None and other.shares == card.shares and other.tflops == 154.8
    monkeypatch.setattr(cost, "recorded", lambda name: [])
    with pytest.raises(cost.CostError, match="make bench-paper"):
        cost.device_named("H100")


@pytest.mark.parametrize("device, name", [
    ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100 80GB"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
    ("NVIDIA RTX A6000", "RTX A6000"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA L40S", "L40S"), ("NVIDIA H200", "H200"),
])  # fmt: skip
def test_a_card_is_found_by_what_its_driver_calls_it(device, name):
    sold = pd.read_csv(ROOT / "data" / "gpus.csv")["name"]
    assert [each for each in sold if cost._is(each, device)] == [name]


def test_a_card_that_is_in_no_list_is_named(monkeypatch):
    row = cost.measured_card() | {"device": "NVIDIA Unheard 9000"}
    monkeypatch.setattr(cost, "recorded", lambda name: [row])
    with pytest.raises(cost.CostError, match="'NVIDIA Unheard 9000', which data/gpus.csv does not have"):
        cost.device_named("H200")


def test_more_users_cost_more_and_a_faster_gpu_less():
    hours = {
        (dataset, gpu): cost.hours(cost.predict(load_profile("paper", dataset), "opt-6.7b", gpu)[0])
        for dataset in ("beauty", "movies_and_tv")
        for gpu in ("A6000", "H100")
    }
    assert hours["movies_and_tv", "H100"] > 5 * hours["beauty", "H100"]
    assert hours["beauty", "A6000"] > 2 * hours["beauty", "H100"]
    small = cost.predict(PAPER, "facebook/opt-1.3b", "A6000")
    large = cost.predict(PAPER, "facebook/opt-6.7b", "A6000")
    assert small[0]["gb"].max() < large[0]["gb"].max() < 48 and small[1]["weights"] < large[1]["weights"]


def test_the_paper_measured_about_what_is_predicted():
    """Stage 1 and 2 on the paper's GPU within a factor of three of Table 10: the order of magnitude that a reader plans with."""
    phases = cost.predict(PAPER, "opt-6.7b", "A6000")[0].set_index("phase")["seconds"]
    assert 232.5 / 3 < phases[["Stage 1", "Stage 2"]].sum() / 60 < 232.5 * 3


@pytest.mark.parametrize(("option", "value", "said"), [
    ("gpu", "A100", "did you mean 'A100 40GB' or 'A100 80GB'"), ("gpu", "abacus", "known: RTX A6000"),
    ("llm", "gpt-9", "unknown LLM 'gpt-9'"), ("dataset", "cars", "unknown dataset 'cars'"), ("profile", "papper", "did you mean 'paper'"),
])  # fmt: skip
def test_what_is_not_known_is_named(option, value, said, capsys):
    assert cost.main([f"--{option}", value]) == 1
    assert said in capsys.readouterr().err


def test_without_measured_constants_the_command_to_get_them_is_named(home, monkeypatch):
    assert cost.constants()  # those that come with the project
    monkeypatch.setattr(cost, "shipped", lambda name: home / name)
    with pytest.raises(cost.CostError, match="make bench"):
        cost.constants()


def test_a_cpu_like_the_measured_one_can_be_asked_for(capsys):
    assert cost.main(["--profile", "laptop", "--dataset", "movielens", "--llm", "pocket", "--gpu", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert cost.constants()["device"] in shown and "(fits)" in shown


def test_the_command_answers(capsys):
    assert cost.main(["--profile", "paper", "--dataset", "toys", "--gpu", "A6000"]) == 0
    shown = capsys.readouterr().out
    assert "toys" in shown and "| Stage 2 |" in shown and "those of `beauty` stand for them" in shown


def test_the_page_shows_the_error_of_every_prediction():
    text = cost_page.page()
    assert (ROOT / "book" / "appendix" / "cost.md").read_text() == text
    table = text.partition("## Predicted and measured here")[2].partition("##")[0]
    assert table.count("%") >= 3 + len(cost.constants()["checks"])


def test_what_training_took_is_measured_in_a_process_of_each(tmp_path, home, monkeypatch, capsys):
    (home / "book" / "appendix").mkdir(parents=True)
    (home / "data" / "gpus.csv").symlink_to(ROOT / "data" / "gpus.csv")
    (home / "data" / "results").mkdir()
    for name in ("cost", "bench"):
        (home / "data" / "results" / f"{name}.json").symlink_to(ROOT / "data" / "results" / f"{name}.json")
    asked = ["training", training.NOTHING, "SASRec", "Stage 1", "--dataset", "simulated", "--profile", "smoke"]
    monkeypatch.setattr(sys, "argv", asked)
    assert training.main() == 0
    nothing, sasrec, stage1 = json.loads((home / "data" / "results" / "training.json").read_text())
    assert nothing["wall_s"] is None and sasrec["wall_s"] > 0 and stage1["wall_s"] > 0
    assert 0 < nothing["peak_mb"] < stage1["peak_mb"]  # Stage 1 holds a sentence encoder
    assert sasrec["parameters"] < stage1["parameters"] and sasrec["epochs"] >= 1
    page = (home / "book" / "appendix" / "cost.md").read_text()
    assert "| Stage 1 | simulated |" in page and "Measured before" not in page
    assert "Measured before their settings or their code changed: SASRec;" in cost_page.training([sasrec | {"settings": "x"}, stage1])
    assert not (home / "data" / "artifacts" / "training_cost").exists()
