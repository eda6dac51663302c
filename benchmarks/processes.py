"""Processes that start without importing everything again."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def forked_after(*modules: str) -> ForkServerContext:
    """Start processes as forks of one that has imported some modules, and computed nothing.

    So they share neither caches nor threads, and can use CUDA, which a fork of a process that uses
    it cannot.

    Args:
        modules: what is imported beforehand. The first call in a process decides.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
