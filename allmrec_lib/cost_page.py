"""The page *What will it cost me?*, written from :mod:`allmrec_lib.cost`'s predictions and what was measured.

python -m allmrec_lib.cost_page        # book/appendix/cost.md
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import pandas as pd

from . import cost
from .config import load_profile
from .paths import project_root, shipped
from .speed import number, recorded, table, write_page

LLM, DATASETS = "opt-6.7b", ("beauty", "toys", "video_games", "movies_and_tv")
HEAD = """# What will it cost me?

Hours and GB for a profile, a dataset, an LLM and a GPU, before anything is loaded:

```bash
python -m allmrec_lib.cost --profile paper --dataset beauty --gpu "A6000"
python -m allmrec_lib.cost --profile laptop --dataset movielens --llm pocket --gpu cpu
```

The work is counted from the models' shapes. Constants come from `make bench`: tokens a prompt, numbers kept for the backward
pass, calls a step, and, for a CPU, the share of its peak that a step reaches. Epochs are counted to the profile's last, while
training stops earlier as a rule; what a GPU reaches is an estimate, and the tables of errors below say how good.

Hours on a GPU rest on what `data/gpus.csv` says each is sold as. How much of that is reached ({train:.0%} in training,
{answer:.0%} in answers) and what a call takes ({call:.1f} µs) was measured on {measured}, and is taken to be the same on the
others. The last table but one compares with what the paper measured on its GPU.
"""
LATE = """The run was made with cuDNN's attention first, which plans anew for most batches ([how long that takes](speed)). The
library has put flash attention first since; the run was not repeated.
"""


def grid(gpus: pd.DataFrame) -> str:
    """A-LLMRec from SASRec to its test answers, the `paper` profile: hours by dataset and GPU."""
    lines = []
    for name in gpus["name"]:
        cells, most = [], 0.0
        for dataset in DATASETS:
            phases, _ = cost.predict(load_profile("paper", dataset), LLM, name)
            ours = phases[~phases["phase"].str.startswith("TALLRec")]
            cells.append(number(cost.hours(ours)))
            most = max(most, ours["gb"].max())
        memory = gpus.set_index("name").loc[name, "memory_gb"]
        lines.append([name, *cells, f"{most:.0f} of {memory:.0f}{'' if most <= memory else ': does not fit'}"])
    return table(["GPU", *DATASETS, "memory, GB"], lines)


def measured_here(found: list[dict]) -> str:
    lines = [[r["what"], r["dataset"], number(r["predicted_s"]), number(r["measured_s"]),
              f"{r['predicted_s'] / r['measured_s'] - 1:+.0%}"] for r in found]  # fmt: skip
    return table(["run", "dataset", "predicted, s", "measured, s", "error"], lines)


def on_cards(gpus: pd.DataFrame) -> str:
    """What was measured on GPUs, and what is predicted and counted of it."""
    found = []
    for gpu in gpus.itertuples():
        if (card := cost.measured_card(gpu.name)) is None:
            continue
        reached = {kind: f"{value / 1e3:,.0f} TFLOP/s ({value / 1e3 / gpu.bf16_tflops:.0%} of what the card is sold as)"
                   for kind, value in card["reached"].items()}  # fmt: skip
        memory = [[r["what"], number(r["counted_gb"]), number(r["gb"]), f"{r['counted_gb'] / r['gb'] - 1:+.0%}"]
                  for r in card["memory"]]  # fmt: skip
        command = f"make bench-paper SIZE={card['llm']} BATCH={card['batch']} DEVICE=cuda"
        found.append(f"""## Measured on one {card["device"]}

`{command}`: random weights in 16 bits, prompts of `{card["dataset"]}` but for the whole run, whose dataset stands in its line.
A large matrix product reaches {card["gflops"] / 1e3:,.0f} TFLOP/s, a training step of Stage 2 {reached["train"]},
answers {reached["answer"]}. A step of SASRec, which is nothing but calls, takes
{card["sasrec_step_s"] * 1e3:.1f} ms. [Where the time goes](speed).

{measured_here(cost.card_checks(card, gpu.name))}
{LATE if card["attention"] == "cuDNN" else ""}
The most memory that a step takes, beside what the preflight counts for prompts of that length (the longest of the dataset):

