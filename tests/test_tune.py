"""Tuning: every combination is trained once, the best is first, a second command trains nothing."""

from __future__ import annotations

import json

import pytest

from allmrec_lib import tune
from allmrec_lib.config import ConfigError
from allmrec_lib.experiment import Experiment
from allmrec_lib.training import read_history


def test_a_grid_is_tried_once_and_recorded(home, capsys):
    grid = ["--grid", "sasrec.lr=0.01,0.00001", "--grid", "sasrec.dropout=0.1,0.5"]
    command = ["SASRec", "--dataset", "simulated", "--profile", "smoke", *grid]
    assert tune.main(command) == 0
    made = {p: p.stat().st_mtime_ns for p in (home / "data" / "artifacts").glob("sasrec-*/model.safetensors")}
    assert len(made) == 4
    path = home / "data" / "results" / "smoke" / "simulated" / "tuning_sasrec_dropout.json"
    first = path.read_text()
    rows = json.loads(first)["rows"]
    assert [row["value"] for row in rows] == sorted((row["value"] for row in rows), reverse=True)
    assert len({json.dumps(row["settings"]) for row in rows}) == 4
    for row in rows:
        history = read_history(Experiment("simulated", "smoke", overrides=row["settings"]).folder("SASRec"))
        assert row["value"] == history.best == max(metric for _, metric in row["curve"])
    assert rows[0]["settings"]["sasrec.lr"] == 0.01 and rows[0]["value"] > rows[-1]["value"]
    assert tune.main(command) == 0
    assert made == {p: p.stat().st_mtime_ns for p in (home / "data" / "artifacts").glob("sasrec-*/model.safetensors")}
    assert path.read_text() == first
    assert "at epoch" in capsys.readouterr().out


def test_without_a_grid_the_papers_learning_rates_are_tried(home):
    found = tune.tune("NCF", dataset="simulated", profile="smoke")
    assert sorted(settings["ncf.lr"] for settings in found["settings"]) == [0.0001, 0.0005, 0.001, 0.01]


def test_errors_name_what_is_wrong(home, capsys):
    with pytest.raises(ValueError, match="unknown model 'BERT4Rec'; one of NCF"):
        tune.tune("BERT4Rec")
    with pytest.raises(ConfigError, match="did you mean 'dropout'"):
        tune.tune("SASRec", {"sasrec.dropuot": [0.1]}, dataset="simulated", profile="smoke")
    assert tune.main(["SASRec", "--grid", "sasrec.lr"]) == 1
    assert "write it as section.setting=value,value" in capsys.readouterr().err
