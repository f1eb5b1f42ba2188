"""What the small LLM that ships with the book can do: on catalogues it never saw, in the template its card names."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from allmrec_lib import datasets
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.llm.pocket import SHOWN, Maker, Recipe, landmarks, save
from allmrec_lib.llm.pocket_corpus import TELLERS, TitleSource, Writer, common_words, soft_vectors, train_tokenizer
from allmrec_lib.llm.pocket_model import ITEM_PART, ROTARY, SOFT_MATCH, USER_PART, build_model, written_parts
from allmrec_lib.llm.pocket_skills import begun_alike, drawn_from, perplexity, recall
from allmrec_lib.llm.prompts import clean_title

CARD = json.loads((Path(__file__).resolve().parent.parent / "data" / "pocket_llm" / "card.json").read_text())
SKILLS = CARD["recall, first token, lists of 20 held-out titles"][CARD["template"]]
LISTS = 100


@pytest.fixture(scope="module")
def pocket():
    return load_backbone()


@pytest.fixture(scope="module")
def titles() -> list[str]:
    """A catalogue that had no part in the making: Luxury Beauty's titles, or MovieLens's where it is not here."""
    name = "beauty" if os.environ.get("ALLMREC_DATA") else "movielens"
    titles = sorted({clean_title(t, 80) for t in datasets.load(name).titles[1:]})
    # one title a first word: where titles begin alike, their common first token is right more often than one in 20
    return list({title.split()[0][:3].lower(): title for title in titles}.values())


def share(pocket, titles, draws=drawn_from, **case) -> float:
    source = TitleSource(common_words(), [], np.random.default_rng(0))
    writer = Writer(pocket.tokenizer.backend_tokenizer, source, pocket.title_tokens)
    draw = draws(titles, np.random.default_rng(2))
    return recall(pocket.model, writer, pocket.template.name, draw, batches=LISTS // 50, **case)


def test_looks_entries_up_by_the_users_vector(pocket, titles):
    assert share(pocket, titles) >= 0.95
    assert share(pocket, titles, noise=0.5) >= 0.9


def test_titles_that_begin_alike_are_told_apart_by_their_second_words(pocket, titles):
    assert share(pocket, titles, begun_alike, place=1) >= 0.65


def test_finds_what_is_like_the_history(pocket, titles):
    assert share(pocket, titles, noise=0.5, who="history") >= SKILLS["history, noise 0.5"] - 0.1
    assert share(pocket, titles, noise=3.0, who="both") > share(pocket, titles, noise=3.0, who="user")


def test_picks_at_random_where_nothing_tells(pocket, titles):
    found = share(pocket, titles, told=0.0)
    assert abs(found - 0.05) <= 4 * math.sqrt(0.05 * 0.95 / LISTS)


def test_reads_catalogue_text(pocket, titles):
    tokenizer = pocket.tokenizer.backend_tokenizer
    assert perplexity(pocket.model, tokenizer, titles) < 0.1 * tokenizer.get_vocab_size()


def test_it_is_small_and_safe():
    folder = Path(__file__).resolve().parent.parent / "data" / "pocket_llm"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


# -- how it is made -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    words = common_words()
    return Writer(train_tokenizer([], words[:2000], 600), TitleSource(words, [], np.random.default_rng(0)))


@pytest.mark.parametrize("who", TELLERS)
def test_who_tells_has_the_targets_vector(writer, who):
    lists = writer.lists("recall", 40, 6, 5, told=1.0, who=who)
    count = int(-lists.ids.min()) - 1
    items, users = soft_vectors(count, lists, 0.0, torch.Generator().manual_seed(0), varied=False)
    for row in range(40):
        wanted = items[row, lists.target[row] - 1]
        told = bool(torch.cosine_similarity(users[row, USER_PART], wanted[USER_PART], dim=0) > 0.999)
        near = [i for i in lists.near[row].tolist() if i]
        assert all(torch.equal(items[row, i - 1, ITEM_PART], wanted[ITEM_PART]) for i in near)
        slots = (-lists.ids[row][lists.ids[row] < -1] - 1).tolist()
        again = slots.count(int(lists.target[row])) > 1  # the target itself stands in the history
        assert told == bool(lists.by_user[row])
        assert told or not users[row, USER_PART].any()
        assert told or near or again
        assert who != "user" or (told and not near and not again)


def test_a_user_tells_of_the_candidate_with_the_largest_inner_product(writer):
    lists = writer.lists("recall", 40, 6, 5, told=1.0, who="user")
    items, users = soft_vectors(int(-lists.ids.min()) - 1, lists, 2.0, torch.Generator().manual_seed(0))
    scores = (items[:, :6, USER_PART] @ users[:, USER_PART, None])[..., 0]
    assert torch.equal(scores.argmax(1) + 1, lists.target)


def test_making_it_twice_gives_the_same(tmp_path):
    made = []
    for name in ("a", "b"):
        words = common_words()
        torch.manual_seed(0)
        tokenizer = train_tokenizer([], words[:2000], 600)
        maker = Maker(build_model(600, *landmarks(tokenizer)), Writer(tokenizer, TitleSource(words, [], np.random.default_rng(0))),
                      Recipe(steps=3, batch_tokens=600))  # fmt: skip
        (tmp_path / name).mkdir()
        written = [part.clone() for part in written_parts(maker.model)]
        maker.run(tmp_path / name)
        assert all(torch.equal(*parts) for parts in zip(written, written_parts(maker.model), strict=True))
        made.append([p.clone() for p in maker.model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))
    held = [f"{a} {b}" for a, b in zip(words[:60], words[100:160], strict=True)]
    save(maker, tokenizer, held, "recall", "invented titles only", tmp_path / "a", lists=4)
    assert all(torch.equal(*parts) for parts in zip(written, written_parts(maker.model), strict=True))  # a copy was softened
    loaded = load_backbone(str(tmp_path / "a"))
    for llm in (loaded, load_backbone()):  # the one that ships was softened once, too
        queries = llm.model.model.layers[2].self_attn.q_proj.weight[ROTARY : ROTARY + 64, USER_PART].diagonal()
        assert torch.allclose(queries, torch.tensor(SOFT_MATCH**0.5), rtol=1e-3)
    assert loaded.template.name == "recall" and loaded.title_tokens == SHOWN
