"""OPT of any published size with random weights, on real tokens: speed and memory do not depend on what weights say."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from allmrec_lib.llm.backbone import Backbone, load_backbone
from allmrec_lib.llm.prompts import TEMPLATES
from allmrec_lib.paths import project_root

# hidden, layers, heads, width of the word embeddings (Zhang et al. 2022, table 1; the published config.json files)
SIZES = {"opt-125m": (768, 12, 12, 768), "opt-350m": (1024, 24, 16, 512), "opt-1.3b": (2048, 24, 32, 2048),
         "opt-2.7b": (2560, 32, 32, 2560), "opt-6.7b": (4096, 32, 32, 4096)}  # fmt: skip


FILES = ("vocab.json", "merges.txt")


def llm_of(name: str, device: str = "cpu") -> Backbone:
    """An OPT of :data:`SIZES` with random weights, or any LLM that the library loads."""
    return opt(name, device) if name in SIZES else load_backbone(name, device)


def projection_for(name: str) -> str:
    """The projections of Stage 2 that such an LLM has room for."""
    return "skip" if name == "pocket" else "mlp"


def vocabulary() -> Path:
    """The folder of GPT-2's byte-pair vocabulary, which OPT tokenises with (its ids differ, its cuts do not): in
    ``$ALLMREC_DATA`` or ``data/raw``, else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    for root in (os.environ.get("ALLMREC_DATA"), project_root() / "data" / "raw"):
        if root and (Path(root) / "gpt2_bpe" / "vocab.json").exists():
            return Path(root) / "gpt2_bpe"
    try:
        return Path(snapshot_download("openai-community/gpt2", allow_patterns=list(FILES)))
    except (OSError, *HfHubHTTPError.__bases__) as error:
        raise FileNotFoundError("GPT-2's vocab.json and merges.txt are not on this machine, and the hub (openai-community/gpt2) does "
                                f"not send them ({error}); put them into data/raw/gpt2_bpe") from error  # fmt: skip


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder, end = vocabulary(), "<|endoftext|>"
    own = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token=end, eos_token=end)


def opt(size: str, device: str = "cpu") -> Backbone:
    """bf16 on a GPU, full precision on a CPU; the weights are made on the device. Prompts as in figure 3, titles whole."""
    from transformers import AutoModelForCausalLM, OPTConfig

    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; one of {', '.join(SIZES)}")
    hidden, layers, heads, width = SIZES[size]
    config = OPTConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * hidden,
                       word_embed_proj_dim=width, do_layer_norm_before=size != "opt-350m")  # fmt: skip
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Backbone(size, model, tokenizer(), TEMPLATES["paper"], None)
