"""A dataset as experiments see it: split, with stored candidates, and the texts of its items."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from . import datasets
from .config import Profile, load_profile
from .recommenders.base import aligned
from .scenarios import limited
from .sequences import Candidates, Rows, Sequences, candidate_sets
from .store import Store, code_digest
from .text import item_texts


class Prepared:
    """Everything that is the same for all models of one dataset and profile; read when it is asked for.

    ``overrides`` maps "section.setting" to a value (see ``config``).
    """

    def __init__(self, dataset: str, profile: str, overrides: dict[str, Any] | None = None, store: Store | None = None):
        self.overrides = overrides or {}
        self.name, self.store = dataset, store or Store()
        self.profile: Profile = load_profile(profile, dataset, overrides)

    @cached_property
    def data(self) -> datasets.Dataset:
        return datasets.load(self.name)

    @cached_property
    def sequences(self) -> Sequences:
        return limited(Sequences.from_dataset(self.data), self.profile.data)

    @property
    def digest(self) -> str:
        """A short hash of the data, and of who trains where not all do."""
        who = getattr(self.sequences, "digest", None)
        return self.data.digest if who is None else f"{self.data.digest}-{who}"

    @cached_property
    def candidates(self) -> dict[str, Candidates]:
        """The stored candidate sets of the parts "validation" and "test": drawn once, used by every model."""
        return {part: self._candidates(part) for part in ("validation", "test")}

    def _candidates(self, part: str) -> Candidates:
        data = self.profile.data
        most = data.max_test_users if part == "test" else data.max_validation_users
        drawn_by = {"negatives": data.negatives, "seed": data.candidate_seed, "max_users": most}
        inputs = {"data": self.digest, "part": part, "code": code_digest("sequences"), **drawn_by}

        def make(folder: Path) -> None:
            drawn = candidate_sets(self.sequences, part, data.negatives, data.candidate_seed, most)
            drawn.save(folder / "candidates.npz")

        return Candidates.load(self.store.get("candidates", inputs, make) / "candidates.npz")

    def rows(self, part: str) -> Rows:
        """The rows of the stored candidates' users."""
        return aligned(self.sequences.rows(part, self.profile.sasrec.max_len), self.candidates[part])

    @cached_property
    def texts(self) -> list[str]:
        """What a sentence encoder reads of every item, entry 0 for padding."""
        return item_texts(self.data)
