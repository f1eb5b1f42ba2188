"""Tables beside the paper's, and figures. Colours are safe for colour-blind readers (Okabe & Ito)."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from . import metrics
from .results import verdict

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def style() -> None:
    """The look of every figure of the book."""
    plt.rcParams.update({
        "figure.figsize": (7.0, 3.6), "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.25, "axes.prop_cycle": plt.cycler(color=COLOURS), "font.size": 10,
        "figure.constrained_layout.use": True, "svg.hashsalt": "allmrec",
    })  # fmt: skip


def beside_paper(rows: list[dict[str, Any]] | pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """ours | 95% interval | paper | gap, one line a model; where there are several seeds, what each gave."""
    frame = pd.DataFrame(rows)
    paper = pd.to_numeric(frame["paper"])
    number = f"{{:.{digits}f}}".format
    table = pd.DataFrame({
        "model": frame["model"],
        "ours": frame["value"].map(number),
        "95% interval": [f"[{low:.3f}, {high:.3f}]" for low, high in zip(frame["low"], frame["high"], strict=True)],
        "paper": [number(p) if pd.notna(p) else "-" for p in paper],
        "gap": [f"{v - p:+.4f}" if pd.notna(p) else "-" for v, p in zip(frame["value"], paper, strict=True)],
        "users": frame["n_users"],
        "seeds": frame["seeds"],
    }).set_index("model")  # fmt: skip
    if "by_seed" in frame:
        table["by seed"] = [" ".join(f"{v:.3f}" for v in each) if isinstance(each, list) else "-" for each in frame["by_seed"]]
    return table


def verdicts(tests: dict[str, metrics.Comparison]) -> pd.DataFrame:
    """Paired tests of claims "A > B": difference, its 95% interval, p-value, and whether the claim holds, fails, or is left
    undecided (the interval contains 0)."""
    table = pd.DataFrame(tests, index=["difference", "low", "high", "p"]).T.astype(float)
    table["verdict"] = [verdict(low, high) for low, high in zip(table["low"], table["high"], strict=True)]
    return table.round(4)


def training_curve(frame: pd.DataFrame, metric: str, title: str):
    """Training loss and validation metric by epoch, side by side; the chosen epoch is marked. Returns the figure."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.0))
    left.plot(frame["epoch"], frame["loss"], marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    right.plot(frame["epoch"], frame["metric"], marker="o", markersize=3, color=COLOURS[1])
    best = frame["metric"].idxmax()
    right.plot(frame.loc[best, "epoch"], frame.loc[best, "metric"], "*", markersize=12, color=COLOURS[2], label="chosen")
    right.set(xlabel="epoch", ylabel=metric)
    right.legend()
    for axes in (left, right):
        axes.set_xlim(right.get_xlim())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def log_x(axes=None) -> None:
    """A logarithmic x axis (of the current axes, by default) with plain numbers at 1, 2, 5, 10, ...: few decades have few
    powers of ten."""
    axis = (axes or plt.gca()).xaxis
    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def differences(tests: dict[str, metrics.Comparison], label: str = "difference of Hit@1"):
    """Paired differences with their 95% intervals, the first on top; what lies right of the line holds. Returns the figure."""
    figure, axes = plt.subplots(figsize=(7.0, 0.28 * len(tests) + 0.9))
    colours = {"holds": COLOURS[2], "fails": COLOURS[1], "undecided": COLOURS[0]}
    for said, colour in colours.items():
        own = [(-place, t) for place, t in enumerate(tests.values()) if verdict(t.low, t.high) == said]
        if own:
            place, found = zip(*own, strict=True)
            error = [[t.difference - t.low for t in found], [t.high - t.difference for t in found]]
            axes.errorbar([t.difference for t in found], place, xerr=error, fmt="o", capsize=3, color=colour, label=said)
    axes.axvline(0, color=COLOURS[6], linewidth=1)
    axes.set_yticks([-place for place in range(len(tests))], list(tests))
    axes.set(xlabel=label)
    axes.legend()
    return figure


def intervals(rows: list[dict[str, Any]] | pd.DataFrame, label: str = "Hit@1", chance: float | None = 0.05):
    """Models from best to worst with their 95% intervals; the paper's values as open diamonds. Returns the figure."""
    frame = pd.DataFrame(rows).sort_values("value")
    figure, axes = plt.subplots(figsize=(7.0, 0.42 * len(frame) + 1.0))
    place = np.arange(len(frame))
    error = np.stack([frame["value"] - frame["low"], frame["high"] - frame["value"]])
    axes.errorbar(frame["value"], place, xerr=error, fmt="o", capsize=3, label="ours, 95% interval")
    paper = pd.to_numeric(frame["paper"])
    if paper.notna().any():
        axes.plot(paper, place, "D", markerfacecolor="none", color=COLOURS[1], label="paper")
    if chance is not None:
        axes.axvline(chance, color=COLOURS[6], linestyle=":", linewidth=1, label="chance")
    axes.set_yticks(place, frame["model"])
    axes.set(xlabel=label)
    axes.legend(loc="lower right")
    return figure
