"""A run that was interrupted and resumed equals one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs_synthetic import (
    assert_same,
    check_rows,
    checkpoint,
    contents,
    edited,
    write_step,
    writer,
)

import biograd
from biograd.errors import RunFileError
from biograd.runs.reader import open_run
from biograd.runs.writer import RunWriter

END = 24


def train(target: RunWriter, start: int, stop: int) -> None:
    """Write steps as a trainer does: a commit every 4 steps, a checkpoint every 8."""
    for step in range(start, stop):
        write_step(target, step)
        if step % 4 == 3:
            target.commit(step, checkpoint(step) if step % 8 == 7 else None)


def die(target: RunWriter) -> None:
    """Let go of the run as a killed process does."""
    target._lock.release()
    target._closed = True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the content of a run that nobody interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    with writer(path) as target:
        train(target, 0, END)
    return contents(path)


STOPS: dict[str, Callable[[RunWriter], None]] = {
    "killed": die,
    "abandoned": lambda target: target.abandon("interrupted"),
    "interrupted": lambda target: target.close("interrupted"),
    "crashed": lambda target: target.close("crashed"),
}


@pytest.mark.parametrize(
    ("how", "stop"),
    [*((how, 13) for how in STOPS), ("killed", 8), ("interrupted", 16), ("crashed", 23)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, whole: dict[str, Any], how: str, stop: int
) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    train(target, 0, stop)
    STOPS[how](target)
    target, (tensors, meta) = RunWriter.resume(path)
    assert meta["step"] == stop // 8 * 8 - 1
    assert (tensors["weight"] == meta["step"]).all() and tensors["generator"].tolist()[-1] == 8
    with open_run(path) as run:
        assert run.status == "running"
        assert check_rows(run, 0) == meta["step"] + 1
    train(target, meta["step"] + 1, END)
    target.close()
    assert_same(whole, contents(path))
    assert [item.name for item in tmp_path.iterdir()] == ["run.h5"]


def test_the_comparison_can_fail(tmp_path: Path, whole: dict[str, Any]) -> None:
    path = tmp_path / "run.h5"
    with writer(path) as target:
        train(target, 0, 12)
        train(target, 8, END)  # four steps twice
    with pytest.raises(AssertionError):
        assert_same(whole, contents(path))


def test_it_can_be_resumed_again_and_again(tmp_path: Path, whole: dict[str, Any]) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    train(target, 0, 9)
    for stop, how in [(11, "interrupted"), (17, "killed"), (18, "crashed"), (END, "interrupted")]:
        STOPS[how](target)
        target, (_, meta) = RunWriter.resume(path)
        train(target, meta["step"] + 1, stop)
    target.close()
    assert_same(whole, contents(path))


def test_the_finished_file_stays_until_the_longer_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with writer(path) as target:
        train(target, 0, 8)
    before, first = path.read_bytes(), target.attributes["config_sha256"]
    target, _ = RunWriter.resume(path, config={"model": "spiking", "training": {"epochs": 9}})
    assert path.read_bytes() == before
    train(target, 8, 10)
    target.commit(9)
    with open_run(path) as run:
        assert check_rows(run, 10) == 10  # the parts go before the file
        assert run.config["training"]["epochs"] == 9
    target.close()
    with open_run(path) as run:
        assert check_rows(run, 10) == 10 and run.config["training"]["epochs"] == 9
        assert run.attributes["config_sha256"] != first


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    train(target, 0, 6)
    die(target)
    with pytest.raises(RunFileError, match="no checkpoint"):
        RunWriter.resume(path)
    with open_run(path) as run:
        assert check_rows(run, 4) == 4 and run.status == "crashed"
    writer(path, force=True).close()
    with pytest.raises(RunFileError, match="no checkpoint"):
        RunWriter.resume(path)
    with pytest.raises(RunFileError, match="no such run"):
        RunWriter.resume(tmp_path / "other.h5")


@pytest.mark.parametrize("victim", ["checkpoints/15.safetensors", "checkpoints/15.json",
                                    "segments/000003.h5"])  # fmt: skip
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_damaged_end_is_passed_over(tmp_path: Path, victim: str, how: str) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    train(target, 0, 20)
    die(target)
    _spoil(tmp_path / "run.h5.parts" / victim, how)
    target, (_, meta) = RunWriter.resume(path)
    assert meta["step"] == 7
    target.close()
    with open_run(path) as run:
        assert check_rows(run, 8) == 8


def test_a_damaged_beginning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    target = writer(path)
    train(target, 0, 20)
    die(target)
    _spoil(tmp_path / "run.h5.parts" / "segments" / "000000.h5", "damaged")
    with pytest.raises(RunFileError, match="no checkpoint"):
        RunWriter.resume(path)


def _spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_file_without_a_layer_of_its_network_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    settings = ["dataset.training_examples=32", "dataset.test_examples=8"]
    biograd.train("ann", "digits", epochs=1, path=path, settings=settings).close()
    with edited(path) as file:
        del file["layers/blocks.0.activity"]
    with pytest.raises(RunFileError, match=r"has no layer blocks\.0\.activity"):
        biograd.resume(path, epochs=2)
    assert [one.name for one in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("key", ["duration_ms", "dt_ms"])
def test_a_file_whose_layers_are_not_those_of_its_network_is_left_alone(
    tmp_path: Path, key: str
) -> None:
    path = tmp_path / "run.h5"
    settings = ["dataset.training_examples=32", "dataset.test_examples=8", "encoding.duration_ms=4"]
    biograd.train("spiking", "digits", epochs=1, path=path, settings=settings).close()
    with edited(path) as file:
        config = json.loads(file["config"][()])
        config["recipe"]["encoding"][key] = 2
        file["config"][()] = json.dumps(config)
    with pytest.raises(RunFileError, match=r"layer blocks\.0\.activity is spiking, 30 units, 4"):
        biograd.resume(path, epochs=2)
    assert [one.name for one in tmp_path.iterdir()] == ["run.h5"]
