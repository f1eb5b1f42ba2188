"""The check before a run: memory counted without weights is memory counted with them; what is missing is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, byte_tokenizer, tiny_model

from allmrec_lib import devices, memory, preflight, runner
from allmrec_lib.config import load_profile
from allmrec_lib.memory import activation_bytes, empty_model, needed, parameters, weight_bytes

KINDS = ["opt", "neox", "llama", "gpt2"]


@pytest.fixture
def llm(tmp_path):
    """A folder with a whole tiny OPT."""
    tiny_model("opt").float().save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_without_weights(kind):
    real = tiny_model(kind).float()
    empty = empty_model(real.config)
    assert next(empty.parameters()).device.type == "meta"
    assert parameters(empty) == sum(p.numel() for p in real.parameters())
    assert weight_bytes(empty, "fp32") == sum(p.numel() * p.element_size() for p in real.parameters())
    assert weight_bytes(empty, "bf16") == sum(p.numel() * p.element_size() for p in real.to(torch.bfloat16).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_counted_as_a_real_pass_keeps_them(kind):
    """The count without values is that of the same pass with values; it grows with rows and shrinks with recomputed layers."""
    real = tiny_model(kind).float().requires_grad_(False)
    empty = empty_model(real.config)
    assert activation_bytes(empty, 3, 17, torch.float32) == activation_bytes(real, 3, 17, torch.float32)
    once, twice = (activation_bytes(empty, rows, 64, torch.float32) for rows in (2, 4))
    assert 1.9 < twice / once < 2.1
    memory.recompute_layers(empty)
    assert activation_bytes(empty, 4, 64, torch.float32) < 0.5 * twice


@pytest.fixture(scope="module")
def opt():
    """OPT-6.7B's published configuration."""
    from transformers import OPTConfig

    return OPTConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, ffn_dim=16384, vocab_size=50272,
                     max_position_embeddings=2048, word_embed_proj_dim=4096)  # fmt: skip


def guide() -> dict[str, list[float]]:
    """The table of the guide: settings -> GB of weights, Stage 2, TALLRec, scoring."""
    lines = (ROOT / "book" / "appendix" / "gpu_box.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `weights:")]
    return {settings: [float(n) for n in numbers] for settings, *numbers in rows}


@pytest.mark.parametrize("row", guide())
def test_the_guide_says_what_is_counted_for_opt_6_7b(opt, row):
    """6.7 billion parameters; at the paper profile every step fits a card of 48 GB."""
    told = yaml.safe_load("{" + row.split("`")[1] + "}")
    profile = load_profile("paper", "beauty", {f"llm.{name}": value for name, value in told.items()})
    need = needed(opt, profile, preflight.prompt_length(profile), preflight.TITLE)
    assert need.parameters == 6_658_473_984
    assert guide()[row] == [round(gb, 1) for gb in (need.weights, need.stage2, need.tallrec, need.scoring)]
    assert profile.llm.weights == "fp32" or need.most < 48


def test_a_run_that_has_everything_passes(llm, home, capsys):
    assert preflight.main(["--dataset", "simulated", "--profile", "smoke", "--llm", str(llm)]) == 0
    out = capsys.readouterr().out
    asked = [line.split()[1].rstrip(":") for line in out.splitlines()]
    assert "FAIL" not in out and asked == ["data", "device", "sentence", "LLM", "prompt", "memory", "time", "disk"]
    assert preflight.main(["--dataset", "simulated", "--profile", "smoke"]) == 0  # the small LLM that ships


def failures(**parameters) -> dict[str, preflight.Check]:
    return {c.what: c for c in preflight.checks(**{"dataset": "simulated", "profile": "smoke"} | parameters) if c.ok is False}


