"""How often a process looks for garbage."""

from __future__ import annotations

import gc


def collect_garbage_seldom() -> None:
    """Let this process look for cycles of garbage a hundred times less often than Python does.

    Importing torch makes a million objects that live for ever, among which it looks again and
    again: .6 of the 5 CPU seconds until a network is built (Python 3.11). Training leaves hardly
    any cycles.
    """
    gc.set_threshold(100_000, 50, 50)
