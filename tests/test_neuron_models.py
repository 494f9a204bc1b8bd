"""The shipped neuron models against the literature and against an independent integration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

import biograd
from biograd import data
from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_model import NeuronModel
from biograd.brian.quantities import quantity
from biograd.brian.simulation import Simulation
from biograd.recipes import load_dataset, load_model

Array = NDArray[np.float64]
Course = dict[str, Array]
Times = list[Array]
DENSITY = "uA/cm**2"


@pytest.fixture(autouse=True)
def numpy_code() -> Iterator[None]:
    prefs = import_brian2().prefs
    kept = prefs.codegen.target
    prefs.codegen.target = "numpy"
    yield
    prefs.codegen.target = kept


def simulate(
    name: str,
    inputs: Sequence[float] | Array,
    duration_ms: float,
    dt_ms: float | None = None,
    **population: object,
) -> tuple[Times, Course]:
    """Return spike times in ms and the course of every variable.

    Args:
        inputs: one constant for each neuron, or ``[steps, neurons]``.
    """
    recipe = load_model(name)
    dt = dt_ms or recipe.encoding.dt_ms
    model = NeuronModel(dataclasses.replace(recipe.population, **population), dt)
    drive = np.atleast_2d(inputs)[:, None]
    keep = tuple(model.equations.diff_eq_names)
    train, kept = Simulation(model, 1, drive.shape[-1]).run(
        drive, round(duration_ms / dt), keep=keep
    )
    times = [(np.flatnonzero(spikes) + 1) * dt for spikes in train[:, 0].T]
    return times, {variable: course[:, 0] for variable, course in kept.items()}


def full_scale(name: str, unit: str) -> float:
    """Return the current, in ``unit``, that an input of 1 stands for."""
    scale = load_model(name).population.namespace["scale"]
    return float(quantity(scale, "scale") / quantity(unit, "unit"))


def hodgkin_huxley(_: float, state: Array, current: float) -> list[float]:
    """The squid axon in mV, ms, uA/cm2, from the rates as published, without ``exprel``."""
    v, m, h, n = state
    alpha = (
        0.1 * (v + 40) / (1 - np.exp(-(v + 40) / 10)),
        0.07 * np.exp(-(v + 65) / 20),
        0.01 * (v + 55) / (1 - np.exp(-(v + 55) / 10)),
    )
    beta = (
        4 * np.exp(-(v + 65) / 18),
        1 / (1 + np.exp(-(v + 35) / 10)),
        0.125 * np.exp(-(v + 65) / 80),
    )
    ionic = 120 * m**3 * h * (v - 50) + 36 * n**4 * (v + 77) + 0.3 * (v + 54.387)
    gates = [a * (1 - x) - b * x for a, b, x in zip(alpha, beta, (m, h, n), strict=True)]
    return [current - ionic, *gates]


def morris_lecar(_: float, state: Array, current: float) -> list[float]:
    """Rinzel and Ermentrout's class I neuron in mV, ms, uA/cm2."""
    v, w = state
    open_calcium = 0.5 * (1 + np.tanh((v + 1.2) / 18))
    open_potassium = 0.5 * (1 + np.tanh((v - 12) / 17.4))
    ionic = 4 * open_calcium * (v - 120) + 8 * w * (v + 84) + 2 * (v + 60)
    return [(current - ionic) / 20, (open_potassium - w) * np.cosh((v - 12) / 34.8) / 15]


def crossings(
    derivative: Callable[..., list[float]], rest: list[float], current: float, duration: float
) -> Array:
    """Return when the potential rises through 0 mV, from a solver with adaptive steps."""

    def over(_: float, state: Array, _current: float) -> float:
        return float(state[0])

    over.direction = 1  # type: ignore[attr-defined]
    found = solve_ivp(
        derivative,
        (0, duration),
        rest,
        args=(current,),
        method="LSODA",
        rtol=1e-9,
        atol=1e-9,
        events=over,
    )
    return np.asarray(found.t_events[0])


SQUID = [-65.0, 0.0529, 0.5961, 0.3177]
MUSCLE = [-59.474, 0.00027]


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("hodgkin_huxley", {"v": -65.0, "m": 0.0529, "h": 0.5961, "n": 0.3177}),
        ("morris_lecar", {"v": -59.474, "w": 0.00027}),
        ("brian2_izhikevich", {"v": -70.0}),
        ("brian2_adex", {"v": -70.6}),
        ("brian2_adaptive", {"v": 0.0, "theta": 0.0}),
    ],
)
def test_at_rest_nothing_moves(name: str, variables: dict[str, float]) -> None:
    times, course = simulate(name, [0.0], 100)
    assert not len(times[0])
    for variable, value in variables.items():
        unit = 1000 if variable == "v" and name != "brian2_adaptive" else 1
        assert np.allclose(course[variable] * unit, value, atol=2e-3 * unit**0.5, rtol=0)


