"""A process that is killed at any moment loses nothing that it has said to be committed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs_synthetic import check_rows

from biograd.runs.reader import open_run
from biograd.runs.writer import RunWriter

SCRIPT = Path(__file__).with_name("runs_killed_writer.py")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def killed(path: Path, seconds: float, checkpoints: bool = False) -> int:
    """Start a writer, kill it some time after its first commit, return how far it said it was."""
    words = [sys.executable, str(SCRIPT), str(path), *["checkpoints"] * checkpoints]
    variables = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    return int([line for line in lines if line.endswith("\n")][-1])


def trial(path: Path, moments: random.Random, checkpoints: bool = False) -> int:
    """Kill one writer and check that all that it announced is there; return how much that is."""
    announced = killed(path, moments.uniform(0, 0.25), checkpoints)
    with open_run(path) as run:
        assert run.status == "crashed"
        rows = check_rows(run, announced)
    assert rows in (announced, announced + 3)  # the kill may fall between the line and the print
    return announced


def test_some_kills_lose_nothing(tmp_path: Path) -> None:
    moments = random.Random(0)
    announced = [trial(tmp_path / f"{number}.h5", moments) for number in range(3)]
    assert max(announced) > 6  # the writers did get somewhere


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    announced = killed(path, 0.1, checkpoints=True)
    writer, (tensors, meta) = RunWriter.resume(path)
    assert announced - 6 <= meta["step"] + 1 <= announced + 3
    assert (tensors["weight"] == meta["step"]).all()
    writer.close("interrupted")
    with open_run(path) as run:
        assert check_rows(run, 0) == meta["step"] + 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixty_kills_lose_nothing(tmp_path: Path) -> None:
    moments = random.Random(1)
    survived = 0
    for number in range(60):
        trial(tmp_path / f"{number}.h5", moments, checkpoints=number % 6 == 5)
        survived += 1
    print(f"{survived} of 60 survived")
    assert survived == 60
