"""The page on the baselines: a figure for each model, and sizes that are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from allmrec_lib import diagrams
from allmrec_lib.config import load_profile
from allmrec_lib.projections import Projection
from allmrec_lib.recommenders.gru4rec import GRU4Rec
from allmrec_lib.recommenders.ncf import NCF
from allmrec_lib.recommenders.nextitnet import NextItNet
from allmrec_lib.recommenders.sasrec import SASRec
from allmrec_lib.tallrec import with_adapters

FOLDER = Path(__file__).resolve().parent.parent / "book" / "appendix"
PAGE = (FOLDER / "baselines.md").read_text()
PAPER, LAPTOP = (load_profile(name, "beauty") for name in ("paper", "laptop"))


def size(module: nn.Module, without: int = 0) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad) - without


def section(model: str) -> str:
    return re.search(rf"^## {model}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def numbers(model: str) -> list[int]:
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d", section(model).split("that learn:**")[1].split("\n- **")[0])]


def test_every_figure_is_shown_and_as_the_code_draws_it(tmp_path):
    drawn = {path.stem for path in diagrams.main(tmp_path)}
    assert drawn == set(diagrams.MODELS) == set(re.findall(r"figures/(\w+)\.svg", PAGE))
    for name in drawn:
        old, new = ((folder / f"{name}.svg").read_text() for folder in (FOLDER / "figures", tmp_path))
        labels, arrows = (lambda svg: re.findall("<!-- (.*?) -->", svg)), (lambda svg: svg.count("<path"))
        assert len(labels(new)) >= sum(map(len, diagrams.MODELS[name]))  # matplotlib notes each text that it draws as outlines
        assert (labels(old), arrows(old)) == (labels(new), arrows(new)), (
            f"{name}.svg is not what the code draws; python -m allmrec_lib.diagrams writes it anew"
        )


@pytest.mark.parametrize("name", diagrams.MODELS)
def test_boxes_lie_side_by_side_on_the_figure(name):
    for row, boxes in zip(diagrams.MODELS[name], diagrams.place(diagrams.MODELS[name]), strict=True):
        edges = [edge for centre, width in boxes for edge in (centre - width / 2, centre + width / 2)]
        assert edges == sorted(edges) and edges[0] > -0.011 and edges[-1] < 1.011, row


def test_sizes_of_the_recommenders():
    table = PAPER.sasrec.dim
    assert size(NCF(1, 1, PAPER.ncf), 4 * table) in numbers("NCF")
    assert size(GRU4Rec(1, PAPER.gru4rec), 2 * table) in numbers("GRU4Rec")
    assert {size(NextItNet(1, p.nextitnet), 2 * table) for p in (PAPER, LAPTOP)} <= set(numbers("NextItNet"))
    above = size(SASRec(1, PAPER.sasrec), 2 * table)
    assert above in numbers("SASRec") and {above, size(nn.Linear(384, 50))} <= set(numbers("MoRec"))
    assert above + size(nn.Linear(50, 50)) in numbers("CTRL")


def test_sizes_of_what_learns_around_the_llm():
    from transformers import OPTConfig, OPTForCausalLM

    opt = OPTConfig(num_hidden_layers=2, vocab_size=8, max_position_embeddings=8, hidden_size=4096, word_embed_proj_dim=4096,
                    num_attention_heads=32, ffn_dim=8)  # fmt: skip
    opt = OPTForCausalLM(opt).requires_grad_(False)
    assert size(with_adapters(opt, PAPER.tallrec)) * 32 // 2 in numbers("TALLRec")  # 32 layers
    heads = {d: size(Projection(d, 4096, nn.GELU(), 1.0)) for d in (50, PAPER.stage1.dim)}
    assert numbers("MLP-LLM")[:1] + numbers("MLP-LLM")[-1:] == [2 * heads[50], heads[50] + heads[128]]
