"""The benchmarks: both sides compute the same thing, each runs at a tiny size, rows replace older ones, the page is theirs."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import __main__ as program
from bench import cf, common, inference, opt, paper_size, stage1, stage2, table10, where
from bench.worlds import World, allmrec, tallrec, task_of

from allmrec_lib import metrics, speed, work
from allmrec_lib.config import SequentialConfig, Stage1Config, Stage2Config, TALLRecConfig
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.recommenders import sequential
from allmrec_lib.recommenders.base import score_rows
from allmrec_lib.recommenders.sasrec import SASRec

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def world() -> World:
    return World("simulated")


@pytest.fixture
def ours(world):
    """A-LLMRec over the small LLM, and what trains it."""
    config = Stage2Config(batch_size=4)
    return task_of(world, allmrec(world, load_backbone(), config), config)


# -- both sides compute the same ----------------------------------------------------------------------------------------


def test_sasrec_has_the_same_loss_with_and_without_padding(world, monkeypatch):
    torch.manual_seed(0)
    task = sequential.SequentialTask(
        SASRec(world.sequences.n_items, SequentialConfig(dropout=0.0)), world.sequences, world.validation, "cpu"
    )
    rows = torch.arange(16)
    inputs, targets = task.inputs[rows], task.targets[rows]
    negatives = torch.randint(1, world.sequences.n_items + 1, targets.shape)
    monkeypatch.setattr(sequential, "draw_negatives", lambda i, *_: negatives[:, -i.shape[1] :])
    assert float((inputs != 0).sum(1).max()) < inputs.shape[1]  # there is padding in every row
    assert torch.allclose(task.loss(rows), cf.full_length_loss(task.module, inputs, targets, negatives), atol=1e-6)


def test_the_per_user_sampler_gives_the_windows_that_the_library_trains_on(world):
    sampler = cf.PerUserSampler(world.sequences, 50)
    inputs, targets = world.sequences.train_windows(50)
    users = [user for user, items in sampler.train.items() if len(items) > 1]
    for place in (0, 5, len(users) - 1):
        mine = sampler.row(users[place])
        assert (mine[0] == inputs[place].numpy()).all() and (mine[1] == targets[place].numpy()).all()
        drawn = set(mine[2][mine[1] != 0].tolist())
        assert drawn and not drawn & set(sampler.train[users[place]]) and 0 not in drawn


def test_the_loop_over_users_ranks_as_the_batches_do(world):
    rows, drawn = world.test_rows.take(torch.arange(20)), world.test.take(torch.arange(20))
    mine = metrics.ranks(score_rows(world.cf, rows, drawn))
    assert cf.rank_by_loop(world.cf, rows, world.sequences, candidates=drawn.items) == mine.tolist()


@pytest.mark.parametrize("layers", [None, 2])
def test_stage_1_has_the_same_loss_with_every_text_read_anew(world, layers):
    config = Stage1Config(train_layers=layers, max_text_tokens=16, batch_size=8)
    both = stage1.tasks(world, config, stage1.encoder_of(world, config))
    rows, values = torch.arange(12), []
    for task in both:
        task.module.eval()
        torch.manual_seed(0)
        values.append(task.loss(rows))
    assert torch.allclose(*values, atol=1e-4)
    learning = [sum(p.numel() for p in t.module.parameters() if p.requires_grad) for t in both]
    assert layers is None or learning[0] == learning[1]


def test_stage_2_has_the_same_loss_and_gradient_with_full_logits(ours):
    rows, found = torch.arange(4), []
    for loss in (lambda task, rows: task.loss(rows), stage2.plain_loss):
        torch.manual_seed(0)
        ours.module.zero_grad()
        value = loss(ours, rows)
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in ours.module.parameters() if p.grad is not None]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert len(found[0][1]) == len(found[1][1]) > 0
    for mine, plain in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(mine, plain, atol=1e-3 * float(plain.abs().max()) + 1e-7)


def test_free_generation_and_the_trie_agree_where_the_text_is_a_title(world, ours):
    rows, drawn = world.test_rows.take(torch.arange(8)), world.test.take(torch.arange(8))
    x = world.x(rows)
    plain = ours.model.named(drawn.items, inference.generated(ours.model, rows, drawn, x, 4, 16))
    assert (plain == ours.model.predict(rows, drawn, x, "free")).all()  # and the library's own free decoding writes the same
    valid, same = inference.agreement(plain, ours.model.predict(rows, drawn, x, "trie"))
    assert valid > 0 and same == 1.0


def test_agreement_by_hand():
    free = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mine = np.array([[0.9, 0.1, 0.0], [0.5, 0.2, 0.1], [0.3, 0.2, 0.1], [0.1, 0.2, 0.7]])
    assert inference.agreement(free, mine) == (0.75, 2 / 3)


def test_merged_adapters_answer_alike_and_can_be_taken_out(world):
    model = tallrec(world, load_backbone(), TALLRecConfig())
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    rows, drawn = world.test_rows.take(torch.arange(4)), world.test.take(torch.arange(4))
    answers = []
    for merged in (None, True, False):
        if merged is not None:
            table10.merge_adapters(model, merged)
        answers.append(model.predict(rows, drawn, torch.zeros(4, 0)))
    assert np.allclose(answers[0], answers[1], atol=1e-3) and np.allclose(answers[0], answers[2], atol=1e-3)


@pytest.mark.parametrize("size", opt.SIZES)
def test_opt_has_the_size_it_says(size, monkeypatch):
    monkeypatch.setattr(opt, "tokenizer", lambda: None)
    model = opt.opt(size, "meta").model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(work.LLMS[size].parameters, rel=0.02)


# -- each runs, and is recorded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in program.ALL if n not in ("profiles", "constants")])
def test_every_comparison_runs_at_a_tiny_size(name, world, home):
    program.run(name, world, world, quick=True)
    rows = json.loads((home / "data" / "results" / "bench.json").read_text())
    assert rows and all(row["what"] in speed.AIMS for row in rows)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"]) and row["ours"] > 0
        assert row["ratio_low"] <= row["ratio"] * 1.001 and row["command"].startswith("python -m tests.bench")
    assert rows[0]["what"] in speed.ratios(rows)


def test_profiles_say_what_bounds_a_step(world, home, monkeypatch):
    monkeypatch.setattr(where, "peaks", lambda: {"gflops": 100.0, "gb_s": 10.0})  # asked for eight times
    program.run("profiles", world, world, quick=True)
    rows = json.loads((home / "data" / "results" / "profiles.json").read_text())
    assert {row["what"] for row in rows} >= {"SASRec training", "evaluation", "Stage 1", "Stage 2", "inference: trie"}
    assert all(0 < row["products"] < 1 and row["calls"] > 0 and row["top"] for row in rows)
    assert speed.profiles(rows).count("\n| Stage 2 |") == 2


def test_everything_is_asked_of_an_llm_of_true_size_in_one_run(world, home, monkeypatch):
    monkeypatch.setitem(opt.SIZES, "opt-tiny", (32, 2, 2, 32))
    monkeypatch.setitem(work.LLMS, "opt-tiny", work._opt("opt-tiny", 32, 2, 32))
    monkeypatch.setattr(opt, "tokenizer", lambda: load_backbone().tokenizer)
    monkeypatch.setattr(paper_size, "READ_AT_ONCE", 4)
    paper_size.paper_size(world, world, "opt-tiny", 2, 1, "cpu", count=4)
    rows = {name: json.loads((home / "data" / "results" / f"{name}.json").read_text()) for name in ("bench", "profiles", "card")}
    assert {row["what"] for row in rows["bench"]} == set(speed.AIMS) - {"raw files to sequences", "SASRec training", "evaluation", "Stage 1"}
    assert all(row["llm"] == "opt-tiny" and row["command"].startswith("make bench-paper SIZE=opt-tiny") for row in rows["bench"])
    assert {row["what"] for row in rows["profiles"]} == {"Stage 2", "TALLRec training", "inference: trie", "inference: score"}
    card = rows["card"][0]
    assert card["reached"]["train"] > 0 and card["reached"]["answer"] > 0 and card["run"]["rows"] == 4
    assert [row["what"] for row in card["memory"]] == ["Stage 2", "TALLRec", "scoring, 4 prompts"]
    assert all(row["counted_gb"] > 0 for row in card["memory"])
    assert "opt-tiny" in speed.page(rows["bench"], rows["profiles"], rows["card"])


def test_counting_what_a_pass_keeps_lets_go_of_the_llm():
    """An activation that held the graph that holds it would keep the LLM in a card's memory."""

    def counted() -> weakref.ref:
        module, given = torch.nn.Linear(4, 4), torch.ones(2, 4, requires_grad=True)
        assert table10.saved_bytes(lambda: module(given).tanh().sum(), module) > 0
        return weakref.ref(module.weight)

    weight = counted()
    gc.collect()
    assert weight() is None