{table(["step", "counted, GB", "measured, GB", "error"], memory)}""")
    return "\n".join(found)


def settings_of(model: str, dataset: str, profile: str) -> str | None:
    """A hash of the settings that a model is trained with, where they are not the defaults; None for what is no model."""
    section = {"Stage 1": "stage1", "Stage 2": "stage2", "data and libraries alone": ""}.get(model, model.partition(" ")[0].lower())
    values = getattr(load_profile(profile, dataset), section, None)
    if values is None:
        return None
    changed = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    changed = {name: value for name, value in changed.items() if value != type(values).__dataclass_fields__[name].default}
    return hashlib.sha256(repr(changed).encode()).hexdigest()[:12]


def training(rows: list[dict]) -> str:
    """What `tests.bench.training` recorded; nothing where it was not run."""
    if not rows:
        return ""
    numbers = ("parameters", "epochs", "wall_s", "peak_mb")
    lines = [[r["model"], r["dataset"], *("" if r[key] is None else f"{r[key]:,.0f}" for key in numbers)] for r in rows]
    devices = ", ".join(sorted({row["device"] for row in rows}))
    now = [settings_of(r["model"], r["dataset"], r["profile"]) for r in rows]
    old = [r["model"] for r, settings in zip(rows, now, strict=True) if settings and r.get("settings") != settings]
    stale = f"\nMeasured before their settings or their code changed: {', '.join(old)}; the chapters train them longer or shorter.\n"
    notes = sorted({r["note"] for r in rows if r.get("note")})
    beside = {note: [r["model"] for r in rows if r.get("note") == note] for note in notes}
    busy = "".join(f" Beside {note} on the machine's other core: {', '.join(models)}." for note, models in beside.items())
    return f"""## What training took

The `{rows[0]["profile"]}` profile on {devices}, one model after another in one run, each in a process of its own (`python -m
tests.bench.training`). Memory is that of the whole process; the first line is what every process has before it trains.
A-LLMRec is SASRec, Stage 1 and Stage 2 together, MLP-LLM is SASRec and Stage 2; Stage 2 and TALLRec hold the frozen LLM.{busy}

{table(["model", "dataset", "numbers that learn", "epochs", "seconds", "peak MB"], lines)}{stale if old else ""}
"""


def beside_paper() -> str:
    """Table 10's times on Luxury Beauty beside what is predicted for the paper's GPU; its training has no validation."""
    phases = cost.predict(load_profile("paper", "beauty"), LLM, "A6000")[0].set_index("phase")["seconds"]
    paper = pd.read_csv(shipped("data/paper") / "table_10.csv").set_index(["model", "metric"])["value"]
    lines = []
    for model, parts in (("A-LLMRec", ["Stage 1", "Stage 2"]), ("TALLRec", ["TALLRec"])):
        ours, theirs = phases[parts].sum() / 60, paper[model, "train_min"]
        lines.append([f"{model}, training, minutes", number(ours), number(theirs), f"{ours / theirs - 1:+.0%}"])
    return table(["", "predicted", "paper", "error"], lines)


def page() -> str:
    """The page as Markdown."""
    measured = cost.constants()
    gpus = pd.read_csv(shipped("data/gpus.csv"))
    sold = [[r.name, f"{r.memory_gb:.0f}", number(r.bf16_tflops), number(r.gb_s), r.source] for r in gpus.itertuples()]
    share, counted = measured["shares"], ", ".join(f"`{name}`" for name in measured["tokens"]["gpt2"])
    stands_in = cost.counted(measured["tokens"]["gpt2"], "")[1]
    here = cost.checks(measured, recorded("bench"))
    cards = [name for name in gpus["name"] if cost.measured_card(name)]
    first, on = cost.device_named(next(iter(cards), gpus["name"].iloc[0])), ", ".join(f"the {name}" for name in cards)
    return f"""{HEAD.format(train=first.shares["train"], answer=first.shares["answer"], call=first.call_s * 1e6, measured=on)}
## The `paper` profile with {LLM}

Hours of A-LLMRec from SASRec to its answers to all test users, validation included; other models come on top.

{grid(gpus)}
Tokens a prompt were counted for {counted}; for other datasets those of `{stands_in}` stand.

## By phase

{cost.report(load_profile("paper", "beauty"), LLM, "A6000")}
Weights are counted in 16 bits. Disk is without raw downloads. Memory is counted for this dataset's titles and without a margin;
what decides before a run is the preflight, which wants more ([its table](gpu_box)).

## Predicted and measured here

{measured["device"]}: {measured["gflops"]:,.0f} GFLOP/s at best, of which the small LLM's training reaches
{share["train"]:.0%}, its answers {share["answer"]:.0%}, the sentence encoder's training {share["encoder"]:.0%}, each on one
dataset. The runs below are others than those that gave the constants.

{measured_here(here)}
{on_cards(gpus)}
{training(recorded("training"))}## Predicted, and measured by the paper

Table 10, Luxury Beauty on one RTX A6000. The paper does not say in how many bits its LLM computed, nor on which rows TALLRec
was trained ([more](speed)).

{beside_paper()}
## What GPUs are sold as

{table(["GPU", "GB", "bf16 TFLOP/s", "GB/s", "source"], sold)}"""


def write() -> Path:
    """Write the page; returns its path."""
    return write_page("cost", page())


if __name__ == "__main__":
    print(write().relative_to(project_root()))
    sys.exit(0)
