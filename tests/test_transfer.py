"""Cross-domain: what is carried to another item space, and that carrying it home again changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from allmrec_lib.config import SequentialConfig
from allmrec_lib.experiment import Experiment
from allmrec_lib.recommenders.base import represent, score_rows
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.transfer import Foreign, Transfer, _carried_over

TINY = {"data.max_test_users": 20, "sasrec.epochs": 2, "stage1.train_layers": 1, "stage1.max_text_tokens": 8,
        "stage2.max_rows": 16, "stage2.eval_users": 8, "stage2.joint": "q"}  # fmt: skip


def test_a_model_given_its_own_embeddings_scores_as_ever():
    torch.manual_seed(0)
    model = SASRec(30, SequentialConfig(dim=16, max_len=8)).eval()
    histories, candidates = torch.randint(0, 31, (5, 12)), torch.randint(1, 31, (5, 4))
    with torch.no_grad():
        assert torch.equal(Foreign(model, model.item_embeddings()).score(histories, candidates), model.score(histories, candidates))


def test_a_word_that_was_learned_keeps_what_it_learned():
    learned, fresh = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [20.0], [30.0]])
    carried = _carried_over(learned, torch.tensor([0, 7, 9]), fresh, torch.tensor([0, 9, 4]))
    assert carried.flatten().tolist() == [1.0, 3.0, 30.0]


@pytest.fixture
def source(home) -> Experiment:
    return Experiment("simulated", "smoke", overrides=TINY)


def test_carried_to_its_own_dataset_the_text_side_is_what_it_was(source):
    across = Transfer(source, Experiment("simulated", "smoke", overrides=TINY))
    q, decoded = across.texts
    assert torch.allclose(q, source.joint.q, atol=1e-5) and torch.allclose(decoded, source.joint.decoded_q, atol=1e-5)
    assert np.allclose(across.scores("SASRec"), source.scores("SASRec"), atol=1e-5)
    answering = across.answering("A-LLMRec")
    rows, candidates = source.rows("test"), source.candidates["test"]
    carried = answering.predict(rows, candidates, source.x(rows))
    assert np.allclose(carried, source.scores("A-LLMRec"), atol=1e-3)
    assert across.scores("MLP-LLM").shape == candidates.items.shape  # reads a guessed E, of another width than q


def test_a_text_side_of_another_size_is_refused(source):
    other = Experiment("simulated", "smoke", overrides=TINY | {"stage1.train_layers": 2})
    model = Transfer(other, source)
    model.source.__dict__["stage1_folder"] = source.stage1_folder
    with pytest.raises(ValueError, match="another text side"):
        _ = model.texts


TINY = {"data.max_test_users": 20, "sasrec.epochs": 1, "stage1.train_layers": 0, "stage1.max_text_tokens": 8,
        "stage2.max_rows": 8, "stage2.eval_users": 8, "stage2.joint": "q"}  # fmt: skip


def test_scores_are_of_the_targets_rows_and_of_the_source_that_was_trained(home):
    source = Experiment("simulated", "smoke", overrides=TINY)
    target = Experiment("simulated", "smoke", overrides=TINY | {"data.max_test_users": 12, "data.candidate_seed": 3})
    across, rows, candidates = Transfer(source, target), target.rows("test"), target.candidates["test"]
    assert np.allclose(across.scores("SASRec"), score_rows(source.cf_model, rows, candidates), atol=1e-5)
    decoded = across.texts[1].clone()
    decoded[0] = 0
    x = represent(across.through_text, rows)
    assert np.allclose(across.scores("Stage 1"), torch.einsum("nd,ncd->nc", x, decoded[candidates.items]).numpy(), atol=1e-5)
    other = Transfer(Experiment("simulated", "smoke", seed=1, overrides=TINY), target)
    assert not np.allclose(other.scores("SASRec"), across.scores("SASRec"))


def test_scores_are_of_the_encoder_that_read_the_texts(home, tmp_path, monkeypatch):
    target, keys = Experiment("simulated", "smoke", overrides=TINY), []
    monkeypatch.setattr(target.store, "scores", lambda inputs, score: keys.append(str(inputs)))
    for section, name in (("stage1", "A-LLMRec"), ("morec", "MoRec")):
        for weights in (b"some", b"others"):
            (tmp_path / "model.safetensors").write_bytes(weights)
            source = Experiment("simulated", "smoke", overrides=TINY | {f"{section}.encoder": str(tmp_path)})
            Transfer(source, target).scores(name)
    assert len(set(keys)) == 4


def test_across_the_user_is_read_through_the_texts_and_modes_are_kept_apart(home, monkeypatch):
    run = Experiment("simulated", "smoke", overrides=TINY)
    across, given = Transfer(run, run), []
    model = across.answering("A-LLMRec")
    model.predict = lambda rows, candidates, x, mode: given.append(x) or np.full(candidates.items.shape, len(given))
    monkeypatch.setattr(across, "answering", lambda name: model)
    assert not np.array_equal(across.scores("A-LLMRec", "trie"), across.scores("A-LLMRec", "score"))
    assert torch.allclose(given[0], represent(across.through_text, run.rows("test")), atol=1e-6)
    assert not torch.allclose(given[0], run.x(run.rows("test")), atol=1e-3)


def test_the_target_s_own_tallrec_stays_as_it_is(home):
    run, other = (Experiment("simulated", "smoke", seed, overrides=TINY) for seed in (0, 1))
    own = {name: weight.clone() for name, weight in run.tallrec.module.named_parameters() if "lora_" in name}
    assert Transfer(other, run).scores("TALLRec").shape == run.candidates["test"].items.shape
    assert own and all(torch.equal(weight, dict(run.tallrec.module.named_parameters())[name]) for name, weight in own.items())


def test_ctrl_goes_by_numbers_and_ncf_not_at_all(home):
    small = {"ctrl.epochs": 1, "ctrl.contrast_epochs": 1, "ctrl.samples": 20, "ncf.epochs": 1}
    source, target = Experiment("simulated", "smoke", overrides=TINY | small), Experiment("simulated", "smoke", overrides=TINY)
    across = Transfer(source, target)
    assert np.allclose(across.scores("CTRL"), source.scores("CTRL"), atol=1e-5)  # the same items
    with pytest.raises(ValueError, match="NCF cannot read another dataset's histories"):
        across.scores("NCF")
