"""The page of speed comparisons and profiles. Written from what the benchmarks recorded, never by hand.

python -m allmrec_lib.speed        # book/appendix/speed.md, from data/results/bench.json and profiles.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from .paths import project_root, shipped
from .work import LLMS

# What each comparison is meant to reach; for Table 10 the paper's ratio.
TRAINING, INFERENCE = "A-LLMRec over TALLRec: training", "A-LLMRec over TALLRec: inference"
AIMS = {"raw files to sequences": 10.0, "SASRec training": 5.0, "evaluation": 50.0, "Stage 1": None, "Stage 2": 2.0,
        "inference: constrained": 5.0, "inference: trie": 5.0, "inference: score": 5.0,
        TRAINING: 588.58 / 232.5, INFERENCE: 3.36 / 1.98}  # fmt: skip
HEAD = """# Speed, and what bounds it

Every point where the straightforward way loses time, measured against that way: `make bench` runs both sides by turns in one
run on the same rows, and takes medians. The straightforward way is written out in `tests/bench`; a test holds that both
sides compute the same. The machines of these numbers ran other programs too: with one CPU thread a side's time is the time of
its own process, and the range in brackets is the smallest and the largest ratio of a round. A ratio depends on the machine:
where large matrices are multiplied faster, what the straightforward way wastes costs it less. All weights but the small LLM's
are random, on which speed does not depend, except that free generation ends where the LLM ends it.

This page is written by `python -m allmrec_lib.speed` from what the benchmarks recorded.
"""
# PyTorch's choice of attention on a Hopper card, and what follows for prompts of many lengths.
PLANS = """On the {device} PyTorch takes cuDNN's attention first, which plans anew for every length that it has not seen. Forward and
backward together take {cudnn_new} ms at a new length and {cudnn_again} ms at the same again; with flash attention {flash_new}
and {flash_again} ms (medians of {lengths} lengths; 4 rows, 32 heads of 128, bf16). Prompts have another length at nearly every
step: of {count} training steps at {llm} the fastest and the median take {ours} (TALLRec {theirs}). So the
library has PyTorch take flash attention first
(`TORCH_CUDNN_SDPA_DEPRIORITIZED=1`, unless the environment says otherwise). Of the rows above, Stage 2 runs the same batches
again and again, at lengths that were seen; A-LLMRec over TALLRec draws new negatives, and with them a new length, at every step.
"""


def results_file(name: str) -> Path:
    """Where the benchmarks' rows lie: ``data/results/<name>.json``."""
    return project_root() / "data" / "results" / f"{name}.json"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The recorded rows; none when nothing was recorded yet."""
    return json.loads(path.read_text()) if path.exists() else []


def recorded(name: str) -> list[dict[str, Any]]:
    """The rows of ``data/results/<name>.json``, of this home or as they came with the project."""
    return read_rows(shipped(f"data/results/{name}.json"))


def write_page(name: str, text: str) -> Path:
    """Write a page of the appendix beside, then rename it into place."""
    target = project_root() / "book" / "appendix" / f"{name}.md"
    partial = target.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(target)
    return target


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines]) + "\n"


def number(value: float) -> str:
    """Three digits, and whole numbers from 100 on with their thousands told apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(row: dict[str, Any]) -> str:
    spread = f" [{number(row['ratio_low'])}, {number(row['ratio_high'])}]" if "ratio_low" in row else ""
    return f"**{number(row['ratio'])}**{spread}"


def _aim(row: dict[str, Any]) -> str:
    aim = AIMS.get(row["what"])
    return "-" if aim is None else f"{number(aim)}: {'reached' if row['ratio'] >= aim else 'not reached'}"


def _about(row: dict[str, Any], main: dict[str, Any]) -> str:
    """What a comparison in ``also`` differs in."""
    words = {"ours is": "ours", "theirs is": "against", "dataset": "on", "train_layers": "layers that learn:"}
    return ", ".join(f"{word} {row[key]}" for key, word in words.items() if key in row and row[key] != main.get(key))


def ratios(rows: list[dict[str, Any]]) -> str:
    """A line a comparison, and below it those that the same run took beside it."""
    order = {what: place for place, what in enumerate(AIMS)}
    lines = []
    for row in sorted(rows, key=lambda r: (order.get(r["what"], len(order)), r.get("llm") or "")):
        name = f"{row['what']} ({row['llm']})" if row.get("llm") else row["what"]
        rates = [number(row["ours"]), number(row["theirs"]), row["unit"]]
        lines.append([name, row.get("dataset") or "-", *rates, _times(row), _aim(row)])
        for other in row.get("also", ()):
            rates = [number(other.get("ours", row["ours"])), number(other["theirs"]), row["unit"]]
            lines.append([f"... {_about(other, row)}", "", *rates, _times(other), ""])
    return table(["what", "dataset", "ours", "straightforward", "unit", "times as fast", "aimed at"], lines)


