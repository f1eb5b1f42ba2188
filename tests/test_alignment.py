"""Stage 1: equations 2 to 6 against plain sums, the sentence encoder, and what the trained space holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

from allmrec_lib.alignment import Alignment, AlignmentTask, JointEmbeddings, joint_embeddings, losses, train_alignment
from allmrec_lib.config import SequentialConfig, Stage1Config
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.text import TextEncoder, encoder_path

CONFIG = Stage1Config(train_layers=1, max_text_tokens=12, epochs=3, dim=16, lr=5e-3, encoder_lr=1e-4, batch_size=8)
TEXTS = ["", *[f"Title: {colour} {thing}" for colour in ("Red", "Blue", "Old", "New", "Big", "Tin")
               for thing in ("lamp", "chair", "clock", "kettle", "mirror", "basket", "bottle", "candle", "book", "cup")]]  # fmt: skip


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder("all-MiniLM-L6-v2", TEXTS, 12, train_layers=0)


@pytest.fixture
def cf() -> SASRec:
    torch.manual_seed(0)
    return SASRec(60, SequentialConfig(dim=8, max_len=10)).eval().requires_grad_(False)


@pytest.mark.parametrize("score", ["dot", "mean"])
def test_the_losses_are_equations_2_to_6(text, score):
    torch.manual_seed(0)
    config = Stage1Config(alpha=0.3, beta=0.7, score=score)
    model = Alignment(5, text, config)
    x, E, E_, Q = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, text.dim)
    terms = {name: float(value.detach()) for name, value in losses(model, config, x, E, E_, Q).items()}
    w, b, w_, b_ = (p.detach().double().numpy() for p in [*model.item_encoder[0].parameters(), *model.item_decoder.parameters()])
    v, c, v_, c_ = (p.detach().double().numpy() for p in [*model.text_encoder[0].parameters(), *model.text_decoder.parameters()])
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    matching = item = words = rec = 0.0
    for user in range(3):
        xu, good, bad, sentence = (t[user].double().numpy() for t in (x, E, E_, Q))
        e, q = sigmoid(w @ good + b), sigmoid(v @ sentence + c)
        decoded, decoded_bad = w_ @ e + b_, w_ @ sigmoid(w @ bad + b) + b_
        scale = 1 if score == "dot" else 1 / 5
        matching += ((e - q) ** 2).mean() / 3
        item += ((decoded - good) ** 2).mean() / 3
        words += ((v_ @ q + c_ - sentence) ** 2).mean() / 3
        rec -= (np.log(sigmoid(xu @ decoded * scale)) + np.log(1 - sigmoid(xu @ decoded_bad * scale))) / 3
    expected = {"matching": matching, "item_recon": item, "text_recon": words, "rec": rec,
                "total": matching + 0.3 * item + 0.7 * words + rec}  # fmt: skip
    assert terms == pytest.approx(expected, abs=1e-5)


def test_texts_are_encoded_once_and_their_order_does_not_matter(text):
    whole = text.encode_all()
    items = torch.tensor([7, 3, 55, 12])
    assert torch.allclose(text(items).detach(), whole[items], atol=1e-5)
    assert whole.shape == (61, 384)
    untouched = SentenceTransformer(encoder_path("all-MiniLM-L6-v2"), device="cpu")
    reference = untouched.encode(TEXTS[1:4], convert_to_tensor=True, show_progress_bar=False)
    assert torch.allclose(whole[1:4], reference.cpu(), atol=1e-5)


def test_the_cf_model_is_not_touched_and_everything_else_learns(sequences, cf):
    before = {name: value.clone() for name, value in cf.state_dict().items()}
    encoder = TextEncoder("all-MiniLM-L6-v2", TEXTS, 12, train_layers=1)
    start = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    model, history = train_alignment(cf, encoder, sequences, CONFIG, 10, seed=1)
    assert all(torch.equal(before[name], value) for name, value in cf.state_dict().items())
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, start[name])}
    assert moved and all(".layer.0." in name for name in moved)  # the only layer left
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    joint = joint_embeddings(model, cf)
    assert joint.e.shape == joint.q.shape == (61, 16) and joint.decoded.shape == joint.decoded_q.shape == (61, 8)


def test_training_twice_gives_the_same(sequences, cf):
    runs = []
    for _ in range(2):
        encoder = TextEncoder("all-MiniLM-L6-v2", TEXTS, 12, train_layers=1)
        runs.append(joint_embeddings(train_alignment(cf, encoder, sequences, CONFIG, 10, seed=1)[0], cf))
    assert torch.equal(runs[0].e, runs[1].e) and torch.equal(runs[0].q, runs[1].q)


def test_matching_alone_collapses(sequences, cf, text):
    """The paper's over-smoothing: without the other losses the latent space shrinks; with them it does not."""
    spread = {}
    for name, weights in {"all": {}, "matching": {"alpha": 0.0, "beta": 0.0, "recommendation": 0.0}}.items():
        config = Stage1Config(**{**vars(CONFIG), "train_layers": 0, "epochs": 60, "patience": 60, **weights})
        joint = joint_embeddings(train_alignment(cf, text, sequences, config, 10)[0], cf)
        spread[name] = float(joint.e[1:].var(0).mean() + joint.q[1:].var(0).mean())
    assert spread["matching"] < 0.3 * spread["all"]


