"""Replay: the step that Brian2 compiled, in torch: its spikes, its states, and its derivatives."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import scan
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from biograd.brian.import_brian2 import import_brian2
from biograd.errors import CapabilityError
from biograd.neurons.leaky import Leaky
from biograd.neurons.surrogate import SURROGATES, spike
from biograd.translation.expressions import ExpressionGraph
from biograd.translation.linearisation import Record
from biograd.translation.operations import FUNCTIONS_OF_ONE, exprel
from biograd.translation.replay import check, replay
from biograd.translation.transpile import NeuronStep, translate

Array = NDArray[Any]
b2 = import_brian2()
ms, mV, nS, nF, pF, pA, uS, nA, second = (
    b2.ms, b2.mV, b2.nS, b2.nF, b2.pF, b2.pA, b2.uS, b2.nA, b2.second,
)  # fmt: skip
NOISE = np.random.default_rng(20).standard_normal


@pytest.fixture(autouse=True)
def on_numpy() -> Iterator[None]:
    """Let Brian2 run without compiling: for small populations the compiler takes longest."""
    kept = b2.prefs.codegen.target
    b2.prefs.codegen.target = "numpy"
    yield
    b2.prefs.codegen.target = kept


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A population and what to drive it with: ``mean + deviation * noise`` in every step."""

    equations: str
    threshold: str | None = None
    reset: str | None = None
    method: str | None = None
    namespace: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refractory: Any = False
    initial: Mapping[str, float] = dataclasses.field(default_factory=dict)
    given: Mapping[str, float] = dataclasses.field(default_factory=dict)
    regular: str = ""
    dt_ms: float = 1.0
    port: str = "I"
    mean: float = 1.2
    deviation: float = 1.0
    scale: float = 1.0
    output: str = "spikes"

    def group(self, neurons: int = 1, **changes: Any) -> Any:
        """Return a Brian2 group of neurons, at their initial values."""
        options = {name: getattr(self, name) for name in ("method", "threshold", "reset")}
        options = {name: value for name, value in options.items() if value is not None} | changes
        clock = b2.Clock(dt=self.dt_ms * ms)
        options.setdefault("namespace", dict(self.namespace))
        if self.refractory is not False:
            options["refractory"] = self.refractory
        group = b2.NeuronGroup(neurons, self.equations, clock=clock, **options)
        if self.regular:
            group.run_regularly(self.regular, clock=clock, when="before_thresholds")
        for name, value in {**self.given, **self.initial}.items():
            group.variables[name].get_value()[:] = value
        return group

    @cached_property
    def step(self) -> NeuronStep:
        """The translated step."""
        return self.changed()

    def changed(self, **changes: Any) -> NeuronStep:
        """Return the translated step with some options changed."""
        group = self.group(**changes)
        network = b2.Network(group)
        network.run(0 * second, namespace={})
        return translate(group, (self.port,))

    @cached_property
    def trial(self) -> tuple[Tensor, Record]:
        """A current ``[2, 120, 10]`` and the record of its simulation."""
        current = drive(self, 2, 120, 10)
        return current, simulate(self, current)


SPIKING = {"threshold": "v > 1", "reset": "v = 0", "namespace": {"tau": 10 * ms}}
LEAKY = "dv/dt = (I - v)/tau : 1\nI : 1"
ADAPTIVE = Model(
    "dv/dt = (I - v)/tau : 1\nda/dt = -a/tau_a : 1\nlimit = 1 + a : 1\nI : 1",
    threshold="v > limit",
    reset="v = 0; a += 0.2",
    method="exponential_euler",
    namespace={"tau": 10 * ms, "tau_a": 80 * ms},
)
IZHIKEVICH = Model(
    """dv/dt = (0.04/ms/mV)*v**2 + (5/ms)*v + 140*mV/ms - u + I*mV/ms : volt
    du/dt = a*(b*v - u) : volt/second
    I : 1""",
    threshold="v > 30*mV",
    reset="v = -65*mV; u += 8*mV/ms",
    method="rk4",
    namespace={"a": 0.02 / ms, "b": 0.2 / ms},
    initial={"v": -0.065, "u": -13.0},
    dt_ms=0.25,
    mean=8.0,
    deviation=6.0,
    scale=0.005,
)
ADEX = Model(
    """dv/dt = (gL*(EL - v) + gL*DT*exp((v - VT)/DT) - w + I*500*pA)/C : volt
    dw/dt = (a*(v - EL) - w)/tau_w : amp
    I : 1""",
    threshold="v > -40*mV",
    reset="v = EL; w += 40*pA",
    method="euler",
    namespace={
        "gL": 30 * nS, "EL": -70.6 * mV, "DT": 2 * mV, "VT": -50.4 * mV, "C": 281 * pF,
        "a": 4 * nS, "tau_w": 144 * ms,
    },
    initial={"v": -0.0706},
    dt_ms=0.1,
    mean=2.0,
    scale=0.005,
)  # fmt: skip
HODGKIN_HUXLEY = Model(
    """dv/dt = (gl*(El-v) - g_na*m**3*h*(v-ENa) - g_kd*n**4*(v-EK) + I*nA)/Cm : volt
    dm/dt = 1.28/ms/exprel((13*mV-v+VT)/(4*mV))*(1-m) - 1.4/ms/exprel((v-VT-40*mV)/(5*mV))*m : 1
    dn/dt = 0.16/ms/exprel((15*mV-v+VT)/(5*mV))*(1-n) - .5*exp((10*mV-v+VT)/(40*mV))/ms*n : 1
    dh/dt = .128*exp((17*mV-v+VT)/(18*mV))/ms*(1-h) - 4/(1+exp((40*mV-v+VT)/(5*mV)))/ms*h : 1
    I : 1""",
    threshold="v > -20*mV",
    refractory="v > -20*mV",
    method="exponential_euler",
    namespace={
        "gl": 10 * nS, "El": -65 * mV, "g_na": 20 * uS, "ENa": 50 * mV, "g_kd": 6 * uS,
        "EK": -90 * mV, "Cm": 0.2 * nF, "VT": -63 * mV,
    },
    initial={"v": -0.0651, "m": 0.02, "n": 0.1, "h": 0.9},
    dt_ms=0.05,
    mean=0.4,
    deviation=0.4,
    scale=0.005,
    output="v",
)  # fmt: skip