def in_short(rows: list[dict[str, Any]]) -> str:
    """How many times as fast, a line a comparison and a column a machine (the largest LLM that was timed there)."""
    machines = list(dict.fromkeys(row["device"].partition(",")[0] for row in rows))
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: LLMS[r["llm"]].parameters if r.get("llm") else 0):
        best[row["what"], row["device"].partition(",")[0]] = row
    lines = []
    for what, aim in AIMS.items():
        found = [best.get((what, machine)) for machine in machines]
        if any(found):
            times = ["" if row is None else number(row["ratio"]) for row in found]
            lines.append([what, *times, "-" if aim is None else number(aim)])
    llms = {m: next((r["llm"] for (_, machine), r in best.items() if machine == m and r.get("llm")), "") for m in machines}
    return table(["times as fast", *(f"{m} ({llms[m]})" if llms[m] else m for m in machines), "aimed at"], lines)


def commands(rows: list[dict[str, Any]]) -> str:
    """Where and by which command each was measured."""
    made: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        made.setdefault((row["device"], row["command"]), []).append(row["what"])
    return table(["device", "command", "what"], [[device, f"`{command}`", ", ".join(dict.fromkeys(what))]
                                                 for (device, command), what in made.items()])  # fmt: skip


def answers(rows: list[dict[str, Any]]) -> str:
    """Whether trie and score answer as free generation does where that is valid."""
    lines = [f"- {r['what']} ({r['llm']}): free generation of up to {r['longest']} tokens (the authors' limit is 512) wrote a "
             f"candidate's title to the letter in {r['valid']:.0%} of the rows; in {r['same_where_valid']:.0%} of these the "
             "answer is the same."
             for r in rows if "same_where_valid" in r]  # fmt: skip
    lines += [f"- {r['what']} ({r['llm']}): random weights end no answer. Free generation was stopped behind {r['longest']} tokens, "
              f"as many as the longest title among the {r['rows']} right ones has."
              for r in rows if "longest" in r and "same_where_valid" not in r]  # fmt: skip
    return "\n".join(lines) + "\n" if lines else ""


def raw_files(rows: list[dict[str, Any]]) -> str:
    """The memory and the CPU time of reading raw files, where that was measured."""
    lines = [f"- {r['what']}: {r['reviews']:,} reviews made up for it, by all cores; the straightforward way counts in a first pass "
             f"of `json.loads` and collects in a second. By CPU time {number(r['ratio_cpu'])} times as fast; peak memory "
             f"{number(r['peak_mb']['ours'])} MB against {number(r['peak_mb']['theirs'])} MB."
             for r in rows if "peak_mb" in r]  # fmt: skip
    return "\n".join(lines) + "\n" if lines else ""


def against_tallrec(rows: list[dict[str, Any]]) -> str:
    """What a training step of A-LLMRec and of TALLRec is made of."""
    lines = []
    for row in (r for r in rows if "parts" in r):
        for name, label in (("ours", "A-LLMRec"), ("theirs", "TALLRec")):
            part = row["parts"][name]
            each = [part[name] / row["batch_size"] for name in ("forward_s", "backward_s", "saved_gb")]
            lines.append([f"{row['llm']}, {row['device'].partition(',')[0]}", label, number(part["tokens"]),
                          f"{part['learning']:,}", f"{each[0] * 1e3:,.0f}", f"{each[1] * 1e3:,.0f}", f"{each[2]:.3f}"])  # fmt: skip
    return table(["LLM", "model", "tokens a row", "parameters that learn", "forward, ms a row", "backward, ms a row",
                  "kept for backward, GB a row"], lines)  # fmt: skip


def plans(card: list[dict[str, Any]]) -> str:
    """What attention costs at lengths that a card has not seen, where that was measured."""
    said, middle = [], statistics.median
    for row in (r for r in card if "attention_ms" in r):
        each = {f"{name}_{part}": number(middle(taken))
                for name, parts in row["attention_ms"].items() for part, taken in parts.items()}  # fmt: skip
        steps = {name: f"{min(taken):.0f} and {middle(taken):.0f} ms" for name, taken in row["steps_ms"].items()}
        before = "All rows above were measured with cuDNN's attention first.\n" if row["attention"] == "cuDNN" else ""
        said.append(PLANS.format(device=row["device"], llm=row["llm"], lengths=len(row["attention_ms"]["flash"]["new"]),
                                 count=len(row["steps_ms"]["ours"]), **each, **steps) + before)  # fmt: skip
    return "\n".join(said)