def test_negatives_are_items_the_user_has_not_in_training(sequences, cf, text):
    task, seen = AlignmentTask(Alignment(8, text, CONFIG), cf, sequences, CONFIG, 10, "cpu"), []
    table = task.embeddings.clone()
    index = {tuple(row): item for item, row in enumerate(table.tolist())}
    import allmrec_lib.alignment as alignment

    real = alignment.losses
    try:
        alignment.losses = lambda m, c, x, positive, negative, q: seen.append((positive, negative)) or real(m, c, x, positive, negative, q)
        for _ in range(20):
            task.loss(torch.arange(task.n_rows))
    finally:
        alignment.losses = real
    drawn = []
    for positive, negative in seen:
        items = np.array([index[tuple(row)] for row in negative.tolist()])
        assert not sequences.interacted(task.rows.users.numpy(), items, "training").any()
        assert torch.equal(positive, table[task.rows.targets])
        drawn.append(items)
    held_out = sequences.interacted(task.rows.users.numpy(), np.array(drawn))  # to avoid these would tell of them
    assert held_out.any()


def test_joint_embeddings_survive_a_file(tmp_path):
    joint = JointEmbeddings(*(torch.randn(4, n) for n in (3, 3, 2, 2)))
    joint.save(tmp_path / "joint.safetensors")
    assert torch.equal(JointEmbeddings.load(tmp_path / "joint.safetensors").q, joint.q)
    assert set(load_file(tmp_path / "joint.safetensors")) == {"e", "q", "decoded", "decoded_q"}


def test_what_the_item_tokens_carry():
    joint = JointEmbeddings(*(torch.randn(4, n) for n in (3, 3, 2, 2)))
    counts = torch.tensor([0, 2, 0, 1])
    assert torch.equal(joint.carried("e", counts), joint.e) and torch.equal(joint.carried("q", counts), joint.q)
    assert torch.equal(joint.carried("auto", counts), torch.stack([joint.q[0], joint.e[1], joint.q[2], joint.e[3]]))
    mean = (joint.e[1] + joint.e[3]) / 2
    assert torch.equal(joint.carried("both", counts), torch.cat([torch.stack([mean, joint.e[1], mean, joint.e[3]]), joint.q], 1))
    with pytest.raises(ValueError, match="unknown stage2.joint 'e,q'; one of e, q, auto, both"):
        joint.carried("e,q", counts)


@pytest.mark.parametrize("every", [False, True])
def test_a_row_is_a_user_s_own_x_with_the_item_and_its_text(text, cf, sequences, every, monkeypatch):
    """The loss of a batch is that of equations 2 to 6 on vectors picked by hand."""
    torch.manual_seed(0)
    config = replace(CONFIG, all_items=every, matching=1000.0)  # so that a wrong pair shows
    model = Alignment(8, text, config).eval()
    task = AlignmentTask(model, cf, sequences, config, 10, "cpu")
    rows = sequences.rows("train", 10, all_items=every)
    assert task.n_rows == len(rows) and torch.equal(task.held.targets, sequences.rows("validation", 10).targets)
    batch, negatives = torch.tensor([5, 2, 7, 0]), torch.tensor([9, 8, 7, 6])
    monkeypatch.setattr(task, "_negatives", lambda _: negatives)
    E, x = cf.item_embeddings(), cf.user_representation(rows.histories[batch])
    Q = torch.cat([text(item[None]) for item in rows.targets[batch]])
    expected = losses(model, config, x, E[rows.targets[batch]], E[negatives], Q)["total"]
    assert float(task.loss(batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_decoded_embeddings_are_the_decoder_s(text, cf):
    torch.manual_seed(0)
    model = Alignment(8, text, CONFIG)
    joint = joint_embeddings(model, cf)
    with torch.no_grad():
        assert torch.allclose(joint.decoded, model.item_decoder(joint.e), atol=1e-6)
        assert torch.allclose(joint.decoded_q, model.item_decoder(joint.q), atol=1e-5)
        assert not torch.allclose(joint.decoded, joint.decoded_q, atol=1e-3)


def test_the_texts_reconstruction_target_is_held_fixed(text):
    model = Alignment(5, text, CONFIG)
    nn.init.zeros_(model.text_encoder[0].weight)  # q says nothing of Q
    Q = torch.randn(3, text.dim, requires_grad=True)
    losses(model, CONFIG, *torch.randn(3, 3, 5), Q)["text_recon"].backward()
    assert not Q.grad.any()


def test_validation_has_each_users_own_x_and_the_same_negatives(text, cf, sequences, monkeypatch):
    task, seen = AlignmentTask(Alignment(8, text, CONFIG), cf, sequences, CONFIG, 10, "cpu"), []
    assert task.validate() == task.validate()
    monkeypatch.setattr(task, "_loss", lambda batch, x, **_: seen.append((batch, x)) or torch.zeros(()))
    task.validate()
    batch, x = seen[0]
    assert len(batch) == len(task.held) and torch.allclose(x, cf.user_representation(batch.histories), atol=1e-6)