def test_hodgkin_huxley_fires_as_published() -> None:
    """One spike above 2.3 uA/cm2, repetitive firing, at 50 Hz at once, from 6.3 on (class II)."""
    currents = np.array([2.2, 2.4, 6.0, 6.4, 10.0, 20.0, 40.0])
    times, course = simulate(
        "hodgkin_huxley", currents / full_scale("hodgkin_huxley", DENSITY), 55, dt_ms=0.02
    )
    counts = [len(found) for found in times]
    assert counts[:3] == [0, 1, 2]
    assert 1000 / np.diff(times[3])[-1] > 50
    for index, current in enumerate(currents):
        expected = crossings(hodgkin_huxley, SQUID, current, 55)
        assert counts[index] == len(expected)
        assert np.allclose(times[index][:1], expected[:1], rtol=0.03, atol=0.1)
    spike = course["v"][:, 4] * 1000
    assert 40 < spike.max() < 45
    assert -77 < spike.min() < -75


def test_hodgkin_huxley_in_the_steps_that_are_shipped() -> None:
    currents = np.array([7.0, 10.0, 15.0, 20.0, 40.0])
    times, _course = simulate(
        "hodgkin_huxley", currents / full_scale("hodgkin_huxley", DENSITY), 50
    )
    for found, current in zip(times, currents, strict=True):
        expected = crossings(hodgkin_huxley, SQUID, current, 50)
        assert abs(len(found) - len(expected)) <= 1
        assert abs(found[0] - expected[0]) < 0.45


def test_without_sodium_channels_there_is_no_spike() -> None:
    recipe = load_model("hodgkin_huxley").population
    blocked = {**recipe.namespace, "gNa": "0*msiemens/cm**2"}
    times, _course = simulate("hodgkin_huxley", [2.0], 50, namespace=blocked)
    assert not len(times[0])


def test_morris_lecar_fires_as_published() -> None:
    """Class I: from 40 uA/cm2 on, arbitrarily slowly; the rate grows as the root of the rest."""
    currents = np.array([39.5, 40.5, 45.0, 50.0, 60.0, 80.0, 100.0])
    times, _course = simulate(
        "morris_lecar", currents / full_scale("morris_lecar", DENSITY), 600, dt_ms=0.05
    )
    assert [len(found) for found in times][:2] == [0, 2]
    for found, current in zip(times[1:], currents[1:], strict=True):
        expected = crossings(morris_lecar, MUSCLE, current, 600)
        assert len(found) == len(expected)
        assert abs(found[0] - expected[0]) < 0.01 * expected[0] + 0.5
    rates = np.array([1000 / np.diff(found)[-1] for found in times[2:5]])
    roots = np.sqrt(currents[2:5] - 39.96)
    assert np.ptp(rates / roots) / (rates / roots).mean() < 0.2


def test_morris_lecar_in_the_steps_that_are_shipped() -> None:
    currents = np.array([50.0, 80.0, 100.0, 200.0])
    times, _course = simulate("morris_lecar", currents / full_scale("morris_lecar", DENSITY), 90)
    for found, current in zip(times, currents, strict=True):
        expected = crossings(morris_lecar, MUSCLE, current, 90)
        assert len(found) == len(expected)
        assert abs(found[0] - expected[0]) < 0.03 * expected[0] + 1.1


@pytest.mark.parametrize("name", ["hodgkin_huxley", "morris_lecar"])
def test_the_synapse_opens_with_a_spike_and_closes_in_ten_milliseconds(name: str) -> None:
    silent, spiking = 0.0, 0.6
    times, course = simulate(name, [silent, spiking], 100, dt_ms=0.05)
    openness = course["s"]
    assert openness[:, 0].max() < 1e-8
    assert openness[:, 1].max() > 0.95
    below = (course["v"][:-1, 1] < -0.03) & (course["v"][1:, 1] < -0.03) & (openness[:-1, 1] > 0.1)
    ratio = openness[1:, 1][below] / openness[:-1, 1][below]
    assert below.sum() > 50
    assert np.allclose(ratio, np.exp(-0.05 / 10), rtol=1e-5)
    assert len(times[1])


