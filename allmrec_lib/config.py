"""Settings: frozen dataclasses, read from the profiles' YAML, changed by typed overrides.

A profile (``smoke``, ``laptop``, ``paper``) holds every setting that a chapter does not take as a parameter. An unknown
name is an error that names the nearest right one, a value of the wrong type an error that says which type is right.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from . import processes

_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
EDITION = re.compile(r"_(2014|2018|2023|raw)$")
PROFILES = ("smoke", "laptop", "paper")
INTERRUPTED = "interrupted; the same command goes on from here"  # what a command says of Ctrl-C
AT_LEAST_ONE = {"history", "negatives", "batch_size", "read_at_once", "dim", "max_len", "seeds", "llm_seeds", "epochs", "patience",
                "eval_every"}


class ConfigError(ValueError):
    """A setting that does not exist or has the wrong type."""


@dataclass(frozen=True)
class DataConfig:
    """The protocol: stored candidates, and how many users validate and are tested (None: all, the paper's way).

    What is trained depends on who validates, and on nothing about the test: one trained model serves any number of testers.
    """

    negatives: int = 19
    candidate_seed: int = 0
    max_validation_users: int | None = None
    max_test_users: int | None = None
    seeds: int = 3  # how many training seeds Table 1 averages
    llm_seeds: int = 1  # the same for models that ask an LLM
    cold: tuple[int, ...] = ()  # users with exactly that many items do not train, and are tested alone (section 5.2.3),
    cold_users: int = 150  # at most so many of each
    few_shot: int | None = None  # so many users train (5.2.4), a draw of their own for each ``few_shot_draw``
    few_shot_draw: int = 0


@dataclass(frozen=True)
class RecommenderConfig:
    """What every trained recommender has: d and batches of section 5.1, and when training stops."""

    dim: int = 50
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 128
    epochs: int = 200
    patience: int = 10
    eval_every: int = 5


@dataclass(frozen=True)
class SequentialConfig(RecommenderConfig):
    """SASRec, GRU4Rec and NextItNet; the defaults are SASRec's as in the authors' copy: 2 blocks, 1 head."""

    blocks: int = 2
    heads: int = 1
    max_len: int = 50
    dropout: float = 0.5
    loss: str = "bce"  # "bce": one uniform negative a position; "ce": softmax over all items


@dataclass(frozen=True)
class MoRecConfig(SequentialConfig):
    """SASRec's, and the sentence encoder of which ``train_layers`` layers learn (None: all; 0: frozen)."""

    encoder: str = "all-MiniLM-L6-v2"
    train_layers: int | None = None
    max_text_tokens: int = 64
    encoder_lr: float = 5e-5
    precision: str = "fp32"
    checkpointing: bool = False  # texts are read again in the backward pass: memory for 32 of a batch's, not for all


@dataclass(frozen=True)
class CTRLConfig(SequentialConfig):
    """SASRec's, and the contrastive training before it: ``parts`` sub-representations of each side, ``samples`` histories
    with their next item (None: all), of which the ``text_history`` last titles are told in words."""

    encoder: str = "all-MiniLM-L6-v2"
    train_layers: int | None = None
    max_text_tokens: int = 256
    encoder_lr: float = 5e-5
    precision: str = "fp32"
    parts: int = 3
    contrast: str = "infonce"  # "bce": the authors' file, every pair of a batch alone
    temperature: float = 0.07
    contrast_batch: int = 32
    contrast_epochs: int = 10
    samples: int | None = None
    text_history: int = 10


@dataclass(frozen=True)
class RecFormerConfig(RecommenderConfig):
    """Li et al. 2023. ``checkpoint``: a Longformer by folder or hub name; "" builds a small one (``layers``, ``heads``,
    ``inner``) over the word embeddings of ``encoder``, whose size is then d."""

    checkpoint: str = ""
    encoder: str = "all-MiniLM-L6-v2"
    layers: int = 2
    heads: int = 6
    inner: int = 768
    window: int = 64
    attribute_tokens: int = 32
    max_len: int = 50  # items, newest first
    max_tokens: int = 1024
    positions: int = 1  # of each user, drawn anew every epoch
    temperature: float = 0.05
    precision: str = "fp32"
    checkpointing: bool = False  # keep each layer's input only and run the layer again in the backward pass


@dataclass(frozen=True)
class NCFConfig(RecommenderConfig):
    """He et al. 2017: ReLU layers of falling width, 4 negatives a positive; ``neumf`` adds the elementwise product."""

    layers: tuple[int, ...] = (64, 32, 16, 8)
    neumf: bool = False
    negatives: int = 4
    epochs: int = 100
    patience: int = 5
    eval_every: int = 1


@dataclass(frozen=True)
class Stage1Config:
    """Section 4.1, Table 3. ``train_layers``: how many of the sentence encoder's layers learn (None: all; 0: frozen)."""

    encoder: str = "all-MiniLM-L6-v2"
    train_layers: int | None = None
    max_text_tokens: int = 128
    dim: int = 128
    alpha: float = 0.5
    beta: float = 0.2
    matching: float = 1.0
    recommendation: float = 1.0
    lr: float = 1e-4
    encoder_lr: float = 1e-4
    batch_size: int = 32
    epochs: int = 10
    patience: int = 3
    eval_every: int = 1
    precision: str = "fp32"  # "auto": bf16 where the device computes it natively
    score: str = "dot"  # "mean": the authors' code divides the dot product by d
    all_items: bool = False


@dataclass(frozen=True)
class LLMConfig:
    """How the LLM is held in memory. The results depend on ``weights``, on the rest they do not."""

    weights: str = "fp32"  # "bf16"; "int8": the linear layers in 8 bits, by bitsandbytes
    device_map: str = ""  # "auto": over all cards that one process sees, for an LLM that no single one holds
    checkpointing: bool = False  # activations are computed again in the backward pass: less memory, a third more time
    read_at_once: int = 32  # prompts read side by side when the test rows are scored


@dataclass(frozen=True)
class Stage2Config:
    """Section 4.2. ``projection``: "skip" adds a linear path beside the paper's 2-layer MLP ("mlp")."""

    history: int = 10
    precision: str = "fp32"
    projection: str = "skip"
    likeness: float = 1.0  # "skip": how much of an item token starts as what makes like items alike
    loss: str = "title"  # equation 8; "constrained": each token against those that continue another candidate
    joint: str = "auto"  # item tokens: "e", "q" (text), "both", "auto" (q where training saw no such item), "cf" (E),
    # and for Table 9 "none" (every item's the same) and "random" (vectors that say nothing)
    inference: str = ""  # what they carry after training, where that is something else ("q": Table 4's A-LLMRec (SBERT))
    user: bool = True  # False: every user's token is the same (Table 9)
    lr: float = 1e-4
    batch_size: int = 4
    epochs: int = 5
    patience: int = 2
    eval_every: int = 1
    eval_users: int | None = None
    all_items: bool = False
    max_rows: int | None = None


@dataclass(frozen=True)
class TALLRecConfig(Stage2Config):
    """LoRA as in Bao et al. 2023; trained like Stage 2, whose settings for soft tokens mean nothing here."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


@dataclass(frozen=True)
class Profile:
    """All settings of one run; ``name`` and ``dataset`` say which file and section they came from."""

    name: str
    dataset: str
    data: DataConfig = field(default_factory=DataConfig)
    ncf: NCFConfig = field(default_factory=NCFConfig)
    gru4rec: SequentialConfig = field(default_factory=lambda: SequentialConfig(blocks=1))
    nextitnet: SequentialConfig = field(default_factory=lambda: SequentialConfig(blocks=12, loss="ce"))
    sasrec: SequentialConfig = field(default_factory=SequentialConfig)
    morec: MoRecConfig = field(default_factory=MoRecConfig)
    ctrl: CTRLConfig = field(default_factory=CTRLConfig)
    recformer: RecFormerConfig = field(default_factory=RecFormerConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    llm: LLMConfig = field(default_factory=LLMConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    tallrec: TALLRecConfig = field(default_factory=TALLRecConfig)

    def rows(self) -> list[tuple[str, str, Any]]:
        """(section, setting, value) of everything, for a table."""
        sections = [f.name for f in dataclasses.fields(self) if f.name not in ("name", "dataset")]
        return [(s, key, value) for s in sections for key, value in dataclasses.asdict(getattr(self, s)).items()]


def _fail_unknown(what: str, name: str, known: list[str]) -> None:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown {what} {name!r}{hint} (known: {', '.join(known)})")


def _typed(section: str, key: str, value: Any, wanted: Any) -> Any:
    options = get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if float in options and isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)  # YAML takes 1e-4 for a text, and only 1.0e-4 for a number
    if get_origin(wanted) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(section, key, each, get_args(wanted)[0]) for each in value)
    if not any(type(value) is option for option in options):
        names = " or ".join("none" if o is type(None) else o.__name__ for o in options)
        raise ConfigError(f"{section}.{key} = {value!r} is a {type(value).__name__}; it takes {names}")
    return value


def _updated(profile: Profile, section: str, values: dict[str, Any]) -> Profile:
    sections = [f.name for f in dataclasses.fields(Profile) if f.name not in ("name", "dataset")]
    if section not in sections:
        _fail_unknown("section", section, sections)
    part = getattr(profile, section)
    hints = get_type_hints(type(part))
    for key in values:
        if key not in hints:
            _fail_unknown(f"setting of {section}", key, list(hints))
    for key in AT_LEAST_ONE.intersection(values):
        if isinstance(values[key], int) and values[key] < 1:
            raise ConfigError(f"{section}.{key} = {values[key]}; it takes 1 or more")
    typed = {key: _typed(section, key, value, hints[key]) for key, value in values.items()}
    return dataclasses.replace(profile, **{section: dataclasses.replace(part, **typed)})


def load_profile(name: str, dataset: str, overrides: dict[str, Any] | None = None) -> Profile:
    """The settings of profile ``name`` for ``dataset``; ``overrides`` maps "section.setting" to a value. Another edition
    (``video_games_2023``) has the settings of the dataset that Table 3 names.

    Raises :class:`ConfigError` for an unknown profile, section or setting and for a value of the wrong type.
    """
    if name not in PROFILES:
        _fail_unknown("profile", name, list(PROFILES))
    tree = yaml.safe_load(resources.files("allmrec_lib").joinpath(f"profiles/{name}.yaml").read_text()) or {}
    named = tree.pop("datasets", None) or {}
    per_dataset = named.get(dataset) or named.get(EDITION.sub("", dataset), {})
    profile = Profile(name=name, dataset=dataset)
    for source in (tree, per_dataset):
        for section, values in source.items():
            profile = _updated(profile, section, values)
    for path, value in (overrides or {}).items():
        section, _, key = path.partition(".")
        profile = _updated(profile, section, {key: value})
    return profile


def quiet() -> bool:
    """Whether progress bars are switched off (``ALLMREC_QUIET=1``: executed notebooks keep no bars; of several processes that
    work together only the first shows them)."""
    return os.environ.get("ALLMREC_QUIET", "0") == "1" or not processes.is_main()
