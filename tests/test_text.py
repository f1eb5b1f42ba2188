"""The sentence encoder: frozen layers run once and change nothing."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from allmrec_lib import shares
from allmrec_lib.datasets import Dataset
from allmrec_lib.text import TextEncoder, item_texts

TEXTS = ["", "Title: Heat", "Title: Soap, Description: a long and gentle soap for hands", "Title: Zulu"]


def test_item_texts_are_the_papers():
    items = pd.DataFrame({"key": ["a", "b"], "title": ["Heat", "Soap"], "description": ["", "soft"], "genres": ["", ""]},
                         index=[1, 2])  # fmt: skip
    events = pd.DataFrame({"user": [1, 1], "item": [1, 2]}, dtype="int32")
    assert item_texts(Dataset("d", "item", events, items)) == ["", "Title: Heat", "Title: Soap, Description: soft"]


@pytest.mark.parametrize("layers", [0, 1, 2, 6])
def test_what_frozen_layers_said_is_kept_to_the_letter(layers):
    whole, part = (TextEncoder("all-MiniLM-L6-v2", TEXTS, 16, n) for n in (None, layers))
    assert torch.equal(whole.encode_all(), part.encode_all())
    assert torch.allclose(part.encode_all()[[3, 1]], part.eval()(torch.tensor([3, 1])).detach(), atol=1e-5)
    assert (part.kept is None) == (layers == 6)
    learning = sum(p.requires_grad for p in part.parameters())
    assert (learning == 0) == (layers == 0)


def test_only_the_top_layers_get_gradients():
    encoder = TextEncoder("all-MiniLM-L6-v2", TEXTS, 16, 1)
    encoder(torch.tensor([1, 2])).sum().backward()
    with_gradient = {n.split("layer.")[1].split(".")[0] for n, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {"0"}  # the one layer that is left


def test_too_many_layers_is_an_error():
    with pytest.raises(ValueError, match="train_layers = 9, but the sentence encoder has 6 layers"):
        TextEncoder("all-MiniLM-L6-v2", TEXTS, 16, 9)


def test_texts_come_back_in_the_order_asked_for_and_cut():
    encoder = TextEncoder("all-MiniLM-L6-v2", TEXTS, 16, None).eval()
    asked = torch.tensor([2, 3, 1])  # longest first
    with torch.no_grad():
        together, alone = encoder(asked), torch.cat([encoder(item[None]) for item in asked])
    assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(together[0], together[1], atol=1e-2)
    long = "Title: " + "soap " * 50
    cut = TextEncoder("all-MiniLM-L6-v2", ["", long, long + "and quite another end"], 16, None).encode_all()
    assert torch.equal(cut[1], cut[2])


@pytest.mark.parametrize("count", [1, 2])
def test_reading_again_in_the_backward_pass_keeps_less_and_gives_the_same_gradients(count, monkeypatch):
    """Also in one process of two, which reads only what is wanted and draws its dropout as for all."""
    monkeypatch.setattr(shares, "count", lambda: count)
    texts, wanted = [f"text {n} of a lamp " * (n % 3 + 1) for n in range(12)], torch.arange(12) % count == 0
    kept, gradients = {}, {}
    for recompute in (False, True):
        encoder, sizes = TextEncoder("all-MiniLM-L6-v2", texts, 16, 2, recompute=recompute).train(), []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            loss = encoder(torch.arange(12), chunk=4, wanted=wanted)[:, :9].square().sum()
        loss.backward()
        kept[recompute], gradients[recompute] = sum(sizes), [p.grad for p in encoder.parameters() if p.grad is not None]
    assert kept[True] < kept[False] / 10
    assert len(gradients[True]) == len(gradients[False]) > 30
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[True], gradients[False], strict=True))
