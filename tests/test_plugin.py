"""A package of a laboratory adds parts to biograd: one file and one line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
SMALL = ("network.hidden=[16]", "training.batch_size=64", "dataset.training_examples=400")


def console(*words: str, installed: bool = True, folder: Path = PLUGIN) -> tuple[int, str]:
    """Run biograd as a user who has installed the package does; return exit code and words."""
    path = [str(PLUGIN), *sys.path] if installed else sys.path
    done = subprocess.run(
        [sys.executable, "-P", "-m", "biograd", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(PLUGIN), *sys.path])


def test_the_rule_passes_the_public_check(importable: None) -> None:
    from signed_feedback import SignedFeedback

    from biograd.testing import check_estimator

    check_estimator(SignedFeedback)


def test_the_rule_is_listed_and_trains(tmp_path: Path) -> None:
    code, listed = console("list", "estimators", "--json")
    rules = {row["name"]: row for row in json.loads(listed)["estimators"]}
    assert code == 0 and "sDFA" in rules["signed_feedback"]["reference"]
    asked = ["train", "--model", "ann", "--dataset", "digits", "--estimator", "signed_feedback"]
    asked += ["--epochs", "1", "--out", "a.h5", "--quiet", "--json"]
    asked += [word for key in SMALL for word in ("--set", key)]
    code, said = console(*asked, folder=tmp_path)
    assert code == 0, said
    assert json.loads(said)["estimator"] == "signed_feedback" and (tmp_path / "a.h5").is_file()


def test_without_the_package_there_is_no_such_rule() -> None:
    words = ("train", "--model", "ann", "--dataset", "digits", "--estimator", "signed_feedback")
    code, said = console(*words, installed=False)
    assert code == 2 and said.startswith("biograd: ann: estimator = 'signed_feedback': ")
    assert "signed_feedback" not in console("list", "estimators", installed=False)[1]


def test_a_source_passes_the_public_check(importable: None) -> None:
    import ramps

    from biograd import data
    from biograd.recipes import DatasetRecipe
    from biograd.testing import check_source

    found = data.load(DatasetRecipe("ramps"), name="ramps")
    check_source(found.train)
    assert found.task.outputs == 2 and data.SOURCES["ramps"] is ramps.read


def test_a_source_and_an_encoding_train_from_the_console(tmp_path: Path) -> None:
    (tmp_path / "ramps.toml").write_text('source = "ramps"\n[settings]\nrows = 100\n')
    asked = ["train", "--model", "spiking", "--dataset", "ramps.toml", "--estimator", "backprop"]
    asked += ["--out", "a.h5", "--quiet", "--json"]
    settings = ("encoding.kind=clock", "encoding.settings.steps=2", "encoding.threshold=0.5")
    asked += [word for key in (*settings, "training.epochs=8") for word in ("--set", key)]
    code, said = console(*asked, folder=tmp_path)
    assert code == 0, said
    assert json.loads(said)["test_accuracy"] > 0.9
    code, said = console(
        *asked[:-2], "--force", "--set", "encoding.settings.step=2", folder=tmp_path
    )
    assert code == 2 and "encoding: unknown key settings.step: did you mean 'steps'?" in said
