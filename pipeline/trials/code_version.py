"""Which code a training run is a function of, as a hash: an edited loop must not answer with the
curves of the one before, and an edited comment must not lose a search."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import find_spec
from typing import Final

TRAINING: Final = "biotune.finetuning.fitness"
"""The module that trains."""


@cache
def code_hash(module: str = TRAINING) -> str:
    """SHA-256 of a module and all of its package's that it imports, in hexadecimal.

    Of their syntax trees without docstrings and comments, so that only what runs counts; and by
    their names, so that a checkout, a wheel and an image of the same code agree, where Python's
    minor version is the same.
    """
    package = module.partition(".")[0]
    sources: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in sources:
            continue
        source = _source_of(name)
        if source is None:  # a name inside a module
            continue
        tree = ast.parse(source)
        todo += [other for other in _imported(tree) if other.partition(".")[0] == package]
        for node in ast.walk(tree):
            _drop_docstring(node)
        sources[name] = ast.unparse(tree)
    described = "\0".join(f"{name}\0{sources[name]}" for name in sorted(sources))
    return hashlib.sha256(described.encode()).hexdigest()


def _source_of(name: str) -> str | None:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError as error:
        if error.name == name:  # what it would be in is a module, not a package
            return None
        raise
    loader = spec.loader if spec else None
    return loader.get_source(name) if isinstance(loader, InspectLoader) else None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of modules, and of what is imported from them, which may be modules, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _drop_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    kept = [
        statement
        for statement in body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]
    node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
