"""``python -m biotune``."""

from __future__ import annotations

from biotune.commands.group import main

main()
