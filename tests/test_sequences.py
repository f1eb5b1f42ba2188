"""Split, tensors and candidates, against a slow and plain version, and their properties."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec_lib.datasets.base import DataError, Dataset, item_table
from allmrec_lib.sequences import Candidates, Sequences, candidate_sets

seeds = st.integers(0, 10_000)


def plain(sequences):
    return [sequences.flat[a:b].tolist() for a, b in zip(sequences.starts[:-1], sequences.starts[1:], strict=True)]


def padded(items, length):
    return ([0] * length + items)[-length:]


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 15))
def test_rows_are_the_leave_last_out_split(seed, length):
    sequences = random_sequences(np.random.default_rng(seed))
    expected = {"train": [], "validation": [], "test": []}
    for user, items in enumerate(plain(sequences), 1):
        training = items[:-2] if len(items) >= 3 else items
        if len(items) >= 3:
            expected["test"].append((user, padded(items[:-1], length), items[-1]))
            expected["validation"].append((user, padded(items[:-2], length), items[-2]))
        if len(training) >= 2:
            expected["train"].append((user, padded(training[:-1], length), training[-1]))
    for part, tasks in expected.items():
        rows = sequences.rows(part, length)
        assert list(zip(rows.users.tolist(), rows.histories.tolist(), rows.targets.tolist(), strict=True)) == tasks


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_all_items_rows_and_windows(seed):
    sequences = random_sequences(np.random.default_rng(seed))
    tasks, windows = [], []
    for user, items in enumerate(plain(sequences), 1):
        training = items[:-2] if len(items) >= 3 else items
        tasks += [(user, padded(training[:n], 5), training[n]) for n in range(1, len(training))]
        if len(training) >= 2:
            windows.append((padded(training[:-1], 5), padded(training[1:], 5)))
    rows = sequences.rows("train", 5, all_items=True)
    assert list(zip(rows.users.tolist(), rows.histories.tolist(), rows.targets.tolist(), strict=True)) == tasks
    inputs, targets = sequences.train_windows(5)
    assert list(zip(inputs.tolist(), targets.tolist(), strict=True)) == windows


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["validation", "test"]))
def test_candidates_hold_the_positive_and_items_never_met(seed, part):
    sequences = random_sequences(np.random.default_rng(seed))
    drawn = candidate_sets(sequences, part, 19, seed)
    rows = sequences.rows(part, 1)
    assert torch.equal(drawn.items[:, 0], rows.targets) and torch.equal(drawn.users, rows.users)
    histories = plain(sequences)
    for user, items in zip(drawn.users.tolist(), drawn.items.tolist(), strict=True):
        assert len(set(items)) == 20 and 0 not in items
        assert not set(items[1:]) & set(histories[user - 1])
    assert (drawn.order.sort(dim=1).values == torch.arange(20)).all()
    assert candidate_sets(sequences, part, 19, seed).digest == drawn.digest
    assert candidate_sets(sequences, part, 19, seed + 1).digest != drawn.digest


def test_negatives_and_places_are_uniform():
    sequences = random_sequences(np.random.default_rng(0), users=4000, items=40, longest=5)
    drawn = candidate_sets(sequences, "test", 19)
    place = (drawn.order == 0).int().argmax(dim=1)
    counts = np.bincount(place, minlength=20)
    assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
    negatives = np.bincount(drawn.items[:, 1:].flatten(), minlength=41)[1:]
    assert abs(negatives - negatives.mean()).max() < 6 * np.sqrt(negatives.mean())


def test_a_sample_of_users_is_a_sample(sequences):
    whole, some = candidate_sets(sequences, "test"), candidate_sets(sequences, "test", max_users=7)
    assert len(some) == 7 and set(some.users.tolist()) <= set(whole.users.tolist())


def test_too_small_a_catalogue_names_the_user():
    sequences = random_sequences(np.random.default_rng(0), items=22, longest=12)
    with pytest.raises(DataError, match=r"user \d+ interacted with \d+ of 22 items.*lower data.negatives"):
        candidate_sets(sequences, "test", 19)


def test_an_item_twice_among_candidates_is_refused():
    with pytest.raises(DataError, match="candidate row 0 .user 3. holds an item twice"):
        Candidates(torch.tensor([3]), torch.tensor([[5, 7, 5]]), torch.tensor([[0, 1, 2]]))


def test_candidates_survive_a_file(sequences, tmp_path):
    drawn = candidate_sets(sequences, "test")
    drawn.save(tmp_path / "c.npz")
    assert Candidates.load(tmp_path / "c.npz").digest == drawn.digest


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_counts_and_interacted(seed):
    sequences = random_sequences(np.random.default_rng(seed))
    training = [i for items in plain(sequences) for i in (items[:-2] if len(items) >= 3 else items)]
    assert sequences.train_counts().tolist() == np.bincount(training, minlength=sequences.n_items + 1).tolist()
    users, items = np.meshgrid(np.arange(1, sequences.n_users + 1), np.arange(1, sequences.n_items + 1), indexing="ij")
    met = sequences.interacted(users, items)
    assert all(set(np.flatnonzero(met[u]) + 1) == set(history) for u, history in enumerate(plain(sequences)))


def test_a_sample_of_users_has_each_once_and_all_may_come():
    sequences = random_sequences(np.random.default_rng(0))
    users = candidate_sets(sequences, "test", 5, seed=1).users.tolist()
    drawn = [candidate_sets(sequences, "test", 5, seed=s, max_users=8).users.tolist() for s in range(40)]
    assert all(d == sorted(set(d)) and len(d) == 8 for d in drawn)
    assert set(sum(drawn, [])) == set(users)


def test_parts_have_negatives_of_their_own_and_the_digest_covers_all():
    sequences = random_sequences(np.random.default_rng(0))
    test, validation = (candidate_sets(sequences, part, 5) for part in ("test", "validation"))
    assert not torch.equal(test.items[:, 1:], validation.items[:, 1:])
    some = test.take(torch.tensor([3, 1]))
    assert all(torch.equal(vars(some)[name], vars(test)[name][[3, 1]]) for name in ("users", "items", "order"))
    for name in ("users", "items", "order"):
        changed = Candidates(**{n: getattr(test, n).flip(0) if n == name else getattr(test, n) for n in ("users", "items", "order")})
        assert changed.digest != test.digest, name


def test_a_users_items_keep_their_order_also_where_users_stand_mixed():
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 6, 500), rng.integers(1, 41, 500)
    table = item_table([str(i) for i in range(40)], [f"t{i}" for i in range(40)], [""] * 40)[0]
    dataset = Dataset("d", "item", pd.DataFrame({"user": users, "item": items}, dtype="int32"), table)
    sequences = Sequences.from_dataset(dataset)
    assert [sequences.flat[a:b].tolist() for a, b in zip(sequences.starts[:-1], sequences.starts[1:], strict=True)] == [
        items[users == u].tolist() for u in range(1, 6)]


def test_how_many_of_a_pool_were_met_is_of_the_pool_asked_for():
    sequences = random_sequences(np.random.default_rng(0))
    for pool in (np.arange(1, 61), np.arange(1, 20), np.arange(1, 61)):
        plain = [len(set(sequences.flat[a:b]) & set(pool)) for a, b in zip(sequences.starts[:-1], sequences.starts[1:], strict=True)]
        assert sequences.met(pool)[1:].tolist() == plain
