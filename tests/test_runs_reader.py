"""What cannot be read is refused in one line that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from runs_synthetic import check_rows, checkpoint, probe, write_step, writer

from biograd.errors import RecipeError, RunFileError
from biograd.runs.layout import VERSION, LayerInfo
from biograd.runs.reader import open_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run."""
    path = tmp_path_factory.mktemp("finished") / "run.h5"
    with writer(path) as target:
        for step in range(6):
            write_step(target, step)
        target.commit(5, checkpoint(5))
    return path


def refused(path: Path, *words: str) -> None:
    """Check that a run is refused in one line that holds the words."""
    with pytest.raises(RunFileError) as caught:
        open_run(path)
    text = str(caught.value)
    assert caught.value.exit_code == 4 and "\n" not in text and path.stem in text
    assert any(word in text for word in words), text


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "run.h5", "no such run")
    (tmp_path / "text.h5").write_text("hello " * 1000)
    refused(tmp_path / "text.h5", "not an HDF5 file")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "empty")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(3)
    refused(tmp_path / "other.h5", "not a run")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "folder")
    (tmp_path / "odd.h5.parts").mkdir()
    refused(tmp_path / "odd.h5", "not a run")


@pytest.mark.parametrize("fraction", [0.0005, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, finished: Path, fraction: float) -> None:
    data = finished.read_bytes()
    (tmp_path / "run.h5").write_bytes(data[: int(len(data) * fraction)])
    refused(tmp_path / "run.h5", "cut short", "empty")


def _copy(finished: Path, folder: Path, **attributes: Any) -> Path:
    path = folder / "run.h5"
    path.write_bytes(finished.read_bytes())
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
    return path


def test_versions(tmp_path: Path, finished: Path) -> None:
    major = int(VERSION.split(".")[0])
    refused(_copy(finished, tmp_path, format_version=f"{major + 1}.0"), "newer")
    refused(_copy(finished, tmp_path, format_version="banana"), "format_version")
    refused(_copy(finished, tmp_path, format="other"), "not a run")
    with open_run(_copy(finished, tmp_path, format_version=f"{major}.99")) as run:
        assert check_rows(run, 6) == 6


@pytest.mark.parametrize("name", ["config", "progress/commits", "layers", "probe/index"])
def test_a_run_that_lacks_a_part_is_refused(tmp_path: Path, finished: Path, name: str) -> None:
    path = _copy(finished, tmp_path)
    with h5py.File(path, "r+") as file:
        del file[name]
    refused(path, "damaged")


def test_questions_without_an_answer_are_refused(finished: Path) -> None:
    with open_run(finished) as run:
        with pytest.raises(RunFileError, match="train_step"):
            run.scalars("train")
        with pytest.raises(RunFileError, match="linear"):
            run.activity("0.linea")
        with pytest.raises(RunFileError, match="no spikes"):
            run.spikes("0.linear")
        with pytest.raises(RunFileError, match="no snapshot"):
            run.activity("0.linear")[9]
        with pytest.raises(RecipeError, match="step 4"):
            run.checkpoint(4)
        assert run.checkpoint(5)[1] == {"step": 5}
        assert "completed" in repr(run)
    with pytest.raises(RunFileError, match="is closed"):
        run.scalars("train_step")


def test_a_damaged_checkpoint_is_refused_but_the_rest_is_read(
    tmp_path: Path, finished: Path
) -> None:
    path = _copy(finished, tmp_path)
    with h5py.File(path, "r+") as file:
        file["checkpoints/5/tensors"][100] ^= 1
    with open_run(path) as run:
        assert check_rows(run, 6) == 6
        with pytest.raises(RunFileError, match="damaged"):
            run.checkpoint()


def test_the_tree_names_every_data_set(finished: Path) -> None:
    with open_run(finished) as run:
        tree = {entry.name: entry for entry in run.tree()}
    entry = tree["layers/0.linear/activation"]
    assert (entry.shape, entry.dtype, entry.nbytes) == ((2, 5, 6), "float32", 240)
    assert entry.stored > 0 and "checkpoints/5/tensors" in tree
    assert list(tree) == sorted(tree)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Return the folder of a run that was killed."""
    target = writer(tmp_path / "run.h5")
    for step in range(9):
        write_step(target, step)
        if step % 3 == 2:
            target.commit(step, checkpoint(step))
    target._lock.release()
    return tmp_path / "run.h5.parts"


def test_a_torn_last_line_does_not_count(parts: Path) -> None:
    lines = (parts / "commits.jsonl").read_bytes()
    for cut in (1, 30, len(lines.splitlines()[-1])):
        (parts / "commits.jsonl").write_bytes(lines[:-cut])
        with open_run(parts) as run:
            assert check_rows(run, 6) == 6 and run.checkpoints == [5]


def test_leftovers_of_an_uncommitted_segment_do_not_count(parts: Path) -> None:
    (parts / "segments" / "000003.h5").write_bytes(b"half")
    (parts / "segments" / "000004.h5.tmp").write_bytes(b"half")
    with open_run(parts) as run:
        assert check_rows(run, 9) == 9 and run.status == "crashed"


def test_a_damaged_segment_is_refused_when_it_is_read(parts: Path) -> None:
    path = parts / "segments" / "000001.h5"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with open_run(parts) as run:
        assert run.config and run.checkpoint()[1] == {"step": 8}
        with pytest.raises(RunFileError, match=r"000001\.h5: is damaged"):
            run.scalars("train_step")
    path.unlink()
    with open_run(parts) as run, pytest.raises(RunFileError, match="missing"):
        run.scalars("train_step")


def test_damaged_headers_are_refused(parts: Path) -> None:
    header = (parts / "header.json").read_text()
    newer = json.dumps({**json.loads(header), "format_version": "2.0"})
    fewer = json.dumps({k: v for k, v in json.loads(header).items() if k != "layers"})
    for text, words in [("{", "damaged"), ("[]", "damaged"), (newer, "newer"), (fewer, "layers")]:
        (parts / "header.json").write_text(text)
        refused(parts, words)
    (parts / "header.json").write_text(header)
    lines = (parts / "commits.jsonl").read_text().splitlines()
    for bad in ("not json", "[]", '{"segment": 0}'):
        (parts / "commits.jsonl").write_text("\n".join([bad, *lines[1:]]) + "\n")
        refused(parts, "line 1")
    (parts / "commits.jsonl").write_text("\n".join([lines[0][:-1] + ', "new": 1}']) + "\n")
    with open_run(parts) as run:
        assert check_rows(run, 3) == 3


def test_missing_checkpoints_are_not_offered(parts: Path) -> None:
    with open_run(parts) as run:
        assert run.checkpoints == [5, 8]
        assert run.checkpoint(5)[1] == {"step": 5}
        with pytest.raises(RecipeError, match="there are: 5, 8"):
            run.checkpoint(2)
        (parts / "checkpoints" / "8.safetensors").unlink()
        with pytest.raises(RunFileError, match="cannot be read"):
            run.checkpoint(8)


def test_names_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"blocks.{place}" for place in range(12)]
    path = tmp_path / "run.h5"
    with writer(path, layers={name: LayerInfo("rate", 2) for name in names}) as target:
        params = {f"{name}.weight": {"norm": 1.0} for name in names}
        shown = {name: np.zeros((len(probe().index), 2), np.float32) for name in names}
        target.snapshot(0, 0, shown, params)
        target.commit(0, checkpoint(0))
        check_order(path, names)
    check_order(path, names)


def check_order(path: Path, names: list[str]) -> None:
    """The order of layers and parameters, in a run under way and in a packed one."""
    with open_run(path) as run:
        assert list(run.layers) == names
        assert list(run.params) == [f"{name}.weight" for name in names]
        tree = [entry.name.split("/")[1] for entry in run.tree() if "/norm" in entry.name]
        assert tree == [f"{name}.weight" for name in names]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_what_the_disk_does_not_give_is_one_line() -> None:
    with pytest.raises(RunFileError, match="cannot be read"):
        open_run(Path("/proc/self/mem"))
