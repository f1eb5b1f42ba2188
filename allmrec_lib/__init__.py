"""A-LLMRec: a frozen LLM that recommends with the knowledge of a frozen recommender."""

import os
import warnings

# Prompts differ in length. On Hopper cards PyTorch takes cuDNN's attention first, which plans anew for every length that it has
# not seen (`book/appendix/speed.md`); flash attention needs no plan. PyTorch reads this at its first attention.
os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
# On a card attention adds up in no fixed order: two trainings differ in the last digits. `gpu_box.md` says so, once.
warnings.filterwarnings("ignore", message=".*defaults to a non-deterministic algorithm", category=UserWarning)
