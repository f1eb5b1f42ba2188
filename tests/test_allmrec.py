"""Stage 2: its loss against the likelihood written out, frozen parts, candidates, determinism, and the whole road."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TITLES, random_sequences

from allmrec_lib import metrics, ranker
from allmrec_lib.alignment import JointEmbeddings
from allmrec_lib.allmrec import ALLMRec
from allmrec_lib.config import Stage2Config
from allmrec_lib.experiment import Experiment
from allmrec_lib.llm import decoding
from allmrec_lib.llm.backbone import Reads
from allmrec_lib.llm.soft_tokens import PromptBatch
from allmrec_lib.projections import Projection, projections
from allmrec_lib.ranker import AnswerTask, LLMRecommender, _Part, train_answers, training_candidates
from allmrec_lib.sequences import Candidates, Rows, candidate_sets

CONFIG = Stage2Config(batch_size=4, epochs=2, lr=1e-2, history=3)
ITEMS = len(TITLES) - 1


@pytest.fixture
def world():
    return random_sequences(np.random.default_rng(0), users=12, items=ITEMS, longest=6)


@pytest.fixture
def joint() -> JointEmbeddings:
    generator = torch.Generator().manual_seed(0)
    return JointEmbeddings(*(torch.randn(ITEMS + 1, n, generator=generator) for n in (6, 6, 4, 4)))


def llm_of(token_dim: int, reads: Reads | None = None) -> SimpleNamespace:
    """As much of a backbone as the projections ask for."""
    return SimpleNamespace(embedding=SimpleNamespace(embedding_dim=token_dim), spread=0.1, reads=reads)


def model_of(backbone, prompts, joint, config=CONFIG, users=12) -> ALLMRec:
    x = torch.randn(users, 4, generator=torch.Generator().manual_seed(1))
    heads = projections(config, joint.e[1:], joint.decoded[1:], x, backbone, seed=0).double()
    return ALLMRec(backbone, prompts, joint.e.double(), heads, config.history)


def task_of(model, world, config=CONFIG) -> AnswerTask:
    rows, held = world.rows("train", 8), world.rows("validation", 8)
    x = torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(2)).double()
    drawn = candidate_sets(world, "validation", 4)
    return AnswerTask(model, world, rows, x, _Part(held, drawn, torch.zeros(len(held), 4).double()), config, 0)


def loss_of(task, rows, world):
    """The loss of some rows, those rows, and the candidates that it drew."""
    torch.manual_seed(7)
    found = float(task.loss(rows).detach())
    torch.manual_seed(7)
    part = task.rows.take(rows)
    return found, part, training_candidates(world, part, 4, int(torch.randint(2**31, (1,))))


def test_the_loss_is_equation_8(backbone, prompts, joint, world):
    model = model_of(backbone, prompts, joint)
    task = task_of(model, world)
    rows = torch.tensor([5, 2, 7, 0])
    found, part, drawn = loss_of(task, rows, world)
    expected = 0.0
    with torch.no_grad():
        for row, prompt in enumerate(model.prompt_rows(part, drawn)):
            answer = prompts.answer(int(part.targets[row]))
            vectors = []
            for token in prompt + answer:
                if token >= 0:
                    vectors.append(backbone.embedding.weight[token])
                elif token == -1:
                    vectors.append(model.heads["user"](task.x[rows[row]]))
                else:
                    vectors.append(model.heads["item"](model.joint[-token - 1]))
            logits = backbone.model(inputs_embeds=torch.stack(vectors)[None]).logits[0].log_softmax(-1)
            for step, token in enumerate(answer):
                expected -= float(logits[len(prompt) - 1 + step, token]) / 4
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_constrained_loss_is_that_of_constrained_decoding(backbone, prompts, joint, world):
    model = model_of(backbone, prompts, joint)
    task = task_of(model, world, replace(CONFIG, loss="constrained"))
    rows = torch.tensor([5, 2, 7, 0])
    found, part, drawn = loss_of(task, rows, world)
    scores = model.predict(part, drawn, task.x[rows], "constrained")
    assert found == pytest.approx(-scores[:, 0].mean(), abs=1e-5)
    with pytest.raises(ValueError, match="one of title, constrained"):
        task_of(model, world, replace(CONFIG, loss="titel"))


def test_only_the_projections_learn(backbone, prompts, joint, world, monkeypatch):
    better = iter(range(9))
    monkeypatch.setattr(AnswerTask, "validate", lambda task: next(better))  # otherwise the start might be kept
    model = model_of(backbone, prompts, joint)
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    start = {n: p.detach().clone() for n, p in model.heads.named_parameters()}
    rows, held = world.rows("train", 8), world.rows("validation", 8)
    train = rows, torch.randn(len(rows), 4).double()
    train_answers(model, world, train, (held, candidate_sets(world, "validation", 4), torch.zeros(len(held), 4).double()), CONFIG)
    assert all(torch.equal(before[n], p) for n, p in backbone.model.named_parameters())
    assert all(not torch.equal(start[n], p) for n, p in model.heads.named_parameters())


def test_training_candidates(world):
    rows = world.rows("train", 8)
    drawn = training_candidates(world, rows, 4, seed=1)
    assert torch.equal(drawn.items[:, 0], rows.targets)
    users, negatives = rows.users.numpy()[:, None], drawn.items[:, 1:].numpy()
    assert not world.interacted(users, negatives, "training").any()
    assert drawn.digest == training_candidates(world, rows, 4, seed=1).digest != training_candidates(world, rows, 4, seed=2).digest


def test_what_is_held_out_may_be_a_negative_in_training(world):
    """Were it avoided, a model could tell the test item by its never having been wrong."""
    rows = world.rows("train", 8)
    drawn = np.concatenate([training_candidates(world, rows, 4, seed).items.numpy()[:, 1:] for seed in range(30)], axis=1)
    for user, found in zip(rows.users.tolist(), drawn, strict=True):
        own, held_out = world.flat[world.starts[user - 1] : world.starts[user]], world.held_out[user - 1]
        allowed = set(own[len(own) - held_out :]) - set(own[: len(own) - held_out])
        assert allowed & set(world.known) <= set(found)


def whitened(latent: torch.Tensor) -> torch.Tensor:
    """Centred, then turned and stretched so that no direction varies more than another."""
    centred = latent - latent.mean(0)
    covariance = centred.T @ centred
    values, vectors = torch.linalg.eigh(covariance)
    return centred @ vectors @ torch.diag(values**-0.5)


@pytest.mark.parametrize("likeness", [0.0, 0.7])
def test_the_linear_path_keeps_the_cf_models_scores_and_likenesses(likeness):
    """At the start O_u . O_i is x^u . (E_i - mean E) times a constant, and likeness of latents is added to that of E."""
    generator = torch.Generator().manual_seed(0)
    latent, decoder, x = (torch.randn(*shape, generator=generator) for shape in ((30, 12), (12, 5), (9, 5)))
    embeddings = latent @ decoder + 0.5
    config = Stage2Config(projection="skip", likeness=likeness)
    heads = projections(config, latent[1:], embeddings[1:], x, llm_of(40), seed=0)
    with torch.no_grad():
        items = heads["item"](latent)[1:]
        tokens = heads["user"](x) @ items.T
    known = embeddings[1:]
    wanted = x @ (known - known.mean(0)).T
    assert torch.allclose(tokens / tokens.norm(), wanted / wanted.norm(), atol=1e-5)
    centred = whitened(latent[1:])
    of_cf = projections(Stage2Config(projection="skip", likeness=0.0), latent[1:], embeddings[1:], x, llm_of(40), seed=0)["item"](latent)[1:]
    alike = 0.4 * centred @ centred.T / centred.norm(dim=1).mean() ** 2  # 40 dimensions of spread 0.1
    expected = (of_cf @ of_cf.T + likeness**2 * alike) / (1 + likeness**2)
    assert torch.allclose(items @ items.T, expected, atol=1e-4)


def test_the_linear_path_needs_room():
    vectors = torch.randn(9, 12), torch.randn(9, 5), torch.randn(3, 5)
    for llm, message in ((llm_of(16), "needs 17 .* offers 16"), (llm_of(16, Reads(slice(0, 4), slice(4, 8), 9)), "needs 5 .* offers 4")):
        with pytest.raises(ValueError, match=message + "; use stage2.projection = mlp"):
            projections(Stage2Config(projection="skip"), *vectors, llm, seed=0)


def test_the_linear_path_starts_where_the_llm_reads():
    """Users and items meet in one part, items among themselves in another, every token is marked, all else is empty."""
    generator = torch.Generator().manual_seed(0)
    latent, decoder, x = (torch.randn(*shape, generator=generator) for shape in ((30, 12), (12, 5), (9, 5)))
    embeddings = latent @ decoder
    heads = projections(Stage2Config(), latent[1:], embeddings[1:], x, llm_of(40, Reads(slice(8, 16), slice(20, 28), 30)), seed=0)
    with torch.no_grad():
        users, items = heads["user"](x), heads["item"](latent)[1:]
    wanted = x @ (embeddings[1:] - embeddings[1:].mean(0)).T
    found = users[:, 8:16] @ items[:, 8:16].T
    assert torch.allclose(found / found.norm(), wanted / wanted.norm(), atol=1e-5)
    assert users[:, 20:28].abs().max() == 0 < items[:, 20:28].abs().max()
    assert torch.allclose(items[:, 30], items[0, 30].expand(29), atol=1e-5) and items[0, 30] > 0.1 and users[0, 30] > 0.1
    rest = [i for i in range(40) if i not in (*range(8, 16), *range(20, 28), 30)]
    assert users[:, rest].abs().max() == items[:, rest].abs().max() == 0


def test_fewer_training_users_than_dimensions_are_enough_to_start():
    generator = torch.Generator().manual_seed(0)
    latent, decoder, x = (torch.randn(*shape, generator=generator) for shape in ((30, 12), (12, 5), (3, 5)))
    embeddings = latent @ decoder
    heads = projections(Stage2Config(), latent[1:], embeddings[1:], x, llm_of(40, Reads(slice(8, 16), slice(20, 28), 30)), seed=0)
    with torch.no_grad():
        found = heads["user"](x)[:, 8:16] @ heads["item"](latent)[1:, 8:16].T
    wanted = x @ (embeddings[1:] - embeddings[1:].mean(0)).T
    assert torch.allclose(found / found.norm(), wanted / wanted.norm(), atol=1e-5)


def test_with_both_embeddings_users_meet_e_and_items_are_alike_by_q():
    generator = torch.Generator().manual_seed(0)
    e, q, decoder, x = (torch.randn(*shape, generator=generator) for shape in ((60, 6), (60, 6), (6, 5), (9, 5)))
    config = Stage2Config(joint="both")
    heads = projections(config, torch.cat([e, q], 1)[1:], (e @ decoder)[1:], x, llm_of(40, Reads(slice(0, 8), slice(8, 16), 30)), seed=0)
    with torch.no_grad():
        items = heads["item"](torch.cat([e, q], 1))[1:, 8:16]
    centred = whitened(q[1:])
    found, wanted = items @ items.T, centred @ centred.T
    assert torch.allclose(found / found.norm(), wanted / wanted.norm(), atol=1e-4)


def test_negatives_in_training_are_known_items(world):
    rows = world.rows("train", 8)
    drawn = training_candidates(world, rows, 4, seed=1)
    assert (world.train_counts()[drawn.items.numpy()] > 0).all()


def test_the_papers_projection_is_two_layers():
    torch.manual_seed(0)
    head, x = Projection(5, 8, torch.nn.GELU(), 0.5), torch.randn(3, 5)
    first, norm, _, second = head.mlp
    expected = second(torch.nn.functional.gelu(torch.nn.functional.layer_norm(first(x), (8,), norm.weight, norm.bias)))
    assert torch.allclose(head(x), 0.5 * expected)
    with pytest.raises(ValueError, match="one of mlp, skip"):
        projections(Stage2Config(projection="mpl"), torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(1, 2), llm_of(4), 0)


def test_other_vectors_in_the_item_tokens_go_through_the_same_projections(backbone, prompts, joint, world):
    model = model_of(backbone, prompts, joint)
    other = model.carrying(joint.q)
    assert other.heads is model.heads and torch.equal(other.joint, joint.q.double()) and torch.equal(model.joint, joint.e.double())
    with pytest.raises(ValueError, match="cannot carry"):
        model.carrying(joint.q[:, 1:])


def test_predictions_do_not_depend_on_the_batch(backbone, prompts, joint, world):
    model = model_of(backbone, prompts, joint)
    rows, drawn = world.rows("test", 8), candidate_sets(world, "test", 4)
    x = torch.randn(len(rows), 4).double()
    for mode in ("constrained", "score", "trie", "free"):
        whole, single = (model.predict(rows, drawn, x, mode, batch=b) for b in (32, 1))
        assert np.allclose(whole, single, atol=1e-5)
    with pytest.raises(ValueError, match="one of constrained, score, trie, free"):
        model.predict(rows, drawn, x, "beam")


# -- the whole road, on the simulated world and the LLM that ships with the book ------------------------------------------


@pytest.fixture
def run(home):
    return Experiment("simulated", "smoke", overrides={"sasrec.epochs": 40, "stage2.max_rows": 96})


def test_from_raw_files_to_a_table(run, home):
    table = run.table(["Random", "Popularity", "Repeat+Popularity", "SASRec", "A-LLMRec"])
    assert (table.loc[["SASRec", "A-LLMRec"], "hit@1"] > table.loc["Random", "hit@1"] + 0.1).all()
    rows, candidates = run.rows("test"), run.candidates["test"]
    users, items = run.allmrec.heads["user"](run.x(rows)), run.allmrec.heads["item"](run.allmrec.joint)
    tokens = torch.einsum("nd,ncd->nc", users, items[candidates.items]).numpy()
    assert metrics.per_user(tokens)["hit@1"].mean() > table.loc["Random", "hit@1"] + 0.1  # what the LLM is given
    assert ((table["low"] <= table["hit@1"]) & (table["hit@1"] <= table["high"])).all()
    kinds = {path.name.split("-")[0] for path in (home / "data" / "artifacts").iterdir()}
    assert kinds == {"candidates", "sasrec", "stage1", "stage2", "scores"}
    again = Experiment("simulated", "smoke", overrides={"sasrec.epochs": 40, "stage2.max_rows": 96})
    before = {p: p.stat().st_mtime_ns for p in (home / "data" / "artifacts").rglob("*.npy")}
    assert np.array_equal(again.scores("A-LLMRec"), run.scores("A-LLMRec"))
    assert before == {p: p.stat().st_mtime_ns for p in (home / "data" / "artifacts").rglob("*.npy")}
    answers = {mode: metrics.per_user(run.scores("A-LLMRec", mode))["hit@1"].mean() for mode in ("constrained", "trie")}
    assert abs(answers["constrained"] - answers["trie"]) < 0.1
    json.dumps(run.record())


def test_the_same_run_twice_gives_the_same_numbers(tmp_path, monkeypatch, home):
    found = []
    for name in ("a", "b"):
        from allmrec_lib.store import Store

        run = Experiment("simulated", "smoke", store=Store(tmp_path / name), overrides={"stage2.max_rows": 16})
        found.append((run.scores("SASRec"), run.joint.q, run.scores("A-LLMRec")))
    (sasrec, q, llm), (sasrec_again, q_again, llm_again) = found
    assert np.array_equal(sasrec, sasrec_again) and torch.equal(q, q_again)
    assert np.array_equal(llm, llm_again)


def test_the_llm_is_in_memory_once(run):
    other = Experiment("simulated", "smoke", seed=1)
    assert other.backbone is run.backbone is run.variant("MLP-LLM").backbone
    before, frozen = run.backbone.mark, list(run.backbone.model.named_modules())
    tuned = run.adapted.module
    own = {name: weight for name, weight in tuned.named_parameters() if "lora_" in name}
    base = {weight.data_ptr() for weight in run.backbone.model.parameters()}
    assert own and all(p.data_ptr() in base for n, p in tuned.named_parameters() if n not in own)
    assert [(n, type(m)) for n, m in run.backbone.model.named_modules()] == [(n, type(m)) for n, m in frozen]
    assert run.backbone.mark == before and not any("lora_" in n for n, _ in run.backbone.model.named_parameters())


def test_stored_scores_are_those_of_what_was_asked_for(run):
    def other(seed=0, **changes):
        return Experiment("simulated", "smoke", seed, overrides={key.replace("__", "."): v for key, v in changes.items()})

    assert not np.array_equal(run.scores("Random"), other(seed=1).scores("Random"))
    assert not np.array_equal(run.scores("LLM-Only"), other(stage2__history=2).scores("LLM-Only"))
    long, short = run.scores("Co-occurrence"), other(sasrec__max_len=1).scores("Co-occurrence")
    assert not np.array_equal(long, short)


def test_an_unknown_model_is_an_error(run):
    with pytest.raises(ValueError, match="unknown model 'SASREC'"):
        run.scores("SASREC")


on_one = pytest.mark.parametrize("backbone", ["opt"], indirect=True)


@on_one
def test_a_sample_of_rows_keeps_each_users_own_x(backbone, prompts, joint, world, monkeypatch):
    rows, held, drawn = world.rows("train", 8), world.rows("validation", 8), candidate_sets(world, "validation", 4)
    tasks = []
    monkeypatch.setattr(ranker, "fit", lambda task, **_: tasks.append(task))
    for seed in range(4):
        train_answers(model_of(backbone, prompts, joint), world, (rows, rows.users[:, None]), (held, drawn, held.users[:, None]),
                      replace(CONFIG, max_rows=4, eval_users=3), seed)
    for task in tasks:
        assert task.n_rows == 4 and torch.equal(task.x[:, 0], task.rows.users)
        part = task.validation
        assert len(part.rows) == 3 and torch.equal(part.x[:, 0], part.rows.users) and torch.equal(part.candidates.users, part.rows.users)
    assert len({tuple(t.rows.users.tolist()) for t in tasks}) > 1 and len({tuple(t.validation.rows.users.tolist()) for t in tasks}) > 1


@on_one
def test_a_prompt_shows_the_newest_of_the_history(backbone, prompts):
    rows = Rows(torch.tensor([1]), torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([8]))
    drawn = Candidates(torch.tensor([1]), torch.tensor([[8, 9, 10]]), torch.tensor([[2, 0, 1]]))
    assert LLMRecommender(backbone, prompts, history=3).prompt_rows(rows, drawn) == [prompts.prompt([3, 4, 5], [10, 8, 9])]


@on_one
def test_each_mode_is_the_decoding_of_its_name(backbone, prompts, joint, world):
    model, rows, drawn = model_of(backbone, prompts, joint), world.rows("test", 8), candidate_sets(world, "test", 4)
    x = torch.randn(len(rows), 4).double()
    block = PromptBatch.of(model.prompt_rows(rows, drawn))
    with torch.inference_mode():
        for mode in ("constrained", "score", "trie"):
            prefix = decoding.read(backbone, model.embeds(block, x), block.lengths)
            expected = getattr(decoding, mode)(backbone, prefix, *model.answers(drawn.items)).double().numpy()
            assert np.allclose(model.predict(rows, drawn, x, mode), expected, atol=1e-5), mode
    titles = torch.tensor([[2, 1, 11]])  # Aliens, Alien, Hea
    assert model.named(titles, ["Aliens"]).tolist() == [[1, 0, 0]]
