"""What a run needs and what is here, before anything is loaded: memory, disk, the LLM's weights, the data.

    python -m allmrec_lib.preflight --profile paper --dataset beauty --llm facebook/opt-6.7b --device cuda

Prints one line a check, with the command that mends it, and exits with 1 when the run cannot succeed. ``runner`` asks it
before it executes a chapter, unless the small LLM runs on a CPU; ``ALLMREC_ANYWAY=1`` goes on all the same. Memory is counted
from the LLM's configuration (``memory``), for prompts of :data:`TITLE` tokens a title; hours come from measured constants
(``cost``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .config import ConfigError, Profile, load_profile
from .cost import CostError, hours, predict, sold_as
from .datasets import SOURCES
from .datasets.base import DataError
from .datasets.download import data_root, find_wheel
from .datasets.movielens import WHEEL
from .devices import device_memory, used_cards
from .llm.backbone import place_of
from .llm.decoding import sight
from .memory import Need, needed
from .paths import full_name
from .text import encoder_path

TITLE = 24  # tokens of a title and what stands around it: in 999 of 1,000 prompts on Luxury Beauty the mean is less (686 / 30)
WORDS = 60  # tokens of a prompt besides its titles
COPIES = 5  # of what learns: the result, and a checkpoint with weights, best weights and Adam's two moments
CONVERT = ("python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; n = '{name}'; "
           "M.from_pretrained(n, dtype='auto').save_pretrained('llm'); T.from_pretrained(n).save_pretrained('llm')\", then "
           "LLM=llm")  # fmt: skip
CONVERT_ENCODER = ("python -c \"from sentence_transformers import SentenceTransformer as S; S('{name}').save('encoder')\", then its "
                   "full path as the profile's stage1.encoder")  # fmt: skip


@dataclass(frozen=True)
class Check:
    """``ok`` None: worth knowing, no reason to stop."""

    what: str
    ok: bool | None
    found: str
    fix: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[self.ok]
        return f"{mark}  {self.what}: {self.found}" + (f"\n      -> {self.fix}" if self.fix else "")


def offline() -> bool:
    """Whether the hub must not be asked."""
    switches = [os.environ.get(name, "0").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")]
    return any(value in ("1", "ON", "YES", "TRUE") for value in switches)


def _on_hub(name: str) -> bool:
    """Whether this could be a hub name (owner/name), not a path."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def snapshot(name: str) -> Path | None:
    """The folder with a model's files: a folder of that name, or the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    place = Path(place_of(name))
    if place.is_dir():
        return place
    found = try_to_load_from_cache(name, "config.json") if _on_hub(name) else None
    return Path(found).parent if isinstance(found, str) else None


def hub_files(name: str) -> list[str] | None:
    """What the hub has of a model; None where it does not answer, or does not know the model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return [file.rfilename for file in HfApi().model_info(name, timeout=10).siblings or []]
    except HfHubHTTPError.__bases__:  # of whatever library the hub's own asks with
        return None


