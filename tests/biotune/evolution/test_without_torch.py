"""The optimizer works where torch, and all else but numpy, cannot be imported."""

from __future__ import annotations

import subprocess
import sys

SEARCH = """
import sys

ALLOWED = set(sys.stdlib_module_names) | {"numpy", "biotune"}

class OnlyNumpy:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and not top.startswith("_"):
            raise ImportError(f"{name} is not installed")

sys.modules["torch"] = None
sys.meta_path.insert(0, OnlyNumpy())

from biotune.evolution import BioTune

search = BioTune(["stem", "layer1", "head"], population=4, generations=2, elites=1)
while not search.done:
    for candidate in search.ask():
        search.tell(candidate, len(candidate.plan.trained_blocks) / 3)
print(len(search.history), search.planned_evaluations, sys.modules["torch"])
"""


def test_a_search_runs_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEARCH], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["14", "14", "None"]
