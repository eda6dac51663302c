"""Which of our modules a module imports, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("biotune", "pipeline", "stages")


def modules() -> dict[str, Path]:
    """Every module of ours, by name; a package is its ``__init__.py``."""
    paths = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            paths[name] = path
    return paths


def imported_by(path: Path) -> set[str]:
    """Names of our modules imported anywhere in a file, inside functions too.

    What is imported for types alone is left out: it decides nothing at run time.
    """
    ours = modules()
    imported: set[str] = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= names
            if not names <= ours.keys():  # some of them are names inside the module
                imported.add(node.module)
    return imported & ours.keys()


def closure(name: str, without: Collection[str] = ()) -> set[str]:
    """A module and all of ours that it imports, directly or through others but ``without``.

    A package's ``__init__.py`` counts only where a name is imported from it: by itself it holds
    none but what it passes on.
    """
    ours, todo, reached = modules(), [name], set()
    while todo:
        module = todo.pop()
        if module in reached or module in without:
            continue
        reached.add(module)
        todo += imported_by(ours[module])
    return reached


def _nodes(tree: ast.AST) -> list[ast.AST]:
    nodes = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += [node, *_nodes(node)]
    return nodes