def missing_in(folder: Path) -> str:
    """What a model's folder lacks, "" when it is whole: configuration, tokenizer, every file of safetensors weights."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").exists():
        return "config.json"
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    for name in sorted(shards):
        if not (folder / name).exists():
            return name
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            return f"the whole of {name} ({error})"
    return "" if any(folder.glob("tokenizer*")) or any(folder.glob("vocab*")) else "tokenizer.json"


def weights(name: str, role: str = "LLM", must: bool = True, convert: str = CONVERT) -> Check:
    """Whether a model's files are here, or will be fetched. Not ``must``: a note, never a reason to stop. ``convert``: how
    weights become safetensors."""
    folder, failed = snapshot(name), False if must else None
    fetch = f"hf download {name}  (where there is a network; then copy the folder and give its path)"
    if folder is not None:
        absent = missing_in(folder)
        if not absent:
            return Check(role, True, f"{name} is here")
        if any(folder.glob("*.bin")):
            found = f"{name}: weights are there as .bin, and safetensors only are read"
            return Check(role, failed, found, convert.format(name=name))
        return Check(role, failed, f"{name}: {absent} is not in {folder}", fetch)
    if not _on_hub(name):
        return Check(role, failed, f"{name!r} is no folder, and a hub name (owner/name) it cannot be", "give the folder's path")
    if offline():
        return Check(role, failed, f"{name} is not in the hub's cache, and the hub is switched off (HF_HUB_OFFLINE)", fetch)
    files = hub_files(name)
    if files is None:
        return Check(role, failed, f"{name} is not on this machine, and the hub does not answer or does not know it", fetch)
    if not any(file.endswith(".safetensors") for file in files):
        found = f"{name}: the hub has its weights as .bin, and safetensors only are read"
        return Check(role, failed, found, convert.format(name=name))
    return Check(role, None, f"{name} is not on this machine; it will be fetched from the hub", fetch)


def data(dataset: str) -> Check:
    """Whether the raw files of a dataset are here."""
    if dataset not in SOURCES:
        return Check("data", False, f"unknown dataset {dataset!r}", f"one of {', '.join(SOURCES)}")
    if dataset in ("frames", "authors"):
        return Check("data", False, f"{dataset} is for files of your own, and a chapter has no place for their paths",
                     f"see it with allmrec_lib.datasets.load({dataset!r}, ...); tables make the dataset own: python -m allmrec_lib "
                     "data own --interactions events.csv --items items.csv")  # fmt: skip
    raw = data_root() / "raw"
    if dataset == "movielens" and not ((raw / "ml-100k.zip").exists() or find_wheel(WHEEL, raw)):
        return Check("data", None, "movielens is not here; it will be fetched (5 MB)")
    try:
        SOURCES[dataset].files(data_root())
    except DataError as error:
        return Check("data", False, str(error), f"python -m allmrec_lib.datasets {dataset}, once the files are in place")
    return Check("data", True, f"{dataset} is here")


def card(device: str) -> Check:
    """Whether torch has the device."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        return Check("device", False, f"torch knows no device {device!r}", "cpu, cuda, or one of several cards: cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        return Check("device", False, "torch can use no CUDA card here", "take cpu, or install its driver and a torch for CUDA")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        return Check("device", False, f"there is no {device} here", f"one of {there}")
    return Check("device", True, f"{device} is here")


def duration(profile: Profile, llm: str, device: str) -> Check:
    """Hours of SASRec, both stages, TALLRec and the test rows, which is what chapters 3 to 6 and TALLRec take; never a reason
    to stop."""
    try:
        used = used_cards(device, bool(profile.llm.device_map))
        phases, _ = predict(profile, llm, sold_as(used[0][0]) if used else "cpu")
    except CostError as error:
        return Check("time", None, f"unknown: {error}")
    each = ", ".join(f"{row.phase} {(row.seconds + row.validation_s) / 3600:.1f}" for row in phases.itertuples())
    return Check("time", None, f"{hours(phases):.1f} hours at most ({each}); chapters 7 to 17 train more on top")


