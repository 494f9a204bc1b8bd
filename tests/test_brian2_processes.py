"""Brian2 populations in other circumstances: no compiler, other processes, other random states."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import CLASSES, batch, gradients
from numpy.typing import NDArray
from torch import Tensor

import biograd
from biograd.brian import import_brian2 as importing
from biograd.brian.import_brian2 import choose_target, import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.brian.neuron_model import NeuronModel
from biograd.brian.simulation import Simulation
from biograd.commands import doctor
from biograd.engine import attach
from biograd.errors import BiogradError
from biograd.estimators import WeakGradient
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe, PopulationRecipe

NOISY = PopulationRecipe(
    equations="dv/dt = (8 * I - v) / tau + 0.3 * xi * tau**-0.5 : 1\nI : 1",
    threshold="v > 1",
    reset="v = 0",
    refractory="2*ms",
    namespace={"tau": "10*ms"},
    trainable={"tau": (0.5, 2.0)},
)
QUIET = PopulationRecipe(
    equations="dv/dt = (3 * I - v) / (10*ms) : 1\nI : 1",
    threshold="v > 1",
    reset="v = 0",
    refractory="2*ms",
    method="exact",
)
STEPS = 60


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    codegen = import_brian2().prefs.codegen
    kept, codegen.target = codegen.target, "numpy"
    yield
    codegen.target = kept


def currents() -> Tensor:
    """Return currents ``[rows, units]`` of which some make no spikes."""
    return torch.linspace(0.2, 1.5, 12, dtype=torch.float64).view(3, 4)


def spikes(recipe: PopulationRecipe = QUIET, dt_ms: float = 1.0) -> Tensor:
    """Return the spikes ``[rows, steps, units]`` for those currents."""
    train: Tensor = Brian2Layer(recipe, 4, STEPS, dt_ms)(currents()).detach()
    return train


# Without a compiler.


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Let Brian2 choose its target anew, and find that it can compile, or cannot."""
    from brian2.codegen.runtime.cython_rt.cython_rt import CythonCodeObject
    from brian2.utils.logger import get_logger

    def works(answer: bool) -> None:
        def available(_kind: Any) -> bool:
            if not answer:
                get_logger("brian2.codegen").warn("Cannot use Cython,\nand\nso on", "failed")
            return answer

        monkeypatch.setattr(sys.modules["brian2.devices.device"], "_auto_target", None)
        monkeypatch.setattr(CythonCodeObject, "is_available", classmethod(available))

    importing._compiles.cache_clear()
    yield works
    importing._compiles.cache_clear()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return all warnings that reach the user, whose terminal Brian2's own do not."""
    found = [one for one in caplog.records if one.levelno >= logging.WARNING]
    return [one.getMessage() for one in found if one.name.startswith("biograd")]


def test_without_a_compiler_one_line_says_so_once(
    compiler: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = spikes()
    assert not said(caplog)  # numpy was asked for
    import_brian2().prefs.codegen.target = "auto"
    compiler(False)
    found = [spikes(), spikes()]
    (line,) = said(caplog)
    assert "no C++ compiler" in line and "NumPy" in line and "doctor" in line and "\n" not in line
    assert "Cython" not in "".join(capfd.readouterr())
    assert all(torch.equal(train, expected) for train in found) and expected.any()


@pytest.mark.parametrize("temporary", [True, False])
def test_a_folder_that_cannot_be_written_is_named(
    compiler: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    temporary: bool,
) -> None:
    from brian2.codegen.runtime.cython_rt import extension_manager

    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cython"  # below a file, nobody can make a folder
    # Cython asks the environment, CYTHON_CACHE_DIR, once
    monkeypatch.setattr(extension_manager, "base_cython_cache_dir", lambda: str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if temporary else folder))
    prefs = import_brian2().prefs.codegen
    prefs.target = "auto"
    compiler(temporary)
    kept = prefs.runtime.cython.cache_dir
    try:
        choose_target()
        choose_target()
        chosen = prefs.runtime.cython.cache_dir
    finally:
        prefs.runtime.cython.cache_dir = kept
    (line,) = said(caplog)
    assert f"{folder}/brian_extensions cannot be written" in line and "CYTHON_CACHE_DIR" in line
    assert "compiler" not in line and ("NumPy" in line) is not temporary
    made = [str(path) for path in tmp_path.glob("biograd-brian2-*")]
    assert made == [chosen] * temporary and all(path in line for path in made)
    assert all(os.stat(path).st_mode & 0o777 == 0o700 for path in made)  # nobody else's code


