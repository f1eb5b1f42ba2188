"""``python -m allmrec_lib.datasets beauty``: a dataset's statistics beside the paper's Table 2, and its report."""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from . import SOURCES, DataError, data_root, load

PAPER_ROW = {"beauty_raw": "beauty"}


def paper_statistics(name: str) -> dict[str, float]:
    """The paper's Table 2 row of a dataset; empty when the paper does not use it."""
    path = data_root() / "paper" / "table_02.csv"
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    return table[table["dataset"] == PAPER_ROW.get(name, name)].set_index("metric")["value"].to_dict()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m allmrec_lib.datasets", description=__doc__)
    parser.add_argument("name", help=", ".join(SOURCES))
    try:
        dataset = load(parser.parse_args(arguments).name)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    ours, paper = dataset.statistics(), paper_statistics(dataset.name)
    print(f"{dataset.name} (domain: {dataset.domain}, digest {dataset.digest})\n")
    for key, value in ours.items():
        beside = f"{paper[key]:>14,.2f}" if key in paper else f"{'-':>14}"
        print(f"  {key:<14}{value:>14,.2f}   Table 2:{beside}")
    print()
    for what, count, why in dataset.report.rows:
        print(f"  {count:>9,}  {what}{': ' if why else ''}{why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