def test_too_little_memory_says_how_to_need_less(llm, home, monkeypatch):
    monkeypatch.setattr(preflight, "device_memory", lambda *_: (1e-6, "free memory"))
    found = failures(llm=str(llm))
    assert set(found) == {"memory"} and "llm.weights = bf16; llm.read_at_once = 8; llm.checkpointing = true" in found["memory"].fix
    if not torch.cuda.is_available():
        monkeypatch.undo()
        assert set(failed := failures(llm=str(llm), device="cuda")) == {"device"} and "no CUDA card" in failed["device"].found
    assert "cpu, cuda" in failures(llm=str(llm), device="gpu")["device"].fix


def test_a_card_is_asked_for_its_memory_and_for_how_long(llm, home, monkeypatch):
    devices.cards.cache_clear()
    monkeypatch.setattr(devices, "cards", lambda: [("NVIDIA A100-SXM4-80GB", 8 * 10**10), ("NVIDIA RTX A6000", 10**9)])
    assert preflight.device_memory("cuda", False) == (80.0, "free on NVIDIA A100-SXM4-80GB")
    assert preflight.device_memory("cuda:1", False)[0] == 1.0 and preflight.device_memory("cuda", True)[0] == 81.0
    profile = preflight.load_profile("paper", "beauty")
    on = {device: preflight.duration(profile, "facebook/opt-6.7b", device).found for device in ("cuda", "cuda:1")}
    assert all(found.startswith(tuple("123456789")) and "Stage 2" in found for found in on.values()) and on["cuda"] != on["cuda:1"]
    monkeypatch.setattr(devices, "cards", lambda: [("NVIDIA Something", 1)])
    assert "gpus.csv does not have 'NVIDIA Something'" in preflight.duration(profile, "facebook/opt-6.7b", "cuda").found
    assert preflight.duration(profile, "nobody/knows-this", "cpu").ok is None


def test_scoring_alone_too_large_is_mended_by_reading_fewer_prompts(monkeypatch):
    monkeypatch.setattr(preflight, "device_memory", lambda *_: (24.0, "free memory"))
    profile = preflight.load_profile("paper", "beauty", {"llm.weights": "int8", "llm.checkpointing": True})
    fewer = {"llm.read_at_once": 8}
    found = [{c.what: c for c in preflight.checks("simulated", "paper", "pocket", overrides=o)}["memory"].found for o in ({}, fewer)]
    assert found[0] != found[1]
    need = preflight.Need(10**9, 10**6, weights=7.0, stage2=10.0, tallrec=10.0, scoring=34.0)
    assert "llm.read_at_once = 8" in preflight.memory(need, profile, "cuda").fix


