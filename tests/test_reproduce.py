"""A run is repeated from its file: bits, numbers or neither, and what of it cannot be repeated."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from runs_synthetic import edited
from torch import nn

import biograd
from biograd import experiment
from biograd.__main__ import main
from biograd.brian.import_brian2 import import_brian2
from biograd.configuration import TrainingRequest
from biograd.errors import DataError, RecipeError, RunFileError
from biograd.experiment import Interrupted
from biograd.progress import Progress
from biograd.recording import Recording
from biograd.reproduction import (
    RATE,
    SPIKING,
    Change,
    Difference,
    Reproduction,
    repeating,
    reproduce,
    side_by_side,
)
from biograd.runs import checkpoint
from biograd.runs.reader import open_run

SMALL = (
    "dataset.settings.train_rows=20",
    "dataset.settings.test_rows=5",
    "training.batch_size=20",
    "encoding.duration_ms=6.0",
    "network.hidden=[8, 6]",
    "estimators.weak.copies=5",
    "encoding.kind='poisson'",
)


def request(path: Path, model: str = "ann", *more: str, **changes: Any) -> TrainingRequest:
    asked = TrainingRequest(
        model=model,
        dataset="random_manifolds",
        estimator="weak",
        epochs=2,
        out=path,
        common=SMALL,
        assignments=more,
        device="cpu",
    )
    return replace(asked, **changes)


class Stop(Progress):
    """Sends a signal to this process after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(asked: TrainingRequest, after: int) -> None:
    with pytest.raises(Interrupted):
        experiment.execute(asked, Stop(after))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "a.h5"
    experiment.execute(request(path, "spiking"))
    return path


# Bits

