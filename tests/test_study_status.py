"""How a study stands, while it runs and after, from its folder alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import biograd
from biograd import disk
from biograd.__main__ import main
from biograd.errors import BiogradError, RecipeError
from biograd.studies.status import STATES, status

NET = """
import pathlib, torch
from torch import nn

pathlib.Path(__file__).with_name("imported").write_text("x")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.readout = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, inputs):
        return self.readout(torch.tanh(self.hidden(inputs.flatten(1))))


class Broken(Net):
    def forward(self, inputs):
        raise ValueError("no idea")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of which one cell was trained, one fails, and one was never begun."""
    place = tmp_path_factory.mktemp("status")
    (place / "net.py").write_text(NET)
    names = [f"{place}/net.py:Net", f"{place}/net.py:Broken"]
    with pytest.raises(BiogradError, match="2 of 4 trainings failed"):
        biograd.compare(
            names, ["backprop"], folder=place / "study", seeds=2, epochs=1, control=False
        )
    path = place / "study" / "study.json"
    table = json.loads(path.read_text())
    table["grid"]["models"].append("ann")  # as if somebody had just begun a larger one
    path.write_text(json.dumps(table))
    return place


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_training_has_a_state(folder: Path) -> None:
    before = digests(folder)
    found = status(folder / "study")
    assert digests(folder) == before  # nothing was written, and the user's file was not imported
    states = {(one.cell, one.seed): one for one in found.trainings}
    assert [one.state for one in found.trainings] == ["done"] * 2 + ["failed"] * 2 + ["missing"] * 2
    assert found.counts == {"done": 2, "running": 0, "failed": 2, "stopped": 0, "missing": 2}
    assert tuple(found.counts) == STATES and found.placed is False
    run = biograd.load(folder / "study" / "Net-seed1.h5")
    done = states["Net", 1]
    assert (done.metric, done.value, done.epoch) == ("accuracy", run.summary["test_accuracy"], 1)
    broken = states["Broken", 0]
    assert "no idea" in broken.reason and "net.py, line" in broken.reason


def test_a_training_that_succeeds_has_not_failed(folder: Path, tmp_path: Path) -> None:
    (folder / "study" / "Net-seed0.error").write_text("once\n")
    assert status(folder / "study").trainings[0].state == "done"  # a summary counts more
    (folder / "study" / "Net-seed0.error").unlink()


def test_what_runs_and_what_was_cut_short(folder: Path, tmp_path: Path) -> None:
    """The lock of a run tells one from the other."""
    import shutil

    study = tmp_path / "study"
    shutil.copytree(folder / "study", study)
    (study / "Net-seed0.json").unlink()
    (study / "Net-seed0.h5").unlink()

    class Stop(biograd.Callback):
        def on_epoch(self, step: int, values: Any) -> None:
            if step > 44:
                seen.append(status(study))
                raise KeyboardInterrupt

    seen: list[Any] = []
    with pytest.raises(BiogradError, match="interrupted"):
        biograd.train("ann", path=study / "Net-seed0.h5", epochs=9, callbacks=[Stop()])
    running, stopped = seen[0].trainings[0], status(study).trainings[0]
    assert (running.state, stopped.state) == ("running", "stopped")
    assert running.epoch == stopped.epoch and running.step == stopped.step
    assert running.metric == "accuracy" and 0 < (running.value or 0) <= 1
    lock = disk.Lock(study / "study.lock")
    assert lock.take()
    assert status(study).placed is True
    lock.release()
    (study / "Net-seed0.error").write_text("the disk\nis full")
    failed = status(study).trainings[0]
    assert (failed.state, failed.reason) == ("failed", "the disk is full")
    (study / "Net-seed0.json").write_text("{")
    assert "is damaged: delete it" in status(study).trainings[0].reason


def test_a_search_stands_before_its_cell(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "net.py").write_text(NET)
    with pytest.raises(BiogradError):
        biograd.compare(
            ["ann", f"{tmp_path}/net.py:Broken"], ["backprop"], folder=tmp_path / "study",
            seeds=1, epochs=1, control=False, trials=1,
            tune=["training.learning_rate=0.01|0.02"],
        )  # fmt: skip
    found = status(tmp_path / "study").trainings
    assert [(one.cell, one.seed) for one in found] == [
        ("ann", None), ("Broken", None), ("ann", 0), ("Broken", 0),
    ]  # fmt: skip
    assert [one.state for one in found] == ["done", "failed", "done", "failed"]
    assert found[1].reason == found[3].reason and "no idea" in found[1].reason


def test_at_the_console(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(folder)
    assert main(["compare", "--status", str(folder / "study")]) == 0
    said = capsys.readouterr()
    assert "2 done, 2 failed, 2 missing" in said.out and "no idea" in said.out
    assert "\x1b" not in said.out and said.err == ""
    assert main(["compare", "--status", str(folder / "study"), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in table["trainings"]].count("failed") == 2
    (folder / "study.toml").write_text('[grid]\nmodels = ["ann"]\n')
    words = ["run", str(folder / "study.toml"), "--status", "--out", str(folder / "study")]
    assert main(words) == 0 and "2 missing" in capsys.readouterr().out
    assert {k: v for k, v in digests(folder).items() if "study.toml" not in k} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "ann"], "--models: has no effect beside --status"),
        (["--resume", "x"], "--resume: has no effect beside --status"),
        (["--workers", "2"], "--workers: has no effect beside --status"),
    ],
)
def test_nothing_is_typed_in_vain(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--status", str(folder / "study"), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", "[]", '{"cells": 3}', '{"grid": {"models": 3}}'])
def test_a_folder_without_a_study(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(RecipeError):
        status(tmp_path)