MODELS = {
    "leaky, exact": Model(LEAKY, method="exact", **SPIKING),
    "leaky, euler": Model(LEAKY, method="euler", **SPIKING),
    "leaky, subtract": Model(LEAKY, method="exact", **SPIKING | {"reset": "v -= 1"}),
    "leaky, refractory": Model(LEAKY, method="exact", refractory=5 * ms, mean=2.5, **SPIKING),
    "leaky, frozen": Model(
        "dv/dt = (I - v)/tau : 1 (unless refractory)\nI : 1",
        method="exact", refractory=3 * ms, **SPIKING,
    ),
    "leaky, >=": Model(
        LEAKY, method="euler", **SPIKING | {"threshold": "v >= 1"}
    ),
    "from below": Model(
        "dv/dt = (-I - v)/tau : 1\nI : 1", method="euler", **SPIKING | {"threshold": "-1 > v"}
    ),
    "band": Model(
        "dv/dt = (I - v)/tau : 1\nI : 1",
        method="euler", **SPIKING | {"threshold": "I > 0 and v > 1 and v < 1.2"},
    ),
    "adaptive": ADAPTIVE,
    "adaptive, refractory": dataclasses.replace(ADAPTIVE, refractory="2*ms + 10*ms*a", mean=5.0),
    "adex": ADEX,
    "adex, refractory": dataclasses.replace(
        ADEX,
        equations=ADEX.equations.replace(": volt", ": volt (unless refractory)"),
        refractory=9 * ms,
        mean=4.0,
    ),
    "izhikevich": IZHIKEVICH,
    "hodgkin-huxley": HODGKIN_HUXLEY,
    "hodgkin-huxley, spikes": dataclasses.replace(HODGKIN_HUXLEY, output="spikes"),
    "no threshold": Model(
        LEAKY, method="exact", namespace={"tau": 10 * ms}, output="v"
    ),
    "discrete": Model(
        "v : 1\ng : 1\nI : 1",
        threshold="v > 1", reset="v = 0", regular="g = 0.8*g + 0.2*I; v = 0.9*v + 0.1*g",
    ),
    "discrete, frozen": Model(
        "dg/dt = (I - g)/(5*ms) : 1\ndv/dt = -v/(10*ms) : 1 (unless refractory)\nI : 1",
        threshold="v > 1", reset="v = 0", regular="v += 0.1*g; g *= 0.99", method="euler",
        refractory=2 * ms,
    ),
    "impulses": Model(
        "dv/dt = -v/tau : 1", method="exact", port="v", mean=0.15, deviation=0.2, **SPIKING
    ),
    "impulses, filtered": Model(
        "dv/dt = (g - v)/tau : 1\ndg/dt = -g/(4*ms) : 1",
        method="exact", port="g", mean=0.3, deviation=0.5, refractory=2 * ms, **SPIKING,
    ),
    "heterogeneous": Model(
        """dv/dt = (I + 0.1*sin(2*pi*t*f) + gain*i/N - v + 0.1*pulse*clip(v, 0, 0.5))/tau : 1
        pulse = timestep(t, dt) % 5 : 1
        tau : second
        I : 1""",
        threshold="v > 1", reset="v = 0", method="euler", given={"tau": 0.012},
        namespace={"f": 20 * b2.Hz, "gain": 0.2}, mean=0.9, dt_ms=0.7,
    ),
    "constant over dt": Model(
        "dv/dt = (I - leak*v)/tau : 1\nleak = 1 + 0.1*v : 1 (constant over dt)\nI : 1",
        method="exponential_euler", **SPIKING,
    ),
    "counting": Model(
        "dv/dt = (I - v)/tau : 1\nI : 1\nn : integer\nup : boolean",
        method="euler", regular="up = v > 0.5",
        **SPIKING | {
            "threshold": "v > 1 + 0.1*(n % 3)", "reset": "v = 0.1*int(up); n = 0.7*n + 1.9"
        },
    ),
}  # fmt: skip


