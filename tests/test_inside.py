"""Looking inside: which token belongs to what, attention that adds up, and interventions that change what they say."""

from __future__ import annotations

import numpy as np
import torch

from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.inside import (
    PARTS,
    another_item,
    attention,
    edited,
    foreign_history,
    interventions,
    nearest_words,
    parts,
    principal,
    separation,
    shuffled_history,
    swapped,
)
from allmrec_lib.sequences import Candidates, Rows

HISTORIES = torch.tensor([[0, 1, 2], [3, 4, 5]])
ITEMS = torch.tensor([[9, 6, 7], [8, 3, 6]])


def world(backbone, prompts) -> tuple[ALLMRec, Rows, Candidates, torch.Tensor]:
    torch.manual_seed(0)
    width = backbone.embedding.embedding_dim
    heads = torch.nn.ModuleDict({"user": torch.nn.Linear(4, width), "item": torch.nn.Linear(5, width)}).double()
    model = ALLMRec(backbone, prompts, torch.randn(len(prompts.titles), 5).double(), heads, history=3)
    users = torch.tensor([1, 2])
    candidates = Candidates(users, ITEMS, torch.tensor([[2, 0, 1], [1, 2, 0]]))
    return model, Rows(users, HISTORIES, ITEMS[:, 0]), candidates, torch.randn(2, 4).double()


def test_every_token_belongs_to_its_part(backbone, prompts):
    model, rows, candidates, _ = world(backbone, prompts)
    ids = model.prompt_rows(rows, candidates)[0]
    kind = parts(prompts, HISTORIES[0].tolist(), [7, 9, 6], 9)
    assert len(kind) == len(ids)
    slot = {k: [-i - 1 for i, place in zip(ids, kind.tolist(), strict=True) if place == k] for k in (1, 2, 4, 6)}
    assert slot == {1: [0], 2: [1, 2], 4: [9], 6: [7, 6]}
    assert [i for i, k in zip(ids, kind.tolist(), strict=True) if k == 5] == prompts.title_ids[9]
    assert min(i for i, k in zip(ids, kind.tolist(), strict=True) if k in (0, 3, 5, 7)) >= 0


def test_attention_adds_up_and_puts_things_back(backbone, prompts):
    model, rows, candidates, x = world(backbone, prompts)
    before = backbone.model.config._attn_implementation
    seen = attention(model, rows.take(torch.tensor([1])), candidates.take(torch.tensor([1])), x[1:])
    assert seen.shape[1:] == (4, len(PARTS)) and backbone.model.config._attn_implementation == before
    assert np.allclose(seen @ np.array([1, 1, 3, 3, 1, 1, 2, 2]), 1.0, atol=1e-6)
    both = attention(model, rows, candidates, x, batch=2)
    assert np.allclose(both, attention(model, rows, candidates, x, batch=1), atol=1e-6)


def test_edits_change_what_they_say_and_nothing_else(backbone, prompts):
    model, rows, candidates, _ = world(backbone, prompts)
    ids, rng = model.prompt_rows(rows, candidates)[1], np.random.default_rng(0)
    shown = ITEMS[1].tolist()  # item 3 stands in the history too
    slots = lambda ids: [-i - 1 for i in ids if i < -1]  # noqa: E731
    assert slots(ids) == [3, 4, 5, 3, 6, 8]
    assert slots(swapped(ids, shown, rng)) == [3, 4, 5, 8, 6, 3]
    changed = slots(another_item(ids, shown, rng, 12))
    assert changed[:5] == [3, 4, 5, 3, 6] and changed[5] not in shown
    mixed = [slots(shuffled_history(ids, shown, rng)) for _ in range(20)]
    assert all(sorted(m[:3]) == [3, 4, 5] and m[3:] == [3, 6, 8] for m in mixed) and len({tuple(m) for m in mixed}) > 2
    assert slots(foreign_history(ids, shown, rng, 12))[3:] == [3, 6, 8]
    words = lambda ids: [i for i in ids if i >= -1]  # noqa: E731
    assert words(swapped(ids, shown, rng)) == words(ids)


def test_interventions_leave_the_model_as_it_was(backbone, prompts):
    model, rows, candidates, x = world(backbone, prompts)
    q = torch.rand(model.joint.shape, generator=torch.Generator().manual_seed(1))
    scores = interventions(model, rows, candidates, x, q)
    same = interventions(model, rows, candidates, x, model.joint)["all item tokens: q for e"]
    assert np.array_equal(same, scores["as it is"]) and not np.allclose(same, scores["all item tokens: q for e"], atol=1e-4)
    assert len(scores) == 7 and all(s.shape == (2, 3) for s in scores.values())
    assert np.array_equal(scores["as it is"], model.predict(rows, candidates, x))
    assert not np.allclose(scores["as it is"], scores["positive's token: swapped with a negative's"], atol=1e-4)
    assert np.array_equal(edited(model, lambda ids, *_: ids).predict(rows, candidates, x), scores["as it is"])


def test_geometry_by_hand(backbone):
    words = nearest_words(backbone, backbone.embedding.weight[[40, 41]].detach(), 2)
    assert [row[0] for row in words] == [(backbone.tokenizer.decode([40]), 1.0), (backbone.tokenizer.decode([41]), 1.0)]
    line = torch.tensor([[0.0, 0], [1, 1], [2, 2]])
    place, share = principal(line, 1)
    assert np.allclose(np.abs(place[:, 0]), [2**0.5, 0, 2**0.5]) and np.allclose(share, [1, 0])
    two = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    member = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert abs(separation(two, member) - (1 + 1 / 3)) < 1e-9
