"""A module imports only from those above it in this list; no module but ``runner`` knows of notebooks."""

from __future__ import annotations

import ast
from pathlib import Path

import allmrec_lib

ORDER = [
    "paths", "diagrams", "processes", "meter", "store", "llm.prompts", "config", "shares", "metrics", "datasets", "sequences", "training", "text", "recommenders", "scenarios", "prepared", "alignment",
    "llm.backbone", "llm.soft_tokens", "llm.decoding", "llm.pocket_model", "llm.pocket_corpus", "llm.pocket_skills",
    "llm.pocket", "projections", "ranker", "allmrec", "tallrec", "results", "paper", "work", "speed", "settings_page", "ledger", "cost", "cost_page",
    "experiment", "seeds", "yes_no", "transfer", "genres", "inside", "report", "tune", "memory", "devices", "preflight", "train", "runner", "__main__",
]  # fmt: skip
FOLDER = Path(allmrec_lib.__file__).parent
NOTEBOOKS = {"papermill", "nbformat", "IPython", "jupyter_book", "myst_nb"}


def modules() -> dict[str, ast.Module]:
    """Every module of the library by its name in the list: packages without an order of their own count as one."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
    return found


def place(name: str) -> int | None:
    return next((i for i, known in enumerate(ORDER) if name == known or name.startswith(known + ".")), None)


def imports(name: str, tree: ast.Module) -> set[str]:
    """The library's modules that a module imports, anywhere in it."""
    package = name.split(".") if (FOLDER / Path(*name.split("."))).is_dir() else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if place(whole) is not None else ".".join(base))
    return found


def test_every_module_is_in_the_list():
    assert [name for name in modules() if name not in ("", "llm") and place(name) is None] == []


def test_imports_point_downward():
    wrong = [
        f"{name} imports {other}"
        for name, tree in modules().items()
        for other in imports(name, tree)
        if place(name) is not None and other and place(other) > place(name)
    ]
    assert wrong == []


def test_only_the_runner_knows_of_notebooks():
    users = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        for module in ([a.name for a in node.names] if isinstance(node, ast.Import) else
                       [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
        if module.split(".")[0] in NOTEBOOKS
    }  # fmt: skip
    assert users == {"runner"}


def test_files_are_short():
    long = {path.name: n for path in FOLDER.rglob("*.py") if (n := len(path.read_text().splitlines())) > 320}
    assert long == {}
