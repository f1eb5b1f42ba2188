"""The baselines: causality, padding, one forward pass of each against the formula written out, and that they learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, LongformerConfig, LongformerModel

from allmrec_lib import metrics, shares
from allmrec_lib.config import CTRLConfig, MoRecConfig, NCFConfig, RecFormerConfig, SequentialConfig
from allmrec_lib.datasets.base import Dataset, item_table
from allmrec_lib.recommenders.base import aligned, represent, score_rows
from allmrec_lib.recommenders.ctrl import CTRL, Contrast, ContrastTask, contrast_loss
from allmrec_lib.recommenders.floors import Popularity
from allmrec_lib.recommenders.gru4rec import GRU4Rec
from allmrec_lib.recommenders.models import MODELS, model_named, train_recommender
from allmrec_lib.recommenders.ncf import NCF, NCFTask
from allmrec_lib.recommenders.nextitnet import CausalConvolution, NextItNet
from allmrec_lib.recommenders.recformer import RecFormer, RecFormerTask
from allmrec_lib.sequences import Sequences, candidate_sets
from allmrec_lib.text import encoder_path
from allmrec_lib.training import fit

ITEMS = 30
TITLES = [f"{colour} {thing}" for colour in ("red", "green", "blue", "black", "white")
          for thing in ("lamp", "chair", "soap", "phone", "coat", "book")]  # fmt: skip
SMALL = {"dim": 16, "max_len": 8, "dropout": 0.1, "epochs": 30, "eval_every": 5, "batch_size": 64, "lr": 5e-3}
CONFIGS = {
    "NCF": NCFConfig(dim=16, layers=(32, 16), epochs=20, batch_size=64, lr=5e-3),
    "NextItNet": SequentialConfig(**SMALL, blocks=2, loss="ce"),
    "GRU4Rec": SequentialConfig(**SMALL, blocks=1),
    "SASRec": SequentialConfig(**SMALL),
    "MoRec": MoRecConfig(**SMALL, train_layers=0, max_text_tokens=16),
    "CTRL": CTRLConfig(**SMALL, train_layers=0, max_text_tokens=32, samples=200, contrast_epochs=2, text_history=2),
    "RECFORMER": RecFormerConfig(layers=1, inner=64, window=8, attribute_tokens=4, max_len=3, epochs=9, eval_every=3,
                                 batch_size=32, lr=5e-4),
}
SEQUENTIAL = [name for name in MODELS if name not in ("NCF", "RECFORMER")]


def chain(users: int = 300) -> Sequences:
    """Every item is followed by the one three further on."""
    rng = np.random.default_rng(0)
    flat = np.concatenate([(start + 3 * np.arange(8)) % ITEMS + 1 for start in rng.integers(0, ITEMS, users)])
    return Sequences(flat, np.arange(0, 8 * users + 1, 8), ITEMS)


def catalogue() -> Dataset:
    keys = [str(i) for i in range(ITEMS)]
    items = item_table(keys, TITLES, [""] * ITEMS)[0]
    return Dataset("chain", "item", pd.DataFrame({"user": [1], "item": [1]}), items)


def built(name: str):
    torch.manual_seed(0)
    return MODELS[name].build(chain(20), catalogue(), CONFIGS[name]).eval()


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
    assert torch.allclose(model.hidden(short)[:, -1], model.hidden(long)[:, -1], atol=1e-5)
    assert torch.allclose(model.hidden(short)[:, -1], model.user_representation(long), atol=1e-5)
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


def test_ncf_starts_as_its_authors_draw_it():
    """Glorot's bounds for the layers, LeCun's for the last, no bias."""
    model = NCF(5, 7, NCFConfig(dim=50))
    widths = [100, *NCFConfig().layers]
    for (layer, _), a, b in zip(model.mlp, widths, widths[1:], strict=False):
        assert 0.7 < float(layer.weight.detach().abs().max()) / (6 / (a + b)) ** 0.5 <= 1.0 and not layer.bias.any()
    assert 0.5 < float(model.out.weight.detach().abs().max()) / (3 / widths[-1]) ** 0.5 <= 1.0 and not model.out.bias.any()


def test_a_model_that_learned_nothing_is_told():
    """At an absurd rate all ReLUs go off: every candidate has the same score, and no user's item is above another."""
    sequences = chain()
    held, config = candidate_sets(sequences, "validation"), replace(CONFIGS["NCF"], lr=10.0, epochs=3)
    with pytest.warns(RuntimeWarning, match="NCF with seed 0 ranks no validation item above any other.*lower ncf.lr"):
        train_recommender("NCF", sequences, catalogue(), held, config)


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
    model, history = train_recommender(name, sequences, catalogue(), validation, CONFIGS[name])
    rows = aligned(sequences.rows("test", 8), test)
    hit = metrics.per_user(score_rows(model, rows, test))["hit@1"].mean()
    floor = metrics.per_user(score_rows(Popularity(sequences), rows, test))["hit@1"].mean()
    print(name, hit, floor)
    assert hit > {"NCF": 0.2, "RECFORMER": 0.6}.get(name, 0.9) > floor
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    x = represent(model, rows)
    d = 384 if name == "RECFORMER" else 16  # the word embeddings' size
    assert x.shape == (len(rows), d) and model.item_embeddings().shape == (ITEMS + 1, d)


