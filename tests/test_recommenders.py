"""The baselines: causality, padding, one forward pass of each against the formula written out, and that they learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from allmrec_lib import metrics
from allmrec_lib.config import MoRecConfig, NCFConfig, SequentialConfig
from allmrec_lib.recommenders.base import aligned, represent, score_rows
from allmrec_lib.recommenders.floors import Popularity
from allmrec_lib.recommenders.gru4rec import GRU4Rec
from allmrec_lib.recommenders.models import MODELS, model_named, train_recommender
from allmrec_lib.recommenders.ncf import NCF, NCFTask
from allmrec_lib.recommenders.nextitnet import CausalConvolution, NextItNet
from allmrec_lib.sequences import Sequences, candidate_sets

ITEMS = 30
TEXTS = ["", *(f"Title: {colour} {thing}" for colour in ("red", "green", "blue", "black", "white")
               for thing in ("lamp", "chair", "soap", "phone", "coat", "book"))]  # fmt: skip
SMALL = {"dim": 16, "max_len": 8, "dropout": 0.1, "epochs": 30, "eval_every": 5, "batch_size": 64, "lr": 5e-3}
CONFIGS = {
    "NCF": NCFConfig(dim=16, layers=(32, 16), epochs=20, batch_size=64, lr=5e-3),
    "NextItNet": SequentialConfig(**SMALL, blocks=2, loss="ce"),
    "GRU4Rec": SequentialConfig(**SMALL, blocks=1),
    "SASRec": SequentialConfig(**SMALL),
    "MoRec": MoRecConfig(**SMALL, train_layers=0, max_text_tokens=16),
}
SEQUENTIAL = [name for name in MODELS if name != "NCF"]


def chain(users: int = 300) -> Sequences:
    """Every item is followed by the one three further on."""
    rng = np.random.default_rng(0)
    flat = np.concatenate([(start + 3 * np.arange(8)) % ITEMS + 1 for start in rng.integers(0, ITEMS, users)])
    return Sequences(flat, np.arange(0, 8 * users + 1, 8), ITEMS)


def built(name: str):
    torch.manual_seed(0)
    return MODELS[name].build(chain(20), TEXTS, CONFIGS[name]).eval()


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_states_are_causal_and_blind_to_padding(name):
    model = built(name)
    a = torch.randint(1, ITEMS + 1, (4, 8))
    b = a.clone()
    b[:, 5:] = torch.randint(1, ITEMS + 1, (4, 3))
    assert torch.allclose(model.hidden(a)[:, :5], model.hidden(b)[:, :5], atol=1e-5)
    assert not torch.allclose(model.hidden(a)[:, 5:], model.hidden(b)[:, 5:], atol=1e-3)
    short = a[:, 5:]
    long = torch.cat([torch.zeros(4, 5, dtype=torch.long), short], dim=1)
    assert torch.allclose(model.user_representation(short), model.user_representation(long), atol=1e-5)
    assert not model.item_embeddings()[0].any()
    candidates = torch.randint(1, ITEMS + 1, (4, 5))
    dots = (model.user_representation(a)[:, None] * model.item_embeddings()[candidates]).sum(-1)
    assert torch.allclose(model.score(a, candidates), dots, atol=1e-6)


def test_gru4rec_is_the_recurrence_of_the_paper():
    """One step after another by the gates' equations, on histories of two lengths."""
    model = built("GRU4Rec")
    gru, histories = model.gru, torch.tensor([[0, 0, 3, 7], [4, 5, 6, 9]])

    def step(x, h):
        gates = F.linear(x, gru.weight_ih_l0, gru.bias_ih_l0).chunk(3, -1), F.linear(h, gru.weight_hh_l0, gru.bias_hh_l0).chunk(3, -1)
        reset, update = ((gates[0][i] + gates[1][i]).sigmoid() for i in (0, 1))
        new = (gates[0][2] + reset * gates[1][2]).tanh()
        return (1 - update) * new + update * h

    for row in range(2):
        h = torch.zeros(16)
        for item in histories[row][histories[row] > 0]:
            h = step(model.items.weight[item], h)
        assert torch.allclose(model.user_representation(histories)[row], model.out(h), atol=1e-5)


