"""What the paper's tables say of each other: the arithmetic of `book/paper_itself.md`, from `data/paper/table_NN.csv`.

    python -m allmrec_lib.ledger        # writes this page too
"""

from __future__ import annotations

from functools import cache

import pandas as pd

from . import results
from .paths import shipped

HEAD = """# The paper's numbers, beside each other

Before one asks whether a number can be reproduced, one can ask whether it agrees with the other numbers of the same paper.
Most do. These do not, or call for care. Every figure below is computed from the paper's tables as they are typed in under
`data/paper` (in the first section from our split's counts too); none of it needs a model. An error in a table says nothing against the method.

This page is written by `python -m allmrec_lib.ledger`.
"""


@cache
def table(number: int) -> pd.DataFrame:
    return pd.read_csv(shipped("data/paper") / f"table_{number:02d}.csv")


def value(number: int, dataset: str, model: str, condition: str | None = None, metric: str = "hit@1") -> float:
    """A cell of the paper; raises ValueError naming it when the paper has none."""
    found = results.paper_value(number, dataset, model, metric, condition)
    if found is None:
        raise ValueError(f"Table {number} of the paper has no {metric} of {model} on {dataset} ({condition})")
    return found


def _lines(rows: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def the_middle() -> str:
    """Tables 1 and 4: what is left for items that are neither cold nor warm."""
    recorded = results.read("table_04", "laptop", "beauty")
    users = {c: int(recorded[recorded["condition"] == c]["n_users"].iloc[0]) for c in ("cold items", "warm items")}
    whole = int(results.read("table_01", "laptop", "beauty")["n_users"].iloc[0])
    rest = whole - sum(users.values())
    rows = [["model", "cold (Table 4)", "warm (Table 4)", "all (Table 1)", "implied for the rest"]]
    for model in ("SASRec", "MoRec", "CTRL", "RECFORMER", "TALLRec", "A-LLMRec"):
        cold, warm, every = value(4, "beauty", model, "cold items"), value(4, "beauty", model, "warm items"), value(1, "beauty", model)
        middle = (whole * every - users["cold items"] * cold - users["warm items"] * warm) / rest
        rows.append([model, f"{cold:.4f}", f"{warm:.4f}", f"{every:.4f}", f"{middle:.3f}"])
    return f"""## Beauty: cold, warm, and what is between

Of {whole:,} test users of *beauty* {users["warm items"]:,} have a warm target and {users["cold items"]:,} a cold one, when the top
and the bottom 35% of *items* by training interactions are meant; {rest:,} are between. An average over all is made of these
three, so the third follows from the paper's other numbers:

{_lines(rows)}

A share cannot be negative: with these counts the rows of TALLRec and A-LLMRec in Table 4 and in Table 1 are not of one model on
one test set. The counts are of our split and of chapter 8's cut, which takes in all items that tie at the border; the paper prints
neither. Cut at exactly 35% of the items more users are between, and no share is negative. So this is a question and no proof; but
a model that is good on items with hardly any interactions and on those with many should not be far below both between.
"""


def below_both() -> str:
    cold, warm = (value(4, "movies_and_tv", "TALLRec", f"{kind} items") for kind in ("cold", "warm"))
    return f"""## TALLRec on Movies and TV

Table 1 has {value(1, "movies_and_tv", "TALLRec"):.4f} for all test items, Table 4 has {cold:.4f} for cold and {warm:.4f} for warm ones. An
average that is below both of two of its parts needs a third part that is lower still.
"""


def same_number() -> str:
    one, two = value(4, "movies_and_tv", "SASRec", "cold items"), value(5, "movies_and_tv", "SASRec", "cold users")
    same = [d for d in ("movies_and_tv", "beauty", "toys")
            if value(8, d, "A-LLMRec", "w/o L_matching") == value(1, d, "MLP-LLM")]  # fmt: skip
    return f"""## Numbers that occur twice

- SASRec on Movies and TV: {one:.4f} for cold *items* (Table 4) and {two:.4f} for cold *users* (Table 5), to the last digit, on other test sets.
- A-LLMRec without the matching loss (Table 8) and MLP-LLM (Table 1) have the same Hit@1 on {len(same)} of 3 datasets ({", ".join(same)}). They are
  different models: the one has Stage 1 without one of its losses, the other no Stage 1.
"""


def not_above() -> str:
    ours, base = (
        {c or "all": value(4 if c else 1, "video_games", m, c) for c in (None, "cold items", "warm items")}
        for m in ("A-LLMRec", "SASRec")
    )
    return f"""## The text and its tables

- "A-LLMRec outperforms all other baselines across both scenarios", cold and warm items (5.2.2). On Video Games it is above SASRec on cold
  ({ours["cold items"]:.4f} / {base["cold items"]:.4f}) and on warm items ({ours["warm items"]:.4f} / {base["warm items"]:.4f}), and below it over all ({ours["all"]:.4f} / {base["all"]:.4f}, Table 1).
- TALLRec "underperforms a collaborative filtering model, SASRec" (5.2.1). On Beauty Table 1 has {value(1, "beauty", "TALLRec"):.4f} and {value(1, "beauty", "SASRec"):.4f}.
- "RECFORMER struggles to outperform SASRec" (5.2.1). On Toys Table 1 has {value(1, "toys", "RECFORMER"):.4f} and {value(1, "toys", "SASRec"):.4f}.
"""


def below_chance() -> str:
    rows, users = [["dataset", "LLM-Only", "users (Table 2)", "standard errors below 0.05"]], table(2)
    for dataset in ("movies_and_tv", "video_games", "beauty", "toys"):
        hit = value(1, dataset, "LLM-Only")
        n = int(users[(users["dataset"] == dataset) & (users["metric"] == "users")]["value"].iloc[0])
        tested = min(n, 10_000)
        rows.append([dataset, f"{hit:.4f}", f"{n:,}", f"{(0.05 - hit) / (0.05 * 0.95 / tested) ** 0.5:.1f}"])
    return f"""## LLM-Only is below chance

Naming one of 20 candidates blindly gives 0.05. (The published code tests 10,000 users where there are more.)

{_lines(rows)}

A model that answers at random cannot be there; one that often names no candidate can. These rows measure how often the LLM kept
to the format, not what it knew. Chapter 7 reports both apart.
"""


def speed() -> str:
    minutes = {m: value(10, "beauty", m, metric="train_min") for m in ("TALLRec", "A-LLMRec", "A-LLMRec_all")}
    batch = {m: value(10, "beauty", m, metric="inference_s_per_batch") for m in ("TALLRec", "A-LLMRec")}
    return f"""## Speed

Table 10 gives {minutes["TALLRec"]:.1f} / {minutes["A-LLMRec"]:.1f} = {minutes["TALLRec"] / minutes["A-LLMRec"]:.2f} for training, as the text says, and
{batch["TALLRec"]:.2f} / {batch["A-LLMRec"]:.2f} = {batch["TALLRec"] / batch["A-LLMRec"]:.2f} for inference, where the text says 1.71. A-LLMRec_all takes
{minutes["A-LLMRec_all"] / minutes["A-LLMRec"]:.2f} times as long as A-LLMRec ("approximately 3 times").
"""


def counts() -> str:
    rows = [["dataset", "interactions / users", "printed"]]
    for dataset in ("movies_and_tv", "video_games", "beauty", "toys"):
        mean = _of(2, dataset, "interactions") / _of(2, dataset, "users")
        rows.append([dataset, f"{mean:.2f}", f"{_of(2, dataset, 'avg_len'):.2f}"])
    return f"""## Counts

Interactions divided by users, beside the average length that Table 2 prints:

{_lines(rows)}
"""


def _of(number: int, dataset: str, metric: str) -> float:
    frame = table(number)
    return float(frame[(frame["dataset"] == dataset) & (frame["metric"] == metric)]["value"].iloc[0])


def page() -> str:
    """The whole page as Markdown."""
    parts = (the_middle, below_both, same_number, not_above, below_chance, speed, counts)
    return "\n".join([HEAD, *(part() for part in parts)])
