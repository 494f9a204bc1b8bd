"""Packing and unpacking can be killed before or after any call that changes the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs_synthetic import assert_same, check_rows, checkpoint, contents, write_step, writer

from biograd.errors import RecipeError, RunFileError
from biograd.runs.parts.pack import pack_run
from biograd.runs.reader import open_run
from biograd.runs.writer import RunWriter

CALLS = ("replace", "fsync", "rename", "unlink", "rmdir")
KILLED = 77
Calls = tuple[str, ...]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


moments = pytest.mark.parametrize(
    ("calls", "before"),
    [
        pytest.param(CALLS[:3], True, id="some"),
        pytest.param(CALLS, True, marks=pytest.mark.slow, id="before"),
        pytest.param(CALLS, False, marks=pytest.mark.slow, id="after"),
    ],
)


def dies(work: Callable[[], Any], number: int, calls: Calls, before: bool) -> bool:
    """Do ``work`` in a process that ends at its call ``number``; False if it came through."""
    child = os.fork()
    if child == 0:
        try:
            _arm(number, calls, before)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED)
    return code == KILLED


def _arm(number: int, calls: Calls, before: bool) -> None:
    count = [0]

    def wrap(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if before and count[0] == number:
                os._exit(KILLED)
            try:
                return function(*arguments, **options)
            finally:
                if count[0] == number:
                    os._exit(KILLED)

        return wrapped

    for name in calls:
        setattr(os, name, wrap(getattr(os, name)))


def prepared(path: Path) -> Path:
    """Return the folder of a crashed run of nine steps with a checkpoint at step 5."""
    target = writer(path)
    for step in range(9):
        write_step(target, step)
        if step % 3 == 2:
            target.commit(step, checkpoint(step) if step == 5 else None)
    target._lock.release()
    return path.with_name(path.name + ".parts")


@moments
def test_packing_survives_a_kill_at_every_call(tmp_path: Path, calls: Calls, before: bool) -> None:
    parts = prepared(tmp_path / "run.h5")
    whole = tmp_path / "whole"
    shutil.copytree(parts, whole / "run.h5.parts")
    pack_run(whole / "run.h5")
    expected = contents(whole / "run.h5")
    shutil.rmtree(whole)
    number, alive = 0, False
    while not alive:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(parts, folder / "run.h5.parts")
        path = folder / "run.h5"
        alive = not dies(lambda: pack_run(path), number, calls, before)  # noqa: B023
        with open_run(path) as run:
            assert check_rows(run, 9) == 9
            assert run.checkpoint()[1] == {"step": 5} and run.status == "crashed"
        found = sorted(folder.rglob("*"))
        with open_run(path):
            assert sorted(folder.rglob("*")) == found  # a reader leaves all that it finds
        pack_run(path)
        pack_run(path)
        assert_same(expected, contents(path))
        assert [item.name for item in folder.iterdir()] == ["run.h5"]
    assert number > (10 if len(calls) > 3 else 3)


@moments
def test_unpacking_survives_a_kill_at_every_call(
    tmp_path: Path, calls: Calls, before: bool
) -> None:
    prepared(tmp_path / "run.h5")
    original = pack_run(tmp_path / "run.h5")
    number, alive = 0, False
    while not alive:
        number += 1
        path = tmp_path / str(number) / "run.h5"
        path.parent.mkdir()
        shutil.copy(original, path)
        alive = not dies(lambda: RunWriter.resume(path), number, calls, before)  # noqa: B023
        with open_run(path) as run:
            assert check_rows(run, 6) == (9 if run.path == path else 6)
        target, (_, meta) = RunWriter.resume(path)
        assert meta == {"step": 5}
        target.close()
        with open_run(path) as run:
            assert check_rows(run, 6) == 6 and run.status == "completed"
        assert [item.name for item in path.parent.iterdir()] == ["run.h5"]
    assert number > (10 if len(calls) > 3 else 4)


@moments
def test_rewinding_survives_a_kill_at_every_call(
    tmp_path: Path, calls: Calls, before: bool
) -> None:
    parts = prepared(tmp_path / "run.h5")
    number, alive = 0, False
    while not alive:
        number += 1
        path = tmp_path / str(number) / "run.h5"
        shutil.copytree(parts, path.with_name("run.h5.parts"))
        alive = not dies(lambda: RunWriter.resume(path), number, calls, before)  # noqa: B023
        with open_run(path) as run:
            assert check_rows(run, 6) in (6, 9)
        target, (_, meta) = RunWriter.resume(path)
        assert meta == {"step": 5}
        target.close()
        with open_run(path) as run:
            assert check_rows(run, 6) == 6
    assert number > 3


@pytest.mark.parametrize("state", ["parts", "file"])
@moments
def test_force_survives_a_kill_at_every_call(
    tmp_path: Path, calls: Calls, before: bool, state: str
) -> None:
    parts = prepared(tmp_path / "run.h5")
    if state == "file":
        pack_run(tmp_path / "run.h5")
    number, alive, seen = 0, False, set()
    while not alive:
        number += 1
        path = tmp_path / str(number) / "run.h5"
        path.parent.mkdir()
        if state == "file":
            shutil.copy(tmp_path / "run.h5", path)
        else:
            shutil.copytree(parts, path.with_name("run.h5.parts"))
        fresh: dict[str, Any] = {"attributes": {"seed": 8}, "force": True}
        alive = not dies(lambda: writer(path, **fresh), number, calls, before)  # noqa: B023
        with open_run(path) as run:  # either the old run, whole, or the new one
            seen.add(run.attributes["seed"])
            if run.attributes["seed"] == 7:
                assert check_rows(run, 9) == 9
            else:
                assert run.attributes["seed"] == 8 and run.streams == []
        writer(path, **fresh).close()
        with open_run(path) as run:
            assert run.attributes["seed"] == 8
        assert [item.name for item in path.parent.iterdir()] == ["run.h5"]
    assert seen == {7, 8}


def test_packing_is_refused_where_it_cannot_be_done(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="no such run"):
        pack_run(tmp_path / "run.h5")
    target = writer(tmp_path / "run.h5")
    with pytest.raises(RecipeError, match="still writes"):
        pack_run(tmp_path / "run.h5")
    write_step(target, 0)
    target.commit(0)
    segment = tmp_path / "run.h5.parts" / "segments" / "000000.h5"
    segment.rename(tmp_path / "kept")
    with pytest.raises(RunFileError, match="is missing"):
        target.close()
    assert not (tmp_path / "run.h5").exists()
    (tmp_path / "kept").rename(segment)
    pack_run(tmp_path / "run.h5")
    with open_run(tmp_path / "run.h5") as run:
        assert check_rows(run, 1) == 1


def test_packing_copies_large_data_in_blocks(tmp_path: Path, monkeypatch: Any) -> None:
    parts = prepared(tmp_path / "run.h5")
    shutil.copytree(parts, tmp_path / "other" / "run.h5.parts")
    pack_run(tmp_path / "run.h5")
    monkeypatch.setattr("biograd.runs.parts.merge.BLOCK", 64)
    pack_run(tmp_path / "other" / "run.h5")
    assert_same(contents(tmp_path / "run.h5"), contents(tmp_path / "other" / "run.h5"))
