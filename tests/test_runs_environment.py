"""The environment says where a run was made, and keeps no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biograd.brian.import_brian2 import import_brian2
from biograd.runs.environment import BRIAN2, device_name, environment, git_state


def test_it_is_json_and_names_the_versions(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JWT", "secret")
    found = json.loads(json.dumps(environment("cpu", folder=tmp_path)))
    assert found["versions"]["numpy"] == np.__version__ == found["distributions"]["numpy"]
    assert found["versions"]["python"].startswith(f"{sys.version_info[0]}.")
    assert found["slurm"]["SLURM_JOB_ID"] == "42" and "secret" not in json.dumps(found)
    assert found["argv"] == sys.argv and found["hostname"] and found["platform"]
    assert found["git"] is None and found["device"].startswith("cpu")


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from biograd.runs.environment import environment; environment('cuda');"
        "print({'torch', 'brian2', 'h5py', 'numpy', 'snntorch'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_git_tells_commit_and_changes(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *options, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("init", "-q")
    except OSError:
        pytest.skip("git is not installed")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "file").write_text("1")
    assert git_state(tmp_path) == {"commit": None, "dirty": True}
    git("add", "file")
    git("commit", "-q", "-m", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}


def test_without_git_there_is_no_commit(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_the_device_has_a_name() -> None:
    assert device_name(None).startswith("cpu (")
    assert device_name("cuda:0").startswith("cuda:0")


def test_preferences_of_brian2_are_kept_once_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "brian2", raising=False)
    assert environment()["brian2"] == {}
    monkeypatch.undo()
    prefs = import_brian2().prefs
    monkeypatch.setitem(prefs, "core.default_float_dtype", np.float32)
    monkeypatch.setitem(prefs, "codegen.target", "numpy")
    kept = environment()["brian2"]
    assert kept["core.default_float_dtype"] == "float32" and kept["codegen.target"] == "numpy"
    assert kept["core.network.default_schedule"][0] == "start"
    assert kept["legacy.refractory_timing"] is False
    assert json.loads(json.dumps(kept)) == kept and set(kept) == set(BRIAN2)
