"""The loop: a run that was interrupted gives the numbers of one that was not; early stopping; batches; the store."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from allmrec_lib import meter, store
from allmrec_lib.store import Store, code_digest
from allmrec_lib.training import autocast, bucketed_batches, fit, seed_for, split_batches


class Line:
    """Fits a line through noise that is drawn anew at each step, so that the order of random numbers matters."""

    def __init__(self, die_at: int | None = None, metrics: list[float] | None = None):
        torch.manual_seed(3)
        self.module, self.n_rows = nn.Linear(1, 1), 50
        self.x = torch.linspace(-1, 1, 50)[:, None]
        self.steps, self.die_at, self.metrics = 0, die_at, metrics

    def parameters(self):
        return [{"params": list(self.module.parameters()), "lr": 0.05}]

    def batches(self, order):
        return split_batches(order, 8)

    def loss(self, rows):
        self.steps += 1
        if self.steps == self.die_at:
            raise KeyboardInterrupt
        x = self.x[rows]
        return ((self.module(x) - 2 * x - 1 + 0.1 * torch.randn_like(x)) ** 2).mean()

    def validate(self):
        if self.metrics is not None:
            return self.metrics.pop(0)
        with torch.no_grad():
            return -float(((self.module(self.x) - 2 * self.x - 1) ** 2).mean())


def run(task, **options):
    return fit(task, **({"epochs": 6, "patience": 6, "seed": 1} | options))


@pytest.mark.parametrize("die_at", [1, 5, 7, 8, 20, 41])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, die_at):
    whole, broken = Line(), Line(die_at)
    expected = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(broken, folder=tmp_path, checkpoint_s=0.0)
    resumed = Line()
    history = run(resumed, folder=tmp_path, checkpoint_s=0.0)
    assert resumed.steps < whole.steps or die_at == 1
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    drop = [{k: v for k, v in r.items() if k != "seconds"} for r in expected.rows]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in history.rows] == drop


class Table(Line):
    """A line through what a table held at the start of its epoch, as RECFORMER trains against one of items."""

    def __init__(self, die_at: int | None = None):
        super().__init__(die_at)
        self.module.register_buffer("table", torch.zeros(1))

    def begin_epoch(self):
        self.module.table.copy_(self.module.weight.detach()[0])

    def loss(self, rows):
        return super().loss(rows) + (self.module.weight * self.module.table).sum()


@pytest.mark.parametrize("die_at", [5, 8, 20])
def test_a_table_of_the_epoch_s_beginning_is_resumed_too(tmp_path, die_at):
    whole, resumed = Table(), Table()
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(Table(die_at), folder=tmp_path, checkpoint_s=0.0)
    run(resumed, folder=tmp_path, checkpoint_s=0.0)
    assert torch.equal(whole.module.weight, resumed.module.weight) and float(whole.module.table) != 0


def test_a_loss_is_the_mean_of_the_epochs_since_the_last_evaluation():
    task = Line()
    task.loss = lambda rows: task.module.weight.sum() * 0 + 1.0
    history = run(task, epochs=8, eval_every=3)
    assert [(row["epoch"], row["loss"]) for row in history.rows] == [(3, 1.0), (6, 1.0), (8, 1.0)]


def test_early_stopping_keeps_the_best_weights():
    task = Line(metrics=[0.1, 0.5, 0.4, 0.3, 0.9])
    history = run(task, patience=2)
    assert (history.best, history.best_epoch, len(history.rows)) == (0.5, 2, 4)
    other = Line(metrics=[0.1, 0.5])
    run(other, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(task.module.parameters(), other.module.parameters(), strict=True))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 99))
def test_batches_hold_every_row_once(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    order, lengths = torch.randperm(rows, generator=generator), torch.randint(1, 50, (rows,), generator=generator)
    for batches in (split_batches(order, size), bucketed_batches(order, size, lengths)):
        assert sorted(torch.cat(batches).tolist()) == list(range(rows))
        assert max(len(b) for b in batches) <= size


def test_bucketed_batches_have_little_padding():
    generator = torch.Generator().manual_seed(0)
    order, lengths = torch.randperm(2000, generator=generator), torch.randint(1, 100, (2000,), generator=generator)

    def cells(batches):
        return sum(len(b) * int(lengths[b].max()) for b in batches)

    assert cells(bucketed_batches(order, 16, lengths)) < 0.65 * cells(split_batches(order, 16))


def test_seeds_and_precision():
    assert seed_for(1, 2) == seed_for(1, 2) != seed_for(2, 1)
    with pytest.raises(ValueError, match="one of auto, bf16, fp32"):
        autocast("cpu", "fp16")


def test_the_store_makes_once_and_finds_again(tmp_path):
    store, made = Store(tmp_path), []

    def make(folder):
        made.append(folder)
        (folder / "x").write_text("1")

    first = store.get("thing", {"a": 1}, make)
    assert store.get("thing", {"a": 1}, make) == first and len(made) == 1
    assert store.get("thing", {"a": 2}, make) != first and len(made) == 2
    assert (first / "x").read_text() == "1" and not list(tmp_path.glob("*.partial"))


def test_no_checkpoint_stays_in_an_artifact(tmp_path):
    def make(folder):
        for part in (folder, folder / "stage1"):
            part.mkdir(exist_ok=True)
            (part / "checkpoint.pt").write_text("much")
        (folder / "stage1" / "history.json").write_text("{}")

    folder = Store(tmp_path).get("model", {}, make)
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert kept == {"cost.json", "manifest.json", "stage1/history.json"}


def test_a_failed_make_leaves_its_checkpoint_and_no_artifact(tmp_path):
    store = Store(tmp_path)

    def fails(folder):
        (folder / "checkpoint.pt").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.get("thing", {}, fails)
    assert not store.folder("thing", {}).exists()
    seen = []
    store.get("thing", {}, lambda folder: seen.append((folder / "checkpoint.pt").read_text()))
    assert seen == ["half"] and not (store.folder("thing", {}) / "checkpoint.pt").exists()


KILLED = """
import sys, time, pathlib
from allmrec_lib.store import Store
def make(folder):
    (folder / "checkpoint.pt").write_text("half")
    print("started", flush=True)
    time.sleep(60)