def test_a_spread_of_batches_takes_the_time_of_all():
    lengths = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    batches = list(lengths.argsort().split(16))
    some = stage2.spread(batches, lengths, 5)
    assert len(some) == 5 and len({int(rows[0]) for rows in some}) == 5
    mean = [sum(float(lengths[rows].max()) for rows in part) / len(part) for part in (some, batches)]
    assert mean[0] == pytest.approx(mean[1], rel=0.05)


def test_sides_take_turns():
    order: list[str] = []
    taken = common.by_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"] and [len(t) for t in taken.values()] == [3, 3]
    numbers = common.compared([1.0, 2.0, 4.0], [10.0, 8.0, 12.0], 6)
    assert numbers == {"ours": 3.0, "theirs": 0.6, "ratio": 5.0, "ratio_low": 3.0, "ratio_high": 10.0}


def test_a_row_replaces_the_older_one_of_the_same_measurement(tmp_path):
    path = tmp_path / "bench.json"
    common.merge(
        [{"what": "a", "llm": None, "device": "x", "ratio": 1}, {"what": "b", "llm": "p", "device": "x", "ratio": 2}], path
    )
    common.merge(
        [{"what": "b", "llm": "p", "device": "x", "ratio": 3}, {"what": "b", "llm": "q", "device": "x", "ratio": 4}], path
    )
    assert [(r["what"], r["llm"], r["ratio"]) for r in common.read_rows(path)] == [("a", None, 1), ("b", "p", 3), ("b", "q", 4)]
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_an_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        program.main(["stage3"])
    assert "unknown benchmark 'stage3'" in capsys.readouterr().err


def test_the_page_is_what_was_recorded():
    text = speed.page(*(speed.read_rows(speed.results_file(name)) for name in ("bench", "profiles", "card")))
    assert (ROOT / "book" / "appendix" / "speed.md").read_text() == text
