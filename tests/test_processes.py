"""Work in several processes: what is killed goes on, what fails stops nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import work_for_tests as work
from work_for_tests import gone, wait_until

from biograd import devices
from biograd.__main__ import main
from biograd.placement import allotment, jobs, processes
from biograd.placement.processes import Event, Failure, Work

posix = pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by signals")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.05)


def ran(work: list[Work], workers: int = 2, **options: Any) -> tuple[list[Failure], list[Event]]:
    events: list[Event] = []
    return processes.run(work, workers, events.append, **options), events


def test_what_is_tried_again_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allotment, "cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    functions = (
        work.write,
        work.killed_once,
        work.killed_always,
        work.refused,
        work.cannot_write,
        work.full,
    )
    failures, events = ran([Work(f.__name__, f, (tmp_path / f.__name__,)) for f in functions])
    reasons = {failure.name: failure.reason for failure in failures}
    assert reasons == {
        "killed_always": "its process was killed by SIGKILL",
        "refused": "the recipe is wrong",
        "cannot_write": "cannot be written: no space left",
        "full": "OSError: [Errno 28] No space left on device",
    }
    assert (tmp_path / "write").read_text() == "3"  # 7 cores for two processes
    tries = {name: len((tmp_path / name).read_text()) for name in (*reasons, "killed_once")}
    assert tries == {
        "killed_always": 3,
        "refused": 1,
        "cannot_write": 3,
        "full": 3,
        "killed_once": 2,
    }
    again = ["started", "retried", "started", "retried", "started", "failed"]
    assert {f.__name__: [e.state for e in events if e.name == f.__name__] for f in functions} == {
        "write": ["started", "done"],
        "killed_once": ["started", "retried", "started", "done"],
        "killed_always": again,
        "refused": ["started", "failed"],
        "cannot_write": again,
        "full": again,
    }
    assert Event("killed_once", "retried", "its process was killed by SIGKILL") in events


def test_what_cannot_be_sent_fails_alone(tmp_path: Path) -> None:
    here: Callable[[], None] = lambda: None  # noqa: E731
    failures, _ = ran([Work("local", here), Work("write", work.write, (tmp_path / "a",))])
    assert [failure.name for failure in failures] == ["local"]
    assert failures[0].reason.startswith("cannot be sent to another process: ")
    assert "\n" not in failures[0].reason
    assert (tmp_path / "a").exists()


def test_nothing_to_do() -> None:
    assert ran([]) == ([], [])


def test_processes_speak_into_logs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs = tmp_path / "jobs"
    functions = (work.loud, work.write, work.surprised)
    names = ("loud/seed 0", "write", "surprised")
    given = [
        Work(name, f, (tmp_path / f.__name__,)) for name, f in zip(names, functions, strict=True)
    ]
    failures, _ = ran(given, logs=logs)
    assert capfd.readouterr() == ("", "")
    said = sorted((logs / "loud_seed_0.log").read_text().splitlines())
    assert said == ["of another program", "to stderr", "to stdout"]
    assert not (logs / "write.log").exists()  # nothing was said
    log = logs / "surprised.log"
    assert failures == [Failure("surprised", f"KeyError: 'two\\nlines' (see {log})")]
    assert "Traceback" in log.read_text()
    # without a folder it is lost, but not shown
    ran([Work("loud", work.loud, (tmp_path / "b",))])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "count, seen", [(0, ["", "", ""]), (1, ["", "", ""]), (2, ["0", "0", "1"])]
)
def test_devices_are_dealt_in_turn(
    count: int, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    paths = [tmp_path / f"{index}.device" for index in range(3)]
    given = [Work(path.name, work.device, (path, tmp_path, 3)) for path in paths]
    assert ran(given, 3, devices=[str(index) for index in range(count)])[0] == []
    assert sorted(path.read_text() for path in paths) == seen
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    "value, found",
    [("3", ["3"]), ("2, 5", ["2", "5"]), ("MIG-a,MIG-b", ["MIG-a", "MIG-b"]), ("-1", []), ("", [])],
)
def test_devices_are_those_that_are_visible(
    value: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert devices.visible() == found


def test_threads_are_no_more_than_the_user_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allotment, "cores", lambda: 8)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "64")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    assert allotment.threads(2) == dict(zip(names, ("2", "4", "4"), strict=True))
    assert allotment.threads(20)["MKL_NUM_THREADS"] == "1"


# The end of the parent ------------------------------------------------------------------------

PARENT = """
import signal, sys
from pathlib import Path
import work_for_tests as work
from work_for_tests import gone, wait_until
from biograd.placement import processes

def terminate(number, _):
    raise SystemExit(128 + number)

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminate)
    paths = [Path(path) for path in sys.argv[2:]]
    tasks = [processes.Work(path.name, getattr(work, sys.argv[1]), (path,)) for path in paths]
    try:
        processes.run(tasks, 2, lambda event: None)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def parent(tmp_path: Path, function: str) -> tuple[subprocess.Popen[str], list[Path], list[int]]:
    """Start a parent of two processes and return it, their files and their numbers."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = [tmp_path / "a", tmp_path / "b"]
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    process = subprocess.Popen(
        [sys.executable, str(script), function, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
    return process, paths, [int(path.read_text().split()[0]) for path in paths]


@posix
def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    process, _, children = parent(tmp_path, "sleep")
    process.kill()
    process.communicate()
    wait_until(lambda: all(gone(child) for child in children))


@posix
@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_whoever_is_asked_to_stop_may_commit(
    number: signal.Signals, code: int, group: bool, tmp_path: Path
) -> None:
    process, paths, children = parent(tmp_path, "patient")
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert all(gone(child) for child in children)
    # one signal each: a second one would have cut the commit short
    assert [path.read_text().split()[1:] for path in paths] == [["SIGTERM"], ["SIGTERM"]]


@posix
def test_who_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.2)
    path = tmp_path / "a"

    def watch(event: Event) -> None:
        wait_until(lambda: path.exists() and bool(path.read_text()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run([Work("deaf", work.deaf, (path,))], 1, watch)
    assert gone(int(path.read_text()))


# Studies --------------------------------------------------------------------------------------

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


COSTS = ("seconds", "training_seconds", "peak_memory_bytes")


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
        rows.append([{k: v for k, v in row.items() if k not in COSTS} for row in record["rows"]])
        assert len(list(folder.glob("*-seed0.h5"))) == 2
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
    assert "1 of 2 trainings failed" in message
    assert (tmp_path / "out" / "one-seed0.h5").exists()


def test_only_trainings_can_be_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["run", "weak_gradient_cosines", "--quick", "-o", out, "-w", "2"]) == 2
    assert "--workers" in capsys.readouterr().err
