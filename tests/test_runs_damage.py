"""Run files that are damaged, or made to mislead: one error, nothing changed, nothing allocated."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from runs_synthetic import checkpoint, edited, probe, write_step, writer

from biograd.__main__ import main
from biograd.errors import BiogradError, RunFileError
from biograd.runs.checked import open_file
from biograd.runs.layout import VERSION
from biograd.runs.parts.seal import write_seal
from biograd.runs.reader import Run, open_run
from biograd.runs.said import COUNTS, FIGURES, WORDS, check_summary
from biograd.runs.views.validation import validate
from biograd.runs.writer import RunWriter

REPLACED = f"run.h5.parts.{'0' * 16}.old"
"""A folder that is called as one that a writer moved aside."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of nine steps with a checkpoint."""
    path = tmp_path_factory.mktemp("finished") / "run.h5"
    target = writer(path)
    for step in range(9):
        write_step(target, step)
    target.commit(8, checkpoint(8))
    target.summary({"test_accuracy": 0.5})
    target.close()
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """The folder of a run that stopped."""
    target = writer(tmp_path / "run.h5")
    for step in range(6):
        write_step(target, step)
        if step % 3 == 2:
            target.commit(step, checkpoint(step))
    target.abandon()
    return tmp_path / "run.h5.parts"


def everything(run: Run) -> dict[str, Any]:
    """Read all that a run says."""
    found: dict[str, Any] = {"attributes": run.attributes, "config": run.config}
    found |= {"environment": run.environment, "summary": run.summary, "layers": run.layers}
    for stream in run.streams:
        found |= {f"{stream}.{name}": values for name, values in run.scalars(stream).items()}
    for layer in run.layers:
        found[f"{layer}.activation"] = np.asarray(run.activity(layer))
        found |= {f"{layer}.{name}": values for name, values in run.statistics(layer).items()}
    spikes = run.spikes("1.lif")
    names = ("timestamps", "node_ids", "trial_ids", "trial_ptr")
    found |= {f"spikes.{name}": getattr(spikes, name) for name in names}
    found["raster"] = spikes.raster().time_ms
    found |= {f"probe.{k}": v for k, v in vars(run.probe).items()}
    found |= {f"trials.{k}": v for k, v in run.trials.items()}
    found |= {f"snapshots.{k}": v for k, v in run.snapshots.items()}
    found |= {f"params.{g}.{k}": v for g, vs in run.params.items() for k, v in vs.items()}
    tensors, found["meta"] = run.checkpoint()
    found |= {f"tensor.{name}": value.numpy() for name, value in tensors.items()}
    found["commits"], found["tree"] = run.commits, run.tree()
    return found


def refused(path: Path) -> None:
    """Check that reading everything is one RunFileError of one line."""
    with pytest.raises(RunFileError) as caught, open_run(path) as run:
        everything(run)
    assert "\n" not in str(caught.value) and str(caught.value).count(str(path.parent)) >= 1


def state(folder: Path) -> dict[str, Any]:
    """Return what lies in a folder, links not followed."""
    return {
        str(path): path.lstat().st_mode
        if path.is_dir() or path.is_symlink() or not path.is_file()
        else path.read_bytes()
        for path in folder.rglob("*")
    }


def test_any_bit_that_turned_is_an_error(finished: Path, tmp_path: Path) -> None:
    data, stream = finished.read_bytes(), random.Random(0)
    path = tmp_path / "run.h5"
    with open_run(finished) as run:
        assert run.sealed and everything(run)
    for _ in range(300):
        changed = bytearray(data)
        changed[stream.randrange(len(data))] ^= 1 << stream.randrange(8)
        path.write_bytes(changed)
        refused(path)