def simulate(model: Model, current: Tensor, given: Mapping[str, Tensor] | None = None) -> Record:
    """Return what plain Brian2 does with a current ``[rows, T, U]``, stepped by ``Network.run``."""
    rows, steps, units = current.shape
    drive = current.transpose(0, 1).reshape(steps, -1).numpy()
    group, step = model.group(rows * units), model.step
    view = {name: group.variables[name].get_value() for name in (*step.states, *step.reads)}
    for name, value in (given or {}).items():
        view[name][:] = value.expand(rows, units).reshape(-1).numpy()
    impulse, port = model.port in step.states, group.variables[model.port].get_value()
    initial = {name: torch.tensor(view[name], dtype=torch.float64) for name in step.states}
    kept: dict[str, list[Array]] = {name: [] for name in (*step.states, "spikes", "ready")}
    if impulse:
        port += drive[0]

    def feed() -> None:
        port[:] = drive[len(kept["spikes"])]

    def see_readiness() -> None:
        kept["ready"].append(group.variables["not_refractory"].get_value().copy())

    def see() -> None:
        for name in step.states:
            kept[name].append(view[name].copy())
        spikes = np.zeros(rows * units)
        if model.threshold:
            space = group.variables["_spikespace"].get_value()
            spikes[space[: space[-1]]] = 1
        kept["spikes"].append(spikes)

    def arrive() -> None:
        if len(kept["spikes"]) < steps:
            port[:] += drive[len(kept["spikes"])]

    refractory = model.refractory is not False
    operations = [("start", arrive if impulse else feed), ("after_thresholds", see)]
    if impulse:
        operations[0] = ("synapses", arrive)
    if refractory:
        operations.append(("before_thresholds", see_readiness))
    parts = [
        b2.NetworkOperation(function, clock=group.clock, when=when, order=9)
        for when, function in operations
    ]
    b2.Network(group, *parts).run(steps * model.dt_ms * ms, namespace={})
    shape = (steps, rows, units)
    found = {
        name: torch.tensor(np.array(values), dtype=torch.float64).reshape(shape)
        for name, values in kept.items()
        if values
    }
    return Record(
        states={name: found[name] for name in step.states},
        initial={name: value.reshape(rows, units) for name, value in initial.items()},
        spikes=found["spikes"],
        ready=found["ready"] > 0 if refractory else None,
        given={
            name: torch.tensor(view[name], dtype=torch.float64).reshape(rows, units)
            for name in step.reads
        },
        dt=model.dt_ms / 1000,
    )


def drive(model: Model, rows: int, steps: int, units: int, seed: int = 0) -> Tensor:
    """Return a noisy current ``[rows, steps, units]``."""
    noise = np.random.default_rng(seed).standard_normal((rows, steps, units))
    return torch.from_numpy(model.mean + model.deviation * noise)


def surrogate(distance: Tensor) -> Tensor:
    return SURROGATES["fast_sigmoid"](distance, 4.0)


def cotangent(like: Tensor) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal(like.shape))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# The step in torch is the step of Brian2.


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith(", spikes")])
def test_every_step_is_brian2s(name: str) -> None:
    """200 neurons, 600 steps: no spike differs, and states are equal to rounding."""
    model = MODELS[name]
    current = drive(model, 10, 600, 20)
    record = simulate(model, current)
    if model.threshold and model.output == "spikes":
        assert 200 < record.spikes.sum() < 0.5 * record.spikes.numel()
    agreement = check(model.step, record, {model.port: current})
    assert agreement.mismatches == 0
    assert agreement.difference < 1e-12
    if name.endswith("refractory"):  # and the refractory period is felt
        always = dataclasses.replace(record, ready=None)
        agreement = check(model.step, always, {model.port: current})
        assert agreement.mismatches > 100 or agreement.difference > 0.01


@pytest.mark.parametrize(
    "changes",
    [{"namespace": {"tau": 10.001 * ms}}, {"reset": ""}, {"threshold": "v > 1.001"}],
    ids=["constant", "reset", "threshold"],
)
def test_a_step_that_is_slightly_wrong_is_noticed(changes: dict[str, Any]) -> None:
    model = MODELS["leaky, exact"]
    current = drive(model, 10, 600, 20)
    agreement = check(model.changed(**changes), simulate(model, current), {"I": current})
    assert agreement.mismatches > 0 or agreement.difference > 1e-7


