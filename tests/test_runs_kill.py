"""A process that is killed at any moment loses nothing that it has said to be committed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
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


WORDS = (
    "train --model ann --estimator weak --epochs 12 --set dataset.training_examples=120"
    " --set dataset.test_examples=20 --set network.hidden=[8] --device cpu --quiet"
)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
"""What the death of a process by a signal looks like from outside."""


def _leave(number: int, frame: object) -> None:
    """End as a process of the console does before it has begun anything."""
    os._exit(128 + number)


def begun(words: list[str], log: Path) -> int:
    """Return the process, a copy of this one, in which a command of the console has begun."""
    ours = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    child = os.fork()
    if child:
        for number, handler in ours.items():
            signal.signal(number, handler)
        return child
    code = 99
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
        sys.argv = ["biograd", *words]
        from biograd.__main__ import main

        code = main()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Return the exit code of a process that has ended, or will; negative: it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped(path: Path, number: int, seconds: float, commits: int, log: Path) -> int:
    """Train, send a signal some seconds after some commits, return the exit code; 0: it was faster.

    A child that has ended, but was not waited for, takes a signal without effect.
    """
    child = begun([*WORDS.split(), "-o", str(path)], log)
    lines, until = path.with_name(f"{path.name}.parts") / "commits.jsonl", time.monotonic() + 60
    while commits and time.monotonic() < until:
        with contextlib.suppress(OSError):
            commits = 0 if lines.read_bytes().count(b"\n") >= commits else commits
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, number)
    return ended(child)


def results(path: Path) -> dict[str, Any]:
    """Return what must not depend on when a run was stopped: weights, metrics, activity."""
    with open_run(path) as run:
        assert run.status == "completed"
        found = {f"tensors.{name}": value.numpy() for name, value in run.checkpoint()[0].items()}
        for stream in run.streams:
            columns = run.scalars(stream)
            found |= {f"{stream}.{k}": v for k, v in columns.items() if "time" not in k}
        found |= {f"layers.{name}": np.asarray(run.activity(name)) for name in run.layers}
    return {name: v for name, v in found.items() if "second" not in name and "memory" not in name}


def whole(folder: Path) -> tuple[dict[str, Any], float]:
    """Return the results of a training that nothing disturbs, and the seconds that it takes."""
    from biograd import experiment  # noqa: F401 (loaded once, for all copies of this process)

    start = time.monotonic()
    assert ended(begun([*WORDS.split(), "-o", str(folder / "whole.h5")], folder / "log")) == 0
    return results(folder / "whole.h5"), time.monotonic() - start


def survive(folder: Path, number: int, count: int, seed: int, commits: int) -> dict[int, int]:
    """Stop so many trainings at random moments, resume each, and compare it with a whole one.

    Args:
        commits: after up to so many of 14; 0: at any moment.
    """
    expected, seconds = whole(folder)
    moments, codes = random.Random(seed), dict.fromkeys((0, CODES[number]), 0)
    for attempt in range(count):
        path, log = folder / f"{number}-{attempt}.h5", folder / f"{number}-{attempt}.log"
        place = moments.uniform(0, 0.01 if commits else seconds), moments.randint(0, commits)
        code = stopped(path, number, *place, log)
        code = 0 if code == -number and path.exists() and number != signal.SIGKILL else code
        assert code in codes, f"{code}: {log.read_text()}"  # a process that is done may be killed
        codes[code] += 1
        if code and ended(begun(["resume", str(path), "--quiet"], log)):
            assert not path.exists()  # it was stopped before the first commit
            words = [*WORDS.split(), "--force", "-o", str(path)]
            assert ended(begun(words, log)) == 0, log.read_text()
        found = results(path)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name} of {path}")
        assert sorted(folder.glob(f"{path.name}*")) == [path]
    return codes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", CODES)
def test_a_stopped_training_is_resumed_bit_for_bit(tmp_path: Path, number: int) -> None:
    assert survive(tmp_path, number, 2, seed=number, commits=6)[CODES[number]]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "count"), [(2, 50), (15, 50), (9, 100)])
def test_a_hundred_signals_and_a_hundred_kills(tmp_path: Path, number: int, count: int) -> None:
    codes = survive(tmp_path, number, count, seed=100 + number, commits=0)
    print(f"signal {number}: exit codes {codes}")
    assert codes[CODES[signal.Signals(number)]] > count / 4
