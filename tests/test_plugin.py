"""A recommender written outside the library: it plugs in by the protocol alone, and A-LLMRec stands on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from allmrec_lib import metrics
from allmrec_lib.experiment import Experiment
from allmrec_lib.seeds import scores_by_seed


class Together:
    """Items are the strongest directions of who met what; a user is the mean of the history."""

    def __init__(self, sequences, dim=16):
        users, items = sequences.train_pairs()
        met = torch.zeros(sequences.n_users + 1, sequences.n_items + 1)
        met[users, items] = 1.0
        directions, sizes = torch.linalg.svd(met.T, full_matrices=False)[:2]
        self.items = directions[:, :dim] * sizes[:dim]

    def item_embeddings(self):
        return self.items

    def user_representation(self, histories):
        return self.items[histories].sum(1) / (histories != 0).sum(1, keepdim=True)

    def score(self, histories, candidates):
        return torch.einsum("bd,bcd->bc", self.user_representation(histories), self.items[candidates])


def test_a_model_from_outside_goes_the_whole_road(home):
    run = Experiment("simulated", "smoke", cf="Together")
    run.use("Together", Together(run.sequences))
    hit = {name: metrics.per_user(run.scores(name))["hit@1"].mean() for name in ("Random", "Together", "A-LLMRec")}
    assert hit["Together"] > hit["Random"] + 0.1 and hit["A-LLMRec"] > hit["Random"] + 0.05
    assert run.untrained().heads.user is not None and run.x(run.rows("test")).shape[1] == 16
    stored = len(list((home / "data" / "artifacts").glob("scores-*")))
    run.scores("A-LLMRec")
    assert len(list((home / "data" / "artifacts").glob("scores-*"))) == stored
    other = Experiment("simulated", "smoke", cf="Together")
    other.use("Together", Together(run.sequences, dim=4))
    assert not np.array_equal(other.scores("Together"), run.scores("Together"))
    assert np.array_equal(run.changed(seed=1).scores("Together"), run.scores("Together"))  # it is trained, whatever the seed
    run.changed().use("Other", Together(run.sequences, dim=4))
    assert "Other" not in run._outside
    assert len(scores_by_seed(run.changed({"data.llm_seeds": 2}), ["A-LLMRec"])["A-LLMRec"]) == 2


def test_a_model_that_breaks_the_protocol_is_refused_at_once(home):
    run = Experiment("simulated", "smoke")
    whole = Together(run.sequences)

    def refused(method, change, says):
        broken = Together(run.sequences)
        setattr(broken, method, lambda *given: change(getattr(whole, method)(*given)))
        with pytest.raises(ValueError, match=says):
            run.use("Broken", broken)

    refused("item_embeddings", lambda e: e[1:], r"not a tensor \(\d+, d\): row 0 is padding")
    refused("item_embeddings", lambda e: e.numpy(), "item_embeddings.* not a tensor")
    refused("item_embeddings", lambda e: e.double(), r"item_embeddings\(\) gives torch.float64")
    refused("user_representation", lambda x: x[:, :3], r"user_representation\(histories\) gives \(\d+, 3\)")
    refused("score", lambda s: s / 0, r"score\(\) gives .* not finite")
