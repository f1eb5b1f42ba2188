"""Two processes give the numbers of one, rows neither lost nor doubled; LLMs in other precisions, recomputed layers."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TITLES, byte_tokenizer, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from allmrec_lib import shares, train
from allmrec_lib.config import LLMConfig
from allmrec_lib.llm.backbone import load_backbone
from allmrec_lib.shares import Share

WORKER = Path(__file__).with_name("multi_worker.py")
TRAINED = ["SASRec", "ce", "NCF", "MoRec", "Stage 1", "Stage 2", "TALLRec"]


def launched(processes: int, *program: str, **environment: str) -> subprocess.Popen:
    """One process, or several over gloo, by what ``accelerate launch --multi_gpu`` starts them with too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    settings = {"OMP_NUM_THREADS": "1", "ALLMREC_QUIET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, *(launch if processes > 1 else []), *program], env=os.environ | settings | environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    out = process.communicate(timeout=600)[0]
    assert process.returncode == 0, out[-4000:]
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What one process found, and what the first and the second of two did."""
    folders = [tmp_path_factory.mktemp(f"processes{n}") for n in (1, 2)]
    running = [launched(n, str(WORKER), str(folder)) for n, folder in enumerate(folders, 1)]
    for process in running:
        finished(process)
    assert not (folders[1] / "SASRec" / "checkpoint.partial").exists() and (folders[1] / "SASRec" / "checkpoint.pt").exists()
    found = [torch.load(folders[n > 0] / f"out-{max(n - 1, 0)}.pt") for n in range(3)]
    for n, name in itertools.product(range(3), ("SASRec", "ce", "Stage 2", "TALLRec")):
        last = torch.load(folders[n > 0] / name / "checkpoint.pt")["module"]  # the best may be the untrained start
        found[n][name]["weights"] |= {f"{key} at the end": weight for key, weight in last.items()}
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_train_as_one(results, name):
    """Weights, losses and metrics, with dropout on, batches whose shares differ in size and a last batch of few rows."""
    one, *two = (found[name] for found in results)
    for other in two:
        torch.testing.assert_close(other["history"], one["history"], rtol=1e-6, atol=1e-6)  # losses are fp32
        assert other["weights"].keys() == one["weights"].keys()
        for key, weight in one["weights"].items():
            torch.testing.assert_close(other["weights"][key], weight, rtol=0, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ["SASRec", "NCF", "MoRec", "Stage 1", "Stage 2"])
def test_scores_are_gathered_in_order(results, name):
    one, *two = (found[name]["scores"] for found in results)
    assert len(one.unique(dim=0)) > len(one) / 2, "rows that differ, so that their order is seen"
    for other in two:
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_the_command_trains_what_a_chapter_finds(home):
    """Two processes make the artifact and the scores under the names that one process looks them up by."""
    said = finished(launched(2, "-m", "allmrec_lib.train", "SASRec", "--dataset", "simulated", "--profile", "smoke",
                             "--set", "sasrec.epochs=1"))  # fmt: skip
    assert said.count("SASRec: ") == 1 and "2 processes" in said
    made = sorted((home / "data" / "artifacts").iterdir())
    stamps = [path.stat().st_mtime_ns for path in made]
    assert train.main(["SASRec", "--dataset", "simulated", "--profile", "smoke", "--set", "sasrec.epochs=1"]) == 0
    assert sorted((home / "data" / "artifacts").iterdir()) == made and [p.stat().st_mtime_ns for p in made] == stamps
    assert not any(path.suffix in (".partial", ".lock") for path in made)


def test_a_wrong_command_is_an_error(home, capsys):
    assert train.main(["SASRec", "--dataset", "simulated", "--set", "sasrec.epochs"]) == 1
    assert train.main(["SASRec", "--dataset", "simulated", "--set", "sasrec.epoch=1"]) == 1
    assert "did you mean 'epochs'" in capsys.readouterr().err


def as_process(monkeypatch, number: int, count: int) -> None:
    monkeypatch.setattr(shares, "count", lambda: count)
    monkeypatch.setattr(shares, "number", lambda: number)


@given(st.integers(1, 40), st.integers(1, 9))
def test_shares_are_all_rows_once(rows, processes):
    with pytest.MonkeyPatch.context() as patch:
        taken = []
        for number in range(processes):
            as_process(patch, number, processes)
            taken.append(Share.of_batch(rows).of(torch.arange(rows)).tolist())
    if rows < processes:
        assert taken == [list(range(rows))] * processes
    else:
        assert sum(taken, []) == list(range(rows)) and max(map(len, taken)) - min(map(len, taken)) <= 1


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 99))
def test_weighed_means_have_the_mean_of_the_batch(rows, processes, seed):
    """Over terms of which rows have unequal counts."""
    generator = torch.Generator().manual_seed(seed)
    terms = [torch.rand(int(n), generator=generator) for n in torch.randint(1, 5, (rows,), generator=generator)]
    with pytest.MonkeyPatch.context() as patch:
        parts = []
        for number in range(processes):
            as_process(patch, number, processes)
            share = Share.of_batch(rows)
            own = torch.cat(terms[share.rows])
            parts.append(share.weigh(own.mean(), len(own), sum(map(len, terms))))
    torch.testing.assert_close(torch.stack(parts).mean(), torch.cat(terms).mean())


@pytest.mark.parametrize("layer", ["rows", "heads", "attention", "causal"])
def test_dropout_of_a_share_is_that_of_the_batch(monkeypatch, layer):
    x = torch.randn(7, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    calls = {
        "rows": lambda t: F.dropout(t, 0.4),
        "heads": lambda t: F.dropout(t.flatten(0, 1), 0.4).unflatten(0, t.shape[:2]),
        "attention": lambda t: F.scaled_dot_product_attention(t, t, t, dropout_p=0.3),
        "causal": lambda t: F.scaled_dot_product_attention(t, t, t, is_causal=True, dropout_p=0.3),
    }
    torch.manual_seed(5)
    whole, after = calls[layer](x), torch.rand(1)
    for number in range(3):
        as_process(monkeypatch, number, 3)
        share = Share.of_batch(7)
        torch.manual_seed(5)
        with share:
            own = calls[layer](share.of(x))
        torch.testing.assert_close(own, share.of(whole))
        assert torch.equal(torch.rand(1), after), "as many numbers were drawn"


@pytest.fixture(params=["opt", "llama"])
def llm(request, tmp_path) -> str:
    tiny_model(request.param).float().save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    return str(tmp_path / "llm")


def answered(backbone, grad: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    embeds = backbone.embedding(torch.tensor([backbone.encode(TITLES[4] * 3)])).float().detach().requires_grad_(grad)
    logits = backbone.logits(backbone.hidden(embeds)[:, -1])
    if grad:
        logits.logsumexp(-1).sum().backward()
    return logits.detach(), embeds.grad


def test_recomputed_layers_change_no_number_and_keep_less(llm):
    plain, lean = load_backbone(llm), load_backbone(llm, settings=LLMConfig(checkpointing=True))
    for a, b in zip(answered(plain), answered(lean), strict=True):
        assert torch.equal(a, b)
    ran = []
    for layer in lean.model.modules():
        layer.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
    answered(lean)
    attention = [name for name in ran if name.endswith("Attention")]
    assert len(attention) == 4, "two layers, forward and again for the backward pass"
    with torch.no_grad():
        ran.clear()
        answered(lean, grad=False)
    assert len([name for name in ran if name.endswith("Attention")]) == 2


def test_bf16_and_device_map_auto(llm):
    plain = load_backbone(llm)
    half = load_backbone(llm, settings=LLMConfig(weights="bf16"))
    assert half.embedding.weight.dtype == torch.bfloat16 and half.mark != plain.mark
    expected, logits = answered(plain)[0], answered(half)[0]
    assert logits.dtype == torch.float32 and not torch.equal(expected, logits)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.1 * float(expected.std()))
    spread = load_backbone(llm, settings=LLMConfig(device_map="auto"))
    assert spread.mark == plain.mark and torch.equal(answered(spread)[0], expected)


def test_adapters_on_bf16_learn_in_fp32(llm):
    from allmrec_lib.config import TALLRecConfig
    from allmrec_lib.tallrec import with_adapters

    model = with_adapters(load_backbone(llm, settings=LLMConfig(weights="bf16")).model, TALLRecConfig())
    learning = [p for p in model.parameters() if p.requires_grad]
    assert learning and {p.dtype for p in learning} == {torch.float32}


def test_what_is_not_there_is_an_error_that_names_the_fix(llm, monkeypatch):
    with pytest.raises(ValueError, match="one of fp32, bf16, int8"):
        load_backbone(llm, settings=LLMConfig(weights="int4"))
    monkeypatch.setattr("allmrec_lib.llm.backbone.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        load_backbone(llm, settings=LLMConfig(weights="int8"))
    monkeypatch.setattr("allmrec_lib.processes.count", lambda: 2)
    with pytest.raises(ValueError, match="leave one"):
        load_backbone(llm, settings=LLMConfig(device_map="auto"))


def test_processes_are_together_before_an_llm_is_loaded(monkeypatch):
    """With cards, this is what gives each process its own; on CPUs the cards of the machine are left alone."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    order = []
    monkeypatch.setattr("allmrec_lib.processes.together", lambda: order.append(os.environ["ACCELERATE_USE_CPU"]))
    monkeypatch.setattr(train, "Experiment", lambda *_: order.append("experiment"))
    monkeypatch.setattr(train, "train", lambda *_: None)
    monkeypatch.setattr(train, "passed", lambda **asked: asked["device"] == "cuda")
    for options, cpu in ((["--device", "cuda"], "false"), ([], "true")):
        order.clear()
        assert train.main(["A-LLMRec", *options]) == 0
        assert order[0] == cpu and order[-1] == "experiment" and order.count("experiment") == 1
    assert train.main(["A-LLMRec", "--llm", "/data/llm"]) == 1  # what it needs is not here
    assert train.main(["SASRec", "--llm", "/data/llm"]) == 0  # which needs no LLM
    monkeypatch.setattr(train, "passed", lambda **asked: asked["overrides"] == {"llm.weights": "int8"})
    assert train.main(["A-LLMRec", "--llm", "/data/llm", "--set", "llm.weights=int8"]) == 0  # what is asked for is what is checked


class EightBit(torch.nn.Module):
    """As bitsandbytes has it: the first call takes codes and scales from the weight into a state of the module."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6).reshape(2, 3).to(torch.int8), requires_grad=False)
        self.weight.CB, self.weight.SCB = self.weight.data, torch.tensor([[0.5], [0.25]])
        self.state = SimpleNamespace(CB=None, SCB=None)

    def init_8bit_state(self):
        self.state.CB, self.state.SCB = self.weight.CB, self.weight.SCB
        self.weight.CB = self.weight.SCB = None

    def forward(self, x):
        if self.weight.CB is not None:
            self.init_8bit_state()
        return x @ (self.state.CB * self.state.SCB).T


def test_a_twin_in_8_bits_shares_codes_and_scales(llm):
    backbone = load_backbone(llm)
    backbone.model.added = EightBit()
    twin, x = backbone.twin(), torch.ones(1, 3)
    assert torch.equal(twin.model.added(x), backbone.model.added(x)) and float(twin.model.added(x)[0, 0]) == 1.5
    assert twin.model.added.state.CB is backbone.model.added.state.CB


def test_an_llm_is_found_offline_in_a_folder_or_not_at_all(llm):
    """Nothing is asked of the hub: the folder loads, a hub name that is not in the cache is an error that says what to do."""
    program = "import sys; from allmrec_lib.llm.backbone import load_backbone; load_backbone(sys.argv[1])"
    assert finished(launched(1, "-c", program, llm, HF_HUB_OFFLINE="1")) is not None
    lost = launched(1, "-c", program, "nobody/has-this", HF_HUB_OFFLINE="1")
    assert "Give a folder that holds config.json" in lost.communicate()[0] and lost.returncode == 1
