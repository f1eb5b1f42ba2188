"""Cold users and few-shot training: who trains, who is tested, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from allmrec_lib.config import DataConfig
from allmrec_lib.experiment import Experiment
from allmrec_lib.scenarios import limited
from allmrec_lib.sequences import Sequences, candidate_sets


def world() -> Sequences:
    """Users with 2, 3, 3, 4 and 6 items; items numbered through."""
    return Sequences(np.arange(1, 19), np.array([0, 2, 5, 8, 12, 18]), 60)


def test_cold_users_do_not_train_and_are_tested():
    whole, cold = world(), limited(world(), DataConfig(cold=(3,)))
    assert cold.rows("train", 5).users.tolist() == [1, 4, 5]
    assert cold.rows("validation", 5).users.tolist() == [4, 5]
    assert set(cold.train_pairs()[0]) == {1, 4, 5} and not cold.train_counts()[[3, 4, 5, 6, 7, 8]].any()
    inputs, targets = cold.train_windows(5)
    assert not np.isin(torch.cat([inputs, targets]).numpy(), [3, 4, 5, 6, 7, 8]).any()
    for mine, theirs in zip(vars(cold.rows("test", 5)).values(), vars(whole.rows("test", 5)).values(), strict=True):
        assert torch.equal(mine, theirs[:2])  # users 2 and 3
    assert candidate_sets(cold, "test", 9).users.tolist() == [2, 3]
    one = limited(world(), DataConfig(cold=(3, 6), cold_users=1))
    assert len(one.rows("test", 5)) == 2 and one.trains.sum() == 3


def test_few_shot_draws_users_that_can_train():
    draws = [limited(world(), DataConfig(few_shot=1, few_shot_draw=draw)) for draw in range(8)]
    assert {tuple(draw.rows("train", 5).users.tolist()) for draw in draws} == {(4,), (5,)}
    assert all(len(draw.rows("test", 5)) == 4 for draw in draws)
    again = limited(world(), DataConfig(few_shot=1, few_shot_draw=3))
    assert again.digest == draws[3].digest and len({draw.digest for draw in draws}) == 2
    with pytest.raises(ValueError, match="few_shot = 3, but only 2 users have four items"):
        limited(world(), DataConfig(few_shot=3))


def test_no_limit_is_no_change():
    whole = world()
    assert limited(whole, DataConfig()) is whole
    with pytest.raises(ValueError, match="no user has that many items; there are .2 3 4 6."):
        limited(whole, DataConfig(cold=(9,)))


def test_an_experiment_keeps_the_test_rows_and_trains_anew(home):
    whole = Experiment("simulated", "smoke")
    few = Experiment("simulated", "smoke", overrides={"data.few_shot": 20})
    assert few.candidates["test"].digest == whole.candidates["test"].digest
    assert len(few.candidates["validation"].users) == 20
    assert few.recommender_folder("SASRec") != whole.recommender_folder("SASRec")
    assert not np.array_equal(few.scores("SASRec"), whole.scores("SASRec"))


def test_another_draw_and_another_test_are_another_digest():
    whole = Sequences(np.arange(1, 201), np.arange(0, 201, 5), 300)
    draws = [limited(whole, DataConfig(few_shot=10, few_shot_draw=draw)) for draw in range(3)]
    assert len({draw.digest for draw in draws}) == 3
    few = draws[0]
    assert type(few)(whole, few.trains, few.trains).digest != few.digest


def test_cold_users_and_few_users_are_two_things():
    with pytest.raises(ValueError, match="one of the two"):
        limited(world(), DataConfig(cold=(3,), few_shot=5))
