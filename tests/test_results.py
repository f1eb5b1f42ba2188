"""Rows of results: complete, beside the paper's, written once."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from allmrec_lib import meter, report, results
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.meter import Meter
from allmrec_lib.store import Store

VALUES = [np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])]


def line(**changes):
    return results.row("SASRec", VALUES, dataset="beauty", profile="smoke", llm=None, section="5.2.1", **changes)


def test_a_row_is_the_mean_of_seeds_beside_the_papers_number():
    row = line()
    assert set(results.FIELDS) <= set(row)
    assert row["value"] == pytest.approx(0.625) and row["seeds"] == 2 and row["n_users"] == 4
    assert row["low"] <= row["value"] <= row["high"] and row["paper"] == 0.5298


def test_the_papers_numbers_are_typed_in():
    assert results.paper_value(1, "beauty", "A-LLMRec") == 0.5809
    assert results.paper_value(2, "beauty", None, "users") == 9930
    assert results.paper_value(1, "movielens", "SASRec") is None


def test_recording_twice_changes_nothing(home):
    path = results.record("table_01", [line()], {"seed": 0})
    first = path.read_bytes()
    assert results.record("table_01", [line()], {"seed": 0}).read_bytes() == first
    assert set(json.loads(first)) == {"run", "rows"}
    assert results.record("table_01", [line() | {"value": 0.5}], {"seed": 0}).read_bytes() != first
    assert results.read("table_01", "smoke", "beauty")["value"].tolist() == [0.5]
    assert results.read("table_09", "smoke", "beauty").empty


def test_what_was_used_is_recorded_with_its_cost(home, monkeypatch):
    monkeypatch.setattr(Store, "used", {})
    store = Store()

    def outer(folder):
        store.get("inner", {}, lambda _: time.sleep(0.4))
        (folder / "x").write_text("1")

    name = store.get("scores", {"model": "SASRec", "seed": 0}, outer).name
    used = json.loads(results.record("table_01", [line()], {"seed": 0}).read_text())["run"]["artifacts"]
    made = used.pop(name)
    assert (made["kind"], made["model"]) == ("scores", "SASRec") and made["peak_mb"] > 0 and "thread" in made["device"]
    assert made["wall_s"] < 0.3 and [inner["wall_s"] >= 0.4 for inner in used.values()] == [True]


def test_a_meter_starts_its_peak_anew(monkeypatch):
    peaks = iter([900, 300, 200])  # at the start of the inner meter, its end, and the outer one's
    monkeypatch.setattr(meter, "_peak_mb", lambda: next(peaks))
    with Meter() as outer, Meter() as inner:  # the outer one opens the inner one, and closes last
        pass
    assert (inner.made["peak_mb"], outer.made["peak_mb"]) == (300, 900)


def test_tokens_are_those_that_an_llm_read_under_that_meter():
    backbone = load_backbone()
    with Meter() as outer:
        with Meter() as inner:
            backbone.hidden(torch.zeros(2, 7, backbone.embedding.embedding_dim))
        backbone.hidden(torch.zeros(1, 5, backbone.embedding.embedding_dim))
    with Meter() as none:
        pass
    assert (inner.made["tokens"], outer.made["tokens"], "tokens" in none.made) == (14, 5, False)


def test_the_system_starts_the_peak_anew():
    np.ones(2**25).sum()  # 256 MB, given back
    highest = meter._peak_mb()
    meter._forget_peak()
    if meter._peak_mb() == highest:
        pytest.skip("this system keeps a process's peak for good")
    with Meter() as after:
        pass
    with Meter() as more:
        np.ones(2**25).sum()
    assert more.made["peak_mb"] > after.made["peak_mb"] + 200


def test_an_incomplete_row_is_an_error(home):
    row = line()
    del row["low"]
    with pytest.raises(ValueError, match="the row of 'SASRec' has no 'low'"):
        results.record("table_01", [row], {})


def test_the_table_shows_the_gap():
    table = report.beside_paper([line(), line() | {"model": "Random", "paper": None}])
    assert table.loc["SASRec", "gap"] == "+0.0952" and table.loc["Random", "gap"] == "-"


def test_another_seed_or_llm_or_code_is_another_record(home):
    abouts = [(0, None), (1, None), (0, "facebook/opt-6.7b"), (1, "facebook/opt-6.7b")]
    assert len({results.path_of("t", "laptop", "beauty", *about) for about in abouts}) == 4
    assert results.path_of("t", "laptop", "beauty", 0, "pocket") == results.path_of("t", "laptop", "beauty")
    for code in "ab":
        path = results.record("t", [line()], {"seed": 0, "code": code})
        assert json.loads(path.read_text())["run"]["code"] == code
    results.record("t", [line() | {"value": 0.25}], {"seed": 1, "llm": "facebook/opt-6.7b"})
    assert results.read("t", "smoke", "beauty", 1, "facebook/opt-6.7b")["value"].tolist() == [0.25]
    assert results.read("t", "smoke", "beauty")["value"].tolist() == [0.625] and results.read("t", "smoke", "beauty", 1).empty