def stepped(
    derivative: Callable[[Array], Array],
    start: Array,
    peak: float,
    reset: Callable[[Array], Array],
    duration: float,
    step: float,
) -> Times:
    """Return the spike times of neurons with a reset, by small Runge-Kutta steps."""
    state, times = start.copy(), [list[float]() for _ in start[0]]
    for index in range(round(duration / step)):
        first = derivative(state)
        second = derivative(state + step / 2 * first)
        third = derivative(state + step / 2 * second)
        fourth = derivative(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        spikes = state[0] > peak
        for neuron in np.flatnonzero(spikes):
            times[neuron].append((index + 1) * step)
        state = np.where(spikes, reset(state), state)
    return [np.array(found) for found in times]


def test_izhikevich_fires_as_a_finer_integration_does() -> None:
    """A cut-off spike: its reset comes up to a step late, which is the error of large steps."""
    currents = np.array([2.0, 3.9, 4.5, 6.0, 10.0, 20.0])

    def derivative(state: Array) -> Array:
        v, u = state
        return np.stack([0.04 * v**2 + 5 * v + 140 - u + currents, 0.02 * (0.2 * v - u)])

    start = np.stack([np.full(6, -70.0), np.full(6, -14.0)])
    expected = stepped(
        derivative, start, 30, lambda y: np.stack([0 * y[0] - 65, y[1] + 8]), 100, 0.01
    )
    drive = currents / full_scale("brian2_izhikevich", "mV")
    fine, _course = simulate("brian2_izhikevich", drive, 100, dt_ms=0.02)
    shipped, _course = simulate("brian2_izhikevich", drive, 100)
    for reference, small, large in zip(expected, fine, shipped, strict=True):
        assert len(reference) == len(small) == len(large)
        assert np.allclose(reference[:1], small[:1], atol=0.05)
        assert np.allclose(reference[:1], large[:1], atol=0.75)
    assert not len(expected[0])


def test_adex_fires_as_a_finer_integration_does() -> None:
    """Its rheobase is that of Touboul and Brette 2008 for ``a/gL > tau_m/tau_w``."""
    conductance, leak, reset, threshold, slope = 30.0, 4.0, -70.6, -50.4, 2.0
    ratio = 281 / conductance / 144
    rheobase = (conductance + leak) * (threshold - reset - slope + slope * np.log(1 + ratio))
    rheobase += slope * conductance * (leak / conductance - ratio)
    currents = np.array([0.9 * rheobase, 700, 800, 1000, 2000])

    def derivative(state: Array) -> Array:
        v, w = state
        sharp = conductance * slope * np.exp(np.minimum((v - threshold) / slope, 20))
        return np.stack(
            [
                (conductance * (reset - v) + sharp - w + currents) / 281,
                (leak * (v - reset) - w) / 144,
            ]
        )

    start = np.stack([np.full(5, reset), np.zeros(5)])
    expected = stepped(
        derivative, start, -40, lambda y: np.stack([0 * y[0] + reset, y[1] + 80.5]), 200, 0.02
    )
    fine, _course = simulate(
        "brian2_adex", currents / full_scale("brian2_adex", "pA"), 200, dt_ms=0.05
    )
    shipped, _course = simulate("brian2_adex", currents / full_scale("brian2_adex", "pA"), 200)
    for reference, small, large in zip(expected, fine, shipped, strict=True):
        assert len(reference) == len(small)
        assert abs(len(reference) - len(large)) <= 1
        assert np.allclose(reference[:1], small[:1], atol=0.15)
        assert np.allclose(reference[:1], large[:1], atol=1.0)
    assert not len(expected[0])
    # so slow a ramp that the neuron stays at rest until there is none
    ramp = np.linspace(0.8, 1.1, 3000) * rheobase
    ramped, _course = simulate("brian2_adex", ramp[:, None] / full_scale("brian2_adex", "pA"), 1500)
    assert 1.0 < ramp[round(ramped[0][0] / 0.5)] / rheobase < 1.03


def test_adaptive_threshold_by_hand() -> None:
    """``tau dv/dt = 8 I - v`` from zero, until ``1 + theta`` is passed.

    2 ms after a spike it moves again: of the steps of 1 ms, it is held in one.
    """
    current, v, theta, held, expected = 0.4, 0.0, 0.0, 0, []
    for step in range(200):
        theta *= np.exp(-1 / 50)
        if held:
            held -= 1
        else:
            v = 8 * current + (v - 8 * current) * np.exp(-1 / 10)
            if v > 1 + theta:
                expected.append(step + 1.0)
                v, theta, held = 0.0, theta + 0.2, 1
    times, _course = simulate("brian2_adaptive", [current], 200)
    assert times[0].tolist() == expected
    gaps = np.diff(times[0])
    assert gaps[-1] > gaps[0]


TINY = (
    "dataset.training_examples=20",
    "dataset.test_examples=10",
    "training.epochs=1",
    "training.batch_size=10",
    "network.hidden=[4]",
    "encoding.duration_ms=10.0",
    "estimators.weak.copies=3",
)


def test_a_run_records_the_course_that_a_population_passes_on(tmp_path: Path) -> None:
    """A synapse's opening is no spike: its mean over the trial is recorded, as of a rate unit."""
    path = tmp_path / "run.h5"
    run = biograd.train("morris_lecar", "digits", path=path, settings=TINY, device="cpu")
    network, engine = biograd.trained(run)
    engine.detach()
    name = "blocks.0.activity"
    dataset = data.load(load_dataset("digits", ["test_examples=10"]), name="digits")
    assert run.probe is not None
    course = network.activity(dataset.test.inputs[run.probe.index])[name]
    assert run.layers[name].kind == "rate"
    assert course.any()
    assert np.allclose(run.activity(name)[-1], course.mean(1), atol=1e-6)
