"""Whether what the book says of LLM models depends on the seed: three trainings of each, and the page on them.

    python -m allmrec_lib.seeds_page --dataset beauty   # trains what is missing, records, writes the page
    python -m allmrec_lib.seeds_page                    # book/appendix/seeds.md from what was recorded
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import pandas as pd

from . import metrics, results
from .experiment import Experiment
from .ledger import DATASETS
from .speed import number, table, write_page

TABLE, OURS = "seeds_llm", "A-LLMRec"
MODELS = ("SASRec", OURS, "MLP-LLM", "TALLRec")
TESTED = 2000  # users at laptop, as in chapters 12 to 14
HEAD = """# Seeds of the models that ask an LLM

Chapters train what asks an LLM once; chapters 3 and 7 train small recommenders several times. Here SASRec, Stage 1 and Stage 2
on it, MLP-LLM and TALLRec are trained from several seeds, each from new weights on, and tested on the same users and
candidates: would another seed have told another story? An interval over users says nothing of that: where seeds lie further
apart than an interval is wide, the verdict of one seed is no verdict on the method.

```bash
python -m allmrec_lib.seeds_page --dataset movielens
```

trains what is missing (a seed takes about as long as chapters 3 to 6), goes on where it was interrupted and writes this page.
"""


def hits_of(run: Experiment) -> dict[str, np.ndarray]:
    """Hit@1 of every test user by model."""
    return {model: metrics.per_user(run.scores(model))["hit@1"] for model in MODELS}


def compared(hit: dict[str, np.ndarray], about: dict[str, Any]) -> list[dict[str, Any]]:
    """A-LLMRec against each of the others, paired by user."""
    tests = {f"{OURS} > {other}": metrics.paired(hit[OURS], hit[other]) for other in MODELS if other != OURS}
    return results.claims(tests, len(hit[OURS]), **about, section="4.2")


def rows_of(by_seed: dict[int, dict[str, np.ndarray]], about: dict[str, Any]) -> list[dict[str, Any]]:
    """What is recorded: Hit@1 and comparisons for each seed, then of the mean over seeds."""
    lines = []
    for seed, hit in by_seed.items():
        found = [results.row(model, [hit[model]], **about, section="4.2", condition=f"seed {seed}") for model in MODELS]
        found += [line | {"condition": f"seed {seed}"} for line in compared(hit, about)]
        lines += found
    mean = {model: np.mean([hit[model] for hit in by_seed.values()], axis=0) for model in MODELS}
    lines += [results.row(model, [hit[model] for hit in by_seed.values()], **about, section="4.2") for model in MODELS]
    return lines + [line | {"seeds": len(by_seed)} for line in compared(mean, about)]


def train(dataset: str, profile: str, seeds: int, llm: str, device: str) -> None:
    """Train seed after seed and record after each, so that an interruption loses no finished one."""
    fewer = {"data.max_test_users": TESTED} if profile == "laptop" else {}
    run = Experiment(dataset, profile, 0, llm, device, fewer)
    about, by_seed = {"dataset": dataset, "profile": profile, "llm": llm}, {}
    for seed in range(seeds):
        by_seed[seed] = hits_of(run.changed(seed=seed))
        results.record(TABLE, rows_of(by_seed, about), run.record("SASRec"))
        means = ", ".join(f"{name} {hit.mean():.4f}" for name, hit in by_seed[seed].items())
        print(f"{dataset}, seed {seed}: {means}", flush=True)


def shown(rows: pd.DataFrame) -> str:
    """The two tables of a dataset."""
    rows = rows.assign(condition=rows["condition"].fillna("mean of seeds"))
    columns = list(rows["condition"].unique())
    hit, tests = (rows[rows["metric"] == metric] for metric in ("hit@1", "difference of hit@1"))
    lines = []
    for model, own in hit.groupby("model", sort=False):
        values = own.set_index("condition")["value"]
        each = values.drop("mean of seeds")
        lines.append([model, *(f"{values[c]:.4f}" for c in columns), f"{each.max() - each.min():.4f}"])
    text = table(["Hit@1", *columns, "apart"], lines)
    lines = []
    for claim, own in tests.groupby("model", sort=False):
        found = own.set_index("condition")
        texts = found[["value", "low", "high", "verdict"]].apply(lambda r: "{:+.4f} [{:+.4f}, {:+.4f}]: {}".format(*r), axis=1)
        lines.append([claim, *texts[columns]])
    return text + "\n" + table(["difference, 95% interval", *columns], lines)


def page(profile: str = "laptop") -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for name, title in DATASETS.items():
        rows = results.read(TABLE, profile, name)
        if len(rows):
            parts.append(f"## {title}\n\n{number(rows['n_users'].max())} test users, profile `{profile}`.\n\n{shown(rows)}")
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="train on this dataset; without it the page is written from what was recorded")
    for name, default in (("profile", "laptop"), ("llm", "pocket"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(arguments)
    if args.dataset:
        train(args.dataset, args.profile, args.seeds, args.llm, args.device)
    if (args.profile, args.llm) == ("laptop", "pocket"):  # what the book shows
        write_page("seeds", page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
