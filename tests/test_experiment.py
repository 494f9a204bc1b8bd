"""From request to run file and back: bit-exact resumption, kills, bad input."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs_synthetic import edited
from torch import nn

import biograd
from biograd import data, experiment
from biograd.__main__ import main
from biograd.data import SOURCES
from biograd.errors import BiogradError, DataError, RecipeError, RunFileError
from biograd.estimators import ESTIMATORS
from biograd.experiment import Interrupted, TrainingRequest
from biograd.progress import Progress
from biograd.runs.reader import Run, open_run
from biograd.training import evaluate

SMALL = (
    "dataset.settings.train_rows=20",
    "dataset.settings.test_rows=5",
    "training.batch_size=20",
    "encoding.duration_ms=6.0",
    "network.hidden=[8, 6]",
    "estimators.weak.copies=5",
    "encoding.kind='poisson'",
)


def request(path: Path, model: str, estimator: str, **changes: Any) -> TrainingRequest:
    choice = TrainingRequest(
        model=model,
        dataset="random_manifolds",
        estimator=estimator,
        epochs=2,
        out=path,
        common=SMALL,
        device="cpu",
    )
    return replace(choice, **changes)


class Stop(Progress):
    """Sends a signal to this process after some steps."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.left, self.number = after, number

    def step(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def contents(path: Path) -> dict[str, np.ndarray]:
    """Return everything in a run file that must not depend on when it was written."""
    with open_run(path) as run:
        found = {f"tensor.{k}": v.numpy() for k, v in run.checkpoint()[0].items()}
        for stream in run.streams:
            if stream != "final":
                found |= {
                    f"{stream}.{k}": v for k, v in run.scalars(stream).items() if k != "wall_time"
                }
        for layer in run.layers:
            found[f"{layer}.activation"] = np.asarray(run.activity(layer))
    return found


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


OFTEN = ("backprop", "weak", "weight_perturbation", "eprop", "kolen_pollack", "decoupling")
"""The others, and simulations for every copy of the parameters, take their time."""


def _case(model: str, rule: str) -> Any:
    often = rule in OFTEN and (model != "brian2" or rule == "weak")
    return pytest.param(model, rule, marks=[] if often else [pytest.mark.slow])


CASES = [
    _case(model, name)
    for model in ("ann", "spiking", "brian2")
    for name in ESTIMATORS
    if model == "ann" or name != "decoupling"  # targets cannot be spikes
]
assert len(CASES) >= 14


@pytest.mark.parametrize(("model", "estimator"), CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, model: str, estimator: str
) -> None:
    experiment.execute(request(tmp_path / "whole.h5", model, estimator))
    for stop in (1, 13):  # inside the first epoch, and inside the second
        path = tmp_path / f"stopped{stop}.h5"
        with pytest.raises(Interrupted, match=r"biograd resume .*stopped") as caught:
            experiment.execute(request(path, model, estimator), Stop(stop))
        assert caught.value.exit_code == 130
        assert not path.exists()
        summary = experiment.proceed(path)
        assert summary["run"] == str(path)
        assert same(contents(tmp_path / "whole.h5"), contents(path))


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    for seed in (0, 1):
        experiment.execute(request(tmp_path / f"{seed}.h5", "ann", "weak", seed=seed))
    assert not same(contents(tmp_path / "0.h5"), contents(tmp_path / "1.h5"))


def test_the_same_request_gives_the_same_bits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        experiment.execute(request(tmp_path / f"{name}.h5", "spiking", "weak"))
    assert same(contents(tmp_path / "a.h5"), contents(tmp_path / "b.h5"))


def test_sigterm_ends_with_its_own_code(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        experiment.execute(request(tmp_path / "a.h5", "ann", "backprop"), Stop(3, signal.SIGTERM))
    assert caught.value.exit_code == 143


def test_a_finished_run_can_be_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    constant = ("training.schedule='constant'",)
    experiment.execute(request(path, "ann", "weak", assignments=constant))
    experiment.proceed(path, epochs=3)
    longer = request(tmp_path / "b.h5", "ann", "weak", assignments=constant, epochs=3)
    experiment.execute(longer)
    assert same(contents(path), contents(tmp_path / "b.h5"))


def test_the_file_gives_back_the_trained_network(tmp_path: Path) -> None:
    summary = experiment.execute(request(tmp_path / "a.h5", "spiking", "weak"))
    with biograd.load(tmp_path / "a.h5") as run:
        _network, engine = biograd.trained(run)
        assert run.summary["test_accuracy"] == summary["test_accuracy"]
        configuration = experiment.Configuration.of(run.config, run.path)
    dataset = data.load(configuration.data, name=configuration.dataset)
    assert evaluate(engine, dataset.test)["accuracy"] == summary["test_accuracy"]
    engine.detach()


def test_spikes_in_the_file_are_those_of_the_network(tmp_path: Path) -> None:
    experiment.execute(request(tmp_path / "a.h5", "spiking", "backprop"))
    with biograd.load(tmp_path / "a.h5") as run:
        for layer in run.layers:
            counts = np.asarray(run.activity(layer)).sum() * run.layers[layer].n_steps
            assert len(run.spikes(layer)) == round(float(counts)) > 0


def test_a_module_of_the_users_trains_and_resumes(tmp_path: Path) -> None:
    def module() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 10)).double()

    path = tmp_path / "a.h5"
    options = ("dataset.settings.train_rows=20", "dataset.settings.test_rows=5")
    run = biograd.train(
        module(),
        "random_manifolds",
        estimator="weak",
        epochs=2,
        path=path,
        settings=options,
        control=True,
    )
    assert isinstance(run, Run)
    assert 0 <= run.summary["frozen_hidden_control"] <= 1
    with pytest.raises(RecipeError, match=r"a module of yours \(Sequential\)"):
        biograd.resume(path, epochs=3)
    assert biograd.resume(path, epochs=3, network=module()).summary["epochs"] == 3


