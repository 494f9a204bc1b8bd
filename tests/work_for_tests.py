"""Tasks for the tests of engines: functions that a new process imports, which should be fast."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import biograd
from biograd.errors import BiogradError, RecipeError


def _count(path: Path) -> int:
    """Note a try and return how many there were."""
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size


def write(path: Path) -> None:
    path.write_text(os.environ["OMP_NUM_THREADS"])


def environment(path: Path, name: str) -> None:
    path.write_text(os.environ.get(name, ""))


def device(path: Path, until: Path, others: int) -> None:
    """Say which device this process sees, and wait for the others."""
    path.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    while len(list(until.glob("*.device"))) < others:
        time.sleep(0.01)


def killed_once(path: Path) -> None:
    if _count(path) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_always(path: Path) -> None:
    _count(path)
    os.kill(os.getpid(), signal.SIGKILL)


def refused(path: Path) -> None:
    _count(path)
    raise RecipeError("the recipe is\nwrong")


def surprised(path: Path) -> None:
    _count(path)
    raise KeyError("two\nlines")


def full(path: Path) -> None:
    _count(path)
    raise OSError(28, "No space left on device")


def cannot_write(path: Path) -> None:
    _count(path)
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        raise BiogradError("cannot be written:\nno space left") from error


def loud(path: Path) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.system("echo of another program")
    path.write_text("done")


def result_once(path: Path, kills: int, late: bool) -> None:
    """Add a result if there is none, and be killed at the first tries, before that or after."""
    tries = _count(path.with_suffix(".tries"))
    if tries <= kills and not late:
        os.kill(os.getpid(), signal.SIGKILL)
    if not path.exists():
        path.write_text("result")
    if tries <= kills:
        os.kill(os.getpid(), signal.SIGKILL)


def sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)


def deaf(path: Path) -> None:
    """Ignore every request to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path.write_text(str(os.getpid()))
    time.sleep(60)


def worker_killed_once(path: Path) -> None:
    """Kill whoever started this process, and wait for what that means for it."""
    if _count(path) == 1:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)


def goes_on(path: Path) -> None:
    """Stop when asked, as a training does, and go on at the second try."""
    if path.exists():
        path.write_text(path.read_text() + ", ended")
        return
    path.write_text("begun")
    try:
        time.sleep(60)
    except SystemExit as error:
        path.write_text("begun, interrupted")
        stopped = BiogradError("interrupted")
        stopped.exit_code = int(error.code or 0)
        raise stopped from error


def train(path: Path, model: str, seed: int) -> None:
    """Train for one epoch and write what came out."""
    from biograd import experiment

    assignments = ("training.epochs=1", "network.hidden=[10]")
    request = experiment.TrainingRequest(
        model=model, dataset="digits", seed=seed, out=path, assignments=assignments
    )
    summary = experiment.execute(request)
    kept = {name: summary[name] for name in ("test_accuracy", "train_accuracy", "test_loss")}
    path.with_suffix(".json").write_text(json.dumps(kept))


class _Noting:
    """Progress that notes that the training is under way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, total_steps: int, title: str) -> None: ...

    def step(self, record: dict[str, Any]) -> None:
        if not self.path.exists():
            self.path.write_text(str(os.getpid()))

    def epoch(self, record: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def trains_long(path: Path) -> None:
    """Train until somebody asks to stop, and note how that ended."""
    from biograd import experiment

    out = path.with_suffix(".h5")
    request = experiment.TrainingRequest(
        model="ann", dataset="digits", out=out, assignments=("training.epochs=10000",)
    )
    try:
        experiment.execute(request, _Noting(path))
    finally:
        with biograd.load(out) as run:
            path.write_text(f"{path.read_text()} {run.status}")


def patient(path: Path) -> None:
    """Work like a training: the first signal asks to commit, a second would lose work."""
    signals: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    path.write_text(f"{os.getpid()} ")
    while not signals:
        time.sleep(0.01)
    time.sleep(1)  # a commit, during which a second signal would arrive
    with path.open("a") as file:
        file.write(" ".join(signal.Signals(number).name for number in signals))
    error = BiogradError("interrupted")
    error.exit_code = 128 + signals[0]
    raise error


# For the tests themselves ---------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def gone(process: int) -> bool:
    """Return whether a process has ended; one that waits to be collected has."""
    try:
        return "zombie" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