def test_a_folder_of_somebody_else_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = Path(importing._temporary())
    assert importing._temporary() == str(own)
    own.chmod(0o777)
    other = Path(importing._temporary())
    assert other != own and other.stat().st_mode & 0o777 == 0o700


def test_with_a_compiler_nothing_is_said(
    compiler: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    import_brian2().prefs.codegen.target = "auto"
    compiler(True)
    choose_target()
    assert importing._compiles() and not said(caplog)


@pytest.mark.parametrize(
    ("given", "installed", "text"),
    [
        ("", "c++", "c++: Brian2 compiles"),
        ("", "", "no C++ compiler: Brian2 runs on NumPy"),
        ("other -pipe", "other", "other: Brian2 compiles"),
        # Brian2 takes what CXX names and nothing else
        ("other -pipe", "c++", "no C++ compiler other (CXX): Brian2 runs on NumPy"),
    ],
)
def test_the_doctor_says_whether_brian2_compiles(
    given: str, installed: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", given)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == installed else None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file() and "compiles" in text:
        pytest.skip("no Python headers here")
    finding = doctor._compiler()
    assert text in finding.text and finding.status == ("ok" if "compiles" in text else "note")


SCRIPT = """
import json, sys
from test_brian2_processes import spikes
from biograd.brian.import_brian2 import import_brian2
import_brian2().prefs.codegen.target = "auto"
assert sys.excepthook is sys.__excepthook__  # an error of this script is none of Brian2's
safe = import_brian2().prefs.codegen.runtime.cython.multiprocess_safe
print(json.dumps([safe, *spikes().nonzero().tolist()]))
"""


def start(home: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a process that has compiled nothing before and prints the steps of its spikes."""
    paths = [str(Path(__file__).parent), str(Path(biograd.__file__).parent.parent)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the home folder has another name")
def test_a_process_without_a_compiler_says_one_line(tmp_path: Path) -> None:
    output, errors = start(tmp_path, CXX="/nowhere/c++").communicate(timeout=100)
    assert json.loads(output) == [True, *spikes().nonzero().tolist()]
    (line,) = errors.strip().splitlines()
    assert "no C++ compiler" in line


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="the home folder has another name")
@pytest.mark.skipif(doctor._compiler().status != "ok", reason="no compiler")
def test_two_processes_compile_the_same_model_at_once(tmp_path: Path) -> None:
    both = [start(tmp_path) for _ in range(2)]
    found = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], found
    expected = [True, *spikes().nonzero().tolist()]
    assert [json.loads(output) for output, _ in found] == [expected, expected]
    assert list((tmp_path / ".cython").rglob("*.so"))  # it was the compiled code


# In other processes, with other random states.


def noisy_gradient(seed: int) -> tuple[dict[str, Any], int]:
    """Return an estimate by a network of noisy neurons, and who made it."""
    import_brian2().prefs.codegen.target = "numpy"
    recipe = ModelRecipe(
        network=NetworkRecipe(substrate="brian2", kind="spiking", hidden=(5,), dtype="float64"),
        encoding=EncodingRecipe(kind="poisson"),
        population=NOISY,
    )
    network = biograd.build(recipe, 6, CLASSES)
    engine = attach(network, WeakGradient(5), seed=seed, outside="exact")
    found = gradients(engine, *batch())
    return {name: value.numpy() for name, value in found.items()}, os.getpid()


def train_of(layer: Brian2Layer) -> tuple[NDArray[np.float64], int]:
    """Return the spikes of a layer that came here from another process."""
    import_brian2().prefs.codegen.target = "numpy"
    return layer(currents()).detach().numpy(), os.getpid()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two sets of gradients agree in every bit."""
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_global_random_states_matter_nothing() -> None:
    """A forked process has those of its parent: nothing may be drawn from them."""
    found = []
    for state in (0, 1):
        np.random.seed(state)
        torch.manual_seed(state)
        found.append(noisy_gradient(3)[0])
    assert same(*found) and not same(found[0], noisy_gradient(4)[0])
    assert all(value.any() for value in found[0].values())


@pytest.mark.slow
def test_workers_agree_where_their_seeds_do() -> None:
    context = multiprocessing.get_context("spawn")
    layer = Brian2Layer(NOISY, 4, STEPS, 1.0)
    with torch.no_grad():
        layer.factors["tau"].copy_(torch.tensor([-2.0, 0.0, 1.0, 2.0]))
    layer(currents())  # a prepared simulation stays behind
    with ProcessPoolExecutor(2, context) as pool:
        futures = [pool.submit(noisy_gradient, seed) for seed in (3, 3, 4)]
        sent = pool.submit(train_of, layer)
        (one, first), (two, second), (other, _) = [future.result(100) for future in futures]
        train, third = sent.result(100)
    assert os.getpid() not in (first, second, third)
    assert same(one, two) and same(one, noisy_gradient(3)[0]) and not same(one, other)
    assert np.array_equal(train, layer(currents()).detach().numpy()) and train.any()


def test_a_pickled_layer_brings_what_it_learned_and_no_simulation() -> None:
    layer = Brian2Layer(NOISY, 4, STEPS, 1.0)
    before = layer(currents())
    with torch.no_grad():
        layer.factors["tau"].copy_(torch.tensor([-2.0, 0.0, 1.0, 2.0]))
    twin = pickle.loads(pickle.dumps(layer))
    assert layer.simulation.kept and not twin.simulation.kept
    assert torch.equal(twin(currents()), layer(currents()))
    assert not torch.equal(twin(currents()), before)


# One clock, and trials without spikes.


def test_a_population_has_its_own_clock() -> None:
    """Brian2's default clock, which a user may have set, does not matter; the step does."""
    b2, expected = import_brian2(), spikes()
    kept = b2.defaultclock.dt
    b2.defaultclock.dt = 0.3 * b2.ms
    try:
        assert torch.equal(spikes(), expected)
    finally:
        b2.defaultclock.dt = kept
    assert not torch.equal(spikes(dt_ms=0.5), expected)
    parts = Simulation(NeuronModel(NOISY, 1.0), 2, 3)._network.sorted_objects
    assert len({part.clock.name for part in parts}) == 1


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_silent_neurons_stay_silent(kind: str) -> None:
    simulation = Simulation(NeuronModel(QUIET, 1.0), 1, 3)
    current = np.array([[[0.0, 0.2, 5.0]]])
    train, _ = simulation.run(current, STEPS, kind=kind)
    assert train.dtype == kind and not train[:, 0, :2].any() and train[:, 0, 2].sum() > 10
    simulation.begin()
    steps = [simulation.step(current[0]).copy() for _ in range(STEPS)]
    assert np.array_equal(train, np.stack(steps))


def test_a_population_without_a_threshold_never_spikes() -> None:
    recipe = PopulationRecipe(
        equations="dv/dt = (I - v) / (10*ms) : 1\nI : 1", output="v", method="exact"
    )
    simulation = Simulation(NeuronModel(recipe, 1.0), 1, 2)
    train, kept = simulation.run(np.ones((1, 1, 2)), 20, keep=("v",))
    assert not train.any()
    expected = 1 - np.exp(-np.arange(1, 21) / 10)
    np.testing.assert_allclose(kept["v"][:, 0], expected[:, None].repeat(2, 1), atol=1e-14)


@pytest.mark.parametrize("recurrent", [False, True])
def test_what_blows_up_is_said_at_the_end_of_the_trial(recurrent: bool) -> None:
    recipe = PopulationRecipe(
        equations="dv/dt = (v**3 + I) / ms : 1\nI : 1", output="v", method="euler"
    )
    layer = Brian2Layer(recipe, 4, STEPS, 1.0)
    back = torch.nn.Linear(4, 4, bias=False).double() if recurrent else None
    assert layer(0 * currents(), back).isfinite().all()
    message = rf"v of 12 of 12 neurons is not finite after {STEPS} steps .*shorter"
    with pytest.raises(BiogradError, match=message):
        layer(currents(), back)


def test_preferences_of_the_current_folder_are_not_run(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".brian").mkdir(parents=True)
    here.mkdir()
    mark = "[__import__('pathlib').Path('{0}').touch(), True][1]"
    key = "codegen.loop_invariant_optimisations"
    (here / "brian_preferences").write_text(f"{key} = {mark.format('ran')}\n")
    (home / ".brian" / "user_preferences").write_text("core.stop_on_keyboard_interrupt = False\n")
    code = (
        "from biograd.brian.import_brian2 import import_brian2; prefs = import_brian2().prefs; "
        f"print(prefs['{key}'], prefs.core.stop_on_keyboard_interrupt); {{}}"
    )

    def run(more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code.format(more)],
            cwd=here, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True,
        )  # fmt: skip

    found = run("")
    assert found.stdout == "True False\n" and not (here / "ran").exists()
    assert found.stderr.startswith("./brian_preferences is not read: ")
    run("prefs.read_preference_file('brian_preferences')")  # whom the user asks for it reads it
    assert (here / "ran").exists()