def test_missing_weights_are_named_with_the_command(llm, home, monkeypatch):
    (llm / "model.safetensors").rename(llm / "pytorch_model.bin")
    check = failures(llm=str(llm))["LLM"]
    assert ".bin" in check.found and "save_pretrained" in check.fix
    (llm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    (llm / "pytorch_model.bin").rename(llm / "1.safetensors")
    assert "2.safetensors is not in" in failures(llm=str(llm))["LLM"].found
    (llm / "2.safetensors").write_bytes((llm / "1.safetensors").read_bytes()[:-100])
    assert "the whole of 2.safetensors" in failures(llm=str(llm))["LLM"].found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = failures(llm="nobody/has-this")["LLM"]
    assert "HF_HUB_OFFLINE" in check.found and check.fix.startswith("hf download nobody/has-this")
    assert "is no folder" in failures(llm="/no/such/folder")["LLM"].found
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(preflight, "hub_files", lambda name: ["config.json", "pytorch_model-00001-of-00002.bin"])
    check = failures(llm="nobody/has-this")["LLM"]
    assert "the hub has its weights as .bin" in check.found and "nobody/has-this" in check.fix and "save_pretrained" in check.fix
    monkeypatch.setattr(preflight, "hub_files", lambda name: None)
    assert "does not answer" in preflight.weights("nobody/has-this").found and preflight.weights("nobody/has-this").ok is False
    monkeypatch.setattr(preflight, "hub_files", lambda name: ["config.json", "model.safetensors"])
    assert preflight.weights("nobody/has-this").ok is None


def test_pickled_weights_of_a_sentence_encoder_are_named_with_their_own_command(home, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    check = preflight.weights(str(tmp_path), "sentence encoder", convert=preflight.CONVERT_ENCODER)
    assert "safetensors only" in check.found and "SentenceTransformer" in check.fix and "AutoModel" not in check.fix


def test_missing_data_and_too_long_prompts(llm, home, monkeypatch):
    monkeypatch.delenv("ALLMREC_DATA", raising=False)
    assert "data/raw" in failures(dataset="beauty", llm=str(llm))["data"].found
    assert "one of movielens" in failures(dataset="beuaty", llm=str(llm))["data"].fix
    config = json.loads((llm / "config.json").read_text()) | {"max_position_embeddings": 200}
    (llm / "config.json").write_text(json.dumps(config))
    assert "200 at the most" in failures(llm=str(llm))["prompt"].found
    config |= {"max_position_embeddings": 4096, "sliding_window": 128, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (llm / "config.json").write_text(json.dumps(config))
    assert "128 at the most" in failures(llm=str(llm))["prompt"].found


def test_the_runner_asks_first_and_can_be_told_to_go_on(home, monkeypatch):
    from test_runner import write

    write(home, "01_one.ipynb", "print(llm)")
    told = {"dataset": "simulated", "profile": "smoke", "llm": "/no/such/folder"}
    flags = [part for name, value in told.items() for part in (f"--{name}", value)]
    monkeypatch.delenv("ALLMREC_ANYWAY", raising=False)
    monkeypatch.setattr(runner, "_execute", lambda source, target, parameters: target.parent.mkdir(parents=True, exist_ok=True))
    runner._check_needs.cache_clear()
    assert runner.main(["chapter", "1", *flags]) == 1
    runner._check_needs.cache_clear()
    monkeypatch.setenv("ALLMREC_ANYWAY", "0")
    assert runner.main(["chapter", "1", *flags]) == 1
    runner._check_needs.cache_clear()
    monkeypatch.setenv("ALLMREC_ANYWAY", "1")
    assert runner.main(["chapter", "1", *flags]) == 0


def test_a_folder_that_is_not_there_is_no_hub_name(home):
    for name in ("my models/opt 6.7b", "~/opt", "a/b/c"):
        assert "is no folder, and a hub name (owner/name) it cannot be" in failures(llm=name)["LLM"].found


def test_a_card_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [preflight.card(device).ok for device in ("cuda", "cuda:1", "cuda:2")] == [True, True, False]
    assert preflight.card("cuda:2").fix == "one of cuda:0, cuda:1"


def test_an_llm_that_is_fetched_needs_room_in_the_hubs_cache(home, monkeypatch):
    need, free = needed(tiny_model("opt").config, load_profile("smoke", "simulated"), 100, 20), {"data": 5e9, "cache": 1e9}
    need = replace(need, parameters=10**9)
    kept = SimpleNamespace(data=Path("/data"), cache=Path("/cache"))
    monkeypatch.setattr(preflight, "_existing", lambda folder: kept.data if folder == preflight.data_root() else kept.cache)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder.name]))
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_dev=str(path)))
    ours, hub = preflight.disk(need, True)
    assert ours.ok and not hub.ok and "2.0 GB (the LLM), 1.0 GB free" in hub.found and "HF_HOME" in hub.fix
    monkeypatch.setattr(Path, "stat", lambda path: SimpleNamespace(st_dev=0))
    both, = preflight.disk(need, True)
    assert both.ok and "2.0 for the LLM" in both.found


def test_the_exit_code_is_that_of_the_checks(home):
    command = [sys.executable, "-m", "allmrec_lib.preflight", "--dataset", "simulated", "--llm", "/no/folder"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "FAIL  LLM" in done.stderr