def test_a_dilated_convolution_is_the_sum_it_stands_for():
    torch.manual_seed(0)
    layer, x = CausalConvolution(4, 3), torch.randn(2, 10, 4)
    weight, bias = layer.convolution.weight, layer.convolution.bias
    for place in (0, 2, 5, 9):
        expected = bias.expand(2, 4)
        for tap, back in enumerate((6, 3, 0)):
            if place - back >= 0:
                expected = expected + x[:, place - back] @ weight[:, :, tap].T
        assert torch.allclose(layer(x)[:, place], expected, atol=1e-5)


@pytest.mark.parametrize("neumf", [False, True])
def test_ncf_by_hand(neumf):
    torch.manual_seed(0)
    model = NCF(5, 7, NCFConfig(dim=8, layers=(6, 3), neumf=neumf)).eval()
    user, item = model.users.weight[2], model.items.weight[4]
    p = 4 if neumf else 0
    deep = torch.cat([user[p:], item[p:]])
    for layer in model.mlp:
        deep = (layer[0].weight @ deep + layer[0].bias).clamp(min=0)
    expected = model.out.weight[0] @ torch.cat([user[:p] * item[:p], deep]) + model.out.bias[0]
    assert torch.allclose(model.score(torch.tensor([2]), torch.tensor([[4]]))[0, 0], expected, atol=1e-7)


def test_ncf_draws_negatives_that_the_user_has_not_in_training():
    sequences = chain(40)
    task = NCFTask(built("NCF"), sequences, candidate_sets(sequences, "validation"), "cpu")
    users = torch.arange(1, 41)
    drawn = torch.cat([task.negatives(users) for _ in range(200)], dim=1)
    own = {(u, i) for u, i in zip(*sequences.train_pairs(), strict=True)}
    hit = sum((u, i) in own for u, row in zip(users.tolist(), drawn.tolist(), strict=True) for i in row)
    assert hit / drawn.numel() < 0.004  # a fifth of the items, to the fourth power
    assert set(drawn.unique().tolist()) == set(range(1, ITEMS + 1))


@pytest.mark.parametrize("name", list(MODELS))
def test_it_learns_what_there_is_to_learn(name):
    sequences = chain()
    validation, test = (candidate_sets(sequences, part) for part in ("validation", "test"))
    model, history = train_recommender(name, sequences, TEXTS, validation, CONFIGS[name])
    rows = aligned(sequences.rows("test", 8), test)
    hit = metrics.per_user(score_rows(model, rows, test))["hit@1"].mean()
    floor = metrics.per_user(score_rows(Popularity(sequences), rows, test))["hit@1"].mean()
    assert hit > (0.2 if name == "NCF" else 0.9) > floor
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    x = represent(model, rows)
    assert x.shape == (len(rows), 16) and model.item_embeddings().shape == (ITEMS + 1, 16)


def test_morecs_sentence_encoder_learns_with_it():
    config = MoRecConfig(**{**SMALL, "epochs": 1}, train_layers=1, max_text_tokens=16)
    sequences = chain(64)
    before = MODELS["MoRec"].build(sequences, TEXTS, config)
    start = {n: p.clone() for n, p in before.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    model, _ = train_recommender("MoRec", sequences, TEXTS, candidate_sets(sequences, "validation"), config)
    moved = [n for n, p in model.named_parameters() if n in start and n.startswith("text.") and not torch.equal(p, start[n])]
    assert moved
    items = torch.tensor([[3, 4, 3]])
    model.train()
    model.text.eval()  # without the encoder's dropout
    assert torch.allclose(model.embed(items)[0, 0], model.item_embeddings()[3], atol=1e-4)


def test_unknown_names_are_errors_that_list_the_known():
    with pytest.raises(ValueError, match="unknown recommender 'BERT4Rec'; one of NCF, NextItNet"):
        model_named("BERT4Rec")
    sequences = chain(20)
    config = SequentialConfig(**{**SMALL, "loss": "hinge"})
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        train_recommender("SASRec", sequences, [], candidate_sets(sequences, "validation"), config)


def test_a_residual_block_adds_its_input():
    model = built("NextItNet")
    assert isinstance(model, NextItNet) and isinstance(built("GRU4Rec"), GRU4Rec)
    block, x, real = model.blocks[0], torch.randn(2, 6, 16), torch.ones(2, 6, 1)
    y = x
    for convolution, norm in zip(block.convolutions, block.norms, strict=True):
        y = norm(convolution(y)).relu()
    assert torch.allclose(block(x, real), x + y, atol=1e-6)