Store(pathlib.Path(sys.argv[1])).get("thing", {}, make)
"""


def test_a_killed_process_does_not_block_the_next(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.wait()
    begin, seen = time.monotonic(), []
    Store(tmp_path).get("thing", {}, lambda folder: seen.append((folder / "checkpoint.pt").read_text()))
    assert seen == ["half"] and time.monotonic() - begin < 5


@pytest.mark.skipif(meter._TRIM is None, reason="the C library is not glibc")
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) // 2**10 for line in status if line.startswith("VmRSS"))

    pieces = [np.ones(12_000) for _ in range(3000)]  # 96 kB each, below what is given back by itself
    kept = pieces[::100]
    del pieces
    before = resident()
    meter.give_back_memory(every_s=3600)
    assert resident() > before - 50  # not yet
    meter.give_back_memory(every_s=0)
    assert resident() < before - 200 and kept[-1].all()


def test_dropout_is_on_in_training_and_off_in_validation():
    task, seen = Line(), []
    loss, validate = task.loss, task.validate
    task.loss = lambda rows: seen.append(("loss", task.module.training)) or loss(rows)
    task.validate = lambda: seen.append(("validate", task.module.training)) or validate()
    run(task, epochs=2, evaluate_start=True)
    assert set(seen) == {("loss", True), ("validate", False)} and not task.module.training


def test_the_start_is_a_candidate_once(tmp_path):
    task = Line(metrics=[0.9, 0.1, 0.2])
    start = copy.deepcopy(task.module.state_dict())
    history = run(task, epochs=2, evaluate_start=True, folder=tmp_path)
    assert (history.best_epoch, [r["epoch"] for r in history.rows]) == (0, [0, 1, 2])
    assert all(torch.equal(start[n], p) for n, p in task.module.state_dict().items())
    again = run(Line(metrics=[0.3]), epochs=3, evaluate_start=True, folder=tmp_path)
    assert [r["epoch"] for r in again.rows] == [0, 1, 2, 3]


def test_patience_goes_on_after_an_interruption(tmp_path):
    run(Line(metrics=[0.5, 0.4, 0.3]), epochs=3, patience=3, folder=tmp_path)
    history = run(Line(metrics=[0.2, 0.9]), epochs=9, patience=3, folder=tmp_path)
    assert [r["metric"] for r in history.rows] == [0.5, 0.4, 0.3, 0.2]


def test_every_epoch_has_an_order_of_its_own_and_weights_decay():
    task, orders = Line(), []
    loss = task.loss
    task.loss = lambda rows: orders.append(rows.tolist()) or loss(rows)
    run(task, epochs=2)
    assert sum(orders[:7], []) != sum(orders[7:], []) and sorted(sum(orders[:7], [])) == list(range(50))
    plain, decayed = Line(), Line()
    run(plain, epochs=2), run(decayed, epochs=2, weight_decay=1.0)
    assert not torch.equal(plain.module.weight, decayed.module.weight)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    run(Line(), epochs=1, folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(state, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        run(Line(), epochs=3, folder=tmp_path, checkpoint_s=0.0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_digest_is_of_the_source(monkeypatch):
    expected = hashlib.sha256(Path(store.__file__).read_bytes())
    assert code_digest("store") == expected.hexdigest()[:12]


def test_two_that_ask_at_once_make_it_once(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        time.sleep(0.5)
        (folder / "x").write_text("1")

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: Store(tmp_path).get("thing", {}, make), range(2)))
    assert len(made) == 1 and folders[0] == folders[1] and (folders[0] / "x").exists()
