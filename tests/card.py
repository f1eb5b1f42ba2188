"""A device that is none: its tensors lie in the CPU's memory, and refuse to meet tensors that do not lie on it.

    python -m tests.card 03 05          # these chapters' cells at the smoke profile with device = this one; what fails is shown

Where no GPU is at hand this finds what would fail on one: a tensor left on the CPU, a tensor on the card given to NumPy. It
calls itself "meta", which PyTorch builds everywhere and nobody computes on. Numbers are not checked; what is learned goes to a
store of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

CARD, CPU = torch.device("meta"), torch.device("cpu")
INDEXING = (
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "_unsafe_index_put",
)  # a CPU's index will do
COPYING = ("copy_", "_to_copy", "to")
ROOT = Path(__file__).resolve().parent.parent


class OnCard(torch.Tensor):
    """A tensor on the card; ``inner`` is what it holds."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=CARD,
                                                   storage_offset=inner.storage_offset())  # fmt: skip
        made.inner = held(inner)
        return made

    def __repr__(self, **_) -> str:
        return f"OnCard({self.inner!r})"

    def numpy(self, *_, **__):
        raise TypeError("a tensor on the card is no NumPy array; .cpu() first")

    __array__ = numpy

    def tolist(self) -> list:
        return held(self.detach()).tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return called(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """While it is entered, the device exists."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return called(func, args, kwargs or {})


def held(value: Any) -> Any:
    while isinstance(value, OnCard):
        value = value.inner
    return value


def called(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation on what the tensors hold; RuntimeError where some lie on the card and others do not."""
    args, kwargs = tree_map(_adopted, args), tree_map(_adopted, kwargs)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    on_card, name = [isinstance(t, OnCard) for t in tensors], func.overloadpacket.__name__
    mixed = any(on_card) and not all(on or t.dim() == 0 for on, t in zip(on_card, tensors, strict=True))
    indexed = name in INDEXING and on_card[0] and (len(args) < 3 or isinstance(args[2], OnCard) or args[2].dim() == 0)
    if mixed and name not in COPYING and not indexed:
        places = [(tuple(t.shape), "card" if on else "cpu") for on, t in zip(on_card, tensors, strict=True)]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {places}")
    wanted = kwargs.get("device") or next((value for value in args if isinstance(value, torch.device)), None)
    out = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    to_card = any(on_card) if wanted is None else torch.device(wanted).type == CARD.type
    return tree_map(lambda value: OnCard(value) if to_card and isinstance(value, torch.Tensor) else value, out)


def _plain(value: Any) -> Any:
    return CPU if isinstance(value, torch.device) and value.type == CARD.type else held(value)


def _adopted(value: Any) -> Any:
    """``torch.tensor([], device=...)`` comes past the dispatcher: it holds nothing that could be lost."""
    stray = isinstance(value, torch.Tensor) and not isinstance(value, OnCard) and value.device.type == CARD.type
    if stray and value.numel():
        raise NotImplementedError(
            "torch.tensor(values, device=...) loses the values here; write torch.tensor(values).to(device)"
        )
    return OnCard(torch.empty(value.shape, dtype=value.dtype)) if stray else value


def _by_cpu(forward: Callable) -> Callable:
    """torch.nn.GRU's forward: its kernels are no operations of the dispatcher's that could be called on what is held."""

    def run(self: torch.nn.GRU, x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(x, OnCard):
            return forward(self, x, *rest)
        twin = torch.nn.GRU(self.input_size, self.hidden_size, self.num_layers, batch_first=self.batch_first)
        twin.load_state_dict({name: value.detach().cpu() for name, value in self.state_dict().items()})
        twin.requires_grad_(self.weight_ih_l0.requires_grad)
        return tuple(part.to(CARD) for part in forward(twin, x.cpu()))

    return run


def _loading(make: Callable) -> Callable:
    """transformers makes its models on the real "meta" before it reads their weights."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return make(*args, **kwargs)

    return run


def prepare() -> None:
    """What the card cannot do as a card would: autocast, GRU's kernels, being loaded to."""
    import sentence_transformers
    import transformers

    import allmrec_lib.experiment  # noqa: F401 (and with it all that computes)

    for name, module in list(sys.modules.items()):
        if name.startswith("allmrec_lib") and hasattr(module, "autocast"):
            module.autocast = lambda *_: contextlib.nullcontext()
    torch.nn.GRU.forward = _by_cpu(torch.nn.GRU.forward)
    sentence_transformers.SentenceTransformer.__init__ = _loading(sentence_transformers.SentenceTransformer.__init__)
    transformers.PreTrainedModel.from_pretrained = classmethod(_loading(transformers.PreTrainedModel.from_pretrained.__func__))


def failing(cells: list[str]) -> list[str]:
    """The errors of a chapter's code cells on the card, a text each; what fails because an earlier cell did is left out."""
    space, found = {"__name__": "__main__"}, []
    for number, source in enumerate(cells):
        try:
            with Card(), contextlib.redirect_stdout(None):
                exec(compile(source, f"code cell {number}", "exec"), space)
        except NameError:
            if not found:
                raise
        except AssertionError:
            continue  # about numbers
        except Exception as error:
            frames = [
                line.strip() for line in traceback.format_exc().splitlines() if "allmrec_lib" in line or "code cell" in line
            ]
            found.append(f"code cell {number}: {type(error).__name__}: {error}\n    " + "\n    ".join(frames[-4:]))
    return found


def code_of(chapter: str) -> list[str]:
    """A chapter's code cells, told to use the card; what records results is left out."""
    source = json.loads(next((ROOT / "book").glob(f"{chapter}_*.ipynb")).read_text())
    cells = ["".join(cell["source"]) for cell in source["cells"] if cell["cell_type"] == "code"]
    return [cell.replace('device = "cpu"', f'device = "{CARD}"') for cell in cells if "results.record(" not in cell]


def main(chapters: list[str]) -> int:
    import matplotlib
    import myst_nb

    matplotlib.use("Agg")
    myst_nb.glue = lambda *_, **__: None
    os.environ |= {"ALLMREC_QUIET": "1"}
    prepare()
    bad = 0
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "data").mkdir()
        for name in ("paper", "pocket_llm", "raw"):
            (Path(home) / "data" / name).symlink_to(ROOT / "data" / name)
        os.environ["ALLMREC_HOME"] = home
        for chapter in chapters:
            errors = failing(code_of(chapter))
            bad += len(errors)
            print(f"chapter {chapter}: " + ("\n  ".join(["", *errors]) if errors else "runs on a card"), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
