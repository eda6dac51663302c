"""What is said of the checkout, and what is left out where git does not say it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking.origin import origin_tags

COMMIT = "mlflow.source.git.commit"
CHANGES = "biotune.uncommitted_changes"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit, and the working folder in it."""
    monkeypatch.chdir(tmp_path)
    person = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", *person, "commit", "--quiet", "--allow-empty", "-m", "1"], check=True)
    return tmp_path


def test_the_commit_and_whether_there_are_changes(repository: Path) -> None:
    assert len(origin_tags()[COMMIT]) == 40
    assert origin_tags()[CHANGES] == "false"
    (repository / "new").touch()
    assert origin_tags()[CHANGES] == "true"


def test_where_git_cannot_look_at_the_files_nothing_is_said_of_changes(repository: Path) -> None:
    (repository / ".git" / "index").write_text("broken")
    tags = origin_tags()
    assert COMMIT in tags
    assert CHANGES not in tags


def test_without_a_repository_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not {COMMIT, CHANGES} & origin_tags().keys()