@pytest.mark.parametrize("lost", ["ready", "initial", "given"])
def test_a_record_with_a_part_missing_is_noticed(lost: str) -> None:
    model = MODELS[{"ready": "leaky, frozen", "initial": "adex", "given": "heterogeneous"}[lost]]
    current = drive(model, 10, 300, 20)
    record = simulate(model, current)
    wrong: dict[str, Any] = {
        "ready": {"ready": None},
        "initial": {"initial": {name: 0.9 * value for name, value in record.initial.items()}},
        "given": {"given": {"tau": torch.tensor(0.0121)}},
    }[lost]
    assert check(model.step, record, {"I": current}).difference < 1e-12
    changed = dataclasses.replace(record, **wrong)
    agreement = check(model.step, changed, {"I": current})
    assert agreement.mismatches > 0 or agreement.difference > 1e-5


def test_a_threshold_at_equality_spikes() -> None:
    """``>=`` and ``>`` differ where the potential stands exactly at the threshold."""
    at = Model("v : 1\nI : 1", threshold="v >= 1", reset="v = 0", regular="v = I")
    above = dataclasses.replace(at, threshold="v > 1")
    current = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64).reshape(1, 4, 1)
    for model, expected in ((at, [0, 1, 1, 1]), (above, [0, 0, 1, 0])):
        record = simulate(model, current)
        assert record.spikes.flatten().tolist() == expected
        assert check(model.step, record, {"I": current}).mismatches == 0


# Derivatives: against numpy, against torch's own, against the fused scan.


def leaky(x: dict[str, Array], s: Array, fired: Array, z: Array) -> dict[str, Array]:
    decay = math.exp(-0.1)
    v = np.where(s, 0, x["v"])
    return {"v": z + (v - z) * decay}


def adaptive(x: dict[str, Array], s: Array, fired: Array, z: Array) -> dict[str, Array]:
    v, a = np.where(s, 0, x["v"]), x["a"] + 0.2 * fired
    return {"v": z + (v - z) * math.exp(-0.1), "a": a * math.exp(-1 / 80)}


def adex(x: dict[str, Array], s: Array, fired: Array, z: Array) -> dict[str, Array]:
    v, w = np.where(s, -70.6e-3, x["v"]), x["w"] + 40e-12 * fired
    rise = 30e-9 * (-70.6e-3 - v) + 30e-9 * 2e-3 * np.exp((v + 50.4e-3) / 2e-3) - w + z * 500e-12
    return {
        "v": v + 1e-4 * rise / 281e-12,
        "w": w + 1e-4 * (4e-9 * (v + 70.6e-3) - w) / 144e-3,
    }


def izhikevich(x: dict[str, Array], s: Array, fired: Array, z: Array) -> dict[str, Array]:
    v, u = np.where(s, -65e-3, x["v"]), x["u"] + 8 * fired

    def slope(v: Array, u: Array) -> tuple[Array, Array]:
        return 0.04e6 * v**2 + 5e3 * v + 140 - u + z, 20 * (200 * v - u)

    dt = 0.25e-3
    k1 = slope(v, u)
    k2 = slope(v + dt / 2 * k1[0], u + dt / 2 * k1[1])
    k3 = slope(v + dt / 2 * k2[0], u + dt / 2 * k2[1])
    k4 = slope(v + dt * k3[0], u + dt * k3[1])
    v, u = (
        y + dt / 6 * (a + 2 * b + 2 * c + d)
        for y, a, b, c, d in zip((v, u), k1, k2, k3, k4, strict=True)
    )
    return {"v": v, "u": u}


@dataclasses.dataclass(frozen=True)
class Adjoint:
    """The credit of a current by numpy, with derivatives of one step by a complex step."""

    advance: Callable[[dict[str, Array], Array, Array, Array], dict[str, Array]]
    distance: Callable[[dict[str, Array]], Array]

    def __call__(
        self, model: Model, record: Record, current: Tensor, given: Tensor, window: int | None
    ) -> Tensor:
        states = {name: value.numpy() for name, value in record.states.items()}
        start = {name: value.numpy() for name, value in record.initial.items()}
        spikes, z = record.spikes.numpy(), current.transpose(0, 1).numpy()
        gradient, result = given.transpose(0, 1).numpy(), np.empty(spikes.shape)
        carry = {name: np.zeros(spikes.shape[1:]) for name in states}
        echo = np.zeros(spikes.shape[1:])
        for t in reversed(range(len(spikes))):
            x = {name: value[t] for name, value in states.items()}
            past = {name: states[name][t - 1] if t else start[name] for name in states}
            fired = spikes[t - 1] if t else np.zeros_like(spikes[0])
            slope = surrogate(torch.from_numpy(self.distance(x)) / model.scale).numpy()
            credit = {}
            for name in states:
                bent = {**x, name: x[name] + 1e-30j}
                seen = np.imag(self.distance(bent)) / 1e-30
                credit[name] = carry[name] + (gradient[t] + echo) * slope / model.scale * seen
            moved = self.advance(past, fired, fired, z[t] + 1e-30j)
            result[t] = sum(credit[name] * np.imag(moved[name]) / 1e-30 for name in states)
            for old in states:
                moved = self.advance({**past, old: past[old] + 1e-30j}, fired, fired, z[t])
                carry[old] = sum(credit[new] * np.imag(moved[new]) / 1e-30 for new in states)
            moved = self.advance(past, fired, fired + 1e-30j, z[t])
            echo = sum(credit[new] * np.imag(moved[new]) / 1e-30 for new in states)
            if window and t % window == 0:
                carry = {name: np.zeros_like(value) for name, value in carry.items()}
                echo = np.zeros_like(echo)
        return torch.from_numpy(result).transpose(0, 1)


