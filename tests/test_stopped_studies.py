"""A comparison that is asked to stop ends with all its workers, and goes on where it was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_compare_survives import accuracies, children
from work_for_tests import gone, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = [
    *("--models", "ann", "--estimators", "backprop,weak", "--seeds", "2", "--epochs", "100"),
    *("--set", "dataset.training_examples=96", "--set", "dataset.test_examples=20"),
    *("--no-control", "--workers", "2"),
]

STARTED: list[subprocess.Popen[str]] = []


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a comparison of four trainings, two at a time, in a process group of its own."""
    place = ("--resume", str(folder)) if words else ("-o", str(folder))
    process = subprocess.Popen(
        [sys.executable, "-m", "biograd", "compare", *(words or WORDS), *place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """End what a test that fails leaves."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def stop(process: subprocess.Popen[str], number: signal.Signals, group: bool) -> None:
    """Send a signal to a comparison, or to its workers, too; all of them must end for it."""
    workers = children(process)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=300)
    early = process.returncode == -number or said.startswith("Fatal Python error: init_import")
    if early and not workers:
        return  # Python had not begun
    assert process.returncode == CODES[number], said
    lines = said.splitlines()
    assert sum(line in ("biograd: interrupted", "biograd: terminated") for line in lines) == 1, said
    assert "Traceback" not in said and "unexpected" not in said, said
    wait_until(lambda: all(gone(worker) for worker in workers))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    process = begin(folder)
    assert process.communicate(timeout=1500) and process.returncode == 0
    return accuracies(folder)


@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
@pytest.mark.parametrize("number", CODES)
def test_what_is_finished_stays_and_the_rest_goes_on(
    number: signal.Signals, group: bool, undisturbed: dict[str, list[float]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    process = begin(folder)
    wait_until(lambda: bool(list(folder.glob("*-seed*.json"))), 600)
    wait_until(lambda: bool(list(folder.glob("*.parts/commits.jsonl"))), 300)
    stop(process, number, group)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*.h5")}
    parts = {path: len((path / "commits.jsonl").read_text()) for path in folder.glob("*.parts")}
    assert 1 <= len(finished) < 4 and parts
    for path in parts:  # one may have done its last step, and was not packed yet
        status = (path / "status.json").read_text()
        assert '"interrupted"' in status or '"completed"' in status
    process = begin(folder, "--workers", "2")
    _, said = process.communicate(timeout=1500)
    assert process.returncode == 0, said
    assert (
        finished.items()
        <= {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*.h5")}.items()
    )
    assert accuracies(folder) == undisturbed and len(undisturbed) == 4


def test_a_signal_while_it_starts(tmp_path: Path) -> None:
    """At any moment: nothing has begun, workers start, or they train."""
    stream = random.Random(1)
    for attempt in range(10):
        process = begin(tmp_path / str(attempt))
        time.sleep(stream.uniform(0.05, 6))
        stop(process, stream.choice(list(CODES)), group=bool(attempt % 2))