def memory(need: Need, profile: Profile, device: str) -> Check:
    """Whether the most that a step takes fits one process's device."""
    free, where = device_memory(device, bool(profile.llm.device_map))
    parts = f"Stage 2 {need.stage2:.1f}, TALLRec {need.tallrec:.1f}, scoring {need.scoring:.1f}"
    found = f"{need.most:.1f} GB at the most ({parts}; weights alone {need.weights:.1f}), {free:.1f} GB {where}"
    if need.most <= free:
        return Check("memory", True, found)
    fewer, training = max(profile.llm.read_at_once // 4, 1), max(need.stage2, need.tallrec)
    ways = [way for way, useless in (("llm.weights = bf16", profile.llm.weights != "fp32"),
                                     (f"llm.read_at_once = {fewer}", need.scoring <= free),
                                     ("llm.checkpointing = true", profile.llm.checkpointing or training <= free),
                                     ("llm.device_map = auto, one process over several cards", bool(profile.llm.device_map)),
                                     ("llm.weights = int8", profile.llm.weights == "int8")) if not useless]  # fmt: skip
    fix = f"in {profile.name}.yaml, the first that is enough: " + "; ".join([*ways, "a smaller LLM, or more memory"])
    return Check("memory", False, found, fix)


def disk(need: Need | None, fetched: bool) -> Iterator[Check]:
    """Room for what learns, with its checkpoints, and, where the hub's cache is, for an LLM that is fetched."""
    from huggingface_hub.constants import HF_HUB_CACHE

    learns, llm = 4 * COPIES * (need.heads if need else 0) / 1e9, 2 * need.parameters / 1e9 if need and fetched else 0.0
    ours, hub = _existing(data_root()), _existing(Path(HF_HUB_CACHE))
    shared = llm if ours.stat().st_dev == hub.stat().st_dev else 0.0
    parts = f"1 GB for tables and small models, {learns:.1f} for what learns" + (f", {shared:.1f} for the LLM" if shared else "")
    yield _room("disk", 1.0 + learns + shared, parts, ours, "ALLMREC_HOME (artifacts)" + " or HF_HOME (the hub's cache)" * (llm > 0))
    if llm > shared:
        yield _room("disk of the hub's cache", llm, "the LLM", hub, "HF_HOME")


def _room(what: str, wanted: float, parts: str, folder: Path, variable: str) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    fix = "" if wanted <= free else f"set {variable} to a folder on a larger disk"
    return Check(what, wanted <= free, f"{wanted:.1f} GB ({parts}), {free:.1f} GB free", fix)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def prompt_length(profile: Profile) -> int:
    """Tokens of a prompt: a history, and the candidates."""
    return WORDS + TITLE * (max(profile.stage2.history, profile.tallrec.history) + profile.data.negatives + 1)


def configuration(name: str):
    """An LLM's ``AutoConfig``, or the error that says why there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place_of(name))
    except (OSError, ValueError) as error:
        return error


def checks(dataset: str = "movielens", profile: str = "laptop", llm: str = "pocket", device: str = "cpu",
           overrides: dict[str, Any] | None = None) -> Iterator[Check]:  # fmt: skip
    """All checks of a run, the cheap ones first. Raises :class:`ConfigError` for an unknown profile or setting."""
    settings, here = load_profile(profile, dataset, overrides), card(device)
    yield data(dataset)
    yield here
    encoder = encoder_path(settings.stage1.encoder)
    if "/" not in encoder and not Path(encoder).is_dir():
        encoder = f"sentence-transformers/{encoder}"  # whose names go without an owner
    yield Check("sentence encoder", True, f"{settings.stage1.encoder} is here") if Path(encoder).is_dir() else weights(
        encoder, "sentence encoder", convert=CONVERT_ENCODER)  # fmt: skip
    if settings.recformer.checkpoint:
        yield weights(settings.recformer.checkpoint, "RECFORMER's encoder, for chapter 7 alone", must=False)
    found = weights(llm)
    yield found
    config = configuration(llm) if found.ok is not False else None
    if isinstance(config, Exception):
        yield Check("LLM", False, f"{llm}: {str(config).splitlines()[0]}", f"hf download {llm}, where there is a network")
    if config is None or isinstance(config, Exception):
        yield from disk(None, False)
        return
    limits = [n for n in (getattr(config, "max_position_embeddings", None), sight(config)) if n is not None]
    prompt, limit = prompt_length(settings), min(limits, default=None)
    if llm != "pocket" and limit is not None:  # the small LLM reads shortened titles
        enough = prompt + TITLE <= limit
        fix = "" if enough else "lower stage2.history or data.negatives, or take an LLM that reads more"
        yield Check("prompt", enough, f"about {prompt + TITLE} tokens, {limit} at the most", fix)
    if settings.llm.weights == "int8" and find_spec("bitsandbytes") is None:
        yield Check("8 bits", False, "llm.weights = int8 needs bitsandbytes, which is not here", "pip install bitsandbytes")
    need = needed(config, settings, prompt, TITLE)
    if here.ok:
        yield memory(need, settings, device)
        yield duration(settings, llm, device)
    yield from disk(need, found.ok is None)


def passed(**parameters) -> bool:
    """Print the checks of a run; whether none failed, or ``ALLMREC_ANYWAY=1`` says to go on."""
    results = list(checks(**parameters))
    failed = any(check.ok is False for check in results)
    for check in results:
        print(check, file=sys.stderr if failed else sys.stdout, flush=True)
    anyway = os.environ.get("ALLMREC_ANYWAY", "0") == "1"
    if failed:
        said = "going on all the same" if anyway else "this run cannot succeed; ALLMREC_ANYWAY=1 tries it all the same"
        print(said, file=sys.stderr)
    return not failed or anyway


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dataset", "movielens"), ("profile", "laptop"), ("llm", "pocket"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    try:
        asked = vars(parser.parse_args(arguments))
        return 0 if passed(**asked | {"llm": full_name(asked["llm"])}) else 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