def test_a_file_without_a_digest_opens_and_says_so(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    with h5py.File(path, "r+") as file:
        file.create_group("analysis/mine")["rates"] = np.arange(3)
        file.attrs["format_version"] = "1.0"
    with open_run(path) as run:
        assert not run.sealed and run.scalars("train_step")["step"].tolist() == list(range(9))
        assert run.attributes["format_version"] == "1.0" and not run.lost_seal
        assert [one.note for one in validate(run) if one.name == "digest"] != [""]
    assert not caplog.records
    writer, _ = RunWriter.resume(path)
    writer.close()
    with open_run(path) as run:
        assert run.sealed and run.attributes["format_version"] == VERSION


def test_a_file_that_lost_its_digest_is_named(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    with h5py.File(path, "r+") as file:
        file["scalars/train_step/loss"][...] = 0
    with open_run(path) as run:
        assert run.lost_seal
    assert f"{path}: was changed by another program" in caplog.text
    before = state(tmp_path)
    with pytest.raises(RunFileError, match="was changed by another program"):
        RunWriter.resume(path)  # it would be given a digest
    assert main(["inspect", str(path)]) == 0
    assert "its digest is gone" in capsys.readouterr().err
    assert main(["validate", str(path)]) == 4
    assert "digest: was changed by another program" in capsys.readouterr().err
    assert state(tmp_path) == before


def test_reading_changes_nothing_that_lies_beside_a_run(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    for name in (
        "run.h5.parts.old",
        "run.h5.parts.tmp",
        "run.h5.parts",
        f"run.h5.parts.{'0' * 16}.old",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    (tmp_path / "run.h5.tmp").write_text("mine")
    before = state(tmp_path)
    with open_run(path) as run:
        everything(run)
    assert state(tmp_path) == before


def test_a_writer_deletes_nothing_but_what_is_its_own(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    for name in ("run.h5.parts.old", "run.h5.parts.tmp", REPLACED):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    (tmp_path / "run.h5.tmp").write_text("mine")
    before = {name: value for name, value in state(tmp_path).items() if name != str(path)}
    target, _ = RunWriter.resume(path)
    (tmp_path / "run.h5.parts" / "segments" / "notes.txt").write_text("mine")
    target.close()
    notes = tmp_path / "run.h5.parts" / "segments" / "notes.txt"
    assert notes.read_text() == "mine"
    with open_run(path) as run:
        assert run.path == path and run.status == "completed"
    writer(path.with_name("other.h5")).close()
    with pytest.raises(BiogradError, match="is in the way"):
        writer(path, force=True)
    shutil.rmtree(tmp_path / "run.h5.parts")
    writer(path, force=True).close()
    assert before.items() <= state(tmp_path).items()


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "segments": lambda parts, away: _moved(parts / "segments", away),
    "checkpoints": lambda parts, away: _moved(parts / "checkpoints", away),
    "the folder": lambda parts, away: _moved(parts, away),
    "a segment": lambda parts, away: _moved(parts / "segments" / "000001.h5", away),
    "the commits": lambda parts, away: _moved(parts / "commits.jsonl", away),
    "the lock": lambda parts, away: _moved(parts / "lock", away),
    "a stray link": lambda parts, away: (parts / "segments" / "000009.h5").symlink_to(away),
}


def _moved(path: Path, away: Path) -> None:
    place = away / path.name
    path.rename(place)
    path.symlink_to(place)


@pytest.mark.parametrize("link", LINKS)
def test_resuming_stays_in_its_own_folder(parts: Path, tmp_path: Path, link: str) -> None:
    away = tmp_path / "away"
    (away / "papers").mkdir(parents=True)
    (away / "papers" / "draft.txt").write_text("mine")
    LINKS[link](parts, away)
    before = state(tmp_path)
    with pytest.raises(RunFileError, match="is a link"):
        RunWriter.resume(parts)
    with pytest.raises(RunFileError, match="is a link"):
        writer(tmp_path / "run.h5", force=True)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint", "../../mine"),
        ("checkpoint", "/etc/passwd"),
        ("checkpoint", ["2"]),
        ("segment", "../../mine"),
        ("segment", -1),
        ("segment", 10**30),
        ("step", None),
        ("rows", []),
        ("rows", {"snapshots/step": -1}),
        ("sha256", 7),
        ("size", "a"),
    ],
)
def test_a_commit_names_only_what_is_the_run_s_own(
    parts: Path, tmp_path: Path, key: str, value: Any
) -> None:
    for ending in ("json", "safetensors"):
        (tmp_path / f"mine.{ending}").write_text("mine")
    lines = [json.loads(line) for line in (parts / "commits.jsonl").read_text().splitlines()]
    lines[0][key] = value
    (parts / "commits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = state(tmp_path)
    for attempt in (open_run, RunWriter.resume):
        with pytest.raises(RunFileError, match=r"line 1.*damaged"):
            attempt(parts)
    assert state(tmp_path) == before


def _replace(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def _declare(name: str, shape: tuple[int, ...], dtype: str, **options: Any) -> Any:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype, **options)

    return change


def _virtual(file: h5py.File) -> None:
    name = "scalars/train_step/loss"
    layout = h5py.VirtualLayout((9,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (9,))
    del file[name]
    file.create_virtual_dataset(name, layout)


LOSS = "scalars/train_step/loss"
DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "data for a group": _replace("scalars/train_step", 1.0),
    "a group for data": lambda file: (file.__delitem__(LOSS), file.create_group(LOSS)),
    "data for a table": _replace("params", np.arange(3)),
    "text for numbers": _replace(LOSS, np.array([b"a"] * 9)),
    "complex numbers": _replace(LOSS, np.zeros(9, "c8")),
    "records": _replace(LOSS, np.zeros(9, [("a", "i4")])),
    "empty": _replace("probe/label", h5py.Empty("i4")),
    "too few rows": _replace(LOSS, np.zeros(8, "f4")),
    "another axis": _replace("probe/index", np.zeros((5, 2), "i8")),
    "pointers that go back": _replace("spikes/1.lif/trial_ptr", np.arange(15, -1, -1, dtype="u8")),
    "pointers beyond": _replace("spikes/1.lif/trial_ptr", np.full(16, 10**12, "u8")),
    "a list as config": _replace("config", np.bytes_(b"[1, 2]")),
    "deep JSON": _replace("summary", np.bytes_(b'{"a":' * 70 + b"1" + b"}" * 70)),
    "very deep JSON": _replace("summary", np.bytes_(b"[" * 100_000)),
    "a huge integer": _replace("summary", np.bytes_(b'{"a": ' + b"9" * 5000 + b"}")),
    "half a character": _replace("summary", np.bytes_(b'{"a": "\\ud800"}')),
    "a soft link": _replace(LOSS, h5py.SoftLink("/probe/index")),
    "a link to itself": _replace(LOSS, h5py.SoftLink("/" + LOSS)),
    "another file": _replace(LOSS, h5py.ExternalLink("other.h5", "/x")),
    "virtual": _virtual,
    "stored elsewhere": _declare(LOSS, (9,), "f4", external=[("other.raw", 0, 36)]),
    "terabytes in chunks": _declare(LOSS, (1 << 42,), "f4", chunks=(1 << 20,)),
    "terabytes, packed": _declare(LOSS, (1 << 42,), "f4", chunks=(1 << 20,), compression="gzip"),
    "gigabytes, contiguous": _declare(LOSS, (1 << 30,), "f4"),
    "an attribute is missing": lambda file: file["layers/0.linear"].attrs.__delitem__("n_units"),
    "an attribute is text": lambda file: file["layers/0.linear"].attrs.__setitem__("n_units", "6"),
    "an attribute is large": lambda file: file.attrs.__setitem__("seed", np.zeros(8000)),
    "no status": lambda file: file.attrs.__delitem__("parts_id"),
    "another commit": lambda file: file["checkpoints/8"].attrs.__setitem__("commit", "x"),
    "a group in itself": lambda file: file["params"].__setitem__("again", file["params"]),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_error(finished: Path, tmp_path: Path, damage: str, sealed: bool) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    with h5py.File(path, "r+") as file:
        DAMAGE[damage](file)
    if sealed:  # by whoever made it
        with open(path, "rb+", buffering=0) as stream:
            write_seal(stream)  # type: ignore[arg-type]
    before = state(tmp_path)
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 and state(tmp_path) == before


@pytest.mark.parametrize("name", ["header.json", "commits.jsonl", "probe.h5", "segments/000000.h5"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "hole", "nothing"])
def test_parts_of_another_kind_are_one_error(parts: Path, name: str, kind: str) -> None:
    path = parts / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hole":
        with open(path, "wb") as stream:
            stream.truncate(2**40)
    before = {p: p.lstat().st_size for p in parts.rglob("*")}
    with pytest.raises(RunFileError) as caught, open_run(parts) as run:
        everything(run)
    assert "\n" not in str(caught.value)
    assert {p: p.lstat().st_size for p in parts.rglob("*")} == before


def test_a_checkpoint_that_does_not_fit_leaves_the_finished_file(
    finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def refuse(_: object) -> None:
        raise RunFileError("it does not fit")

    with pytest.raises(RunFileError, match="not fit"):
        RunWriter.resume(path, tried=refuse)
    assert [item.name for item in tmp_path.iterdir()] == ["run.h5"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("name", ["mean", "std", "frac_active", "max"])
def test_a_statistic_that_is_lost_is_damage(finished: Path, tmp_path: Path, name: str) -> None:
    """Whoever asks for the others, too, is told; nobody meets the missing one by its key."""
    layer = min(one.split("/")[1] for one in _names(finished) if "/stats/" in one)
    path = shutil.copy(finished, tmp_path / "run.h5")
    with edited(path) as file:
        del file[f"layers/{layer}/stats/{name}"]
        file.create_group(f"layers/{layer}/stats/{name}")
    with pytest.raises(RunFileError, match=rf"damaged.*{name}"), open_run(path) as run:
        run.statistics(layer)


def _names(path: Path) -> list[str]:
    found: list[str] = []
    with h5py.File(path) as file:
        file.visit(found.append)
    return found


def test_the_probe_keeps_its_stimuli(finished: Path) -> None:
    with open_run(finished) as run:
        assert run.probe is not None and run.probe.input is not None
        np.testing.assert_array_equal(run.probe.input, probe().input)


@pytest.mark.parametrize(
    "name",
    [
        "layers/0.linear/activation",
        "layers/0.linear/stats/mean",
        "params/0.weight/norm",
        "learning/0.linear/angle_deg",
        "scalars/train_step/loss",
        "snapshots/epoch",
        "trials/label",
        "spikes/1.lif/node_ids",
    ],
)
@pytest.mark.parametrize("change", ["deeper", "a scalar"])
def test_rows_of_another_shape_are_refused_before_anything_is_written(
    name: str, change: str, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(finished, path)
    with edited(path) as file:
        values = file[name][()]
        del file[name]
        file[name] = values[..., None] if change == "deeper" else values.flat[0]
    before = state(tmp_path)
    with pytest.raises(RunFileError, match=name):
        RunWriter.resume(path)
    with open_run(path) as run, pytest.raises(RunFileError, match=name):
        everything(run), run.params, run.learning, run.trials, run.spikes("1.lif")
        run.statistics("0.linear")
    assert state(tmp_path) == before


def test_an_attribute_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        h5py.h5a.create(
            file.id, b"\xff\xfe", h5py.h5t.NATIVE_INT8, h5py.h5s.create(h5py.h5s.SCALAR)
        )
    with pytest.raises(RunFileError, match="its name is no text"), open_file(path) as file:
        file.attributes("")


@pytest.mark.parametrize("name", [*COUNTS, "train_loss", "test_accuracy", *WORDS, *FIGURES])
@pytest.mark.parametrize("value", [[1], [[[3]]], True, {"a": [1]}])
def test_a_part_of_a_summary_of_another_type_is_damage(name: str, value: object) -> None:
    sound = 1 if name in COUNTS else "a word" if name in WORDS else {"a": 1.5}
    if not name.startswith(("train_", "test_")):
        check_summary({name: sound, "of a later version": value}, "run.h5")
    check_summary({name: None}, "run.h5")
    with pytest.raises(RunFileError, match=rf"run\.h5: is damaged \(summary: {name} is no"):
        check_summary({name: value}, "run.h5")
