"""What several tests share: a small LM with random weights, and an own home for everything that is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from allmrec_lib.llm.backbone import Backbone, load_backbone
from allmrec_lib.llm.prompts import DOMAINS
from allmrec_lib.llm.soft_tokens import PromptEncoder
from allmrec_lib.sequences import Sequences

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """For `--dist loadgroup`: a file's tests stay together, since they share what is costly; chapters are spread."""
    for item in items:
        if item.originalname != "test_the_source_still_gives_what_it_shows":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def byte_tokenizer():
    """A byte-level tokenizer with a start token: any text, no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  vocab_size=300, show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(["This user has watched in the past. Recommend a movie for this user"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def tiny_model(kind: str):
    """A causal LM of a family, random weights, in double precision so that equal means equal."""
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
            "max_position_embeddings": 2048}  # fmt: skip
    configs = {
        "opt": lambda: OPTConfig(**size, ffn_dim=64, word_embed_proj_dim=24),
        "neox": lambda: GPTNeoXConfig(**size, intermediate_size=64),
        "llama": lambda: LlamaConfig(**size, intermediate_size=64),
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=2048),
    }
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(configs[kind]()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # random weights as they come say the same for every token
    return model.eval()


@pytest.fixture(params=["opt", "neox", "llama", "gpt2"])
def backbone(request, tmp_path) -> Backbone:
    """A tiny LM saved and loaded again by the path that real ones take."""
    tiny_model(request.param).save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    return load_backbone(str(tmp_path / "llm"), dtype=torch.float64)


TITLES = ["", "Alien", "Aliens", "Alien", "Brazil", "Brazil II", "Casablanca", "A", "Babe (1995)", "Zulu", "Heat", "Hea", "Amélie"]


@pytest.fixture
def prompts(backbone) -> PromptEncoder:
    return PromptEncoder(backbone, TITLES, DOMAINS["movie"])


def random_sequences(rng: np.random.Generator, users: int = 40, items: int = 60, longest: int = 12) -> Sequences:
    lengths = rng.integers(1, longest + 1, users)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(rng.integers(1, items + 1, starts[-1]), starts, items)


@pytest.fixture
def sequences() -> Sequences:
    return random_sequences(np.random.default_rng(0))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A project of its own: everything the library writes goes there; paper's tables and the small LLM are linked in."""
    (tmp_path / "data").mkdir()
    for name in ("paper", "pocket_llm"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    monkeypatch.setenv("ALLMREC_HOME", str(tmp_path))
    monkeypatch.setenv("ALLMREC_QUIET", "1")
    return tmp_path


@pytest.fixture
def book_home(home) -> Path:
    shutil.copytree(ROOT / "book", home / "book", ignore=shutil.ignore_patterns("executed", "appendix", "workshops"))
    return home
