"""What a run costs: hours and GB for a profile, a dataset, an LLM and a GPU, from constants that the benchmarks measured.

    python -m allmrec_lib.cost --profile paper --dataset beauty --gpu "A6000"
    python -m allmrec_lib.cost_page        # book/appendix/cost.md

Time is arithmetic over what the device does of it, and never less than what calling the operations takes. Work is counted
from shapes; ``data/results/cost.json`` (`make bench`) says how much of its peak this machine reached, how many tokens a
prompt has and what a forward pass keeps; ``data/gpus.csv`` says what GPUs are sold as, and ``data/results/card.json``
(`make bench-paper`) what one of them reached.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .config import ConfigError, Profile, load_profile
from .paths import shipped
from .speed import number, recorded, table
from .work import LLMS, Shape, answer_flops, encoder_flops, encoder_shape, step_flops

CONTEXT_GB = 0.6  # what CUDA and its libraries take before any tensor


class CostError(ValueError):
    """A GPU, an LLM or a dataset of which nothing is known; the message names those of which something is."""


@dataclass(frozen=True)
class Device:
    """``shares``: how much of ``tflops`` an LLM's training ("train"), its answers ("answer") and a sentence encoder's training
    ("encoder") reach; ``call_s``: what a call takes at least (0 on a CPU, whose shares have it in them)."""

    name: str
    memory_gb: float
    tflops: float
    gb_s: float
    shares: dict[str, float]
    call_s: float
    bytes: int

    def seconds(self, kind: str, flops: float, calls: float = 0.0, read_gb: float = 0.0) -> float:
        """The longest of arithmetic, reading and calling: a GPU does them at once."""
        return max(flops / (self.tflops * 1e12 * self.shares[kind]), read_gb / self.gb_s, calls * self.call_s)


@dataclass(frozen=True)
class Size:
    """What a dataset's cost depends on."""

    users: int
    items: int
    interactions: int


def constants() -> dict[str, Any]:
    """What the benchmarks measured. Raises CostError where they were not run."""
    path = shipped("data/results/cost.json")
    if not path.exists():
        raise CostError(f"{path.name} is not there: run `make bench`, which measures the constants")
    return json.loads(path.read_text())


def _nearest(what: str, name: str, known: dict[str, Any]) -> Any:
    """The entry whose name is, or contains, ``name``."""
    found = [key for key in known if key.lower() == name.lower()] or [key for key in known if name.lower() in key.lower()]
    if len(found) != 1:
        near = found or difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise CostError(f"unknown {what} {name!r}{hint} (known: {', '.join(known)})")
    return known[found[0]]