def _table10(rows: list[dict[str, Any]]) -> str:
    found = [r for r in rows if r["what"] == TRAINING]
    if not found:
        return ""
    first = max(found, key=lambda r: LLMS[r["llm"]].parameters)
    every, ratio = first["positions_a_row"], first["ratio"]
    paper = pd.read_csv(shipped("data/paper") / "table_10.csv").set_index(["model", "metric"])["value"]
    everything = paper["A-LLMRec_all", "train_min"] / paper["A-LLMRec", "train_min"]
    return f"""
## Table 10: A-LLMRec against TALLRec

The paper has A-LLMRec {AIMS[TRAINING]:.2f} times as fast in training and {AIMS[INFERENCE]:.2f} times in inference. Here both
are trained by the same loop on the same rows, and TALLRec's adapters are merged into the LLM before it answers.

{against_tallrec(rows)}
What learns is small in both, and that saves nothing: in both the gradient goes back through every layer of the LLM, to the
soft tokens in one and to the adapters of the first layer in the other, and no weight of the LLM takes a gradient in either.
A-LLMRec's prompt is longer by its soft tokens, the quotes that they keep from joining the blank before, and its first
sentence; TALLRec's adapters cost calls of their own. At
{first["llm"]} A-LLMRec trains {ratio:.2f} times as fast as a fair TALLRec (from {number(first["ratio_low"])} to
{number(first["ratio_high"])} in single rounds).

The paper's ratio is near to one of rows: its A-LLMRec trained on every position takes {everything:.2f} times as long as the
one that takes a user's last item only, and its TALLRec {AIMS[TRAINING]:.2f} times. The paper does not say on which rows TALLRec
was trained. On {first["dataset"]} every position makes {every:.2f} rows of one; a TALLRec trained on those would take
{every * ratio:.2f} times as long as A-LLMRec here. What adapters that are left beside the LLM cost in inference is the
second line of that comparison; an LLM in 8 bits with adapters in 16 would cost more.
"""


def profiles(rows: list[dict[str, Any]]) -> str:
    """What bounds each hot step, and its operations by their own time."""
    gpu = any("busy" in r for r in rows)
    head = ["step", "rows", "ms", "calls", "µs a call", *(["GPU busy"] if gpu else []), "in matrix products", "of the peak there",
            "bound by"]  # fmt: skip
    lines = [[r["what"], str(r["rows"]), number(r["seconds"] * 1e3), f"{r['calls']:,}", number(r["us_a_call"]),
              *([f"{r['busy']:.0%}"] if gpu else []), f"{r['products']:.0%}", f"{r['of_peak']:.0%}", r["bound"]]
             for r in rows]  # fmt: skip
    top = [[r["what"], ", ".join(f"{t['op']} {t['share']:.0%} ({t['calls']})" for t in r["top"])] for r in rows]
    return table(head, lines) + "\n" + table(["step", "operations by their own time (calls)"], top)


def page(rows: list[dict[str, Any]], seen: list[dict[str, Any]], card: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    parts = [HEAD, "## In short\n", in_short(rows), "## Each machine\n"] if rows else [HEAD]
    for device in dict.fromkeys(row["device"].partition(",")[0] for row in rows):
        own = [row for row in rows if row["device"].startswith(device)]
        parts += [f"### {device}\n", ratios(own), raw_files(own) + answers(own), commands(own)]
        parts.append(plans([row for row in card if row["device"].startswith(device)]))
    parts.append(_table10(rows))
    if seen:
        parts.append("""## Profiles

One batch of each hot step under torch.profiler. A step is bound by matrix products where they take half of its time,
otherwise by the number of calls where one lasts under 25 µs on average, otherwise by memory traffic. On a GPU the time is the
GPU's; a step is bound by the number of calls where it is busy less than half of the time.
""")  # fmt: skip
    for device in dict.fromkeys(row["device"] for row in seen):
        own = [row for row in seen if row["device"] == device]
        best, llm = own[0], own[0].get("llm")
        speed = f"{best['gflops']:,.0f} GFLOP/s{' (bf16)' if 'busy' in best else ''}"
        parts += [f"### {device}{f', {llm}' if llm else ''}\n",
                  f"It multiplies large matrices at {speed} and copies at {best['gb_s']:,.0f} GB/s at best.\n",
                  profiles(own)]  # fmt: skip
    return "\n".join(part for part in parts if part)


def write() -> Path:
    """Write the page; returns its path."""
    return write_page("speed", page(*(recorded(name) for name in ("bench", "profiles", "card"))))


if __name__ == "__main__":
    print(write().relative_to(project_root()))
    sys.exit(0)
