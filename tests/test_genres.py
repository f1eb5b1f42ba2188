"""Genres: shares, tokens that leave the user's own items out, questions, strict parsing, and metrics done by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from allmrec_lib import datasets, genres
from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.datasets import DataError, Dataset
from allmrec_lib.datasets.base import item_table
from allmrec_lib.genres import GenreQuestion, GenreTable, as_scores, mean_tokens, measure, parse, spearman, told_apart
from allmrec_lib.llm import decoding
from allmrec_lib.llm.prompts import DOMAINS
from allmrec_lib.llm.soft_tokens import PromptEncoder
from allmrec_lib.ranker import LLMRecommender
from allmrec_lib.sequences import Rows

GENRES = ["War|Drama", "Comedy", "Comedy|Drama", "", "unknown", "Drama", "Drama", "Comedy", "War", "Drama"]
TITLES = ["Alien", "Brazil", "Casablanca", "Dune", "Emma", "Fargo", "Gandhi", "Heat", "Ikiru", "Jaws"]


def data(genres=GENRES) -> Dataset:
    items, _ = item_table([str(i) for i in range(len(TITLES))], TITLES, [""] * len(TITLES), genres)
    return Dataset("mine", "movie", pd.DataFrame({"user": [1, 1, 1], "item": [1, 2, 3]}), items)


def test_table_and_shares_by_hand():
    table = GenreTable.of(data())
    assert table.names == ["Comedy", "Drama", "War"]
    assert table.member.sum(0).tolist() == [3.0, 5.0, 2.0] and not table.member[0].any()
    shares = table.shares(torch.tensor([[0, 1, 2, 3], [0, 0, 4, 5]]))  # War|Drama, Comedy, Comedy|Drama; items without a genre
    assert torch.allclose(shares, torch.tensor([[1.5, 1.0, 0.5], [0.0, 0.0, 0.0]]) / 3)
    assert GenreTable.of(data(), most=2).names == ["Comedy", "Drama"]


def test_a_dataset_without_genres_says_so():
    with pytest.raises(DataError, match="mine: its items have 0 genres.*movielens"):
        GenreTable.of(data([""] * len(TITLES)))


def test_the_simulated_worlds_genres_are_its_groups(tmp_path):
    world = datasets.load("simulated", tmp_path)
    assert GenreTable.of(world).names == sorted(datasets.simulated.ROOMS)
    truth = datasets.simulated.make_world()
    group = [datasets.simulated.ROOMS[truth.group[int(key[1:])]] for key in world.items["key"]]
    assert group == world.items["genres"].tolist()


def test_mean_tokens_leave_the_users_own_items_out():
    items, member = torch.tensor([[9.0], [1.0], [3.0], [8.0]]), torch.tensor([[0, 0], [1.0, 0], [1, 0], [0, 1]])
    seen = torch.tensor([[True, False, False, False], [False, True, False, True]])
    assert mean_tokens(items, member, seen)[..., 0].tolist() == [[2.0, 8.0], [3.0, 8.0]]  # the last: none is left


def test_parse_is_strict():
    names = ["Comedy", "Drama", "Sci-Fi"]
    assert parse(" drama, Sci-Fi and comedy.", names) == ["Drama", "Sci-Fi", "Comedy"]
    assert parse("Drama, Drama", names) == ["Drama"]
    assert [parse(text, names) for text in ("", "Dramas", "Drama, I think", "__________.")] == [None] * 4
    scores = as_scores(["Drama, Comedy", "no idea"], names)
    assert scores[0].tolist() == [2.0, 3.0, 0.0] and np.isnan(scores[1]).all()


def test_metrics_by_hand():
    shares = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    prior = shares.mean(0)
    right = measure(shares, shares, prior)
    assert all(np.allclose(values, 1.0) for values in right.values())
    same = measure(np.tile(prior, (3, 1)), shares, prior)
    assert (same["taste correlation"] == 0).all()
    tied = measure(np.zeros((3, 4)), shares, prior)
    assert tied["genre hit@1"].tolist() == [0, 0, 0] and np.allclose(tied["genre hit@3"], 2 / 3)
    invalid = measure(np.full((3, 4), np.nan), shares, prior)
    assert all((values == 0).all() for values in invalid.values())
    assert spearman(np.array([[1.0, 2, 3]]), np.array([[3.0, 2, 1]])).tolist() == [-1.0]
    assert np.allclose(told_apart(shares).mean(0), 0)


def test_a_genre_that_a_user_never_had_is_no_favourite():
    shares = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    last, first = (measure(np.tile(scores, (2, 1)), shares, shares[0]) for scores in ([0.0, 3, 2, 1], [3.0, 2, 1, 0]))
    assert last["genre hit@3"].tolist() == [0, 0] and last["genre hit@1"].tolist() == [0, 0]
    assert first["genre hit@3"].tolist() == [1, 0]


def rows() -> Rows:
    histories = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 7]])
    return Rows(torch.tensor([1, 2, 3]), histories, torch.tensor([8, 9, 10]))


def asked(backbone, **options) -> tuple[GenreQuestion, ALLMRec]:
    source = data()
    prompts = PromptEncoder(backbone, source.titles, DOMAINS["movie"])
    torch.manual_seed(0)
    width = backbone.embedding.embedding_dim
    heads = torch.nn.ModuleDict({"user": torch.nn.Linear(4, width), "item": torch.nn.Linear(5, width)}).double()
    model = ALLMRec(backbone, prompts, torch.randn(11, 5).double(), heads, history=2)
    return GenreQuestion(model, GenreTable.of(source), **options), model


@pytest.mark.parametrize(
    "options", [{}, {"look_up": True}, {"look_up": True, "masked": True}, {"look_up": True, "random": True}]
)
def test_answers_do_not_depend_on_the_batch(backbone, options):
    question, _ = asked(backbone, **options)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
    whole, single = question.ask(rows(), x, batch=3), question.ask(rows(), x, batch=1)
    assert whole.shape == (3, 3) and np.allclose(np.exp(whole).sum(1), 1.0)
    assert np.allclose(whole, single, atol=1e-5) and not np.allclose(whole[0], whole[1], atol=1e-3)


def test_a_look_up_reads_the_genres_tokens_and_a_mask_hides_the_titles(backbone):
    question, model = asked(backbone, look_up=True, masked=True)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
    before = question.ask(rows(), x)
    model.joint[6] += 3.0  # a Drama that no user has seen
    assert not np.allclose(before, question.ask(rows(), x), atol=1e-3)
    text = backbone.tokenizer.decode([i for i in question.shown(rows().histories, torch.arange(3).repeat(3, 1))[0] if i >= 0])
    assert "Brazil" not in text and all(name in text for name in question.table.names)


def test_models_of_text_alone_are_asked_without_slots(backbone):
    from dataclasses import replace

    from allmrec_lib.llm.prompts import TEXT_ONLY

    plain = replace(backbone, template=TEXT_ONLY)
    model = LLMRecommender(plain, PromptEncoder(plain, data().titles, DOMAINS["movie"]))
    for look_up in (False, True):
        question = GenreQuestion(model, GenreTable.of(data()), look_up=look_up)
        assert question.ask(rows(), torch.zeros(3, 0)).shape == (3, 3)
    assert len(GenreQuestion(model, GenreTable.of(data())).ask(rows(), torch.zeros(3, 0), free=True)) == 3


on_one = pytest.mark.parametrize("backbone", ["opt"], indirect=True)


@on_one
def test_a_look_up_leaves_the_users_own_items_out(backbone, monkeypatch):
    question, seen, real = asked(backbone, look_up=True)[0], [], genres.mean_tokens
    monkeypatch.setattr(genres, "mean_tokens", lambda items, member, own: seen.append(own) or real(items, member, own))
    question.ask(rows(), torch.zeros(3, 4).double(), batch=2)
    assert [set(row.nonzero()[:, 0].tolist()) - {0} for row in torch.cat(seen)] == [{1, 2}, {3, 4, 5}, {7}]


@on_one
@pytest.mark.parametrize("look_up", [False, True])
def test_a_score_is_that_of_its_genres_name(backbone, monkeypatch, look_up):
    question, answers, real = asked(backbone, look_up=look_up)[0], [], decoding.constrained
    monkeypatch.setattr(decoding, "constrained", lambda b, p, a, s: answers.append((a, s)) or real(b, p, a, s))
    prompts = []
    shown = question.shown
    monkeypatch.setattr(question, "shown", lambda h, o: prompts.append((shown(h, o), o)) or prompts[-1][0])
    question.ask(rows(), torch.zeros(3, 4).double())
    ids, sizes = answers[0]
    told = [backbone.written(row[:n].tolist()) for row, n in zip(ids[0], sizes[0].tolist(), strict=True)]
    assert told == question.table.names
    assert [[-i - 1 for i in row if i < -1 and -i - 1 < question.first] for row in prompts[0][0]] == [[1, 2], [4, 5], [7]]  # history=2


@on_one
def test_random_tokens_are_not_the_genres_tokens_and_genres_stand_in_an_order_for_each_user(backbone):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
    told, noise = (asked(backbone, look_up=True, random=r)[0].ask(rows(), x) for r in (False, True))
    assert not np.allclose(told, noise, atol=1e-3)
    question = asked(backbone, look_up=True)[0]
    orders = []
    question.shown, shown = lambda h, o: orders.append(o) or shown(h, o), question.shown
    many = rows().take(torch.arange(3).repeat(8))
    question.ask(many, x.repeat(8, 1))
    assert len({tuple(o) for o in orders[0].tolist()}) == 6


def test_taste_is_measured_against_the_prior():
    shares, prior = np.array([[0.5, 0.2, 0.3], [0.2, 0.3, 0.5]]), np.array([0.8, 0.15, 0.05])
    scores = np.array([[0.0, 1, 2], [0.0, 0, 0]])  # less the mean: rising; shares - prior: rising
    assert genres.measure(scores, shares, prior)["taste correlation"].tolist() == [1.0, -1.0]
    moved = genres.with_prior(np.array([[0.0, 2.0], [0.0, 0.0]]), np.array([0.5, 0.5]), 1.0)
    assert moved[0, 1] > moved[0, 0] and moved[1, 1] < moved[1, 0]