def test_morecs_items_are_gelu_of_what_sentence_transformers_says():
    model = built("MoRec")
    said = SentenceTransformer(encoder_path(model.config.encoder)).encode([f"Title: {TITLES[4]}"], convert_to_tensor=True)[0].clone()
    linear = model.dense.weight @ (said * len(said) ** 0.5) + model.dense.bias  # a frozen encoder's have length sqrt(D)
    by_hand = 0.5 * linear * (1 + torch.erf(linear / 2**0.5))
    assert torch.allclose(model.item_embeddings()[5], by_hand, atol=1e-4) and not model.item_embeddings()[0].any()


def test_morecs_sentence_encoder_learns_with_it():
    config = MoRecConfig(**{**SMALL, "epochs": 1}, train_layers=1, max_text_tokens=16)
    sequences = chain(64)
    before = MODELS["MoRec"].build(sequences, catalogue(), config)
    start = {n: p.clone() for n, p in before.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    model, _ = train_recommender("MoRec", sequences, catalogue(), candidate_sets(sequences, "validation"), config)
    moved = [n for n, p in model.named_parameters() if n in start and n.startswith("text.") and not torch.equal(p, start[n])]
    assert moved
    items = torch.tensor([[3, 4, 3]])
    model.train()
    model.text.eval()  # without the encoder's dropout
    assert torch.allclose(model.embed(items)[0, 0], model.item_embeddings()[3], atol=1e-4)


def test_a_text_encoder_that_learns_does_not_go_with_the_full_softmax():
    with pytest.raises(ValueError, match="take 'bce', or morec.train_layers = 0"):
        MODELS["MoRec"].build(chain(20), catalogue(), MoRecConfig(**{**SMALL, "loss": "ce"}))


def test_ctrls_likeness_is_the_sum_of_best_matches():
    torch.manual_seed(0)
    layers, table, text = Contrast(6, 5, 3), torch.randn(4, 6), torch.randn(4, 5)
    from_table, from_text = layers(table, text)
    for i in range(4):
        for j in range(4):
            a = F.normalize(layers.table(table[i]).reshape(3, 6), dim=1)
            b = F.normalize(layers.text(text[j]).reshape(3, 6), dim=1)
            assert torch.allclose(from_table[i, j], sum(max(x @ y for y in b) for x in a), atol=1e-6)
            assert torch.allclose(from_text[i, j], sum(max(x @ y for x in a) for y in b), atol=1e-6)
    chosen = [F.log_softmax(from_table[i] / 0.5, 0)[i] + F.log_softmax(from_text[:, i] / 0.5, 0)[i] for i in range(4)]
    assert torch.allclose(contrast_loss((from_table, from_text), "infonce", 0.5), -sum(chosen) / 8, atol=1e-6)
    wrong = [F.logsigmoid(likeness[i, j] / 0.5 * (1 if i == j else -1)) for likeness in (from_table, from_text)
             for i in range(4) for j in range(4)]  # fmt: skip
    assert torch.allclose(contrast_loss((from_table, from_text), "bce", 0.5), -sum(wrong) / 32, atol=1e-6)


def test_ctrl_tells_a_history_in_words_and_learns_to_tell_pairs_apart():
    model, sequences = built("CTRL"), chain(300)
    assert model.told([0, 2, 1]) == ("This is a user, who has recently bought red chair. This is an item, title is red lamp.")
    with pytest.raises(ValueError, match="unknown ctrl.contrast 'triplet'"):
        ContrastTask(CTRL(ITEMS, CTRLConfig(contrast="triplet"), catalogue()), sequences, "cpu", 0)
    task = ContrastTask(model, sequences, "cpu", 0)
    before = task.validate()
    fit(task, epochs=5, patience=5)
    assert task.n_rows == 180 and task.validate() > before + 0.2


def test_recformer_reads_the_newest_item_first():
    """Against transformers' own padding of the tokens put down one by one."""
    model = built("RECFORMER")
    ids, types, which = [1], [0], [0]
    for number, item in enumerate((9, 4), start=1):
        real = model.types[item] != 3
        ids += model.ids[item][real].tolist()
        types += model.types[item][real].tolist()
        which += [number] * int(real.sum())
    ids, types, which = (torch.tensor([row]) for row in (ids, types, which))
    everywhere = torch.zeros_like(ids)
    everywhere[0, 0] = 1
    words = model.model.embeddings.word_embeddings(ids) + model.item_positions(which)
    state = model.model(inputs_embeds=words, token_type_ids=types, global_attention_mask=everywhere).last_hidden_state[:, 0]
    x = model.user_representation(torch.tensor([[0, 4, 9], [3, 5, 7]]))[:1]
    assert torch.allclose(x, F.normalize(state, dim=1), atol=1e-5)
    assert types[0].tolist() == [0, 1, 2, 2, 1, 2, 2]
    model.refresh()
    assert torch.allclose(model.item_embeddings()[9], model.user_representation(torch.tensor([[0, 0, 9]]))[0], atol=1e-5)


def test_recformers_loss_tells_the_next_item_from_all_by_its_cosine():
    model, sequences = built("RECFORMER"), chain(20)
    model.refresh()
    task, rows = RecFormerTask(model, sequences, candidate_sets(sequences, "validation"), "cpu", moving=True), torch.arange(5)
    torch.manual_seed(3)
    loss = task.loss(rows)
    torch.manual_seed(3)
    chosen = torch.multinomial((task.targets[rows] != 0).float(), 1)[:, 0].tolist()
    by_hand = []
    for row, place in enumerate(chosen):
        past = task.inputs[row, : place + 1]
        cosines = model.table[1:] @ model.user_representation(past[None])[0]
        by_hand.append(-F.log_softmax(cosines / model.config.temperature, 0)[task.targets[row, place] - 1])
    assert torch.isclose(loss, torch.stack(by_hand).mean(), atol=1e-4)


def test_recformers_attention_with_a_window_over_everything_is_plain_attention():
    """<s> attends by its own (global) projections to all, every other token by the common ones to all."""
    attention = built("RECFORMER").model.encoder.layer[0].attention.self
    torch.manual_seed(0)
    states, real = torch.randn(1, 8, 384), 5
    mask = torch.tensor([[10000.0] + [0.0] * 4 + [-10000.0] * 3])  # <s> looks everywhere; three places of padding
    out = attention(states, attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0,
                    is_global_attn=True)[0]  # fmt: skip

    def plain(query, key, value, place):
        q, k, v = (f(states[0, :real]).unflatten(-1, (6, -1)).transpose(0, 1) for f in (query, key, value))
        weights = torch.einsum("hd,hnd->hn", q[:, place], k) / 8.0
        return torch.einsum("hn,hnd->hd", weights.softmax(-1), v).flatten()

    for place in range(1, real):
        assert torch.allclose(out[0, place], plain(attention.query, attention.key, attention.value, place), atol=1e-5)
    seen = plain(attention.query_global, attention.key_global, attention.value_global, 0)
    assert torch.allclose(out[0, 0], seen, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_recformers_checkpointing_keeps_less_and_gives_the_same_gradients(count, monkeypatch):
    """Also of one process's share of a batch, whose dropout is cut from that of the whole."""
    monkeypatch.setattr(shares, "count", lambda: count)
    kept, gradients = {}, {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = replace(CONFIGS["RECFORMER"], layers=3, checkpointing=checkpointing)
        model, sizes = RecFormer(ITEMS, config, catalogue()).train(), []
        torch.manual_seed(1)  # dropout, drawn again where a layer is run again
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            loss = model.encode(torch.tensor([[9, 4, 2], [3, 5, 7]]), shares.Share.of_batch(2))[:, 0].sum()
        loss.backward()
        kept[checkpointing], gradients[checkpointing] = sum(sizes), [p.grad for p in model.parameters() if p.grad is not None]
    assert kept[True] < kept[False] / 3
    assert len(gradients[True]) == len(gradients[False]) > 50
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[True], gradients[False], strict=True))


def test_recformer_takes_a_longformer_from_a_folder(tmp_path):
    """The road to ``allenai/longformer-base-4096``, with a small checkpoint of the same class."""
    small = LongformerModel(LongformerConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                                             attention_window=8, vocab_size=30522, max_position_embeddings=80))  # fmt: skip
    small.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(encoder_path("all-MiniLM-L6-v2")).save_pretrained(tmp_path)
    model = RecFormer(ITEMS, RecFormerConfig(checkpoint=str(tmp_path), window=8, max_len=3), catalogue()).eval()
    query = model.model.encoder.layer[0].attention.self.query.weight
    assert torch.equal(query, small.encoder.layer[0].attention.self.query.weight)
    lamp = AutoTokenizer.from_pretrained(tmp_path)("lamp", add_special_tokens=False)["input_ids"][0]
    assert (model.model.embeddings.word_embeddings.weight == small.embeddings.word_embeddings.weight[lamp]).all(1).any()
    assert model.user_representation(torch.tensor([[0, 4, 9]])).shape == (1, 24)


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
