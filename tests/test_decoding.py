"""Prompts, soft tokens and the ways to answer, on four families of LLMs with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TITLES, byte_tokenizer, tiny_model

from allmrec_lib.llm import decoding
from allmrec_lib.llm.backbone import Backbone, load_backbone
from allmrec_lib.llm.prompts import DOMAINS, TEMPLATES, TEXT_ONLY, as_text, clean_title, recommendation_prompt
from allmrec_lib.llm.soft_tokens import USER, PromptBatch, PromptEncoder, embed, shorten, slot_items

HISTORIES = [[8, 9], [4, 5, 6, 10], [1], [7, 12]]
CANDIDATES = torch.tensor([[1, 2, 3, 4, 5], [10, 11, 1, 7, 12], [4, 5, 6, 8, 9], [2, 1, 3, 11, 10]])


def batch_of(prompts, rows=range(4)):
    return PromptBatch.of([prompts.prompt(HISTORIES[i], CANDIDATES[i].tolist()) for i in rows])


def vectors(backbone, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size, count = backbone.embedding.embedding_dim, len(slot_items(batch.ids)[0])
    return torch.randn(len(batch.ids), size, generator=generator).double(), torch.randn(count, size, generator=generator).double()


def answers_of(prompts, items=CANDIDATES):
    flat = PromptBatch.of([prompts.answer(i) for i in items.flatten().tolist()])
    sizes = flat.lengths.view(items.shape)
    return flat.ids.view(*items.shape, -1)[:, :, : int(sizes.max())], sizes


@pytest.fixture
def read(backbone, prompts):
    batch = batch_of(prompts)
    embeds = embed(backbone, batch.ids, *vectors(backbone, batch))
    return lambda rows=slice(None): decoding.read(backbone, embeds[rows], batch.lengths[rows]), batch, embeds


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_the_paper_prompt_is_figure_3():
    pieces = recommendation_prompt(TEMPLATES["paper"], DOMAINS["movie"], [(1, "Alien")], [(2, "Heat"), (3, "Zulu")])
    assert as_text(pieces) == (
        '[User] is a user representation. This user has watched "Alien"[Item 1] in the past. Recommend a movie for this '
        'user to watch next from the following set of movie titles, "Heat"[Item 2], "Zulu"[Item 3]. The recommendation is "'
    )
    text = as_text(recommendation_prompt(TEXT_ONLY, DOMAINS["item"], [(1, "Soap")], [(2, "Oil")]))
    assert text.startswith('This user has bought "Soap" in the past.') and "[" not in text


def test_titles_are_cleaned():
    assert clean_title('  Tom &amp; "Jerry"\n vol. 2 ') == "Tom & 'Jerry' vol. 2"


def test_a_prompt_is_tokens_and_slots(prompts):
    ids = prompts.prompt([8, 0, 9], [1, 2])
    assert ids.count(USER) == 1 and sorted(-i - 1 for i in ids if i < USER) == [1, 2, 8, 9]
    text = prompts.backbone.tokenizer.decode([i for i in ids if i >= 0])
    for title in ("Babe (1995)", "Zulu", "Alien", "Aliens"):
        assert f'"{title}"' in text


def test_vectors_land_in_their_slots(backbone, prompts):
    batch = batch_of(prompts)
    users, items = vectors(backbone, batch)
    out, (distinct, _) = embed(backbone, batch.ids, users, items), slot_items(batch.ids)
    for row in range(len(batch.ids)):
        for place, token in enumerate(batch.ids[row].tolist()):
            expected = (users[row] if token == USER else items[distinct.tolist().index(-token - 1)] if token < 0
                        else backbone.embedding.weight[token])  # fmt: skip
            assert torch.equal(out[row, place], expected)
    with pytest.raises(ValueError, match="text-only"):
        embed(backbone, batch.ids, None, items)


def test_gradients_reach_the_vectors_and_nothing_else(backbone, prompts):
    batch = batch_of(prompts)
    users, items = (v.requires_grad_(True) for v in vectors(backbone, batch))
    backbone.hidden(embed(backbone, batch.ids, users, items)).sum().backward()
    assert users.grad.abs().sum() > 0 and items.grad.abs().sum(1).min() > 0
    assert all(p.grad is None for p in backbone.model.parameters())


def test_shortened_titles_stay_different():
    ids = [[], [1, 2, 3, 4], [1, 2, 3, 5], [1, 2], [6, 7, 8, 9], [6, 7, 8, 9], [3]]
    assert shorten(ids, None) == ids
    cut = shorten(ids, 2)
    assert cut == [[], [1, 2, 3, 4], [1, 2, 3, 5], [1, 2], [6, 7], [6, 7], [3]]


# -- answers -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def slow_scores(backbone, prompts, batch, embeds):
    """Every candidate in a pass of its own, the whole prompt again, no cache and no padding."""
    out = np.zeros(CANDIDATES.shape)
    for row in range(len(CANDIDATES)):
        prompt = embeds[row, : batch.lengths[row]]
        for column, item in enumerate(CANDIDATES[row].tolist()):
            answer = torch.tensor(prompts.answer(item))
            logits = backbone.model(inputs_embeds=torch.cat([prompt, backbone.embedding(answer)])[None]).logits[0]
            out[row, column] = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, answer[:, None]).sum()
    return out


def test_scores_equal_the_slow_way(backbone, prompts, read):
    make, batch, embeds = read
    fast = decoding.score(backbone, make(), *answers_of(prompts))
    assert np.allclose(fast.numpy(), slow_scores(backbone, prompts, batch, embeds), atol=1e-5)


@torch.inference_mode()
def test_constrained_scores_equal_the_slow_way(backbone, prompts, read):
    """Token by token: the probability of each among the tokens with which some candidate goes on."""
    make, batch, embeds = read
    fast = decoding.constrained(backbone, make(), *answers_of(prompts)).double().exp()
    for row in range(len(CANDIDATES)):
        answers = [tuple(prompts.answer(i)) for i in CANDIDATES[row].tolist()]
        for column, answer in enumerate(answers):
            expected = 1.0
            for step in range(len(answer)):
                written = torch.tensor(answer[:step], dtype=torch.long)
                given = torch.cat([embeds[row, : batch.lengths[row]], backbone.embedding(written)])
                chances = backbone.model(inputs_embeds=given[None]).logits[0, -1].softmax(-1)
                allowed = sorted({a[step] for a in answers if a[:step] == answer[:step] and len(a) > step})
                expected *= float(chances[answer[step]] / chances[allowed].sum())
            assert float(fast[row, column]) == pytest.approx(expected, rel=1e-4)
        distinct = [answers.index(a) for a in set(answers)]
        assert float(fast[row, distinct].sum()) == pytest.approx(1.0, rel=1e-4)


@torch.inference_mode()
def slow_trie(backbone, prompts, prompt, items):
    """Constrained greedy decoding of one row to the end, the whole input again for each token."""
    answers = [prompts.answer(i) for i in items]
    written: list[int] = []
    while True:
        alive = [a for a in answers if a[: len(written)] == written]
        if any(len(a) == len(written) for a in alive):
            return [a == written for a in answers]
        embeds = torch.cat([prompt, backbone.embedding(torch.tensor(written, dtype=torch.long))])
        logits = backbone.model(inputs_embeds=embeds[None]).logits[0, -1]
        written.append(max({a[len(written)] for a in alive}, key=lambda token: float(logits[token])))


def test_the_trie_writes_what_constrained_greedy_decoding_writes(backbone, prompts, read):
    make, batch, embeds = read
    early = decoding.trie(backbone, make(), *answers_of(prompts))
    late = decoding.trie(backbone, make(), *answers_of(prompts), early=False)
    slow = [slow_trie(backbone, prompts, embeds[r, : batch.lengths[r]], CANDIDATES[r].tolist()) for r in range(4)]
    assert early.tolist() == late.tolist() == slow
    assert (early.sum(1) >= 1).all()


def test_items_of_one_title_are_chosen_together(backbone, prompts, read):
    written = decoding.trie(backbone, read[0](), *answers_of(prompts))
    assert bool((written[0, 0] == written[0, 2]) and (written[3, 1] == written[3, 2]))


def test_rows_do_not_depend_on_their_neighbours(backbone, prompts, read):
    make, _, embeds = read
    answers, sizes = answers_of(prompts)
    together = decoding.score(backbone, make(), answers, sizes)
    alone = decoding.score(backbone, make(slice(1, 2)), answers[1:2], sizes[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-6)


def test_free_generation_is_that_of_transformers(backbone, prompts, read):
    make, batch, embeds = read
    ends = backbone.ends.nonzero()[:, 0].tolist()
    ours = decoding.free(backbone, make(), longest=12)
    for row, written in enumerate(ours):
        prompt = embeds[row : row + 1, : batch.lengths[row]]
        theirs = backbone.model.generate(inputs_embeds=prompt, attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
                                         max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])  # fmt: skip
        assert written == backbone.written(theirs[0].tolist())


def test_an_answer_ends_at_any_token_that_holds_a_closing_quote(backbone):
    tokens = {'"': backbone.encode('"')[0]} | {t: i for t, i in backbone.tokenizer.get_vocab().items() if '"' in t}
    assert all(bool(backbone.ends[i]) for i in tokens.values()) and not bool(backbone.ends[backbone.encode("a")[0]])
    assert backbone.written(backbone.encode('A Title". And more')) == "A Title"


def test_an_llm_in_bf16_tells_candidates_apart_in_fp32(backbone):
    hidden = 8 * torch.randn(5, backbone.embedding.embedding_dim, generator=torch.Generator().manual_seed(0)).bfloat16()
    backbone.model.to(torch.bfloat16)
    found, head = backbone.logits(hidden), backbone.model.get_output_embeddings()
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.nn.functional.linear(hidden.float(), head.weight.float()), atol=1e-5)
    assert found.unique().numel() > head(hidden).unique().numel()  # which the LLM's own head in bf16 does not


def test_equal_logits_give_equal_scores(backbone, prompts, read):
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.zero_()
    one_token = torch.full((4, 3, 1), 5)
    found = decoding.score(backbone, read[0](), one_token, torch.ones(4, 3, dtype=torch.long))
    assert torch.allclose(found, torch.full((4, 3), -np.log(backbone.embedding.num_embeddings), dtype=found.dtype))


def test_an_llm_is_told_from_others_by_its_card_and_by_every_weight(backbone):
    before = backbone.mark
    assert replace(backbone, title_tokens=3).mark != before == replace(backbone).mark
    with torch.no_grad():
        list(backbone.model.parameters())[-1].flatten()[0] += 1
    assert replace(backbone).mark != before


# -- loading -----------------------------------------------------------------------------------------------------------


def test_a_missing_llm_says_what_to_do(tmp_path):
    with pytest.raises(OSError, match="Give a folder that holds config.json"):
        load_backbone(str(tmp_path / "nothing"))


def test_an_llm_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_model("opt").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    load_backbone(str(tmp_path))  # the head is the embeddings' and not stored
    gone = next(name for name in weights if "layers.1.fc1.weight" in name)
    save_file({n: w for n, w in weights.items() if n != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match="lacks 1 weights, or has them in another shape: .*layers.1.fc1.weight"):
        load_backbone(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    model = tiny_model("opt")
    model.config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_backbone(str(tmp_path))


def test_layers_that_cannot_see_a_prompt_are_refused(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300}
    for window in (16, 64):
        torch.manual_seed(0)
        MistralForCausalLM(MistralConfig(**size, intermediate_size=64, sliding_window=window)).save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
        backbone = load_backbone(str(tmp_path))
        embeds, lengths = torch.randn(2, 20, 32), torch.tensor([20, 18])
        if window < 20:
            with pytest.raises(ValueError, match="some layers see 16 tokens back, and a prompt has 20"):
                decoding.read(backbone, embeds, lengths)
        else:  # candidates side by side are more tokens than the window, and each is near enough to the prompt
            answers, sizes = torch.randint(1, 300, (2, 20, 4)), torch.full((2, 20), 4)
            found = decoding.score(backbone, decoding.read(backbone, embeds, lengths), answers, sizes)
            alone = decoding.score(backbone, decoding.read(backbone, embeds, lengths), answers[:, 7:8], sizes[:, 7:8])
            assert torch.allclose(found[:, 7:8], alone, atol=1e-4)


def test_the_spread_is_that_of_what_an_llm_looks_up(tmp_path):
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    shape = GemmaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
                        intermediate_size=64, vocab_size=300)  # fmt: skip
    GemmaForCausalLM(shape).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    seen = backbone.model.base_model(input_ids=torch.arange(300)[None], output_hidden_states=True).hidden_states[0]
    assert backbone.spread == pytest.approx(float(seen.std()), rel=1e-3)


def test_the_card_names_template_and_title_length(tmp_path):
    tiny_model("opt").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path)).template.name == "paper"
    assert load_backbone(str(tmp_path)).reads is None
    reads = {"user": [0, 4], "item": [4, 7], "constant": 7}
    (tmp_path / "card.json").write_text(json.dumps({"template": "recall", "max_title_tokens": 2, "reads": reads}))
    backbone = load_backbone(str(tmp_path))
    assert (backbone.reads.user, backbone.reads.item, backbone.reads.constant) == (slice(0, 4), slice(4, 7), 7)
    assert (backbone.template.name, backbone.title_tokens) == ("recall", 2)
    assert load_backbone(str(tmp_path), template="text-only").template is TEXT_ONLY
    assert max(len(t) for t in PromptEncoder(backbone, TITLES, DOMAINS["movie"]).title_ids) < 9


@pytest.mark.parametrize("setting", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_an_llm_whose_logits_are_changed_afterwards_is_refused(tmp_path, setting):
    model = tiny_model("opt")
    setattr(model.config, setting, 0.5)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=setting):
        load_backbone(str(tmp_path))


def test_a_title_is_read_back_where_the_tokenizer_writes_a_blank_before_the_quote():
    """LLaMA-2's way: every piece of text begins with a blank, the closing quote's too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    blank = {"replacement": "\u2581", "prepend_scheme": "always"}
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(**blank), decoders.Metaspace(**blank)
    pieces.train_from_iterator(['The Matrix (1999) " is "', 'Toy Story "'], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    title, quote = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The Matrix (1999)", '"'))
    assert tokenizer.decode(title + quote) == 'The Matrix (1999) "'
    assert Backbone.written(SimpleNamespace(tokenizer=tokenizer), title + quote) == "The Matrix (1999)"
