"""An experiment: what a result stands on is in its key, what was trained answers, and a name in a table means its settings."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_model
from safetensors.torch import save_file
from torch import nn

from allmrec_lib import experiment
from allmrec_lib.experiment import Experiment, trained
from allmrec_lib.ranker import LLMRecommender
from allmrec_lib.training import History

TINY = {"data.max_test_users": 20, "sasrec.epochs": 1, "stage1.train_layers": 0, "stage1.max_text_tokens": 8,
        "stage2.max_rows": 8, "stage2.eval_users": 8, "stage2.joint": "q"}  # fmt: skip


def test_the_weights_of_an_artifact_are_those_that_answer(tmp_path):
    module = nn.Linear(2, 3)
    save_file({name: torch.full_like(p, 7.0) for name, p in module.named_parameters()}, tmp_path / "trained.safetensors")
    model = trained(SimpleNamespace(module=module), tmp_path)
    assert all((p == 7).all() and not p.requires_grad for p in model.module.parameters())


def test_stage_2_is_given_each_users_own_x(home, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(experiment, "train_answers", lambda model, sequences, train, validation, *_: given.append((train, validation)) or History())
    for changes in ({}, {"stage2.all_items": True}, {"stage2.user": False}):
        run = Experiment("simulated", "smoke", overrides=TINY | changes)
        run.learn_answers("stage2", run.untrained(), tmp_path, "x")
        (rows, x), (held, drawn, x_held) = given[-1]
        assert len(rows) == len(run.sequences.rows("train", 1, all_items="stage2.all_items" in changes))
        assert torch.equal(held.users, drawn.users) and drawn.digest == run.candidates["validation"].digest
        for part, vectors in ((rows, x), (held, x_held)):
            own = run.x(part) if "stage2.user" not in changes else run.x(rows).mean(0).expand(len(part), -1)
            assert torch.allclose(vectors, own, atol=1e-6)


def test_a_change_of_what_a_result_stands_on_is_another_artifact(home, tmp_path, monkeypatch):
    tiny_model("opt").float().save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")

    def keys(seed=0, llm="pocket", **changes):
        run = Experiment("simulated", "smoke", seed, llm, overrides={n.replace("__", "."): v for n, v in changes.items()})
        inputs = {"sasrec": run.cf_inputs("SASRec")} | {kind: run._inputs(kind) for kind in ("stage1", "stage2", "tallrec")}
        return {kind: run.store.folder(kind, found).name for kind, found in inputs.items()}

    before = keys()
    assert keys() == before
    every = {"sasrec", "stage1", "stage2", "tallrec"}
    for changed, kinds in (
        ({"seed": 1}, every), ({"data__few_shot": 20}, every), ({"sasrec__lr": 0.5}, every - {"tallrec"}),
        ({"stage1__lr": 0.5}, {"stage1", "stage2"}), ({"stage2__lr": 0.5}, {"stage2"}), ({"tallrec__lr": 0.5}, {"tallrec"}),
        ({"llm": str(tmp_path / "llm")}, {"stage2", "tallrec"}),
    ):
        after = keys(**changed)
        assert {kind for kind in before if before[kind] != after[kind]} == kinds, changed
    for module, kinds in (("sequences", every), ("recommenders.sasrec", every - {"tallrec"}), ("text", {"stage1", "stage2"}),
                          ("projections", {"stage2"}), ("tallrec", {"tallrec"}),
                          ("experiment", {"stage2", "tallrec"})):  # fmt: skip
        monkeypatch.setattr(experiment, "code_digest", lambda *modules, edited=module: "".join(m for m in modules if m != edited))
        edited = keys()
        monkeypatch.setattr(experiment, "code_digest", lambda *modules: "".join(modules))
        assert {kind for kind, key in keys().items() if edited[kind] != key} == kinds, module


def test_another_encoder_in_the_same_folder_is_another_artifact(home, tmp_path):
    for section, cf in (("stage1", "SASRec"), ("morec", "MoRec")):  # MoRec's own encoder counts under Stage 1 too
        run, keys = Experiment("simulated", "smoke", overrides={f"{section}.encoder": str(tmp_path)}, cf=cf), []
        for weights in (b"some", b"others"):
            (tmp_path / "model.safetensors").write_bytes(weights)
            keys.append(run.store.folder("stage1", run._inputs("stage1")).name)
        assert keys[0] != keys[1], section


def test_a_recommender_from_outside_is_told_from_another_across_datasets(home):
    run = Experiment("simulated", "smoke")
    keys = []
    for mark in ("one", "two"):
        run.cf, run._outside = "Mine", {"Mine": mark}
        keys.append(run.cf_inputs())
    assert keys[0] != keys[1]


def test_each_mode_and_each_test_set_has_scores_of_its_own(home, monkeypatch):
    asked = []
    monkeypatch.setattr(Experiment, "_score", lambda run, model, mode, folder: asked.append(mode) or np.full((1, 1), len(asked)))
    for model in ("LLM-Only", "A-LLMRec", "TALLRec"):
        for changes in ({}, {"data.candidate_seed": 5}):
            run = Experiment("simulated", "smoke", overrides=changes)
            assert len({float(run.scores(model, mode)[0, 0]) for mode in ("constrained", "score", "trie", "free")}) == 4
    assert len(asked) == 24


def test_rows_that_were_scored_before_a_kill_are_not_asked_again(home, monkeypatch):
    run, plain, asked = Experiment("simulated", "smoke", overrides={"data.max_test_users": 40}), LLMRecommender.predict, []
    whole = plain(run.llm_only, run.rows("test"), run.candidates["test"], torch.zeros(40, 0))

    def killed(model, rows, *args):
        if len(asked) == 2:
            asked.clear()
            raise KeyboardInterrupt
        asked.append(rows.users.tolist())
        return plain(model, rows, *args)

    monkeypatch.setattr(LLMRecommender, "predict", killed)
    in_blocks = LLMRecommender.predict_in_blocks
    monkeypatch.setattr(LLMRecommender, "predict_in_blocks", lambda *args: in_blocks(*args, size=15))
    with pytest.raises(KeyboardInterrupt):
        run.scores("LLM-Only")
    assert np.allclose(run.scores("LLM-Only"), whole, atol=1e-4)
    assert asked == [run.rows("test").users[30:].tolist()], "the last block alone"
    folder = next(path for path in run.store.root.glob("scores-*"))
    assert sorted(path.name for path in folder.iterdir()) == ["cost.json", "manifest.json", "scores.npy"]


def test_other_settings_are_other_candidates(home):
    before = Experiment("simulated", "smoke").candidates
    for name, value in (("negatives", 9), ("candidate_seed", 1), ("max_test_users", 17)):
        after = Experiment("simulated", "smoke", overrides={f"data.{name}": value}).candidates
        assert after["test"].digest != before["test"].digest, name
    assert len(after["test"]) == 17 and torch.equal(after["validation"].items, before["validation"].items)


def test_variants_are_what_their_names_say(home):
    run = Experiment("simulated", "smoke")
    of = {name: run.variant(name).profile for name in experiment.VARIANTS}
    assert {name: (p.stage2.joint, p.stage2.inference) for name, p in of.items()} == {
        "A-LLMRec (SBERT)": ("auto", "q"), "A-LLMRec (e+q)": ("both", ""), "A-LLMRec_all": ("auto", ""), "MLP-LLM": ("cf", "")}
    assert (of["A-LLMRec_all"].stage1.all_items, of["A-LLMRec_all"].stage2.all_items) == (True, True)


def test_sbert_is_trained_with_e_and_asked_with_q(home):
    """Table 4: "uses q instead of e for inference": the projections of A-LLMRec, trained once."""
    run = Experiment("simulated", "smoke", overrides=TINY | {"stage2.joint": "auto"})
    usual, sbert = run.allmrec, run.variant("A-LLMRec (SBERT)")
    assert sbert.stage2_folder == run.stage2_folder and torch.equal(sbert.allmrec.joint, run.joint.q)
    assert all(torch.equal(a, b) for a, b in zip(usual.heads.parameters(), sbert.allmrec.heads.parameters(), strict=True))
    rows, candidates = run.rows("test"), run.candidates["test"]
    wanted = usual.carrying(run.joint.q).predict(rows, candidates, run.x(rows))
    assert np.allclose(run.scores("A-LLMRec (SBERT)"), wanted, atol=1e-4)
    assert not np.allclose(run.scores("A-LLMRec"), wanted, atol=1e-2)


def test_the_projections_start_from_what_training_knows(home):
    """The CF embedding of an item without interactions is noise: whatever it is, they start the same."""
    run = Experiment("simulated", "smoke", overrides=TINY | {"data.few_shot": 2})
    unknown = np.setdiff1d(np.arange(1, run.sequences.n_items + 1), run.sequences.known)
    before = [p.clone() for p in run.untrained().heads.parameters()]
    x = run.x(run.train_rows("stage2"))
    table = next(p for p in run.cf_model.parameters() if len(p) == run.sequences.n_items + 1)
    table[unknown] += 5.0
    assert len(unknown) and torch.equal(run.x(run.train_rows("stage2")), x)
    assert all(torch.equal(a, b) for a, b in zip(before, run.untrained().heads.parameters(), strict=True))


def test_the_projections_start_from_all_that_a_token_may_carry(home, monkeypatch):
    """e and q where an unknown item's token has q (4.1.4), one of them where no other is ever asked with."""
    given = {}
    real = experiment.projections
    monkeypatch.setattr(experiment, "projections", lambda config, latent, embeddings, *rest: given.update(
        {config.joint: (latent, embeddings)}) or real(config, latent, embeddings, *rest))  # fmt: skip
    for kind in ("auto", "q", "both", "cf"):
        run = Experiment("simulated", "smoke", overrides=TINY | {"stage2.joint": kind, "data.few_shot": 2})
        run.untrained()
    known, E = run.sequences.known, run.cf_model.item_embeddings()
    e, q = run.joint.e[known], run.joint.q[known]
    wanted = {"auto": torch.cat([e, q]), "q": q, "both": torch.cat([e, q], dim=1), "cf": E[known]}
    for kind, latent in wanted.items():
        assert torch.equal(given[kind][0], latent) and torch.equal(given[kind][1], E[known].repeat(len(latent) // len(known), 1)), kind


def test_what_the_controls_carry(home):
    carried = {k: Experiment("simulated", "smoke", overrides=TINY | {"stage2.joint": k}).untrained().joint for k in ("auto", "none", "random")}
    assert (carried["none"] == carried["none"][0]).all() and not (carried["auto"] == carried["auto"][0]).all()
    assert not torch.allclose(carried["random"], carried["auto"]) and abs(float(carried["random"].std()) - 1) < 0.1


def test_a_damaged_artifact_says_what_to_delete(home):
    run = Experiment("simulated", "smoke", overrides=TINY)
    run.scores("SASRec"), run.joint, run.allmrec
    files = [path for path in (home / "data" / "artifacts").rglob("*") if path.suffix in (".safetensors", ".npy") and "text_side" not in path.name]
    assert {path.name for path in files} == {"model.safetensors", "joint.safetensors", "trained.safetensors", "scores.npy"}
    asked = {"model.safetensors": lambda: again.cf_model, "joint.safetensors": lambda: again.joint,
             "trained.safetensors": lambda: again.allmrec, "scores.npy": lambda: again.scores("SASRec")}  # fmt: skip
    for path in files:
        again, whole = Experiment("simulated", "smoke", overrides=TINY), path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OSError, match=f"{path.name} cannot be read .*; delete .*{path.parent.name}, and"):
            asked[path.name]()
        path.write_bytes(whole)
