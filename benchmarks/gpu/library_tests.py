"""The library's tests that need a GPU, by a configuration of pytest of their own.

``pyproject.toml``'s needs a plugin that a bare GPU machine does not have.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu.setting import Findings, Setting

ROOT = Path(__file__).parents[2]
CONFIGURATION = Path(__file__).with_name("pytest.ini")
MARK = "pytest.mark.gpu"


def test_files(root: Path) -> list[Path]:
    """The library's test files that have such tests.

    All others stay unread: they may need what is not there. The pipeline's need pydantic.
    """
    files = sorted((root / "tests" / "biotune").rglob("test_*.py"))
    return [file for file in files if MARK in file.read_text(encoding="utf-8")]


class Outcomes:
    """A plugin of pytest that notes how each test ended.

    Attributes:
        rows: test, outcome and seconds.
        faults: of collecting, too, which is no test.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, str | float]] = []
        self.faults: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.faults.append(f"{report.nodeid} cannot be collected: {_last_line(report)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        remark = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            remark = str(report.longrepr[2]).removeprefix("Skipped: ")
        if report.failed:
            remark = _last_line(report)
            self.faults.append(f"{report.nodeid} failed in {report.when}: {remark}")
        self.rows.append(
            {
                "test": report.nodeid,
                "outcome": report.outcome,
                "s": report.duration,
                "remark": remark,
            }
        )


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What pytest's short summary says: the first line of the error."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    return str(message).strip().partition("\n")[0]


def run(setting: Setting, root: Path = ROOT) -> Findings:
    """Run the library's GPU tests. On a CPU they are all skipped, which is told."""
    outcomes = Outcomes()
    arguments = ["-c", CONFIGURATION, "--rootdir", root, "-m", "gpu", *test_files(root)]
    code = pytest.main([str(argument) for argument in arguments], plugins=[outcomes])
    findings = Findings(rows=list(outcomes.rows), faults=outcomes.faults)
    counts = Counter(str(row["outcome"]) for row in outcomes.rows)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    findings.notes.append(f"{told}.")
    if code != pytest.ExitCode.OK and not findings.faults:
        findings.faults.append(f"pytest ended with {code!r}")
    if setting.on_gpu and counts["skipped"]:
        findings.faults.append(f"{counts['skipped']} tests were skipped, with a GPU at hand")
    if not setting.on_gpu:
        findings.notes.append("They need a CUDA device: on a CPU nothing is tested here.")
    return findings
