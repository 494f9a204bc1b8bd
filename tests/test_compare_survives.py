"""Forty trainings that are killed, starved and poisoned end equal to undisturbed ones."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import biograd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STUDY = {
    "kind": "training",
    "seeds": [0, 1, 2, 3],
    "set": ["training.epochs=2", "decorrelation.rule=off"],
    "grid": {
        "models": ["ann", "spiking"],
        "estimators": ["backprop", "direct_feedback", "feedback_alignment", "weak"],
    },
    "cells": {
        # the last cell of ten: it diverges with every seed but does so by itself
        "poisoned": {"estimator": "backprop", "set": ["training.learning_rate=1e30"]},
    },
}
CELLS, SEEDS = 11, 4


def begin(folder: Path, limit: int | None = None, engine: tuple[str, ...] = ()) -> Any:
    """Start the study in a process of its own, in which files may have so many bytes at most."""
    folder.mkdir(exist_ok=True)
    study = folder.parent / "study.json"
    study.write_text(json.dumps(STUDY))

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "biograd", "run", str(study), "--out", str(folder), "--json"]
    return subprocess.Popen(
        [*command, "--workers", "2", *engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restrict,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(process: Any) -> list[int]:
    """Return the processes below one, by the kernel's own list."""
    found, waiting = [], [process.pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                below = [int(number) for number in task.read_text().split()]
                found += below
                waiting += below
    return found


def complete(folder: Path) -> int:
    return len(list(folder.glob("*-seed*.json")))


def ended(process: Any) -> dict[str, Any]:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 1, errors  # the poisoned cell
    assert "4 of 44 trainings failed" in errors.strip().splitlines()[-1]
    record: dict[str, Any] = json.loads(output)
    return record


def accuracies(folder: Path) -> dict[str, list[float]]:
    """Return what every run file holds: exactly one for each training, all of it."""
    found = {}
    for path in sorted(folder.glob("*.h5")):
        if path.name != "set.h5":
            with biograd.load(path) as run:
                assert run.status == "completed"
                found[path.name] = [
                    *run.scalars("train_step")["loss"].tolist(),
                    run.summary["test_accuracy"],
                ]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    return ended(begin(folder)), folder


def check(record: dict[str, Any], folder: Path, expected: dict[str, Any], other: Path) -> None:
    """Every cell is there exactly once, and equal to that of the undisturbed grid."""
    found = accuracies(folder)
    assert found == accuracies(other) and len(found) == 40
    assert not list(folder.glob("*.parts*")) or {
        path.name.partition("-seed")[0] for path in folder.glob("*.parts*")
    } == {"poisoned"}
    for one, same in zip(record["rows"], expected["rows"], strict=True):
        assert one["cell"] == same["cell"] and one["n"] == same["n"]
        assert one.get("test") == same.get("test") and one.get("p_holm") == same.get("p_holm")
    assert [run["seed"] for run in record["runs"]] == [run["seed"] for run in expected["runs"]]
    assert {one["training"] for one in record["failures"]} == {
        f"poisoned, seed {seed}" for seed in range(SEEDS)
    }


def test_killed_starved_and_poisoned(
    undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    folder, stream = tmp_path / "out", random.Random(0)
    # workers die
    process = begin(folder)
    killed = 0
    while complete(folder) < 10 and process.poll() is None:
        time.sleep(stream.uniform(1.0, 4.0))
        workers = children(process)
        if workers and killed < 6:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stream.choice(workers), signal.SIGKILL)
                killed += 1
    assert killed >= 3 and process.poll() is None
    # the parent dies, and nobody is left behind
    below = children(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in below):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.1)
    before = complete(folder)
    assert 10 <= before < 40
    # the disk is full: nothing new can be finished, and nothing that was is lost; then Ctrl-C
    process = begin(folder, limit=4096)
    starved = 0
    for line in process.stderr:
        starved += "no space left" in line
        if starved == 4:
            break
    assert starved == 4 and complete(folder) == before
    process.send_signal(signal.SIGINT)
    _output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert len(errors.strip().splitlines()[-1]) < 600
    record = ended(begin(folder))
    check(record, folder, *undisturbed)
    # nothing is left to do
    modified = {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*.h5")}
    assert ended(begin(folder))["rows"][0]["test"] == record["rows"][0]["test"]
    assert modified == {path: path.stat().st_mtime_ns for path in folder.glob("*-seed*.h5")}


@pytest.mark.parametrize(
    "engine",
    [("--engine", "dask"), ("--engine", "submitit", "--job", "cluster=local")],
    ids=["dask", "submitit"],
)
def test_another_engine_does_the_same(
    engine: tuple[str, ...], undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    record = ended(begin(tmp_path / "out", engine=engine))
    check(record, tmp_path / "out", *undisturbed)
