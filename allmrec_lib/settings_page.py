"""Table 3 beside the profiles that the code reads, and every setting of them: `book/appendix/hyperparameters.md`.

    python -m allmrec_lib.ledger        # writes this page too
"""

from __future__ import annotations

import pandas as pd

from .config import Profile, load_profile
from .paper import table as of_paper
from .speed import table

PAPER = {"lr_stage1": "stage1.lr", "lr_stage2": "stage2.lr", "dim_cf": "sasrec.dim", "dim_joint": "stage1.dim",
         "alpha": "stage1.alpha", "beta": "stage1.beta"}  # fmt: skip
SHOWN = {"`laptop`, movielens": ("laptop", "movielens"), "`laptop`, beauty": ("laptop", "beauty"), "`paper`": ("paper", "beauty")}
HEAD = """# Hyperparameters

Everything here is read from the profiles that the code uses (`allmrec_lib/profiles/*.yaml`, defaults in `allmrec_lib/config.py`).
`Experiment(...).profile.rows()` lists the settings of a run; any of them can be changed:
`Experiment("movielens", "laptop", overrides={"sasrec.dropout": 0.5})`, `--set sasrec.dropout=0.5` on the command line.

## Table 3

The paper's values (section 5.1, Table 3) and those of the profiles. Where `laptop` differs, the small LLM or the small budget
wanted something else; [chapter 7](../executed/beauty/07_baselines) tells what was tried.

"""
FILES = """
## The files

What a profile does not name has its default.

`paper`: section 5.1 and Table 3.

```{literalinclude} ../../allmrec_lib/profiles/paper.yaml
:language: yaml
```

`laptop`: the numbers of this book.

```{literalinclude} ../../allmrec_lib/profiles/laptop.yaml
:language: yaml
```

`smoke`: every code path, in seconds.

```{literalinclude} ../../allmrec_lib/profiles/smoke.yaml
:language: yaml
```

This page is written by `python -m allmrec_lib.ledger`.
"""


def settings(profile: Profile) -> dict[str, object]:
    return {f"{section}.{key}": value for section, key, value in profile.rows()}


def table_3() -> str:
    """One line a setting and dataset of the paper's table: its value, the paper profile's, the laptop profile's."""
    lines = []
    for name, of in of_paper(3).groupby("metric", sort=False):
        for row in of.itertuples():
            ours = [f"{settings(load_profile(profile, row.dataset))[PAPER[name]]:g}" for profile in ("paper", "laptop")]
            lines.append([f"`{PAPER[name]}`", row.dataset, f"{row.value:g}", *ours])
    return table(["setting", "dataset", "the paper's", "`paper`", "`laptop`"], lines)


def every_setting() -> str:
    """A folded table for each section of the profiles."""
    frame = pd.DataFrame({head: settings(load_profile(*which)) for head, which in SHOWN.items()}, dtype=object)
    text = "\n## Every setting\n"
    for section, rows in frame.groupby(frame.index.str.split(".").str[0], sort=False):
        lines = [[f"`{name.split('.')[1]}`", *map(str, row)] for name, row in zip(rows.index, rows.to_numpy(), strict=True)]
        text += f"\n```{{dropdown}} {section}\n{table([section, *SHOWN], lines)}```\n"
    return text


def page() -> str:
    return HEAD + table_3() + every_setting() + FILES
