"""The figures of the page on the baselines, one a model: boxes in rows, read from the bottom (what goes in) to the top.

    python -m allmrec_lib.diagrams      # writes book/appendix/figures/*.svg

A row is a list of boxes, a box "kind:label", the kind a key of :data:`FILL`. A row whose first box begins with ">" is a chain: each
box feeds its right neighbour, and the last one the row above.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt

from .paths import project_root

FILL = {"in": "#FFFFFF", "learns": "#CFE4F5", "frozen": "#E3E3E3", "does": "#FDF3D6", "out": "#D5EFE3"}
SAID = {"in": "goes in", "learns": "learns", "frozen": "frozen", "does": "nothing to learn", "out": "comes out"}
X = "learns:linear layer on the last state: $\\mathbf{x}^u$"
DOT = "out:$\\mathbf{x}^u\\cdot\\mathbf{E}_i$"
ITEMS = ["in:item 1", "in:item 2", "in:...", "in:item $L$"]
TABLE = ["learns:item table $\\mathbf{E}$, 50 an item"]
SASREC = "learns:two blocks of causal self-attention (SASRec)"
PROMPT = "in:prompt: titles of the history, titles of 20 candidates"
MODELS: dict[str, list[list[str]]] = {
    "ncf": [["in:user's number", "in:item's number"], ["learns:user table $\\mathbf{p}_u$", "learns:item table $\\mathbf{q}_i$"],
            ["does:side by side, 100"], ["learns:layers of 64, 32, 16, 8 with ReLU"], ["learns:one logit"],
            ["out:$\\hat{y}_{ui}$"]],
    "gru4rec": [ITEMS, TABLE, [">learns:GRU"] + ["learns:GRU"] * 3, [X], [DOT]],
    "nextitnet": [ITEMS, TABLE, ["learns:width 3, dilation $n$; layer norm, ReLU"],
                  ["learns:width 3, dilation $2n$; layer norm, ReLU"],
                  ["does:plus what went into the block; 12 blocks, $n$ = 1, 4, 1, 4, ..."],
                  [X], ["out:softmax of $\\mathbf{x}^u\\cdot\\mathbf{E}_i$ over all items"]],
    "sasrec": [ITEMS, ["learns:item table $\\mathbf{E}$ times $\\sqrt{50}$, plus position table"],
               ["learns:attention to what came before; layer norm, residual"], ["learns:feed-forward, residual; two such blocks"],
               ["learns:layer norm; the last state is $\\mathbf{x}^u$"], [DOT]],
    "morec": [["in:text of item 1", "in:text of item 2", "in:...", "in:text of item $L$"],
              ["frozen:sentence encoder (learns at paper)"], ["learns:dense layer and GELU: $\\mathbf{E}_i$"], [SASREC], [DOT]],
    "ctrl": [["in:history and next item", "in:the same in words: \"This is a user, who ...\""],
             ["learns:SASRec", "frozen:sentence encoder (learns at paper)"],
             ["learns:three parts of 50", "learns:three parts of 50"],
             ["does:each part's best match on the other side, summed"], ["out:which histories and texts are one (first stage)"]],
    "recformer": [["in:$\\langle s\\rangle$ title: ... category: ... (newest item) title: ... (the one before) ..."],
                  ["learns:word", "learns:position", "learns:token type", "learns:item position"], ["does:sum"],
                  ["learns:Longformer: a window around each word, all words for $\\langle s\\rangle$"],
                  ["does:state of $\\langle s\\rangle$"],
                  ["out:cosine with the $\\langle s\\rangle$ of each item's own sentence, over 0.05"]],
    "llm_only": [[PROMPT], ["frozen:LLM"], ["out:a title"]],
    "tallrec": [[PROMPT], ["frozen:LLM", "learns:adapters on each layer's q and v: rank 8"], ["out:a title"]],
    "mlp_llm": [["frozen:SASRec's $\\mathbf{x}^u$", PROMPT, "frozen:SASRec's $\\mathbf{E}_i$"],
                ["learns:$F_U$", "does:words' embeddings", "learns:$F_I$"], ["frozen:LLM"], ["out:a title"]],
    "allmrec": [["frozen:SASRec's $\\mathbf{x}^u$", PROMPT, "frozen:Stage 1's $\\mathbf{e}_i$ or $\\mathbf{q}_i$"],
                ["learns:$F_U$", "does:words' embeddings", "learns:$F_I$"], ["frozen:LLM"], ["out:a title"]],
}  # fmt: skip


def place(rows: list[list[str]]) -> list[list[tuple[float, float]]]:
    """Centre and width of every box on an axis from 0 to 1, by the length of what it says; a box alone in its row is as wide as
    the row below it, where arrows of several boxes come in."""
    out, gap = [], 0.03
    for row in rows:
        said = [re.sub(r"\\[a-z]+|[${}]", "", box.partition(":")[2]) for box in row]
        widths = [max(0.1, 0.0145 * len(text) + 0.02) for text in said]
        whole = sum(widths) + gap * (len(row) - 1)
        below = out[-1] if out and len(out[-1]) > 1 else []
        if len(row) == 1 and below:
            widths = [whole := max(whole, below[-1][0] + below[-1][1] / 2 - below[0][0] + below[0][1] / 2)]
        shrunk, left, boxes = min(1.0, 1 / whole), 0.0, []
        for width in widths:
            boxes.append((0.5 + shrunk * (left + width / 2 - whole / 2), shrunk * width))
            left += width + gap
        out.append(boxes)
    return out


def draw(rows: list[list[str]]):
    """The figure of one model."""
    figure, axes = plt.subplots(figsize=(7.2, 0.62 * len(rows) + 0.35))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.75, len(rows) - 0.45))
    axes.axis("off")
    places, arrow = place(rows), {"arrowstyle": "-|>", "color": "#444444", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    for height, (row, boxes) in enumerate(zip(rows, places, strict=True)):
        for number, (box, (x, width)) in enumerate(zip(row, boxes, strict=True)):
            kind, _, label = box.lstrip(">").partition(":")
            axes.add_patch(plt.Rectangle((x - width / 2, height - 0.28), width, 0.56, facecolor=FILL[kind], edgecolor="#444444"))
            axes.text(x, height - 0.01, label, ha="center", va="center", fontsize=8.5)
            if row[0].startswith(">") and number:
                left = boxes[number - 1]
                axes.annotate("", (x - width / 2, height), (left[0] + left[1] / 2, height), arrowprops=arrow)
            if height + 1 < len(rows):
                for start, end in _arrows(x, number, row, places[height + 1]):
                    axes.annotate("", (end, height + 0.72), (start, height + 0.28), arrowprops=arrow)
    used = [kind for kind in FILL if any(box.lstrip(">").startswith(kind + ":") for row in rows for box in row)]
    patches = [plt.Rectangle((0, 0), 1, 1, facecolor=FILL[kind], edgecolor="#444444") for kind in used]
    axes.legend(patches, [SAID[kind] for kind in used], loc="lower center", ncols=len(used), fontsize=7.5, frameon=False)
    return figure


def _arrows(x: float, number: int, row: list[str], above: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """From where to where one box's arrows go: to the box of its number where rows are equally long, straight up into a box
    that is alone, straight up from it, and otherwise to all."""
    if row[0].startswith(">"):
        return [(x, x)] if number == len(row) - 1 else []
    if len(row) == len(above):
        return [(x, above[number][0])]
    if len(above) == 1:
        return [(x, x)]
    return [(centre if len(row) == 1 else x, centre) for centre, _ in above]


def main(folder: Path | None = None) -> list[Path]:
    """Write all figures; returns where they lie."""
    folder = folder or project_root() / "book" / "appendix" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context({"svg.hashsalt": "baselines", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        for name, rows in MODELS.items():
            figure = draw(rows)
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
            plt.close(figure)
            written.append(folder / f"{name}.svg")
    return written


if __name__ == "__main__":
    main()
