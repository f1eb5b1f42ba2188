"""Profiles and overrides: what is accepted, and what the errors say."""

from __future__ import annotations

import pytest

from allmrec_lib.config import PROFILES, ConfigError, load_profile


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("dataset", ["movielens", "beauty", "video_games", "anything"])
def test_every_profile_loads_for_every_dataset(name, dataset):
    profile = load_profile(name, dataset)
    assert (profile.name, profile.dataset) == (name, dataset)
    assert len(profile.rows()) > 30


def test_the_paper_profile_is_table_3():
    beauty, games = load_profile("paper", "beauty"), load_profile("paper", "video_games")
    assert (beauty.stage1.batch_size, beauty.stage1.epochs, beauty.stage2.batch_size, beauty.stage2.epochs) == (32, 10, 4, 5)
    assert (beauty.stage1.alpha, beauty.stage1.beta, games.stage1.beta) == (0.5, 0.2, 0.5)
    assert {load_profile("paper", f"{name}_{year}").stage1.beta for name in ("video_games", "movies_and_tv") for year in (2014, 2023)} == {0.5}
    assert load_profile("laptop", "beauty_raw").ncf == load_profile("laptop", "beauty").ncf
    assert (beauty.sasrec.dim, beauty.sasrec.batch_size, beauty.stage1.dim) == (50, 128, 128)


def test_overrides_are_typed():
    profile = load_profile("smoke", "movielens", {"sasrec.dropout": 0, "stage1.train_layers": None, "stage2.max_rows": None})
    assert profile.sasrec.dropout == 0.0 and isinstance(profile.sasrec.dropout, float)
    assert profile.stage1.train_layers is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"sasrec.dropuot": 0.1}, "did you mean 'dropout'"),
        ({"sasrek.dropout": 0.1}, "did you mean 'sasrec'"),
        ({"sasrec.epochs": 1.5}, "sasrec.epochs = 1.5 is a float; it takes int"),
        ({"sasrec.epochs": True}, "is a bool; it takes int"),
        ({"stage1.train_layers": "two"}, "it takes int or none"),
        ({"stage2.history": 0}, "stage2.history = 0; it takes 1 or more"),
        ({"data.negatives": -1}, "it takes 1 or more"),
    ],
)
def test_a_wrong_setting_names_the_right_one(overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_profile("smoke", "movielens", overrides)


def test_a_wrong_profile_names_the_right_one():
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        load_profile("latpop", "movielens")


def test_numbers_as_people_write_them():
    assert load_profile("smoke", "beauty", {"stage2.lr": "1e-4"}).stage2.lr == 1e-4
    for name, value in (("stage2.lr", "fast"), ("stage2.lr", "e-4"), ("stage2.batch_size", "1e2")):
        with pytest.raises(ConfigError, match=f"{name} = '{value}' is a str"):
            load_profile("smoke", "beauty", {name: value})


@pytest.mark.parametrize("name", ["epochs", "patience", "eval_every"])
def test_a_training_that_could_not_train_is_refused(name):
    with pytest.raises(ConfigError, match=f"stage2.{name} = 0; it takes 1 or more"):
        load_profile("smoke", "beauty", {f"stage2.{name}": 0})
