"""The ledger: what the paper claims, and what our rows say of it. Written from recorded results, never by hand.

    python -m allmrec_lib.ledger        # book/ledger.md, data/results/laptop/ledger.json (from data/paper/claims.csv) and
                                        # book/paper_itself.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from . import paper, results, settings_page, speed
from .paths import project_root, shipped
from .work import LLMS

DATASETS = {"movielens": "MovieLens-100K", "beauty": "Luxury Beauty"}
TIMED = "bench"  # the record of claims on speed: what `make bench` measured
IMPOSSIBLE = {("beauty", "claims_15"): "its items have no genres", ("movielens", "claims_09"): "its users have 20 items or more"}
ONE_MODEL = {("claims_11", "A-LLMRec (SBERT) > A-LLMRec"): "where training knows no item, section 4.1.4 makes them one model"}
HEAD = """# The paper's claims, one by one

The claims that the paper's tables and figures make, and what the same comparison gives here: the difference of Hit@1 (figure
5: of the taste correlation, chapter 15) on the same users and candidates, its 95% interval, and the p-value of a paired
sign-flip test. A claim *holds* when the interval lies above zero, *fails* when it lies below, and is *undecided* otherwise;
of comparisons without any difference one in twenty would look decided, since nothing is corrected for their number. Where p
is above 0.05 nevertheless, which happens with few users, take the verdict as undecided. Section 5.2.1 compares means of three
seeds (chapter 7 tells what each gave), and RECFORMER of one; in all other sections what learns was trained from one seed: a
small difference there is a verdict on that training, not on the method. Stage 2 and TALLRec had one epoch of at most 3,200
rows, in section 5.2.4 about 100 steps at most, in 5.4.3 Stage 2 ten epochs on MovieLens. Stage 2's projections start in
closed form, and where validation finds no better epoch that start is what is tested (chapter 5). Of two claims on speed the
number is the ratio and its range over the rounds of the benchmark, held against one, with the largest LLM that was timed
([speed](appendix/speed)). In all others the LLM is the small one of this book ([its card](appendix/pocket_llm)), and not the
paper's OPT-6.7B: what fails here may hold there, and the reverse.

This page is written by `python -m allmrec_lib.ledger` from what the chapters recorded at the `laptop` profile, and from what
`make bench` and `make bench-paper` timed.
"""


def entries(profile: str = "laptop") -> pd.DataFrame:
    """One row a claim and dataset: section, statement, dataset, verdict ("not run" where no chapter recorded it, "cannot run
    here" and why where none can), value, low, high, p, n_users; of a claim on speed the value is a ratio."""
    claims = pd.read_csv(shipped("data/paper") / "claims.csv")
    found = []
    for dataset in DATASETS:
        recorded = {name: results.read(name, profile, dataset) for name in claims["record"].unique() if name != TIMED}
        for claim in claims.itertuples():
            about = {"section": claim.section, "statement": claim.statement, "dataset": dataset}
            if claim.record == TIMED:
                found.append(about | _timed(claim.claim, dataset))
                continue
            frame = recorded[claim.record]
            row = frame[frame["model"] == claim.claim]
            impossible = IMPOSSIBLE.get((dataset, claim.record), ONE_MODEL.get((claim.record, claim.claim)))
            known = len(row) and impossible is None
            result = row.iloc[0][["verdict", "value", "low", "high", "p", "n_users"]].to_dict() if known else {}
            found.append(about | ({"verdict": "not run" if impossible is None else "cannot run here", "why": impossible} | result))
    return pd.DataFrame(found)


def _timed(what: str, dataset: str) -> dict[str, Any]:
    """The verdict on a comparison of LLMs' speed, with the largest LLM that was timed on the dataset: a ratio over one holds."""
    rows = [row for row in speed.recorded("bench") if row["what"] == what]
    here = [(row["llm"], each) for row in rows for each in (row, *row.get("also", ())) if each.get("dataset") == dataset]
    if not here:
        return {"verdict": "not run", "why": f"timed on {DATASETS[rows[0]['dataset']]}" if rows else None}
    llm, found = max(here, key=lambda each: LLMS[each[0]].parameters)
    ratio, low, high = (found[key] for key in ("ratio", "ratio_low", "ratio_high"))
    return {"verdict": results.verdict(low - 1, high - 1), "value": ratio, "low": low, "high": high, "llm": llm}


def page(frame: pd.DataFrame) -> str:
    """The ledger as Markdown: a count by verdict, then a table with a line a claim."""
    counts = frame.groupby(["dataset", "verdict"]).size().unstack(fill_value=0)
    kinds = [kind for kind in ("holds", "fails", "undecided", "cannot run here", "not run") if kind in counts]
    lines = [HEAD, "| dataset | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    lines += [f"| {DATASETS[d]} | " + " | ".join(str(counts.loc[d, kind]) for kind in kinds) + " |" for d in counts.index]
    lines += ["", "| section | claim | " + " | ".join(DATASETS.values()) + " |", "|---" * (len(DATASETS) + 2) + "|"]
    for (section, statement), rows in frame.groupby(["section", "statement"], sort=False):
        cells = [_cell(rows[rows["dataset"] == dataset].iloc[0]) for dataset in DATASETS]
        lines.append(f"| {section} | {statement} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: pd.Series) -> str:
    if row["verdict"] in ("not run", "cannot run here"):
        return row["verdict"] if pd.isna(row["why"]) else f"{row['verdict']}: {row['why']}"
    if pd.isna(row["p"]):
        return f"**{row['verdict']}**: {row['value']:.2f} times [{row['low']:.2f}, {row['high']:.2f}], {row['llm']}"
    number = f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], p = {row['p']:.4f}, {row['n_users']:.0f} users"
    return f"**{row['verdict']}**: {number}"


def write(profile: str = "laptop") -> Path:
    """Write the pages and the JSON; returns the ledger's path."""
    frame, root = entries(profile), project_root()
    target = root / "book" / "ledger.md"
    texts = {target: page(frame), root / "data" / "results" / profile / "ledger.json": _json(frame),
             root / "book" / "paper_itself.md": paper.page(),
             root / "book" / "appendix" / "hyperparameters.md": settings_page.page()}  # fmt: skip
    for path, text in texts.items():
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)
    return target


def _json(frame: pd.DataFrame) -> str:
    return json.dumps(json.loads(frame.to_json(orient="records")), indent=1) + "\n"


if __name__ == "__main__":
    print(write().relative_to(project_root()))
    sys.exit(0)
