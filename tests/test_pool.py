"""Trainings in several processes: what is killed goes on, what fails stops nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from biograd.__main__ import main
from biograd.errors import BiogradError, RecipeError
from biograd.studies import pool, tasks
from biograd.studies.pool import Event, Failure, Task

# Tasks: functions of this module, which a new process imports ---------------------------------


def write(path: Path) -> None:
    path.write_text(os.environ["OMP_NUM_THREADS"])


def killed_once(path: Path) -> None:
    """Be killed at the first try, and go on with what is there at the second."""
    if not path.exists():
        path.write_text("begun")
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_text(path.read_text() + " and ended")


def killed_always(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def refused(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")
    raise RecipeError("the recipe is\nwrong")


def full(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        raise BiogradError("cannot be written: no space left") from error


def sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)


def ran(tasks: list[Task], workers: int = 2) -> tuple[list[Failure], list[Event]]:
    events: list[Event] = []
    return pool.run(tasks, workers, events.append), events


def test_what_fails_stops_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PAUSE", 0.05)
    work = (write, killed_once, killed_always, refused, full)
    work_list = [Task(f.__name__, f, (tmp_path / f.__name__,)) for f in work]
    failures, events = ran(work_list)
    found = {failure.name: failure.reason for failure in failures}
    assert found == {
        "killed_always": "its process was killed by SIGKILL",
        "refused": "the recipe is wrong",
        "full": "cannot be written: no space left",
    }
    assert (tmp_path / "write").read_text() == str(max(1, (os.cpu_count() or 1) // 2))
    assert (tmp_path / "killed_once").read_text() == "begun and ended"
    tries = {name: len((tmp_path / name).read_text()) for name in found}
    assert tries == {"killed_always": tasks.TRIES, "refused": 1, "full": tasks.TRIES}
    assert all("\n" not in event.reason for event in events)
    assert Event("killed_once", "retried", "its process was killed by SIGKILL") in events
    states = {f.__name__: [e.state for e in events if e.name == f.__name__] for f in work}
    assert states == {
        "write": ["started", "done"],
        "killed_once": ["started", "retried", "started", "done"],
        "killed_always": ["started", "retried", "started", "retried", "started", "failed"],
        "refused": ["started", "failed"],
        "full": ["started", "retried", "started", "retried", "started", "failed"],
    }


@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by signals")
def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import test_pool; from biograd.studies import pool\n"
        "if __name__ == '__main__':\n"
        f"    tasks = [pool.Task('a', test_pool.sleep, (Path({str(tmp_path / 'a')!r}),))]\n"
        "    pool.run(tasks, 1, print)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    until = time.monotonic() + 60
    while not (tmp_path / "a").exists() or not (tmp_path / "a").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    child = int((tmp_path / "a").read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}").exists() and "zombie" not in state(child):
        assert time.monotonic() < until
        time.sleep(0.05)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text()
    except OSError:
        return "zombie"


STUDY = """
description = "two rules"
kind = "training"
model = "ann"
seeds = [0]
baseline = "one"
set = ["training.epochs=1", "network.hidden=[5]"]

[cells.one]
estimator = "backprop"

[cells.other]
estimator = "frozen_hidden"
"""


@pytest.mark.slow
def test_a_study_is_the_same_in_several_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    rows = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        assert main(["run", str(study), "-o", str(folder), "-w", workers, "-q", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        rows.append([{k: v for k, v in row.items() if k != "seconds"} for row in record["rows"]])
        assert len(list(folder.glob("*.h5"))) == 2
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_poisoned_cell_is_named_and_the_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.toml"
    poison = 'set = ["estimators.weak.method=quadratic", "network.hidden=[30]"]\n'  # few copies
    study.write_text(STUDY.replace("frozen_hidden", "weak") + poison)
    arguments = ["run", str(study), "-o", str(tmp_path / "out"), "-w", "2", "-q"]
    assert main(arguments) == 1
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0 and "other, seed 0: " in message
    assert "1 of 2 trainings are in" in message
    assert (tmp_path / "out" / "one-seed0.h5").exists()


def test_only_trainings_can_be_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["run", "weak_gradient_cosines", "--quick", "-o", out, "-w", "2"]) == 2
    assert "--workers" in capsys.readouterr().err