CASES = {
    "ann, decorrelated": ("ann", (), {}),
    "spiking": ("spiking", (), {}),
    "brian2": ("brian2", (), {}),
    "local losses": ("ann", ("local.loss=predsim",), {"estimator": "backprop"}),
    "own state": ("ann", (), {"estimator": "decoupling"}),
    "probed": ("ann", ("training.probe=2",), {"epochs": 1}),
    "with its control": ("ann", (), {"control": True}),
    "passes, not in whole epochs": ("ann", ("training.passes=1234",), {"epochs": None}),
    "no step at all": ("ann", (), {"epochs": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_all_bits_agree(case: str, tmp_path: Path) -> None:
    model, settings, changes = CASES[case]
    path = tmp_path / "a.h5"
    experiment.execute(request(path, model, *settings, **changes))
    found = reproduce(path)
    assert found.verdict == "bits" and not found.failure, found.failure
    assert list(tmp_path.iterdir()) == [path]
    with open_run(path) as run:
        assert found.step == run.checkpoints[-1]
        assert found.compared["tensors"] == len(run.checkpoint()[0])
        assert found.compared["snapshots"] == len(run.snapshots["step"])
        lengths = [len(run.scalars(stream)["step"]) for stream in run.streams]
        assert found.compared["metrics"] == sum(lengths)
        spikes = [len(run.spikes(layer)) for layer in run.layers if model != "ann"]
        assert found.compared["spikes"] == sum(spikes) and bool(spikes) == (model != "ann")


def test_an_interrupted_run_is_repeated_up_to_its_last_commit(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    # within an epoch, and at its end
    for stop, where in ((7, path), (10, tmp_path / "a.h5.parts")):
        interrupted(request(path, "spiking", force=True), stop)
        assert not path.exists()
        found = reproduce(where)
        assert found.verdict == "bits" and found.step == stop
        assert "the run is interrupted: repeated up to its last commit" in str(found)
    experiment.proceed(path)
    found = reproduce(path)  # resumed, it is a run like any other
    assert found.verdict == "bits" and found.step == 20 and not found.notes


def test_a_run_that_was_killed_before_its_first_epoch(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(self: Recording, *_: object) -> None:
        raise SystemError("as if it were killed")

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "_record", fails)
        with pytest.raises(SystemError):
            experiment.execute(request(tmp_path / "a.h5"))
    found = reproduce(tmp_path / "a.h5")
    assert found.verdict == "bits" and found.step == 0 and "crashed" in found.notes[0]


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("constant", marks=pytest.mark.slow)])
def test_a_run_that_was_trained_on_is_repeated_part_by_part(tmp_path: Path, schedule: str) -> None:
    path, rate = tmp_path / "a.h5", f"training.schedule={schedule}"
    experiment.execute(request(path, "ann", rate, epochs=1))
    experiment.proceed(path, epochs=2)
    interrupted_at = 25
    with pytest.raises(Interrupted):
        experiment.proceed(path, epochs=4, progress=Stop(interrupted_at - 20))
    assert reproduce(path).verdict == "bits"
    experiment.proceed(path, epochs=3)
    found = reproduce(path, out=tmp_path / "b.h5")
    assert found.verdict == "bits" and found.step == 30
    notes = [f"up to step {n} training.epochs was {e}" for n, e in ((10, 1), (20, 2), (25, 4))]
    assert list(found.notes) == notes
    with open_run(path) as run, open_run(tmp_path / "b.h5") as repeated:
        assert run.config["stages"] == repeated.config["stages"]


def test_without_its_parts_a_longer_run_is_another(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", "training.schedule=cosine", epochs=1))
    experiment.proceed(path, epochs=2)
    read = repeating._configuration
    monkeypatch.setattr(
        repeating, "_configuration", lambda *a: dataclasses.replace(read(*a), stages=())
    )
    found = reproduce(path)
    assert found.verdict == "neither"
    rates = [one for one in found.differences if one.name == "train_step/learning_rate"]
    assert rates[0].step == 2  # the first step has the full rate on every schedule


def test_the_repeated_run_is_kept_where_it_is_asked_for(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "b.h5"
    found = reproduce(trained, out=out)
    assert found.repeated == out and f"20 steps, into {out}" in str(found)
    with open_run(trained) as run, open_run(out) as repeated:
        assert repeated.status == "completed"
        assert repeated.summary["test_accuracy"] == run.summary["test_accuracy"]
    assert reproduce(out).verdict == "bits"
    with pytest.raises(RecipeError, match=r"b\.h5: exists; give another --out"):
        reproduce(trained, out=out)


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 10)).double()


def test_a_module_of_the_users_is_repeated_from_python(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.h5"
    options = SMALL[:3]
    biograd.train(
        module(), "random_manifolds", estimator="weak", epochs=1, path=path, settings=options,
        control=True,
    )  # fmt: skip
    assert biograd.reproduce(path, network=module()).verdict == "bits"
    other = biograd.reproduce(path, network=module(1))
    assert other.verdict == "neither" and "step 0" in str(other)
    assert main(["reproduce", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "a module of yours (Sequential)" in error and "biograd.reproduce(path, netw" in error
    biograd.resume(path, epochs=2, network=module())  # which trains no control
    assert biograd.reproduce(path, network=module()).verdict == "bits"


# Neither: something in the file is changed


def with_tensor(file: h5py.File, name: str) -> None:
    (group,) = file["checkpoints"].values()
    body, text = group["tensors"][()].tobytes(), bytes(group["meta"][()])
    tensors, meta = checkpoint.from_bytes(body, text)
    tensors[name].view(-1)[0] += 1e-6
    body, text = checkpoint.to_bytes(tensors, meta)
    del group["tensors"], group["meta"]
    group["tensors"], group["meta"] = np.frombuffer(body, np.uint8), np.bytes_(text)


def with_value(file: h5py.File, name: str) -> None:
    values = file[name][()]
    values.flat[-1] += 0.25 if values.dtype.kind == "f" else 1
    file[name][...] = values


CHANGED = {
    "network.readout.weight": with_tensor,
    "engine.decorrelation.matrices.readout": with_tensor,
    "scalars/epoch/test_loss": with_value,
    "scalars/train_step/accuracy": with_value,
    "layers/blocks.0.activity/activation": with_value,
    "spikes/blocks.1.activity/timestamps": with_value,
    "params/readout.bias/norm": with_value,
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_was_changed_is_named(name: str, trained: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "changed.h5"
    shutil.copy(trained, path)
    with edited(path) as file:
        CHANGED[name](file, name)
    assert main(["reproduce", str(path), "--quiet", "--json"]) == 3
    printed, named = capsys.readouterr(), name.removeprefix("scalars/")
    assert f"{path}: is not reproduced, though nothing known differs" in printed.err
    assert named in printed.err and len(printed.err.splitlines()) == 1
    record = json.loads(printed.out)
    assert record["verdict"] == "neither" and record["changes"] == []
    assert [one["name"] for one in record["differences"]] == [named]


def test_what_is_missing_is_named(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.h5"
    shutil.copy(trained, path)
    with edited(path) as file:
        del file["params/readout.bias/norm"]
    found = reproduce(path)
    (difference,) = found.differences
    assert str(difference) == "params/readout.bias/norm (another shape)"
    assert "bits         differ: snapshots 1\n" in str(found)
    assert "nothing known differs" in str(found)


# Numbers: where something of the machine differs


def rounded(monkeypatch: Any, amount: float) -> None:
    """Let the repeated network start a little beside the first one, as if it were rounded."""
    begin = repeating.begin

    def beside(*arguments: Any, **options: Any) -> Recording:
        recording = begin(*arguments, **options)
        with torch.no_grad():
            for parameter in recording.experiment.network.parameters():
                parameter *= 1 + amount
        return recording

    monkeypatch.setattr(repeating, "begin", beside)


def another_machine(monkeypatch: Any) -> None:
    here = side_by_side.environment

    def elsewhere(device: str) -> dict[str, Any]:
        found = here(device)
        versions = {**found["versions"], "torch": "9.9"}
        return {**found, "versions": versions, "cpu": "Another One", "threads": 77}

    monkeypatch.setattr(side_by_side, "environment", elsewhere)


def test_numbers_are_enough_on_another_machine(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", epochs=1))
    rounded(monkeypatch, 1e-5)
    assert reproduce(path).verdict == "neither"  # nothing explains it
    another_machine(monkeypatch)
    found = reproduce(path)
    assert found.verdict == "numbers" and found.differences and not found.failure
    assert 0 < found.numbers["parameters"] < 1e-3 and 0 < found.numbers["losses"] < 1e-3
    assert {change.what: change.now for change in found.changes} == {
        "torch": "9.9", "cpu": "Another One", "threads": 77,
    }  # fmt: skip
    assert "numbers      agree: parameters within 0.00" in str(found)
    assert f"torch {torch.__version__}, now 9.9; cpu " in str(found)


def test_numbers_too_far_apart_are_another_run(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", epochs=1))
    rounded(monkeypatch, 0.3)
    another_machine(monkeypatch)
    found = reproduce(path)
    assert found.verdict == "neither" and "numbers      differ" in str(found)
    assert found.failure.startswith(
        f"{path}: is not reproduced (torch {torch.__version__}, now 9.9"
    )


def test_preferences_of_brian2_that_differ_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    path, prefs = tmp_path / "a.h5", import_brian2().prefs
    monkeypatch.setitem(prefs, "codegen.target", "numpy")
    experiment.execute(request(path, "brian2", epochs=1))
    assert reproduce(path).verdict == "bits"
    monkeypatch.setitem(prefs, "core.default_float_dtype", np.float32)
    found = reproduce(path)
    assert list(map(str, found.changes)) == [
        "Brian2's core.default_float_dtype float64, now float32"
    ]


def test_another_number_of_threads_leaves_the_numbers(tmp_path: Path) -> None:
    path, before = tmp_path / "a.h5", torch.get_num_threads()
    wide = ("network.hidden=[300]", "training.batch_size=200")
    try:
        torch.set_num_threads(1)
        experiment.execute(request(path, "ann", *wide))
        torch.set_num_threads(2)
        found = reproduce(path)
    finally:
        torch.set_num_threads(before)
    assert found.verdict in ("bits", "numbers") and found.changes == (Change("threads", 1, 2),)
    assert found.within


def test_what_the_verdict_rests_on() -> None:
    one = Difference("tensors", "network.a", 1e-6)
    found = Reproduction(
        run=Path("a.h5"), repeated=None, step=1, compared={}, differences=(one,),
        numbers={"parameters": 1e-6, "losses": 0.0}, limits=RATE, changes=(), device="cpu",
    )  # fmt: skip
    assert found.verdict == "neither" and found.within
    assert replace(found, differences=()).verdict == "bits"
    assert replace(found, device="cuda").verdict == "numbers"
    elsewhere = replace(found, changes=(Change("threads", 1, 2),))
    assert elsewhere.verdict == "numbers"
    far = {"parameters": 0.02, "losses": 0.0, "result": 0.0}
    assert replace(elsewhere, numbers=far).verdict == "neither"
    assert replace(elsewhere, numbers=far, limits=SPIKING).verdict == "numbers"
    wrong = {**far, "result": 0.05}
    assert replace(elsewhere, numbers=wrong, limits=SPIKING).verdict == "neither"


# Refusals


def test_seconds_do_not_repeat(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", "training.seconds=0.01", epochs=None))
    with pytest.raises(RecipeError, match=r"its budget is training\.seconds = 0\.01: how far"):
        reproduce(path)


def test_other_data_are_refused(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    shutil.copy(trained, path)
    with edited(path) as file:
        file.attrs["dataset_sha256"] = "0" * 64
    with pytest.raises(DataError, match=r"a\.h5: the run learned from other random_manifolds data"):
        reproduce(path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="there is no such run"):
        reproduce(tmp_path / "none.h5")


def test_an_interrupted_repetition_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    folders = set(Path(repeating.tempfile.gettempdir()).glob("biograd-*"))
    with pytest.raises(Interrupted, match=r"nothing of the repetition of .* is kept") as caught:
        reproduce(trained, progress=Stop(3))
    assert caught.value.exit_code == 130
    assert set(Path(repeating.tempfile.gettempdir()).glob("biograd-*")) <= folders
    out = tmp_path / "b.h5"
    with pytest.raises(Interrupted, match=r"biograd resume .*b\.h5"):
        reproduce(trained, out=out, progress=Stop(3))


# The console


def test_the_console_says_it_in_text_and_json(trained: Path, capsys: Any) -> None:
    assert main(["reproduce", str(trained), "--quiet"]) == 0
    printed = capsys.readouterr()
    with open_run(trained) as run:
        spikes = sum(len(run.spikes(layer)) for layer in run.layers)
        tensors, rows = len(run.checkpoint()[0]), len(run.snapshots["step"])
    assert printed.out == (
        f"run          {trained}\nrepeated     20 steps\n"
        f"bits         agree: {tensors} tensors, 23 rows of metrics, {rows} snapshots, "
        f"{spikes} spikes\n"
    )
    assert printed.err == ""
    assert main(["reproduce", str(trained), "--json"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["verdict"] == "bits" and record["differences"] == record["changes"] == []
    assert record["compared"]["spikes"] == spikes and record["repeated"] is None
    assert "epoch 2/2" in printed.err


def test_spikes_without_their_trials_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    settings = ["dataset.training_examples=32", "dataset.test_examples=8", "encoding.duration_ms=4"]
    biograd.train("spiking", "digits", epochs=1, path=path, settings=settings).close()
    with edited(path) as file:
        file.move("trials", "elsewhere")
    with pytest.raises(RunFileError, match="has layers that spike, but no /trials"):
        biograd.reproduce(path)


def test_other_code_of_the_same_version_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", epochs=1))
    rounded(monkeypatch, 1e-5)
    here = side_by_side.environment
    monkeypatch.setattr(side_by_side, "environment", lambda device: {**here(device), "source": "1"})
    found = reproduce(path)
    assert [(change.what, change.now) for change in found.changes] == [("biograd's code", "1")]
    assert "biograd's code" in str(found) and found.changes[0].then == here("cpu")["source"]
