"""The device that is none (``card``): it computes as the CPU does, and finds what a GPU would refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from card import CARD, Card, OnCard, failing

from allmrec_lib.config import SequentialConfig
from allmrec_lib.experiment import Experiment
from allmrec_lib.recommenders.base import aligned, represent, score_rows
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.sequences import candidate_sets
from allmrec_lib.transfer import Transfer


def test_it_computes_as_the_cpu_does_and_refuses_to_mix():
    torch.manual_seed(0)
    layers, x = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)), torch.randn(5, 4)
    loss = layers(x).sum()
    with Card():
        layers.to(CARD)
        assert isinstance(layers[0].weight, OnCard) and layers[0].weight.device == CARD
        with pytest.raises(RuntimeError, match="same device: addmm"):
            layers(x)
        y = layers(x.to(CARD))
        y.square().sum().backward()
        assert isinstance(layers[0].weight.grad, OnCard) and torch.isclose(y.sum().cpu(), loss, atol=1e-6)
        with pytest.raises(TypeError, match="cpu"):
            y.detach().numpy()
        assert y[torch.tensor([0, 1])].shape == (2, 3) and y.detach().cpu().numpy().shape == (5, 3)


def test_a_cell_that_leaves_a_tensor_behind_is_named():
    cells = ["import torch\nw = torch.ones(3, device='meta')", "w + torch.ones(3)", "z = w + 1\nprint(late)", "w * 2"]
    found = failing(cells)
    assert len(found) == 1 and found[0].startswith("code cell 1: RuntimeError: Expected all tensors")


def test_a_recommender_scores_on_it_as_on_the_cpu(sequences):
    torch.manual_seed(0)
    model, drawn = SASRec(sequences.n_items, SequentialConfig(max_len=8)).eval(), candidate_sets(sequences, "test")
    rows = aligned(sequences.rows("test", 8), drawn)
    scores, x = score_rows(model, rows, drawn), represent(model, rows)
    with Card():
        model.to(CARD)
        assert np.allclose(score_rows(model, rows, drawn, str(CARD)), scores, atol=1e-5)
        assert torch.allclose(represent(model, rows, str(CARD)).cpu(), x, atol=1e-5)


def test_a_recommender_carried_to_another_shop_lies_on_the_card(home, monkeypatch):
    changes = {"morec.epochs": 1, "data.max_test_users": 20}
    run = Experiment("simulated", "smoke", overrides=changes)
    learned = run.recommender("MoRec")
    with Card():
        card = Experiment("simulated", "smoke", device=str(CARD), overrides=changes, store=run.store)
        monkeypatch.setitem(card._recommenders, "MoRec", learned.to(CARD))
        carried = Transfer(card, card).recommender("MoRec")
        assert all(isinstance(value, OnCard) for value in carried.parameters())
        assert np.isfinite(score_rows(carried, card.rows("test"), card.candidates["test"], str(CARD))).all()