ADJOINTS = {
    "leaky, exact": Adjoint(leaky, lambda x: x["v"] - 1),
    "adaptive": Adjoint(adaptive, lambda x: x["v"] - (1 + x["a"])),
    "adex": Adjoint(adex, lambda x: x["v"] + 40e-3),
    "izhikevich": Adjoint(izhikevich, lambda x: x["v"] - 30e-3),
}


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", ADJOINTS)
def test_gradient_is_the_adjoint_written_by_hand(name: str, window: int | None) -> None:
    model = MODELS[name]
    current = drive(model, 4, 300, 10).requires_grad_()
    record = simulate(model, current.detach())
    assert record.spikes.sum() > 20
    out = replay(model.step, record, {"I": current}, {}, surrogate, window, model.scale)
    assert torch.equal(out, record.spikes.transpose(0, 1))
    given = cotangent(out)
    (found,) = torch.autograd.grad(out, current, given)
    expected = ADJOINTS[name](model, record, current.detach(), given, window)
    assert_close(found, expected)
    if window:  # the cut is seen
        whole = ADJOINTS[name](model, record, current.detach(), given, None)
        assert (found - whole).abs().max() > 1e-3 * whole.abs().max()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_leaky_neurons_have_the_gradient_of_the_fused_scan(reset: str, window: int | None) -> None:
    beta = math.exp(-0.1)
    text = "v = 0" if reset == "zero" else f"v -= {1 / beta!r}"
    model = dataclasses.replace(MODELS["leaky, exact"], reset=text)
    current = drive(model, 4, 100, 10).requires_grad_()
    neuron = Leaky(reset=reset)  # type: ignore[arg-type]
    out = scan(neuron, current, 100, window, surrogate)
    (expected,) = torch.autograd.grad(out, current, cotangent(out))
    record = simulate(model, current.detach())
    again = replay(model.step, record, {"I": current}, {}, surrogate, window)
    assert torch.equal(again, out)
    (found,) = torch.autograd.grad(again, current, cotangent(out))
    assert_close(found, expected)


