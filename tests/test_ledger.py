"""The ledger: every claim is in it, and the page in the book is what the recorded results give."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from allmrec_lib import ledger, metrics, paper, results, settings_page

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_what_the_results_give():
    frame = ledger.entries()
    assert (ROOT / "book" / "ledger.md").read_text() == ledger.page(frame)
    assert (ROOT / "data" / "results" / "laptop" / "ledger.json").read_text() == ledger._json(frame)
    assert (ROOT / "book" / "paper_itself.md").read_text() == paper.page()
    assert (ROOT / "book" / "appendix" / "hyperparameters.md").read_text() == settings_page.page()


def test_the_arithmetic_of_the_papers_page():
    middle = (9912 * 0.5298 - 7377 * 0.6312 - 1973 * 0.1190) / (9912 - 7377 - 1973)
    assert f"| SASRec | 0.1190 | 0.6312 | 0.5298 | {middle:.3f} |" in paper.the_middle()
    assert "588.6 / 232.5 = 2.53" in paper.speed() and "3.36 / 1.98 = 1.70" in paper.speed()
    assert "on 3 of 3 datasets" in paper.same_number()
    with pytest.raises(ValueError, match="Table 10 of the paper has no hit@5 of NCF"):
        paper.value(10, "beauty", "NCF", metric="hit@5")


def test_every_claim_has_a_line_for_every_dataset():
    claims = pd.read_csv(ROOT / "data" / "paper" / "claims.csv")
    assert not claims.duplicated(["record", "claim"]).any() and not claims.duplicated("statement").any()
    frame = ledger.entries()
    assert len(frame) == len(claims) * len(ledger.DATASETS)
    assert set(ledger.ONE_MODEL) <= set(zip(claims["record"], claims["claim"], strict=True))
    assert set(frame["verdict"]) <= {"holds", "fails", "undecided", "cannot run here", "not run"}


def test_what_came_with_the_project_is_read_in_a_home_of_ones_own(home):
    found = ledger.entries()
    assert not (home / "data" / "results").exists() and (found["verdict"] == "holds").sum() > 40
    assert paper.page() == (ROOT / "book" / "paper_itself.md").read_text()


def test_a_recorded_test_becomes_a_verdict(home, monkeypatch):
    monkeypatch.setattr(results, "shipped", lambda name: home / name)
    tests = {"A-LLMRec > SASRec": metrics.Comparison(0.02, 0.01, 0.03, 0.001),
             "A-LLMRec > NCF": metrics.Comparison(-0.02, -0.03, -0.01, 0.001),
             "A-LLMRec > CTRL": metrics.Comparison(0.01, -0.01, 0.03, 0.4)}  # fmt: skip
    rows = results.claims(tests, 100, dataset="beauty", profile="laptop", llm="pocket", section="5.2.1")
    assert [row["seeds"] for row in rows] == [1, 1, 1]
    of_seeds = results.claims({"SASRec > NCF": tests["A-LLMRec > NCF"]} | tests, 100, dataset="beauty", profile="laptop",
                              llm="pocket", section="5.2.1", seeds={"SASRec": 3, "NCF": 2})  # fmt: skip
    assert [row["seeds"] for row in of_seeds] == [2, 1, 1, 1]
    results.record("claims_07", rows, {"seed": 0})
    frame = ledger.entries().set_index(["dataset", "statement"])["verdict"]
    assert frame["beauty", "A-LLMRec is better than SASRec"] == "holds"
    assert frame["beauty", "A-LLMRec is better than NCF"] == "fails"
    assert frame["beauty", "A-LLMRec is better than CTRL"] == "undecided"
    assert frame["movielens", "A-LLMRec is better than SASRec"] == "not run"
    text = ledger.page(ledger.entries())
    assert "**fails**: -0.020 [-0.030, -0.010], p = 0.0010, 100 users" in text and "\t" not in text and "nan" not in text
    assert json.loads(ledger._json(ledger.entries()))[0]["section"] == "5.2.1"


def test_a_claim_on_speed_is_found_for_each_dataset_it_was_timed_on(monkeypatch):
    of_films = {"dataset": "movielens", "ratio": 0.8, "ratio_low": 0.7, "ratio_high": 0.9}
    row = {"what": "x", "llm": "pocket", "dataset": "beauty", "ratio": 1.2, "ratio_low": 1.1, "ratio_high": 1.3}
    monkeypatch.setattr(ledger.speed, "read_rows", lambda path: [row | {"also": [{"theirs is": "another", "ratio": 5.0}, of_films]}])
    asked = {"llm": "pocket"}
    assert ledger._timed("x", "beauty") == {"verdict": "holds", "value": 1.2, "low": 1.1, "high": 1.3} | asked
    assert ledger._timed("x", "movielens") == {"verdict": "fails", "value": 0.8, "low": 0.7, "high": 0.9} | asked
    large = row | {"llm": "opt-6.7b", "ratio": 1.0, "ratio_low": 0.9}
    monkeypatch.setattr(ledger.speed, "read_rows", lambda path: [row, large, row | {"llm": "opt-125m", "ratio": 2.0}])
    assert ledger._timed("x", "beauty") == {"verdict": "undecided", "value": 1.0, "low": 0.9, "high": 1.3, "llm": "opt-6.7b"}
    monkeypatch.setattr(ledger.speed, "read_rows", lambda path: [row])
    assert ledger._timed("x", "movielens") == {"verdict": "not run", "why": "timed on Luxury Beauty"}
    assert ledger._timed("y", "movielens") == {"verdict": "not run", "why": None}
