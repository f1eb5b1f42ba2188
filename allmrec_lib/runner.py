"""Chapters by papermill: parameters checked, executed copies written whole, finished work not redone.

    python -m allmrec_lib.runner chapter 03 --dataset beauty --profile laptop
    python -m allmrec_lib.runner book --dataset movielens --profile laptop
    python -m allmrec_lib.runner sources        # the chapters' sources in place, at their default parameters
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat

from .config import INTERRUPTED, ConfigError, load_profile
from .paths import REPOSITORY, full_name, inputs, project_root

KERNEL = {"ALLMREC_QUIET": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
          "PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # fmt: skip

NEEDS = ("dataset", "profile", "llm", "device")  # what decides what a run needs

# For the sources: the last digits depend on how many threads add up, and on how wide the processor's registers are.
SAME_EVERYWHERE = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}
# Nothing of the library is in it: a mistake there must not pass for another machine.
ROUNDED = """
import hashlib, torch
from torch import nn
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.items, self.gru = nn.Embedding(500, 50), nn.GRU(50, 50, batch_first=True)
        self.conv, self.wide, self.narrow = nn.Conv1d(50, 50, 3, padding=1), nn.Linear(50, 384), nn.Linear(384, 256)
        self.block, self.out = nn.TransformerEncoderLayer(256, 4, 1024, 0.1, batch_first=True), nn.Linear(256, 50)
    def forward(self, x):
        x = self.conv(self.gru(self.items(x))[0].transpose(1, 2)).transpose(1, 2)
        return self.out(self.block(self.narrow(torch.sigmoid(self.wide(x))))) @ self.items.weight.T
net, x = Net(), torch.randint(500, (32, 20))
adam = torch.optim.Adam(net.parameters(), 1e-3)
for _ in range(20):
    adam.zero_grad()
    nn.functional.cross_entropy(net(x).flatten(0, 1), x.roll(1, 1).flatten()).backward()
    adam.step()
sizes = torch.linalg.svdvals(net.items.weight.detach().double())
print(hashlib.sha256(net.eval()(x).detach().numpy().tobytes() + sizes.numpy().tobytes()).hexdigest()[:16])
"""


class ChapterError(RuntimeError):
    """A chapter that cannot be run or failed while running; the message names chapter, cell and cause."""


def book_folder() -> Path:
    """The folder of the chapters' sources."""
    own = project_root() / "book"
    return own if any(own.glob("[0-9][0-9]_*.ipynb")) else REPOSITORY / "book"


def chapters() -> dict[str, Path]:
    """The chapters' sources by number: {"01": book/01_data.ipynb, ...}."""
    return {path.name[:2]: path for path in sorted(book_folder().glob("[0-9][0-9]_*.ipynb"))}


def find_chapter(name: str) -> Path:
    """A chapter by number ("3", "03") or name ("03_sasrec")."""
    known = chapters()
    number = re.fullmatch(r"(\d{1,2})(_\w+)?", name)
    found = known.get(number[1].zfill(2)) if number else None
    if found is None:
        raise ChapterError(f"no chapter {name!r}; there are {', '.join(p.stem for p in known.values())}")
    return found


def check_parameters(source: Path, parameters: dict[str, Any]) -> None:
    """Papermill only warns of a parameter that a notebook does not have; here it is an error naming the nearest."""
    import papermill

    known = list(papermill.inspect_notebook(str(source)))
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ChapterError(f"{source.stem} has no parameter {name!r}{hint} (it has {', '.join(known)})")