def stepped(model: Model, record: Record, current: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return the output of a loop over ``advance``, differentiated by torch itself."""
    step, outputs = model.step, []
    values, spikes = dict(record.initial), torch.zeros_like(record.spikes[0])
    for t in range(record.steps):
        ready = None if record.ready is None else record.ready[t]
        known = {**record.given, **given, **values}
        values, crossing = step.advance(
            known, {model.port: current[:, t]}, spikes, ready, t * record.dt
        )
        if crossing is None:
            outputs.append(values[model.output])
            continue
        assert torch.equal(crossing.spikes(), record.spikes[t])
        train = spike(crossing.distance / model.scale, derivative=surrogate)
        train = train if crossing.allowed is None else train * crossing.allowed
        outputs.append(train if model.output == "spikes" else values[model.output])
        spikes = record.spikes[t] + (train - train.detach())
        # rounding of many steps must not add up: go on from what was recorded
        values = {name: record.states[name][t] + (v - v.detach()) for name, v in values.items()}
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", MODELS)
def test_replay_has_the_gradient_of_a_loop_over_single_steps(name: str) -> None:
    model = MODELS[name]
    current, record = model.trial
    current = current.clone().requires_grad_()
    loop = stepped(model, record, current, {})
    (expected,) = torch.autograd.grad(loop, current, cotangent(loop))
    out = replay(
        model.step, record, {model.port: current}, {}, surrogate, None, model.scale, model.output
    )
    assert_close(out, loop)
    (found,) = torch.autograd.grad(out, current, cotangent(out))
    assert_close(found, expected, 1e-11 if "hodgkin" in name else 1e-12)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", MODELS)
def test_forward_mode_is_the_transpose_of_backward_mode(name: str, window: int | None) -> None:
    """``<u, J w> = <J^T u, w>`` for a current."""
    model = MODELS[name]
    step, (current, record) = model.step, model.trial
    current = current.clone().requires_grad_()
    rest = (surrogate, window, model.scale, model.output)
    out = replay(step, record, {model.port: current}, {}, *rest)
    u, w = cotangent(out), drive(model, 2, 120, 10, seed=1)
    (back,) = torch.autograd.grad(out, current, u)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(current.detach(), w)
        moved = replay(step, record, {model.port: dual}, {}, *rest)
        tangent = forward_ad.unpack_dual(moved).tangent
    parts = (back * w).sum(), (u * tangent).sum()
    assert abs(parts[0] - parts[1]) <= 1e-12 * (back * w).abs().sum()


def test_a_constant_current_receives_the_sum_over_time() -> None:
    model = ADAPTIVE
    one = drive(model, 3, 1, 10).requires_grad_()
    many = one.detach().expand(-1, 80, -1).clone().requires_grad_()
    record, step = simulate(model, many.detach()), model.step
    found = []
    for current in (one, many):
        out = replay(step, record, {"I": current}, {}, surrogate)
        found.append(torch.autograd.grad(out, current, cotangent(out))[0])
    assert_close(found[0], found[1].sum(1, keepdim=True))


def test_single_precision_goes_in_and_comes_out() -> None:
    model = ADAPTIVE
    current = drive(model, 3, 80, 10).float().double().requires_grad_()
    record, step = simulate(model, current.detach()), model.step
    single = current.detach().float().requires_grad_()
    exact, rounded = (
        replay(step, record, {"I": value}, {}, surrogate) for value in (current, single)
    )
    assert rounded.dtype == torch.float32
    (expected,) = torch.autograd.grad(exact, current, torch.ones_like(exact))
    (found,) = torch.autograd.grad(rounded, single, torch.ones_like(rounded))
    assert torch.equal(found, expected.float())


def test_without_a_derivative_the_record_is_returned() -> None:
    model = MODELS["leaky, exact"]
    current = drive(model, 2, 50, 3)
    record = simulate(model, current)

    def never(distance: Tensor) -> Tensor:
        raise AssertionError

    out = replay(model.step, record, {"I": current}, {}, never)
    assert torch.equal(out, record.spikes.transpose(0, 1))
    assert not out.requires_grad
    with torch.no_grad():
        replay(model.step, record, {"I": current.requires_grad_()}, {}, never)


def test_a_refractory_neuron_has_no_derivative_at_its_threshold() -> None:
    model = MODELS["leaky, refractory"]
    current = drive(model, 3, 80, 10).requires_grad_()
    record = simulate(model, current.detach())
    assert record.ready is not None
    out = replay(model.step, record, {"I": current}, {}, lambda u: torch.full_like(u, math.nan))
    refractory = ~record.ready.transpose(0, 1)
    assert refractory.any()
    (found,) = torch.autograd.grad(out, current, refractory.double())
    assert torch.equal(torch.nan_to_num(found), torch.zeros_like(found))


# Trained constants.


@pytest.mark.parametrize("name", ["no threshold", "hodgkin-huxley"])
def test_parameters_and_currents_have_the_gradient_of_brian2_itself(name: str) -> None:
    """Central differences of simulations, of a variable, while no neuron spikes."""
    constant = "Cm" if name == "hodgkin-huxley" else "tau"
    dimension = "farad" if constant == "Cm" else "second"
    base = dataclasses.replace(MODELS[name], deviation=0.0, mean=0.05)
    namespace = {key: value for key, value in base.namespace.items() if key != constant}
    start = float(base.namespace[constant])
    model = dataclasses.replace(
        base,
        equations=f"{base.equations}\n{constant} : {dimension} (constant)",
        namespace=namespace,
        given={constant: start},
    )
    units = 4
    values = start * torch.linspace(0.8, 1.2, units, dtype=torch.float64)
    current = drive(model, 2, 60, units).add(torch.linspace(0, 0.05, units, dtype=torch.float64))
    given = cotangent(current)

    def loss(values: Tensor, current: Tensor) -> Tensor:
        record = simulate(model, current, {constant: values})
        assert not record.spikes.any()
        return (record.states["v"].transpose(0, 1) * given).sum((0, 1))

    h, k = 1e-5 * start, 1e-5
    expected = (loss(values + h, current) - loss(values - h, current)) / (2 * h)
    by_current = (loss(values, current + k) - loss(values, current - k)) / (2 * k)
    record = simulate(model, current, {constant: values})
    values.requires_grad_()
    one = torch.zeros(2, 1, units, dtype=torch.float64, requires_grad=True)
    out = replay(
        model.step, record, {"I": current + one}, {constant: values}, surrogate, output="v"
    )
    found, added = torch.autograd.grad(out, (values, one), given)
    assert_close(found, expected, 1e-7)
    assert_close(added.sum((0, 1)), by_current, 1e-7)


def test_parameters_have_the_gradient_of_a_loop_over_single_steps() -> None:
    """With spikes, and as many as there are: a time constant and a threshold by unit."""
    model = Model(
        "dv/dt = (I - v)/tau : 1\nlimit : 1\ntau : second\nI : 1",
        threshold="v > limit", reset="v = 0.1*limit", method="exponential_euler",
        given={"tau": 0.01, "limit": 1.0},
    )  # fmt: skip
    current = drive(model, 3, 100, 5).requires_grad_()
    parameters = {
        "tau": torch.linspace(0.005, 0.02, 5, dtype=torch.float64).requires_grad_(),
        "limit": torch.linspace(0.8, 1.2, 5, dtype=torch.float64).requires_grad_(),
    }
    fixed = {name: value.detach() for name, value in parameters.items()}
    record = simulate(model, current.detach(), fixed)
    out = replay(model.step, record, {"I": current}, parameters, surrogate)
    asked = (current, *parameters.values())
    found = torch.autograd.grad(out, asked, cotangent(out))
    loop = stepped(model, record, current, parameters)
    for one, other in zip(found, torch.autograd.grad(loop, asked, cotangent(loop)), strict=True):
        assert_close(one, other)
    tangents = [torch.from_numpy(NOISE(value.shape)) for value in asked]
    with forward_ad.dual_level():
        dual, *others = (
            forward_ad.make_dual(value.detach(), tangent)
            for value, tangent in zip(asked, tangents, strict=True)
        )
        again = replay(
            model.step, record, {"I": dual}, dict(zip(parameters, others, strict=True)), surrogate
        )
        moved = forward_ad.unpack_dual(again).tangent
    back = sum((one * tangent).sum() for one, tangent in zip(found, tangents, strict=True))
    assert_close(torch.as_tensor(back), (cotangent(out) * moved).sum())


def test_noise_from_outside_takes_the_place_of_xi() -> None:
    """A value that is set in every step is given with the record, ``[T, rows, U]``."""
    model = Model(
        "dv/dt = (I - v)/tau + 0.3*noise*tau**-0.5 : 1\nnoise : second**-0.5\nI : 1",
        threshold="v > 1", reset="v = 0", method="euler", namespace={"tau": 10 * ms},
    )  # fmt: skip
    step, noise = model.step, torch.from_numpy(NOISE((40, 3, 5))) / math.sqrt(1e-3)
    assert step.reads == ("noise",)
    v, expected = torch.zeros(3, 5, dtype=torch.float64), []
    current = drive(model, 3, 40, 5)
    spikes = torch.zeros_like(v)
    trains = []
    for t in range(40):
        v = torch.where(spikes > 0, 0.0, v)
        v = v + 1e-3 * (current[:, t] - v) / 0.01 + 1e-3 * 0.3 * noise[t] / math.sqrt(0.01)
        spikes = (v > 1).double()
        expected.append(v)
        trains.append(spikes)
    record = Record(
        {"v": torch.stack(expected)}, {"v": torch.zeros(())}, torch.stack(trains), None,
        {"noise": noise}, 1e-3,
    )  # fmt: skip
    agreement = check(step, record, {"I": current})
    assert agreement.mismatches == 0
    assert agreement.difference < 1e-12
    silent = dataclasses.replace(record, given={"noise": torch.zeros_like(noise)})
    assert check(step, silent, {"I": current}).difference > 0.1


# Expressions.


@pytest.mark.parametrize("name", sorted(FUNCTIONS_OF_ONE))
def test_every_function_has_its_derivative(name: str) -> None:
    """Against torch's own derivative of the same function."""
    graph = ExpressionGraph()
    x = graph.input("x")
    y = x.apply(name)
    where = torch.tensor([-0.9, -0.31, -1e-3, 0.0, 1e-9, 0.26, 0.8], dtype=torch.float64)
    if name.startswith("log") or name == "sqrt":
        where = where.abs() + 0.1
    where.requires_grad_()
    (value,) = graph.evaluate([y], {"x": where})
    (expected,) = torch.autograd.grad(value.sum(), where)
    (found,) = graph.evaluate([graph.derivative(y, x)], {"x": where.detach()})
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64).expand(7), expected, rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "mod", "pow"])
def test_every_sign_has_its_derivatives(name: str) -> None:
    """Against torch's own derivatives of the same operation."""
    graph = ExpressionGraph()
    a, b = graph.input("a"), graph.input("b")
    y = a.apply(name, b)
    given = {
        "a": torch.tensor([0.4, 1.3, 2.9, 7.5], dtype=torch.float64, requires_grad=True),
        "b": torch.tensor([1.7, 0.6, -1.1, 2.2], dtype=torch.float64, requires_grad=True),
    }
    (value,) = graph.evaluate([y], given)
    expected = torch.autograd.grad(value.sum(), list(given.values()))
    plain = {key: x.detach() for key, x in given.items()}
    found = graph.evaluate([graph.derivative(y, a), graph.derivative(y, b)], plain)
    for one, other in zip(found, expected, strict=True):
        one = torch.as_tensor(one, dtype=torch.float64).expand(4)
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_exprel_is_smooth_at_zero() -> None:
    """Against Brian2's values, and the series ``1/2 + x/3 + x^2/8``."""
    near = np.concatenate([np.linspace(-1, 1, 2001), np.logspace(-18, -1, 50)])
    exact = b2.exprel(near)
    np.testing.assert_allclose(exprel(torch.from_numpy(near)).numpy(), exact, rtol=4e-16, atol=0)
    small = torch.tensor([-1e-6, 0.0, 1e-12, 1e-6], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(exprel(small).sum(), small)
    x = small.detach()
    torch.testing.assert_close(slope, 0.5 + x / 3 + x**2 / 8, rtol=1e-15, atol=0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))])
