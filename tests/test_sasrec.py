"""SASRec and the floors: causality, padding, negatives, resume, and that it learns what there is to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_sequences

from allmrec_lib import metrics
from allmrec_lib.config import SequentialConfig
from allmrec_lib.recommenders.base import aligned, represent, score_rows
from allmrec_lib.recommenders.floors import CoOccurrence, Popularity, RepeatFirst
from allmrec_lib.recommenders.models import train_recommender
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.recommenders.sequential import SequentialTask, draw_negatives
from allmrec_lib.sequences import Sequences, candidate_sets

CONFIG = SequentialConfig(dim=16, max_len=8, dropout=0.2, epochs=30, eval_every=5, batch_size=64, lr=5e-3)


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    return SASRec(50, CONFIG).eval()


def test_a_state_knows_nothing_of_later_items(model):
    a = torch.randint(1, 51, (4, 8))
    b = a.clone()
    b[:, 5:] = torch.randint(1, 51, (4, 3))
    assert torch.allclose(model.hidden(a)[:, :5], model.hidden(b)[:, :5], atol=1e-6)
    assert not torch.allclose(model.hidden(a)[:, 5:], model.hidden(b)[:, 5:], atol=1e-3)


def test_padding_changes_nothing(model):
    short = torch.randint(1, 51, (4, 3))
    long = torch.cat([torch.zeros(4, 5, dtype=torch.long), short], dim=1)
    assert torch.allclose(model.hidden(short)[:, -1], model.hidden(long)[:, -1], atol=1e-6)
    assert torch.allclose(model.hidden(short)[:, -1], model.user_representation(long), atol=1e-6)
    assert torch.isfinite(model.hidden(torch.zeros(2, 8, dtype=torch.long))).all()
    assert not model.item_embeddings()[0].any()


def test_evaluation_does_not_depend_on_order_or_batch(model):
    """Rows are read in order of length and without columns of padding; each keeps its place and its scores."""
    sequences = random_sequences(np.random.default_rng(0), users=30, items=50, longest=12)
    drawn = candidate_sets(sequences, "test", 5)
    rows = aligned(sequences.rows("test", 8), drawn)
    with torch.no_grad():
        one_by_one = torch.cat([model.score(h[None], c[None]) for h, c in zip(rows.histories, drawn.items, strict=True)]).numpy()
        x = model.hidden(rows.histories)[:, -1]
    for batch in (4, 256):
        assert np.allclose(score_rows(model, rows, drawn, batch=batch), one_by_one, atol=1e-6)
        assert torch.allclose(represent(model, rows, batch=batch), x, atol=1e-6)
    nothing = torch.arange(0)
    assert score_rows(model, rows.take(nothing), drawn.take(nothing)).shape == (0, 6)


def test_attention_is_the_formula(model):
    """One block against softmax attention written out."""
    block, x = model.blocks[0], torch.randn(2, 5, 16)
    visible = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5)
    q, (k, v) = block.query(block.query_norm(x)), block.key_value(x).chunk(2, -1)
    weights = (q @ k.transpose(1, 2) / 16**0.5).masked_fill(~visible[:, 0], -torch.inf).softmax(-1)
    y = block.norm(block.query_norm(x) + block.out(weights @ v))
    expected = y + block.outer(block.inner(y).relu())
    assert torch.allclose(block(x, x, visible), expected, atol=1e-6)
    assert torch.allclose(block(x[:, -1:], x, visible[:, :, -1:]), expected[:, -1:], atol=1e-6)


def test_the_score_is_the_dot_product(model):
    histories, candidates = torch.randint(1, 51, (3, 8)), torch.randint(1, 51, (3, 4))
    x, items = model.user_representation(histories), model.item_embeddings()[candidates]
    assert torch.allclose(model.score(histories, candidates), (x[:, None] * items).sum(-1))


def test_negatives_are_new_items_and_all_of_them():
    torch.manual_seed(0)
    inputs, targets = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 2, 3, 4]])
    drawn = torch.cat([draw_negatives(inputs, targets, 100).flatten() for _ in range(1500)])
    counts = torch.bincount(drawn, minlength=101)
    assert counts[1:5].sum() <= 2 and counts[0] == 0
    assert float(counts[5:].float().std()) < 1.3 * float(counts[5:].float().mean()) ** 0.5


def chain(users: int = 300, items: int = 30) -> Sequences:
    """Every item is followed by the one three further on: what a sequential model must find, and popularity cannot."""
    rng = np.random.default_rng(0)
    flat = np.concatenate([(start + 3 * np.arange(8)) % items + 1 for start in rng.integers(0, items, users)])
    return Sequences(flat, np.arange(0, 8 * users + 1, 8), items)


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_it_learns_the_next_item(loss):
    sequences = chain()
    validation, test = (candidate_sets(sequences, part) for part in ("validation", "test"))
    config = SequentialConfig(**{**vars(CONFIG), "loss": loss})
    model, history = train_recommender("SASRec", sequences, [], validation, config)
    rows = aligned(sequences.rows("test", 8), test)
    hit = metrics.per_user(score_rows(model, rows, test))["hit@1"].mean()
    floor = metrics.per_user(score_rows(Popularity(sequences), rows, test))["hit@1"].mean()
    assert hit > 0.9 > 0.3 > floor
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_training_twice_gives_the_same_weights_also_after_an_interruption(tmp_path):
    sequences = chain(60)
    validation = candidate_sets(sequences, "validation")
    config = SequentialConfig(**{**vars(CONFIG), "epochs": 4, "eval_every": 2})
    models = [train_recommender("SASRec", sequences, [], validation, config, seed=5)[0] for _ in range(2)]
    half = SequentialConfig(**{**vars(config), "epochs": 2})
    train_recommender("SASRec", sequences, [], validation, half, seed=5, folder=tmp_path)
    models.append(train_recommender("SASRec", sequences, [], validation, config, seed=5, folder=tmp_path)[0])
    for other in models[1:]:
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), other.parameters(), strict=True))


def test_floors_by_hand():
    sequences = Sequences(np.array([1, 2, 3, 1, 2, 4, 1, 5, 6]), np.array([0, 3, 6, 9]), 6)
    history, candidates = torch.tensor([[0, 5, 5, 2]]), torch.tensor([[1, 2, 5, 6]])
    plain = Popularity(sequences).score(history, candidates)[0].tolist()
    repeat = RepeatFirst(Popularity(sequences)).score(history, candidates)[0].tolist()
    assert max(plain) == plain[0]
    assert min(repeat[1], repeat[2]) > max(repeat[0], repeat[3])


def test_co_occurrence_by_hand():
    """Training items are {1, 2}, {1, 3} and {1, 2}: cos(1, 2) = 2 / sqrt(3 * 2), cos(1, 3) = 1 / sqrt(3 * 1)."""
    sequences = Sequences(np.array([1, 2, 5, 6, 1, 3, 5, 6, 1, 2, 6, 5]), np.array([0, 4, 8, 12]), 6)
    found = CoOccurrence(sequences).score(torch.tensor([[0, 1], [1, 1], [2, 5]]), torch.tensor([[1, 2, 3, 5]] * 3))
    expected = torch.tensor([[0, 2 / 6**0.5, 3**-0.5, 0], [0, 4 / 6**0.5, 2 * 3**-0.5, 0], [2 / 6**0.5, 0, 0, 0]])
    assert torch.allclose(found, expected, atol=1e-6)


def test_rows_of_other_users_are_refused(sequences):
    drawn = candidate_sets(sequences, "test")
    with pytest.raises(ValueError, match="of different users"):
        score_rows(Popularity(sequences), sequences.rows("test", 5).take(torch.arange(len(drawn) - 1, -1, -1)), drawn)


def test_the_states_are_those_of_plain_sums(model):
    """Another writing of the model, position by position and head by head, against the library's."""
    def norm(layer, v):
        return (v - v.mean()) / (v.var(unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias

    def line(layer, v):
        return layer.weight @ v + layer.bias

    history, dim, heads = [7, 3, 9, 3], CONFIG.dim, CONFIG.heads
    with torch.no_grad():
        places = model.positions.weight[CONFIG.max_len - len(history) :]
        x = [model.items.weight[item] * dim**0.5 + place for item, place in zip(history, places, strict=True)]
        for block in model.blocks:
            keys = [line(block.key_value, v) for v in x]
            out = []
            for n, v in enumerate(x):
                normed = norm(block.query_norm, v)
                query, mixed = line(block.query, normed), []
                for part in torch.arange(dim).chunk(heads):
                    weights = torch.stack([query[part] @ k[:dim][part] / len(part) ** 0.5 for k in keys[: n + 1]]).softmax(0)
                    mixed.append(sum(w * k[dim:][part] for w, k in zip(weights, keys[: n + 1], strict=True)))
                y = norm(block.norm, normed + line(block.out, torch.cat(mixed)))
                out.append(y + line(block.outer, line(block.inner, y).relu()))
            x = out
        expected = torch.stack([norm(model.final_norm, v) for v in x])
    assert len(model.blocks) == 2
    assert torch.allclose(model.hidden(torch.tensor([history]))[0], expected, atol=1e-5)
    assert torch.allclose(model.user_representation(torch.tensor([history]))[0], expected[-1], atol=1e-5)


def test_dropout_acts_in_training_on_embeddings_and_on_attention():
    histories = torch.randint(1, 51, (4, 8))
    for silent in ("inner", "embeddings"):  # what is left after the other places are made dumb
        torch.manual_seed(0)
        model = SASRec(50, SequentialConfig(dim=16, max_len=8, dropout=0.5)).train()
        for block in model.blocks:
            block.dropout = 0.0 if silent == "inner" else 0.5
        if silent == "embeddings":
            model.config = SequentialConfig(dim=16, max_len=8, dropout=0.0)
            for block in model.blocks:
                torch.nn.init.zeros_(block.outer.weight), torch.nn.init.zeros_(block.outer.bias)
        assert not torch.equal(model.hidden(histories), model.hidden(histories))
        assert torch.equal(model.eval().hidden(histories), model.hidden(histories))


def test_floors_and_validation_never_look_at_test_items():
    sequences = random_sequences(np.random.default_rng(0), items=400)
    only_test = set(sequences.flat[sequences.starts[1:][sequences.held_out > 0] - 1].tolist()) - set(sequences.known.tolist())
    assert only_test and not Popularity(sequences).counts[list(only_test)].any()
    candidates = candidate_sets(sequences, "validation", 9)
    task = SequentialTask(SASRec(400, CONFIG), sequences, candidates, "cpu")
    rows = sequences.rows("validation", CONFIG.max_len)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(vars(task.validation[0]).values(), vars(rows).values(), strict=True))