def device_named(name: str) -> Device:
    """A GPU of ``data/gpus.csv``, or "cpu": one like that on which the constants were measured."""
    if name == "cpu":
        measured, memory = constants(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        return Device(measured["device"], memory, measured["gflops"] / 1e3, measured["gb_s"], measured["shares"], 0.0, 4)
    sold = pd.read_csv(shipped("data/gpus.csv")).set_index("name", drop=False)
    return _gpu(_nearest("GPU", name, {row.name: row for row in sold.itertuples(index=False)}), sold["bf16_tflops"])


def _is(name: str, device: str) -> bool:
    """Whether a name of ``data/gpus.csv`` ("A100 80GB") is a device as its driver calls it ("NVIDIA A100-SXM4-80GB")."""
    return set(re.split(r"[\s-]+", name)) <= set(re.split(r"[\s-]+", device))


def measured_card(name: str = "") -> dict[str, Any] | None:
    """The row of ``card.json`` that was measured on a GPU of ``data/gpus.csv`` (no name: on any), with the largest LLM; None
    where none was."""
    found = [row for row in recorded("card") if not name or _is(name, row["device"])]
    return max(found, key=lambda row: LLMS[row["llm"]].parameters, default=None)


def sold_as(device: str) -> str:
    """The name in ``data/gpus.csv`` of a device as its driver calls it. Raises CostError where the file has none."""
    names = [name for name in pd.read_csv(shipped("data/gpus.csv"))["name"] if _is(name, device)]
    if not names:
        raise CostError(f"data/gpus.csv does not have {device!r}; add it there")
    return max(names, key=len)


def _gpu(sold: Any, tflops: pd.Series) -> Device:
    """A row of ``data/gpus.csv``, all of whose TFLOP/s are ``tflops``. What it reaches of its peak, and what a call takes, is
    what was measured on it, or else on another one; of the sentence encoder that was not measured: as of the LLM."""
    if (card := measured_card(sold.name) or measured_card()) is None:
        raise CostError("card.json is not there: run `make bench-paper DEVICE=cuda` on a GPU, which measures what it reaches")
    peak = 1e3 * next((value for name, value in tflops.items() if _is(name, card["device"])), 0.0)
    if not peak:
        raise CostError(f"card.json was measured on {card['device']!r}, which data/gpus.csv does not have; add it there")
    shares = {kind: reached / peak for kind, reached in card["reached"].items()}
    call = card["sasrec_step_s"] / constants()["calls"]["SASRec training"]
    return Device(sold.name, sold.memory_gb, sold.bf16_tflops, sold.gb_s, shares | {"encoder": shares["train"]}, call, 2)


def size_named(name: str, measured: dict[str, Any]) -> Size:
    """A dataset that was measured here, or one of the paper's Table 2."""
    paper = pd.read_csv(shipped("data/paper") / "table_02.csv")
    paper = paper.pivot_table(index="dataset", columns="metric", values="value")
    known = {key: Size(int(r["users"]), int(r["items"]), int(r["interactions"])) for key, r in paper.iterrows()}
    known |= {key: Size(*value) for key, value in measured["sizes"].items()}
    return _nearest("dataset", name, known)


def counted(values: dict[str, Any], dataset: str) -> tuple[Any, str | None]:
    """What was counted for a dataset; where nothing was, what was for another one, and that one's name."""
    if dataset in values:
        return values[dataset], None
    stands_in = "beauty" if "beauty" in values else next(iter(values))
    return values[stands_in], stands_in


def prompt_tokens(dataset: str, llm: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Tokens of a prompt, of figure 6's, of an answer and of the longest prompt; ``of``: the dataset that stands in, if any."""
    values, stands_in = counted(measured["tokens"]["pocket" if llm == "pocket" else "gpt2"], dataset)
    return {**values, "of": stands_in}


def llm_phases(profile: Profile, llm: Shape, size: Size, device: Device, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Stage 2 and TALLRec, each trained and asked for all test rows."""
    count = prompt_tokens(profile.dataset, llm.name, measured)
    calls = {name: value * llm.layers / LLMS["pocket"].layers for name, value in measured["calls"].items()}
    weights = llm.parameters * device.bytes / 1e9
    found = []
    for label, part, prompt, kind in (("Stage 2", profile.stage2, count["prompt"], "Stage 2"),
                                      ("TALLRec", profile.tallrec, count["text_only"], "TALLRec training")):  # fmt: skip
        step = device.seconds("train", part.batch_size * step_flops(llm, prompt, count["answer"]), calls[kind], 2 * weights)
        answered = {batch: device.seconds("answer", batch * answer_flops(llm, prompt, count["answer"]),
                                          calls["inference: score"], 2 * weights) / batch
                    for batch in (part.batch_size, profile.llm.read_at_once)}  # fmt: skip
        every = size.interactions - 3 * size.users if part.all_items else size.users
        rows, held = min(part.max_rows or every, every), min(part.eval_users or size.users, size.users)
        tested = profile.data.max_test_users or size.users
        kept = measured["kept_floats"] * llm.layers * llm.hidden * count["longest"] * part.batch_size
        cache = 2 * llm.layers * llm.width * (count["longest"] + 20 * count["answer"]) * profile.llm.read_at_once
        fixed = weights + (CONTEXT_GB if device.call_s else 0.0)
        found += [
            {"phase": label, "rows": rows * part.epochs, "seconds": part.epochs * rows / part.batch_size * step,
             "validation_s": (1 + part.epochs // part.eval_every) * held * answered[part.batch_size],
             "gb": fixed + kept * device.bytes / 1e9},
            {"phase": f"{'A-LLMRec' if label == 'Stage 2' else label}: test", "rows": tested,
             "seconds": tested * answered[profile.llm.read_at_once], "validation_s": 0.0, "gb": fixed + cache * device.bytes / 1e9},
        ]  # fmt: skip
    return found


def cf_step(positions: float, parameters: float, measured: dict[str, Any]) -> float:
    """Seconds of one of SASRec's steps on the measured CPU: calls, positions, and Adam over the parameters."""
    fit = measured["sasrec"]
    return fit["step_s"] + fit["position_s"] * positions + fit["parameter_s"] * parameters


def cf_phase(profile: Profile, size: Size, device: Device, measured: dict[str, Any]) -> dict[str, Any]:
    """SASRec to its last epoch (it stops earlier as a rule)."""
    part = profile.sasrec
    steps, checks = size.users / part.batch_size * part.epochs, part.epochs / part.eval_every
    window = min(max(size.interactions / size.users - 3, 1.0), part.max_len)
    if device.call_s == 0:
        step = cf_step(part.batch_size * window, size.items * part.dim, measured)
        each = measured["evaluation_s"]
    else:
        step, each = (
            measured["calls"][name] * device.call_s / rows for name, rows in (("SASRec training", 1), ("evaluation", 1024))
        )
    gb = 4e-9 * (4 * size.items * part.dim + 40 * part.batch_size * part.max_len * part.dim)
    return {"phase": "SASRec", "rows": int(size.users * part.epochs), "seconds": steps * step,
            "validation_s": checks * size.users * each, "gb": gb + (CONTEXT_GB if device.call_s else 0.0)}  # fmt: skip


def stage1_phase(profile: Profile, size: Size, device: Device, measured: dict[str, Any]) -> dict[str, Any]:
    part = profile.stage1
    tokens = min(counted(measured["text_tokens"], profile.dataset)[0], part.max_text_tokens)
    flops = encoder_flops(part.encoder, part.train_layers, tokens)
    rows = size.interactions - 3 * size.users if part.all_items else size.users
    step = device.seconds("encoder", part.batch_size * flops, measured["calls"]["Stage 1"])
    layers, hidden = encoder_shape(part.encoder)
    kept = (
        1.5 * measured["kept_floats"] * layers * hidden * part.max_text_tokens * part.batch_size
    )  # weights learn: inputs stay
    gb = 4e-9 * (4 * 12 * layers * hidden**2 + kept)
    held = device.seconds("encoder", min(2000, size.users) * flops / 3)
    return {"phase": "Stage 1", "rows": rows * part.epochs, "seconds": part.epochs * rows / part.batch_size * step,
            "validation_s": part.epochs * held, "gb": gb + CONTEXT_GB}  # fmt: skip


def disk(profile: Profile, llm: Shape, size: Size, measured: dict[str, Any]) -> dict[str, float]:
    """GB on disk: weights as they are fetched (16 bits), the dataset as Parquet, trained artifacts; no raw downloads."""
    learned = 4 * (profile.sasrec.dim + profile.stage1.dim + 2 * llm.embedding) * llm.embedding  # F_U and F_I
    vectors = 4 * size.items * (2 * profile.stage1.dim + 3 * profile.sasrec.dim)
    scores = 4 * 20 * size.users
    return {"weights": 2 * llm.parameters / 1e9, "dataset": measured["parquet_bytes"] * size.interactions / 1e9,
            "artifacts": (learned + vectors + 4 * scores) / 1e9}  # fmt: skip


def predict(profile: Profile, llm: str, gpu: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """A row a phase (phase, rows, seconds, validation_s, gb), and GB on disk by what lies there.

    Raises CostError for an LLM, a GPU or a dataset of which nothing is known.
    """
    measured = constants()
    shape, device = _nearest("LLM", llm.rpartition("/")[2], LLMS), device_named(gpu)
    size = size_named(profile.dataset, measured)
    phases = [cf_phase(profile, size, device, measured), stage1_phase(profile, size, device, measured),
              *llm_phases(profile, shape, size, device, measured)]  # fmt: skip
    return pd.DataFrame(phases), disk(profile, shape, size, measured)


def hours(phases: pd.DataFrame) -> float:
    return float((phases["seconds"] + phases["validation_s"]).sum() / 3600)


def checks(measured: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predicted and measured seconds of what ran on the measured machine: whole runs, and the LLMs' and Stage 1's steps in
    ``rows`` (of ``bench.json``), predicted from the share of the peak that other runs reached."""
    found, peak = list(measured["checks"]), measured["gflops"] * 1e9
    for row in (
        r
        for r in rows
        if r["device"] == measured["device"]
        and r["llm"] != "pocket"
        and r["what"] in ("A-LLMRec over TALLRec: training", "Stage 1")
    ):
        if row["what"] == "Stage 1":
            tokens = min(measured["text_tokens"][row["dataset"]], row["max_text_tokens"])
            flops = encoder_flops("all-MiniLM-L6-v2", row["train_layers"], tokens) / (peak * measured["shares"]["encoder"])
            found.append({"what": f"Stage 1, {row['train_layers']} layers learning, 100 rows", "dataset": row["dataset"],
                          "predicted_s": 100 * flops, "measured_s": 100 / row["ours"]})  # fmt: skip
            continue
        for side, label in (("ours", "A-LLMRec"), ("theirs", "TALLRec")):
            count = prompt_tokens(row["dataset"], row["llm"], measured)
            prompt = count["prompt" if side == "ours" else "text_only"]
            flops = step_flops(LLMS[row["llm"]], prompt, count["answer"]) / (peak * measured["shares"]["train"])
            found.append({"what": f"{label} at {row['llm']}, a training row", "dataset": row["dataset"], "predicted_s": flops,
                          "measured_s": 1 / row[side]})  # fmt: skip
    return found


def card_checks(card: dict[str, Any], gpu: str) -> list[dict[str, Any]]:
    """Predicted and measured seconds of a whole run on a measured GPU: training rows, and as many validated before and after."""
    run, measured, device = card["run"], constants(), device_named(gpu)
    count, shape = prompt_tokens(run["dataset"], card["llm"], measured), LLMS[card["llm"]]
    trained = run["rows"] * step_flops(shape, count["prompt"], count["answer"])
    answered = 2 * run["rows"] * answer_flops(shape, count["prompt"], count["answer"])
    predicted = device.seconds("train", trained) + device.seconds("answer", answered)
    return [{"what": f"Stage 2, {run['rows']} rows and their validation, twice", "dataset": run["dataset"],
             "predicted_s": predicted, "measured_s": run["seconds"]}]  # fmt: skip


def report(profile: Profile, llm: str, gpu: str) -> str:
    """The answer to the command line, as Markdown."""
    phases, place = predict(profile, llm, gpu)
    device = device_named(gpu)
    most, spent = phases["gb"].max(), phases[["seconds", "validation_s"]].sum() / 3600
    lines = [[r.phase, f"{r.rows:,}", number(r.seconds / 3600), number(r.validation_s / 3600), f"{r.gb:.1f}"]
             for r in phases.itertuples()]  # fmt: skip
    lines.append(["all", "", number(spent["seconds"]), number(spent["validation_s"]), f"{most:.1f}"])
    fits = "fits" if most <= device.memory_gb else "does NOT fit"
    stands_in = prompt_tokens(profile.dataset, llm.rpartition("/")[2], constants())["of"]
    parts = ", ".join(f"{name} {value:.2f}" for name, value in place.items())
    said = [f"{profile.name} profile, {profile.dataset}, {llm}, {device.name}: {hours(phases):.1f} hours at most, "
            f"{most:.1f} of {device.memory_gb:.0f} GB ({fits}), {sum(place.values()):.1f} GB of disk ({parts}).\n",
            table(["phase", "rows", "hours", "and of validation", "GPU memory, GB"], lines)]  # fmt: skip
    note = f"\nThis dataset's titles were not counted: those of `{stands_in}` stand for them.\n"
    return "\n".join(said) + (note if stands_in else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("profile", "paper"), ("dataset", "beauty"), ("llm", "facebook/opt-6.7b"), ("gpu", "A6000")):
        parser.add_argument(f"--{name}", default=default)
    args = parser.parse_args(arguments)
    try:
        print(report(load_profile(args.profile, args.dataset), args.llm, args.gpu))
    except (CostError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