def test_a_step_can_be_copied(again: Callable[[NeuronStep], NeuronStep]) -> None:
    model = ADAPTIVE
    current, record = model.trial
    current = current.clone().requires_grad_()
    found = []
    for step in (model.step, again(model.step)):
        assert check(step, record, {"I": current.detach()}).mismatches == 0
        out = replay(step, record, {"I": current}, {}, surrogate)
        found.append(torch.autograd.grad(out, current, cotangent(out))[0])
    assert torch.equal(*found)


def test_derivatives_that_are_constant_are_numbers() -> None:
    """What would be left out by hand is left out: reset by subtraction leaves a plain decay."""
    step = MODELS["leaky, subtract"].step
    v, current = step.update.input("v"), step.update.input("I")
    by_state = step.update.derivative(step.updated["v"], v)
    by_current = step.update.derivative(step.updated["v"], current)
    assert (by_state.operation, by_current.operation) == ("constant", "constant")
    assert by_state.content == pytest.approx(math.exp(-0.1), rel=1e-15)
    assert by_current.content == pytest.approx(1 - math.exp(-0.1), rel=1e-14)
    reset = MODELS["leaky, exact"].step
    graph = reset.update
    assert graph.derivative(reset.updated["v"], graph.input("v")).operation != "constant"


# What cannot be translated.


