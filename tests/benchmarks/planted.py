"""Sections of a GPU check that fail in every way that a section can."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from unittest import mock

from torch import Tensor

from benchmarks.gpu import bits, library_tests
from benchmarks.gpu.setting import Findings, Setting
from biotune.finetuning.feature_cache import FeatureCache

TESTS = """
import pytest

@pytest.mark.gpu
def test_right():
    print("on standard output")

@pytest.mark.gpu
def test_wrong():
    assert 1 == 2

@pytest.mark.gpu
@pytest.mark.skip(reason="no such card")
def test_skipped():
    pass

def test_not_marked():
    assert False
"""


def good(setting: Setting) -> Findings:
    print("what a library prints is not in the report")
    return Findings(rows=[{"what": "a figure", "ms": 1.5}])


def raises(setting: Setting) -> Findings:
    raise RuntimeError("planted")


def finds_a_fault(setting: Setting) -> Findings:
    findings = Findings(rows=[{"what": "a figure", "ms": 2.5}])
    with findings.part("the first network"):
        raise RuntimeError("planted, too")
    with findings.part("the second network"):
        findings.rows.append({"what": "another", "ms": 3.5})
    return findings


def finds_nothing(setting: Setting) -> Findings:
    return Findings()


def dies(setting: Setting) -> Findings:
    os._exit(7)


def hangs(setting: Setting) -> Findings:
    """Leaves a process, too, whose number is in a file."""
    asleep = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (setting.work / "asleep").write_text(str(asleep.pid))
    time.sleep(600)
    return Findings()


def tests_that_fail(setting: Setting) -> Findings:
    folder = setting.work / "tree" / "tests" / "biotune"
    folder.mkdir(parents=True)
    (folder / "test_planted.py").write_text(TESTS)
    (folder / "test_unreadable.py").write_text("import no_such_package\n")
    return library_tests.run(setting, setting.work / "tree")


def a_cache_that_is_not_exact(setting: Setting) -> Findings:
    exact = FeatureCache.features

    def inexact(self: FeatureCache, *arguments: object) -> Tensor:
        features = exact(self, *arguments)  # type: ignore[arg-type]
        return features * 1.01 if self.used else features

    with mock.patch.object(FeatureCache, "features", inexact):
        return bits.run(setting)