def library_digest() -> str:
    """A hash of all of the library's source and profiles."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".yaml"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what changes from run to run: time stamps, papermill's record, paths, cell ids made by injection."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = f"injected-{number}"
        for output in cell.get("outputs", []):
            for key in ("text", "data"):
                if key in output:
                    output[key] = json.loads(json.dumps(output[key]).replace(str(project_root()), "."))
    return notebook


def write_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Beside, then renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    nbformat.write(notebook, partial)
    partial.replace(path)


def _key(source: Path, parameters: dict[str, Any]) -> str:
    cells = [(c.cell_type, c.source) for c in nbformat.read(source, as_version=4).cells]
    return hashlib.sha256(json.dumps([cells, parameters, library_digest()]).encode()).hexdigest()[:16]


def _local_kernel(folder: str) -> type:
    """A kernel on this machine needs no network: its sockets are files in ``folder``, where the system has such.

    Ports, or files beside the notebook, can be given out twice when two chapters start at the same moment.
    """
    from jupyter_client import AsyncKernelManager

    class LocalKernel(AsyncKernelManager):
        transport, ip = "ipc", str(Path(folder) / "socket")

    return AsyncKernelManager if os.name == "nt" else LocalKernel


def _execute(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Run ``source`` into ``target``; on failure the notebook is left beside it as ``.failed.ipynb``."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    os.environ.update(KERNEL)
    for folder in ("ALLMREC_HOME", "ALLMREC_DATA"):  # the kernel starts in the notebook's folder
        if os.environ.get(folder):
            os.environ[folder] = os.path.abspath(os.environ[folder])
    running = target.with_name(f".{target.stem}.running.ipynb")
    failed = target.with_name(target.stem + ".failed.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # without parameters nothing is injected, so that a source run in place keeps its cells
        with TemporaryDirectory(prefix="kernel") as sockets:
            papermill.execute_notebook(str(source), str(running), parameters=parameters or None, cwd=str(source.parent),
                                       progress_bar={"desc": source.stem, "mininterval": 1.0},
                                       kernel_manager_class=_local_kernel(sockets))  # fmt: skip
    except (PapermillExecutionError, DeadKernelError) as error:
        running.replace(failed)
        if isinstance(error, DeadKernelError):
            what = "the kernel was killed, which is usually memory: set a smaller batch, or fewer threads"
        else:
            what = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        where = os.path.relpath(failed, project_root())
        raise ChapterError(f"chapter {source.stem}, {what}\nthe notebook with what it had done: {where}") from error
    except BaseException:
        running.unlink(missing_ok=True)
        raise
    notebook = nbformat.read(running, as_version=4)
    write_notebook(clean(notebook), target)
    running.unlink()
    failed.unlink(missing_ok=True)


def copies_of(dataset: str, profile: str, seed: int, llm: str, **_: Any) -> Path:
    """The folder of a run's executed copies: ``book/executed/<dataset>`` for what the book shows (profile laptop, seed 0, the
    pocket LLM), ``data/runs/<dataset>/<profile>-seed<k>-<llm>`` for anything else, so that it overwrites nothing."""
    shown = (profile, seed, llm) == ("laptop", 0, "pocket")
    return project_root() / "book" / "executed" / dataset if shown else (
        project_root() / "data" / "runs" / dataset / f"{profile}-seed{seed}-{Path(llm).name}"
    )


@cache
def _check_needs(**parameters: Any) -> None:
    """Memory, disk, weights and data, before a chapter loads any of them; not where the small LLM runs on a CPU, which any
    machine can do. Raises :class:`ChapterError`."""
    if (parameters.get("llm"), parameters.get("device")) == ("pocket", "cpu"):
        return
    from .preflight import passed

    if not passed(**parameters):
        raise ChapterError("the run needs what is not here; python -m allmrec_lib.preflight lists it, ALLMREC_ANYWAY=1 goes on")


def run_chapter(name: str, force: bool = False, **parameters: Any) -> Path:
    """Run one chapter with parameters (dataset, profile, seed, llm, device) and return its executed copy.

    The copy lies in the folder of :func:`copies_of`. What was run before with the same source, library, parameters, raw data
    and LLM is not run again (``force``: it is). Raises :class:`ChapterError`, also where ``preflight`` finds that it cannot succeed.
    """
    source = find_chapter(name)
    check_parameters(source, parameters)
    load_profile(parameters["profile"], parameters["dataset"])  # a misspelt one is an error before a kernel starts
    target = copies_of(**parameters) / source.name
    record = project_root() / "data" / "artifacts" / "runs" / target.relative_to(project_root()).with_suffix(".json")
    key = _key(source, parameters)
    past = json.loads(record.read_text()) if target.exists() and record.exists() else {}
    unchanged = past.get("read", {}).items() <= inputs(parameters["llm"]).items()  # what came since does not matter
    if not force and past.get("key") == key and unchanged:
        print(f"{source.stem}: up to date", flush=True)
        return target
    _check_needs(**{name: parameters[name] for name in NEEDS if name in parameters})
    begin = time.monotonic()
    _execute(source, target, parameters)
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(".partial")
    seconds, read = time.monotonic() - begin, inputs(parameters["llm"])
    partial.write_text(json.dumps({"key": key, "parameters": parameters, "seconds": seconds, "read": read}))
    partial.replace(record)
    print(f"{source.stem}: done in {seconds:.0f} s, {target.relative_to(project_root())}", flush=True)
    return target


def run_book(only: list[str] | None = None, force: bool = False, **parameters: Any) -> None:
    """Run all chapters, one after another; later ones find what earlier ones trained."""
    names = [find_chapter(name).stem for name in only or list(chapters())]
    begin = time.monotonic()
    for place, name in enumerate(names, 1):
        print(f"[{place}/{len(names)}] {name} on {parameters['dataset']} ({parameters['profile']}), "
              f"{time.monotonic() - begin:.0f} s so far", flush=True)  # fmt: skip
        run_chapter(name, force=force, **parameters)
    print(f"all {len(names)} chapters in {time.monotonic() - begin:.0f} s", flush=True)


def arithmetic() -> str:
    """A fingerprint of the last digits on this machine: of a small network of the layers that the models have, trained.

    :data:`SAME_EVERYWHERE` does not make all processors round alike (on an AMD EPYC ``MKL_CBWR=AVX2`` changes no bit), and
    training makes a last digit one right answer more or less.
    """
    command = [sys.executable, "-c", ROUNDED]
    done = subprocess.run(command, env=os.environ | KERNEL | SAME_EVERYWHERE, capture_output=True, text=True)
    if done.returncode:
        raise ChapterError(f"the fingerprint of this machine's arithmetic could not be taken:\n{done.stderr[-2000:]}")
    return done.stdout.split()[-1]


def run_sources(only: list[str] | None = None) -> None:
    """Execute the chapters' sources in place at their default parameters (the smoke profile), with one CPU thread and
    AVX2; their metadata holds the fingerprint of the :func:`arithmetic` that the outputs stored in them come from."""
    os.environ.update(SAME_EVERYWHERE)
    digits = arithmetic()
    for name in only or list(chapters()):
        source = find_chapter(name)
        begin = time.monotonic()
        _execute(source, source, {})
        notebook = nbformat.read(source, as_version=4)
        notebook.metadata["arithmetic"] = digits
        write_notebook(notebook, source)
        print(f"{source.stem}: done in {time.monotonic() - begin:.0f} s", flush=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["chapter", "book", "sources"])
    parser.add_argument("names", nargs="*", help="chapters, by number")
    for name, default in (("dataset", "movielens"), ("profile", "laptop"), ("llm", "pocket"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="run again what is up to date")
    parser.add_argument("-p", dest="more", action="append", default=[], metavar="NAME=VALUE", help="any other parameter")
    args = parser.parse_args(arguments)
    parameters = {name: getattr(args, name) for name in ("dataset", "profile", "seed", "llm", "device")}
    parameters |= {name: _value(value) for name, _, value in (p.partition("=") for p in args.more)}
    parameters["llm"] = full_name(parameters["llm"])
    if args.what == "chapter" and not args.names:
        parser.error("say which chapter, by number")
    try:
        if args.what == "sources":
            run_sources(args.names)
        elif args.what == "book":
            run_book(args.names, force=args.force, **parameters)
        else:
            for name in [find_chapter(name).stem for name in args.names]:
                run_chapter(name, force=args.force, **parameters)
    except (ChapterError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