def own_function(x: float) -> float:
    return x


def _refused(**changes: Any) -> Model:
    return dataclasses.replace(MODELS["leaky, euler"], **changes)


def _stimulus() -> dict[str, Any]:
    own = b2.Function(own_function, arg_units=[1], return_unit=1)
    timed = b2.TimedArray(np.ones(3), dt=1 * ms)
    return {"tau": 10 * ms, "own": own, "stimulus": timed}


REFUSED = {
    "own": _refused(equations="dv/dt = (own(I) - v)/tau : 1\nI : 1", namespace=_stimulus()),
    "stimulus": _refused(
        equations="dv/dt = (stimulus(t) + I - v)/tau : 1\nI : 1", namespace=_stimulus()
    ),
    "rand": _refused(threshold="v > rand()"),
    "randn": _refused(equations="dv/dt = (I - v)/tau + xi*tau**-0.5 : 1\nI : 1"),
    "poisson": _refused(regular="v += poisson(0.1)"),
    "lastspike": _refused(regular="v += 0.1*int(t - lastspike < 2*ms)", refractory=2 * ms),
    "v>1 or I>3": _refused(threshold="v>1 or I>3"),
    "I > 1": _refused(threshold="I > 1"),
    "'I' is a parameter": _refused(regular="I = 0.5*I"),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_translated_is_refused_by_name(named: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        REFUSED[named].changed()
    message = str(caught.value)
    assert named in message
    assert message.startswith("population neurongroup")
    assert "\n" not in message


def _early() -> Any:
    group = MODELS["leaky, frozen"].group()
    group.run_regularly("v *= 0.5", clock=group.clock, when="start", name="early")
    return group


def _late() -> Any:
    group = MODELS["leaky, exact"].group()
    group.run_regularly("v *= 0.5", clock=group.clock, when="end", name="late")
    return group


def _slow() -> Any:
    group = MODELS["leaky, exact"].group()
    group.run_regularly("v *= 0.5", dt=10 * ms, name="slow")
    return group


def _event() -> Any:
    return MODELS["leaky, exact"].group(events={"burst": "v > 2"})


@pytest.mark.parametrize(
    ("make", "named"),
    [(_early, "early"), (_late, "late"), (_slow, "slow"), (_event, "burst")],
)
def test_a_group_that_does_more_is_refused(make: Callable[[], Any], named: str) -> None:
    group = make()
    network = b2.Network(group)
    network.run(0 * second, namespace={})
    with pytest.raises(CapabilityError, match=named) as caught:
        translate(group, ("I",))
    assert "\n" not in str(caught.value)


def test_wrong_names_are_refused() -> None:
    model = MODELS["no threshold"]
    with pytest.raises(CapabilityError, match="no variable 'J'"):
        dataclasses.replace(model, port="J").changed()
    current = drive(model, 2, 5, 3).requires_grad_()
    record = simulate(model, current.detach())
    with pytest.raises(CapabilityError, match="no output 'w'; it has 'spikes' and v"):
        replay(model.step, record, {"I": current}, {}, surrogate, output="w")
    with pytest.raises(CapabilityError, match="no threshold and no spikes"):
        replay(model.step, record, {"I": current}, {}, surrogate)
    with pytest.raises(CapabilityError, match="run its network for 0 s first"):
        translate(model.group(), ("I",))