def test_the_summary_has_its_keys(tmp_path: Path) -> None:
    summary = experiment.execute(request(tmp_path / "a.h5", "ann", "weak", control=True))
    keys = (
        "schema_version run model dataset estimator decorrelation seed epochs budget headline "
        "better train_accuracy test_accuracy test_loss frozen_hidden_control "
        "control_learning_rate silent evaluated_on seconds steps_per_second ranks "
        "training_seconds forward_passes peak_memory_bytes "
        "multiply_accumulates synaptic_operations"
    )
    assert " ".join(summary) == keys


def console(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "biograd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killing_the_training_again_and_again_changes_nothing(tmp_path: Path) -> None:
    settings = [part for text in SMALL for part in ("--set", text)]
    start = [
        "train",
        "--model",
        "spiking",
        "--dataset",
        "random_manifolds",
        "--epochs",
        "60",
        *settings,
        "--out",
    ]
    assert console(*start, tmp_path / "whole.h5").returncode == 0
    path, kills = tmp_path / "killed.h5", 0
    stream = np.random.default_rng(0)
    arguments = [*start, path]
    while not path.exists():
        process = subprocess.Popen(
            [sys.executable, "-m", "biograd", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        process.stderr.readline()  # the title: training has begun
        time.sleep(float(stream.uniform(0.2, 1.5)))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
        if (tmp_path / "killed.h5.parts").exists():
            arguments = ["resume", path]
    assert kills >= 3
    assert same(contents(tmp_path / "whole.h5"), contents(path))


BAD = [
    (["--model", "spikng"], 2, r"no model 'spikng': did you mean 'spiking'\?"),
    (["--dataset", "digit"], 2, r"no dataset 'digit': did you mean 'digits'\?"),
    (["--estimator", "week"], 2, r"estimator = 'week': did you mean 'weak'\?"),
    (
        ["--set", "training.epoch=3"],
        2,
        r"--set training\.epoch=3: unknown key training\.epoch: did you mean 'epochs'\?",
    ),
    (
        ["--set", "estimators.weak.copy=3"],
        2,
        r"unknown key estimators\.weak\.copy: did you mean 'copies'\?",
    ),
    (["--set", "decorrelation.rule=kapa"], 2, r"decorrelation\.rule = 'kapa': did you mean"),
    (["--set", "neuron.threshold=-1"], 2, r"neuron\.threshold = -1\.0: must be > 0"),
    (
        ["--model", "{tmp}/opaque.toml", "--estimator", "backprop"],
        2,
        r"Backpropagation needs vjp, which the substrate 'brian2' cannot do",
    ),
    (
        ["--estimator", "weight_perturbation", "--set", "estimators.weight_perturbation.copies=4"],
        2,
        r"copies = 4: pairs and one clean copy make an odd number",
    ),
    (["--set", "estimators.weak.method=quadratic"], 2, r"quadratic needs at least \d+ copies"),
    (["--out", "{tmp}/file/run.h5"], 1, r"cannot be written"),
    (["--dataset", "mnist", "--offline", "--data-dir", "{tmp}/empty"], 1, r"mnist"),
    (["--set", "training.learning_rate=1e30"], 1, r"step 2: the current of \S+, or .* finite"),
    (
        ["--model", "ann", "--estimator", "backprop", "--set", "network.gain=1e30"],
        1,
        r"step 1: the current of \S+, or its square, is not finite: lower .* \(network\.gain\)",
    ),
]


OPAQUE = """
[network]
substrate = "brian2"
kind = "spiking"

[population]
equations = "dv/dt = (I - v) / (10 * ms) : 1\\nI : 1"
threshold = "v > 1 or v < -9"
reset = "v = 0"
method = "exact"
"""
"""A population whose threshold has no distance."""


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_one_line_with_its_exit_code(
    tmp_path: Path, arguments: list[str], code: int, message: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "opaque.toml").write_text(OPAQUE)
    filled = [part.format(tmp=tmp_path) for part in arguments]
    assert main(["train", "--epochs", "1", "--quiet", *filled]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert re.search(message, printed.err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(RecipeError, match="no CUDA device is available here; use --device cpu"):
        experiment.configure(TrainingRequest(device="cuda")).here()


def poisoned(monkeypatch: Any, spoil: Any) -> None:
    read = SOURCES["digits"]
    monkeypatch.setitem(SOURCES.own, "digits", lambda request: spoil(read(request)))


@pytest.mark.parametrize("what", ["nan", "label"])
def test_data_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, monkeypatch: Any, what: str
) -> None:
    def spoil(loaded: Any) -> Any:
        train = loaded.sources["train"]
        if what == "nan":
            train.inputs[7] = float("nan")
        else:
            train.targets[7] = 10
        return loaded

    poisoned(monkeypatch, spoil)
    match = "row 7: an input is NaN" if what == "nan" else "10"
    with pytest.raises(BiogradError, match=match) as caught:
        experiment.execute(TrainingRequest(model="ann", out=tmp_path / "a.h5"))
    assert "digits" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_during_a_commit_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from biograd import disk

    write, calls = disk.write_bytes, []

    def full(path: Path, content: bytes) -> None:
        calls.append(path)
        if "segments" in str(path) and len(calls) > 6:
            raise OSError(28, "No space left on device")
        write(path, content)

    path = tmp_path / "a.h5"
    monkeypatch.setattr(disk, "write_bytes", full)
    with pytest.raises(BiogradError, match=r"no space left on the disk.*biograd resume") as caught:
        experiment.execute(request(path, "ann", "weak", epochs=4))
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    experiment.proceed(path)
    experiment.execute(request(tmp_path / "whole.h5", "ann", "weak", epochs=4))
    assert same(contents(path), contents(tmp_path / "whole.h5"))


def test_a_run_is_not_resumed_on_other_data_or_backwards(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", "weak"))
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="the run is in epoch 2 already"):
        experiment.proceed(path, epochs=1)
    assert path.read_bytes() == before
    with edited(path) as file:
        file.attrs["dataset_sha256"] = "0" * 64
    with pytest.raises(DataError, match="learned from other random_manifolds data"):
        experiment.proceed(path, epochs=3)


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(request(path, "ann", "weak", epochs=1))
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="--force"):
        experiment.execute(request(path, "ann", "weak", epochs=1))
    assert path.read_bytes() == before
    experiment.execute(request(path, "ann", "weak", epochs=1, force=True, seed=3))
    assert path.read_bytes() != before


class Stack(nn.Module):
    """A module of the user's: the readout is named first, one layer is never called."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.readout, self.spare = nn.Linear(20, 10), nn.Linear(3, 3)
        self.hidden = nn.Linear(20, 20) if hidden else nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.readout(torch.relu(self.hidden(inputs)))


@pytest.mark.parametrize("hidden", [True, False])
def test_any_module_leaves_a_run_file(tmp_path: Path, hidden: bool) -> None:
    experiment.execute(request(tmp_path / "a.h5", Stack(hidden), "backprop"))  # type: ignore[arg-type]
    with open_run(tmp_path / "a.h5") as run:
        assert list(run.layers) == (["hidden"] if hidden else [])


def test_what_does_not_fit_together_leaves_no_run_file(tmp_path: Path) -> None:
    antithetic = ("estimators.weak.method=antithetic", "estimators.weak.copies=4")
    with pytest.raises(RecipeError, match="odd number of copies"):
        experiment.execute(request(tmp_path / "a.h5", "ann", "weak", assignments=antithetic))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "assignment", ["estimators.weka.copies=3", "estimators.weak.copeis=3", "training.momentum=inf"]
)
def test_settings_of_an_estimator_that_is_not_used_are_checked(
    tmp_path: Path, assignment: str
) -> None:
    wrong = request(tmp_path / "a.h5", "ann", "backprop", assignments=(assignment,))
    with pytest.raises(RecipeError, match=r"estimator = 'weka'|copeis|finite"):
        experiment.execute(wrong)


def test_a_run_on_cuda_is_not_resumed_without_it(tmp_path: Path, monkeypatch: Any) -> None:
    experiment.execute(request(tmp_path / "a.h5", "ann", "weak"))
    of = experiment.Configuration.of
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        experiment.Configuration, "of", lambda *given: replace(of(*given), device="cuda")
    )
    with pytest.raises(RecipeError, match="the run was on cuda"):
        experiment.proceed(tmp_path / "a.h5", epochs=3)


def test_ctrl_c_while_the_results_are_measured_can_be_resumed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.h5"
    with monkeypatch.context() as patched:
        patched.setattr("biograd.recording.recorder.frozen_hidden", stop)
        with pytest.raises(Interrupted, match="biograd resume") as caught:
            experiment.execute(request(path, "ann", "weak", control=True))
    assert caught.value.exit_code == 130
    assert experiment.proceed(path)["frozen_hidden_control"] is not None


def test_manifolds_without_a_seed_follow_the_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "datasets" / "random_manifolds.toml").read_text()
    recipe = tmp_path / "manifolds.toml"
    recipe.write_text("\n".join(line for line in text.splitlines() if "seed" not in line))
    found = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.h5"
        experiment.execute(request(path, "ann", "weak", dataset=str(recipe), seed=seed))
        with open_run(path) as run:
            found.append(run.attributes["dataset_sha256"])
    assert found[0] != found[1]


def test_a_run_whose_configuration_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="the run's configuration"):
        experiment.Configuration.of({"model": "ann", "nonsense": 1}, tmp_path / "a.h5")
