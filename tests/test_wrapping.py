"""Existing Brian2 networks as circuits: they spike as they did, learn, and are refused by name."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import batch, gradients, looped, order
from torch import Tensor, nn

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.circuit.circuit import Circuit
from biograd.circuit.projections import Masked
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.neurons import Leaky
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe
from biograd.wrapping.groups import equations_text
from biograd.wrapping.wrap import wrap

CLASSES = 3
Original = tuple[Any, dict[str, Any]]
"""A network, and the namespace with which it is run."""


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling, in steps of 1 ms."""
    b2 = import_brian2()
    codegen, clock = b2.prefs.codegen, b2.defaultclock
    kept, step = codegen.target, clock.dt
    codegen.target, clock.dt = "numpy", 1 * b2.ms
    np.random.seed(7)
    yield
    codegen.target, clock.dt = kept, step


def balanced(scale: int = 1) -> Original:
    """Excitatory and inhibitory neurons, a stimulus current, synapses onto other variables."""
    b2 = import_brian2()
    ms, mv = b2.ms, b2.mV
    e = b2.NeuronGroup(
        40 * scale,
        """dv/dt = (R*I + g - v) / tau : volt (unless refractory)
        dg/dt = -g / (5*ms) : volt
        R : ohm (constant)
        I : amp""",
        threshold="v > vt",
        reset="v = 0*mV",
        refractory=2 * ms,
        method="exact",
        namespace={"vt": 15 * mv},
        name="e",
    )
    e.R, e.v = "(80 + 40*rand())*Mohm", "rand()*10*mV"
    i = b2.NeuronGroup(
        20, "dv/dt = -v / tau : volt", threshold="v > 10*mV", reset="v = 0*mV", name="i"
    )
    ei = b2.Synapses(e, i, "w : 1", on_pre="v_post += 2*w*mV", delay=1 * ms, name="ei")
    ei.connect(p=0.5)
    ei.w = "0.5 + rand()"
    ie = b2.Synapses(i, e[10:], "w : volt", on_pre="g_post -= w", name="ie")
    ie.connect(p=0.5)
    ie.w = "4*mV*rand()"
    ee = b2.Synapses(e[:20], e, on_pre="g += we", name="ee")
    ee.connect(p=0.2)
    ee.delay = "(1 + i % 3)*ms"
    ii = b2.Synapses(i, i, "w : 1", on_pre="v_post += -w*mV; v_post += -0.5*w*mV", name="ii")
    ii.connect(condition="i != j")
    ii.w = "rand()"
    return b2.Network(e, i, ei, ie, ee, ii), {"tau": 10 * ms, "we": 2 * mv}


def izhikevich() -> Original:
    """Composite units, a condition of refractoriness, statements before the update."""
    b2 = import_brian2()
    group = b2.NeuronGroup(
        30,
        """dv/dt = (0.04/ms/mV)*v**2 + (5/ms)*v + 140*mV/ms - u + I*mV/ms + g/ms : volt
        du/dt = a*(b*v - u) : volt/second
        dg/dt = -g / (3*ms) : volt
        a : hertz (constant)
        b = 0.2/ms : hertz
        low : volt
        I : 1""",
        threshold="v >= 30*mV",
        reset="v = -65*mV; u += d",
        refractory="v > 40*mV",
        method="euler",
        namespace={"d": 8 * b2.mV / b2.ms},
        name="cells",
    )
    group.v, group.u, group.a = -65 * b2.mV, -14 * b2.mV / b2.ms, "(0.02 + 0.01*rand())/ms"
    group.run_regularly("low = clip(v, -100*mV, 0*mV); g = g * 0.999", when="before_groups")
    synapses = b2.Synapses(group, group, "w : 1", on_pre="g_post += w*mV", name="recurrent")
    synapses.connect(p=0.3)
    synapses.w = "rand()"
    return b2.Network(group, synapses), {}


def conductances() -> Original:
    """Conductance-based synapses, two variables from one spike, an adaptive threshold."""
    b2 = import_brian2()
    ms, mv, ns = b2.ms, b2.mV, b2.nS
    group = b2.NeuronGroup(
        30,
        """dv/dt = (gl*(El - v) + ge*(Ee - v) + gi*(Ei - v) + I) / C : volt (unless refractory)
        dge/dt = -ge / (5*ms) : siemens
        dgi/dt = -gi / (10*ms) : siemens
        dtheta/dt = (vt - theta) / (20*ms) : volt
        I : amp""",
        threshold="v > theta",
        reset="v = El; theta += 2*mV",
        refractory=1.5 * ms,
        method="exponential_euler",
        name="cells",
    )
    group.v, group.theta = "-60*mV + 5*mV*rand()", -50 * mv
    synapses = b2.Synapses(
        group,
        group,
        "we : siemens\nwi : siemens",
        on_pre={"pre": "ge_post += we", "slow": "gi_post += wi\nge_post += 0.1*we"},
        delay={"slow": 4 * ms},
        name="both",
    )
    synapses.connect(p=0.2)
    synapses.we, synapses.wi = "3*nS*rand()", "5*nS*rand()"
    names = {
        "gl": 10 * ns,
        "El": -60 * mv,
        "Ee": 0 * mv,
        "Ei": -80 * mv,
        "vt": -50 * mv,
        "C": 200 * b2.pF,
    }
    return b2.Network(group, synapses), names


def layered() -> Original:
    """A chain without a loop, one dense and one with several synapses for a pair."""
    b2 = import_brian2()
    equations = "dv/dt = -v / tau : 1\ntau : second (shared)"
    options = {"threshold": "v > 1", "reset": "v = 0", "method": "exact"}
    first = b2.NeuronGroup(30, "dv/dt = (I - v) / tau : 1\ntau : second (shared)\nI : 1", **options)
    second = b2.NeuronGroup(25, equations, name="second", **options)
    third = b2.NeuronGroup(20, equations, name="third", **options)
    first.tau, second.tau, third.tau = 8 * b2.ms, 10 * b2.ms, 12 * b2.ms
    dense = b2.Synapses(first, second, "w : 1", on_pre="v += w", delay=2 * b2.ms, name="dense")
    dense.connect()
    dense.w = "0.3*rand()"
    twice = b2.Synapses(second, third, "w : 1", on_pre="v += w", name="twice")
    twice.connect(p=0.4, n=2)
    twice.w = "0.4*rand()"
    # the last first: the order of a step is found
    return b2.Network(third, second, first, dense, twice), {}


NETWORKS: dict[str, tuple[Callable[[], Original], str, str, dict[str, Any]]] = {
    "balanced": (balanced, "e", "i", {"e": {"scale": {"I": "0.5*nA"}}}),
    "izhikevich": (izhikevich, "cells", "cells", {"cells": {"scale": {"I": 15.0}}}),
    "conductances": (conductances, "cells", "cells", {"cells": {"scale": {"I": "1*nA"}}}),
    "layered": (layered, "neurongroup", "third", {"neurongroup": {"scale": {"I": 4.0}}}),
}


def wrapped(name: str, steps: int, made: Original | None = None) -> tuple[Circuit, Original]:
    make_it, into, output, populations = NETWORKS[name]
    network, namespace = original = made or make_it()
    circuit = wrap(
        network,
        (into, "I"),
        output,
        inputs=6,
        classes=CLASSES,
        encoding=EncodingRecipe(duration_ms=steps),
        populations=populations,
        namespace=namespace,
    )
    return circuit, original


def trains(network: Any, namespace: Mapping[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Run a network as it is and return the spikes ``[steps, units]`` of every group."""
    b2 = import_brian2()
    groups = [part for part in network.objects if isinstance(part, b2.NeuronGroup)]
    monitors = {group.name: b2.SpikeMonitor(group) for group in groups}
    network.add(*monitors.values())
    network.run(steps * b2.ms, namespace=dict(namespace))
    found = {}
    for name, monitor in monitors.items():
        found[name] = np.zeros((steps, len(monitor.source)))
        times = np.rint(np.asarray(monitor.t / b2.ms)).astype(int)
        found[name][times, np.asarray(monitor.i)] = 1
        network.remove(monitor)
    return found


def assert_like_original(
    circuit: Circuit, original: Original, drive: Callable[[int, Tensor], None], inputs: Tensor
) -> int:
    """Compare all spikes for every input; return the number of entries."""
    network, namespace = original
    activity, steps, entries = circuit.activity(inputs), circuit.steps, 0
    network.store("as it was")
    for row in range(len(inputs)):
        network.restore("as it was")
        drive(row, circuit.encode(inputs, generator(0, "forward"))[row])
        for name, train in trains(network, namespace, steps).items():
            found = activity[f"cells.{name}"][row].numpy()
            assert 0.003 < train.mean() < 0.7, f"{name}: {train.mean()}"
            differing = int((found != train).sum())
            assert differing == 0, f"{name}: {differing} of {train.size} differ"
            entries += train.size
    network.restore("as it was")
    return entries


def set_current(circuit: Circuit, original: Original, into: str) -> Callable[[int, Tensor], None]:
    """Return what sets a group's current to that which the circuit's stimulus layer sends."""

    def drive(_row: int, encoded: Tensor) -> None:
        with torch.no_grad():
            current = circuit.projections["stimulus"](encoded)[0].numpy()
        scale = circuit.layer(into).model.scales["I"]
        original[0][into].variables["I"].get_value()[:] = scale * current

    return drive


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapped_network_spikes_as_it_did(name: str) -> None:
    """0 differences of more than 100,000 entries, recurrent or not."""
    into = NETWORKS[name][1]
    circuit, original = wrapped(name, 300 if name in ("balanced", "layered") else 600)
    assert looped(circuit) is (name != "layered")
    inputs, _ = batch(6)
    drive = set_current(circuit, original, into)
    assert assert_like_original(circuit, original, drive, inputs) >= 100_000


@pytest.mark.parametrize("what", ["weight", "delay", "state", "constant"])
def test_a_small_difference_is_noticed(what: str) -> None:
    circuit, original = wrapped("balanced", 200)
    b2, network = import_brian2(), original[0]
    if what == "weight":
        network["ei"].w = network["ei"].w[:] * 1.05
    elif what == "delay":
        network["ei"].delay = 2 * b2.ms
    elif what == "state":
        network["e"].v = 0 * b2.mV
    else:
        original = (network, original[1] | {"tau": 10.2 * b2.ms})
    drive = set_current(circuit, original, "e")
    with pytest.raises(AssertionError, match="differ"):
        assert_like_original(circuit, original, drive, batch(1)[0])


def spiking_input(name: str = "inp") -> Original:
    """Spikes from outside onto two groups, by several synapses."""
    b2 = import_brian2()
    source = b2.SpikeGeneratorGroup(12, [], [] * b2.ms, name=name)
    equations = "dv/dt = -v / (10*ms) : 1 (unless refractory)"
    options = {"threshold": "v > 1", "reset": "v = 0", "refractory": 2 * b2.ms, "method": "exact"}
    first = b2.NeuronGroup(20, equations, name="first", **options)
    last = b2.NeuronGroup(15, equations, name="last", **options)
    one = b2.Synapses(source, first, "w : 1", on_pre="v += w", name="one")
    one.connect(p=0.6)
    one.w = "0.5*rand()"
    two = b2.Synapses(source, last, "w : 1", on_pre="v += w", delay=3 * b2.ms, name="two")
    two.connect(condition="i >= 3 and i < 9")
    two.w = "0.3*rand()"
    on = b2.Synapses(first, last, "w : 1", on_pre="v += w", name="on")
    on.connect(p=0.5)
    on.w = "0.5*rand()"
    return b2.Network(source, first, last, one, two, on), {}


def test_the_data_replace_a_group_that_only_spikes() -> None:
    network, _ = original = spiking_input()
    b2 = import_brian2()
    circuit = wrap(
        network,
        ("inp", "spikes"),
        "last",
        inputs=12,
        classes=CLASSES,
        encoding=EncodingRecipe(kind="poisson", duration_ms=400.0, max_rate_hz=300.0),
    )
    assert not looped(circuit) and set(circuit.projections) == {"one", "two", "on"}
    assert [site.name for site in circuit.sites] == ["first", "last", "readout"]

    def drive(_row: int, encoded: Tensor) -> None:
        times, neurons = np.nonzero(encoded.numpy())
        network["inp"].set_spikes(neurons, times * b2.ms)

    inputs, _ = batch(8, features=12)
    assert assert_like_original(circuit, original, drive, inputs) >= 100_000


def test_poisson_spikes_can_be_replaced_too() -> None:
    b2 = import_brian2()
    network, _ = spiking_input()
    source = b2.PoissonGroup(12, 10 * b2.Hz, name="noise")
    synapses = b2.Synapses(source[2:], network["first"], on_pre="v += 0.1", name="kicks")
    synapses.connect(j="i")
    only = b2.Network(network["first"], network["last"], network["on"], source, synapses)
    made = wrap(only, ("noise", "spikes"), "last", inputs=12, classes=3, encoding=_poisson())
    expected = torch.zeros(20, 12, dtype=torch.float64)
    expected[:10, 2:] = 0.1 * torch.eye(10)
    assert torch.allclose(_effective(made, "kicks"), expected, rtol=1e-6)


def _poisson() -> EncodingRecipe:
    return EncodingRecipe(kind="poisson", duration_ms=20.0)


def _effective(circuit: Circuit, name: str) -> Tensor:
    """Return what a spike of each source adds to each target, in SI units."""
    (one,) = [one for one in circuit.graph.projections if one.path == f"projections.{name}"]
    layer = circuit.projections[name]
    scale = circuit.layer(one.target.removeprefix("cells.")).model.scales[one.port]
    with torch.no_grad():
        units = layer.weight.shape[1]
        return scale * layer(torch.eye(units, dtype=torch.float64)).T


# What is read -------------------------------------------------------------------------------------


def test_weights_are_those_of_the_synapses_to_the_last_bit() -> None:
    circuit, (network, _) = wrapped("balanced", 20)
    names = ["stimulus", "ei", "ie", "ee_1", "ee_2", "ee_3", "ii"]
    assert sorted(circuit.projections) == sorted(names)
    assert {one.path.split(".")[1]: one.lag for one in circuit.graph.projections} == {
        "stimulus": 0,
        "ei": 2,
        "ie": 1,
        "ee_1": 2,
        "ee_2": 3,
        "ee_3": 4,
        "ii": 1,
    }
    found = _effective(circuit, "ie").numpy()
    expected = np.zeros((40, 20))
    expected[network["ie"].j[:] + 10, network["ie"].i[:]] = -np.asarray(network["ie"].w[:])
    assert np.array_equal(found, expected) and expected.any()
    layer = circuit.projections["ie"]
    assert isinstance(layer, Masked) and np.array_equal(layer.mask.numpy(), expected != 0)
    total = sum(_effective(circuit, f"ee_{steps}") for steps in (1, 2, 3))
    assert torch.equal(total.bool().sum(), torch.tensor(len(network["ee"])))
    assert torch.allclose(total[total != 0], torch.tensor(0.002, dtype=torch.float64), rtol=1e-15)
    for variable, scale in circuit.layer("e").model.scales.items():
        assert variable == "I" or np.log2(scale) == np.rint(np.log2(scale))
    # as large as the weights of a layer that is drawn: 1 / sqrt(fan-in), within a factor of two
    size = layer.weight.detach()[layer.mask].square().mean().sqrt() * layer.fan_in**0.5
    assert 0.3 < size < 2


def test_several_synapses_of_a_pair_are_one_weight() -> None:
    circuit, (network, _) = wrapped("layered", 20)
    twice = network["twice"]
    expected = np.zeros((20, 25))
    np.add.at(expected, (twice.j[:], twice.i[:]), np.asarray(twice.w[:]))
    assert np.allclose(_effective(circuit, "twice").numpy(), expected, rtol=1e-15, atol=0)
    dense = circuit.projections["dense"]
    assert isinstance(dense, nn.Linear) and not hasattr(dense, "mask")
    assert order(circuit) == ("neurongroup", "second", "third")


def test_groups_of_one_network_keep_their_own_values() -> None:
    circuit, (network, _) = wrapped("balanced", 20)
    simulation = circuit.layer("e").simulation(3)
    simulation.begin()
    for row in range(3):
        assert np.array_equal(simulation.values["R"][row], np.asarray(network["e"].R[:]))
        assert np.array_equal(simulation.values["v"][row], np.asarray(network["e"].v[:]))


def test_equations_are_read_back_as_they_were() -> None:
    b2 = import_brian2()
    for name in NETWORKS:
        network, _ = NETWORKS[name][0]()
        for group in (part for part in network.objects if isinstance(part, b2.NeuronGroup)):
            again = b2.Equations(equations_text(group.user_equations))
            assert set(again.names) == set(group.user_equations.names)
            for key, one in group.user_equations.items():
                assert again[key].dim is one.dim and again[key].type == one.type
                assert set(again[key].flags) == set(one.flags)
                assert str(again[key].expr) == str(one.expr)
    mixed = b2.Equations("on : boolean\ncount : integer (constant)")
    assert str(b2.Equations(equations_text(mixed))) == str(mixed)


def test_the_network_itself_is_left_alone() -> None:
    original = balanced()
    network, namespace = original
    network["e"].I = 0.3 * import_brian2().nA
    network.store("before")
    before = trains(network, namespace, 50)
    network.restore("before")
    circuit, _ = wrapped("balanced", 50, original)
    circuit(batch(4)[0])
    after = trains(network, namespace, 50)
    assert all(np.array_equal(after[name], train) for name, train in before.items())
    assert before["e"].any()


def test_the_seed_draws_what_the_network_does_not_have() -> None:
    original = balanced()
    network, namespace = original
    made = [
        wrap(
            network,
            ("e", "I"),
            "i",
            inputs=6,
            classes=3,
            populations=NETWORKS["balanced"][3],
            namespace=namespace,
            seed=seed,
        )
        for seed in (0, 0, 1)
    ]
    same, other = made[1].state_dict(), made[2].state_dict()
    for name, value in made[0].state_dict().items():
        assert torch.equal(value, same[name])
        drawn = name in ("projections.stimulus.weight", "readout.weight")
        assert torch.equal(value, other[name]) is not drawn
    assert order(made[0]) == ("e", "i") and list(made[0].projections) == list(made[1].projections)
    assert made[0].steps == 20 and made[0].encoding.dt_ms == 1.0


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_every_rule_trains_a_wrapped_network(rule: str) -> None:
    """Stimulus, synapses and readout learn; synapses that do not exist stay away."""
    if rule == "decoupling":
        pytest.skip("cannot keep spikes as targets")
    circuit, _ = _balanced_once()
    inputs, targets = batch()
    engine = attach(circuit, make(rule))
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(engine.parameters(), 0.01, weight_decay=0.01)
    before = copy.deepcopy(circuit.state_dict())
    for _ in range(3):
        optimiser.zero_grad()
        engine(inputs, targets, torch.arange(8)).backward()
        optimiser.step()
        engine.update()
    engine.detach()
    for name, parameter in circuit.named_parameters():
        assert torch.isfinite(parameter).all()
        learns = ESTIMATORS[rule].learns_hidden or name.startswith("readout")
        assert torch.equal(parameter, before[name]) is not learns, name
    for layer in circuit.projections.values():
        assert not isinstance(layer, Masked) or not layer.weight[~layer.mask].any()
    circuit.load_state_dict(before)


def _balanced_once(kept: dict[str, Any] = {}) -> tuple[Circuit, Original]:  # noqa: B006
    """Return one wrapped network for several tests."""
    if not kept:
        kept["made"] = wrapped("balanced", 30)
    return kept["made"]


def test_a_wrapped_network_learns() -> None:
    """Two classes of stimuli that it does not tell apart at first."""
    circuit, _ = wrapped("balanced", 40)
    inputs = torch.rand(24, 6, generator=generator(4), dtype=torch.float64)
    targets = (inputs[:, 0] > inputs[:, 1]).long()
    engine = attach(circuit, make("backprop"))
    optimiser = torch.optim.Adam(engine.parameters(), 0.02)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        result = engine(inputs, targets)
        result.backward()
        optimiser.step()
        losses.append(float(result.loss))
    assert losses[-1] < 0.3 * losses[0]


def test_constants_of_a_group_can_be_learned() -> None:
    network, namespace = balanced()
    settings = {"e": {"scale": {"I": "0.5*nA"}, "trainable": {"tau": [0.5, 2.0]}}}
    circuit = wrap(
        network,
        ("e", "I"),
        "e",
        inputs=6,
        classes=3,
        populations=settings,
        namespace=namespace,
    )
    found = gradients(attach(circuit, make("backprop")), *batch())
    assert found["cells.e.layer.factors.tau"].any()
    learned = circuit.layer("e").constants()["tau"]
    assert torch.allclose(learned, torch.full_like(learned, 0.01), rtol=1e-6)


def test_what_has_no_derivative_still_learns() -> None:
    b2 = import_brian2()
    ramp = b2.TimedArray(np.linspace(0, 5, 50), dt=b2.ms)
    group = b2.NeuronGroup(
        20,
        "dv/dt = (I + ramp(t) - v) / tau : 1\nI : 1",
        threshold="v > 1",
        reset="v = 0",
        method="euler",
        name="cells",
    )
    made = wrap(
        b2.Network(group),
        ("cells", "I"),
        "cells",
        inputs=6,
        classes=3,
        namespace={"ramp": ramp, "tau": 10 * b2.ms, "unused": object()},
    )
    inputs, targets = batch()
    assert made.activity(inputs)["cells.cells"].any()
    found = gradients(attach(made, make("weak")), inputs, targets)
    assert all(value.any() for value in found.values())
    with pytest.raises(CapabilityError, match="the function ramp") as refused:
        attach(made, make("backprop"))
    assert "\n" not in str(refused.value)


def test_copies_see_the_same_noise() -> None:
    """Noise xi of the equations differs from trial to trial, not from copy to copy."""
    b2 = import_brian2()
    group = b2.NeuronGroup(
        20,
        "dv/dt = (I - v) / (10*ms) + 0.5*xi/sqrt(10*ms) : 1\nI : 1",
        threshold="v > 1",
        reset="v = 0",
        name="cells",
    )
    made = wrap(b2.Network(group), ("cells", "I"), "cells", inputs=6, classes=3)
    inputs, targets = batch()
    engine = attach(made, make("weak"), seed=1)
    first, second = (engine(inputs, targets).losses for _ in range(2))
    assert not torch.equal(first[0], second[0]) and torch.isfinite(first).all()


def test_a_variable_can_be_read() -> None:
    network, _ = layered()
    made = wrap(
        network,
        ("neurongroup", "I"),
        "third",
        inputs=6,
        classes=3,
        readout="potential",
        populations={"third": {"output": "v"}},
    )
    inputs, _ = batch()
    course = made.activity(inputs)["cells.third"]
    assert course.shape == (8, 20, 20) and not made.spiking
    assert (made(inputs) - made.readout(course.mean(1))).abs().max() < 1e-12


# What is refused ----------------------------------------------------------------------------------


def refused(words: str, *parts: Any, **settings: Any) -> None:
    b2 = import_brian2()
    options: dict[str, Any] = {"inputs": 6, "classes": 3, "input": ("a", "I"), "output": "a"}
    options |= settings
    network = parts[0] if len(parts) == 1 and not hasattr(parts[0], "when") else b2.Network(*parts)
    with pytest.raises(RecipeError, match=words) as error:
        wrap(network, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    way_out = str(error.value).endswith("; or take it whole: biograd.Brian2Box")
    assert way_out is isinstance(error.value.__cause__, RecipeError)
    assert way_out or not isinstance(error.value, CapabilityError)


EQUATIONS = "dv/dt = (I - v) / (10*ms) : 1\ndg/dt = -g / (5*ms) : 1\nI : 1\nx : 1"


def neurons(name: str = "a", equations: str = EQUATIONS, **options: Any) -> Any:
    given = {"threshold": "v > 1", "reset": "v = 0", "method": "exact", "name": name} | options
    return import_brian2().NeuronGroup(4, equations, **given)


def joined(on_pre: Any = "g_post += w", model: str = "w : 1", **options: Any) -> tuple[Any, Any]:
    group = neurons()
    made = import_brian2().Synapses(group, group, model, on_pre=on_pre, name="s", **options)
    made.connect()
    return group, made


def test_objects_that_cannot_be_wrapped() -> None:
    b2 = import_brian2()
    group = neurons()
    refused("int is no brian2.Network", 3)
    operation = b2.NetworkOperation(lambda: None, name="tick")
    refused(r"tick \(NetworkOperation\) cannot be wrapped: take it out", group, operation)
    poisson = b2.PoissonInput(group, "v", 5, 3 * b2.Hz, 0.1)
    refused(r"\(PoissonInput\) cannot be wrapped", group, poisson)
    source = b2.PoissonGroup(3, 5 * b2.Hz, name="noise")
    refused(r"noise \(PoissonGroup\) cannot be wrapped unless the data replace it", group, source)
    cable = b2.Cylinder(diameter=1 * b2.um, length=9 * b2.um, n=2)
    tree = b2.SpatialNeuron(cable, "Im = 0*amp/meter**2 : amp/meter**2", name="tree")
    refused(r"tree .SpatialNeuron. cannot be wrapped", group, tree)
    network = b2.Network(group)
    network.schedule = ["start", "groups", "thresholds", "resets", "synapses", "end"]
    refused("wrap: the network's schedule is start, groups, thresholds, resets, syn", network)
    # monitors only look on
    watched = b2.Network(group, b2.SpikeMonitor(group), b2.StateMonitor(group, "v", record=True))
    assert order(wrap(watched, ("a", "I"), "a", inputs=6, classes=3)) == ("a",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"input": ("b", "I")}, r"input = \('b', 'I'\): did you|known: a"),
        ({"input": "a"}, r"write \(group, variable\)"),
        ({"input": ("a", "J")}, "group 'a'.*'J': the equations have no such variable"),
        ({"output": "b"}, "output = 'b'"),
        ({"encoding": EncodingRecipe(dt_ms=0.5)}, "steps of 1 ms, the encoding of 0.5 ms"),
        ({"populations": {"b": {}}}, "populations.b"),
        ({"populations": {"a": {"units": 3}}}, "populations.a.units: .*known: output, scale"),
        ({"populations": {"a": {"scale": {"I": "1*mV"}}}}, "I is a plain number"),
        ({"populations": {"a": {"output": "y"}}}, "output = 'y': no such variable"),
        ({"populations": {"a": {"scale": {"v": 2.0}}}}, r"scale\.v: no current flows into it"),
        ({"populations": {"a": 3}}, r"wrap: populations\.a = 3: must be a dict"),
        ({"populations": 3}, "wrap: populations = 3: must be a dict"),
        ({"namespace": 3}, "wrap: namespace = 3: must be a dict"),
        ({"classes": 0}, "wrap: classes = 0: must be >= 1"),
        ({"classes": 2.5}, "wrap: classes = 2.5: must be a whole number"),
        ({"inputs": -1}, "wrap: inputs = -1: must be >= 1"),
        ({"inputs": (2, 0)}, r"wrap: inputs = 0: must be >= 1"),
        ({"inputs": "6"}, "wrap: inputs = '6': must be"),
        ({"seed": "a"}, "wrap: seed = 'a': must be a whole number"),
        ({"output": 3}, r"wrap: output = 3: write a group, \(group, variable\), or a list"),
        ({"output": []}, r"wrap: output = \[\]: write a group"),
        ({"output": ["a", "a"]}, r"one is there twice"),
        ({"output": ["a", ("a", "spikes")], "classes": None}, r"a\.spikes is there twice"),
        ({"output": ("a", "y")}, "output = 'y': no such variable"),
        ({"input": [("a", "I"), ("a", "I")]}, "one is there twice"),
        ({"readout": "mean"}, "wrap: readout = 'mean': .*known: .*course"),
        ({"stimulus": "sparse"}, "wrap: stimulus = 'sparse'"),
        ({"stimulus": "direct"}, "group 'a' has 4 neurons, the encoded data 6 units"),
        ({"input": ("a", ["I"])}, r"write \(group, variable\)"),
        ({"encoding": 3}, "wrap: encoding = 3: must be a dict or an EncodingRecipe"),
        ({"encoding": {"dt": 1.0}}, "unknown key encoding.dt: did you mean 'dt_ms'"),
        ({"neuron": "lif"}, "wrap: neuron = 'lif': must be a spiking neuron"),
        ({"neuron": Leaky(threshold=2.0)}, r"neuron\.threshold = 2\.0: .* into the groups"),
    ],
)
def test_settings_that_do_not_fit(settings: Any, words: str) -> None:
    refused(words, neurons(), **settings)


def test_what_does_nothing_in_a_group_stays() -> None:
    idle = neurons(threshold=None, reset=None)  # nothing flows into g, and x does nothing
    made = wrap(
        import_brian2().Network(idle),
        ("a", "I"),
        "a",
        inputs=np.int64(6),
        classes=np.int64(3),
        neuron=Leaky(slope=5.0),
        readout="potential",
        populations={"a": {"output": "v"}},
        namespace={"unused": 3.0},
    )
    assert made(batch()[0]).shape == (8, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"events": {"other": "v > 2"}}, "event 'other': only spikes can be wrapped"),
        ({"equations": EQUATIONS.replace("- v)", "- v + k)")}, "'k' is in no namespace: give wrap"),
        ({"equations": f"{EQUATIONS}\nnumber_in_group : 1\ny = i : 1"}, "'number_in_gr.*: rename"),
        ({"reset": "v = rand()"}, r"draws rand\(\), by which copies would differ"),
        ({"equations": EQUATIONS + " (linked)"}, "x is linked to another group"),
        ({"name": "input"}, "a group cannot be called 'input'"),
        ({"method": "gsl"}, "method 'gsl' cannot be wrapped"),
        (
            {"method": "exponential_euler", "method_options": {"simplify": False}},
            "method_options are not supported",
        ),
        ({"dt": "2"}, "group 'a' has steps of 2 ms, the encoding of 1 ms"),
    ],
)
def test_groups_that_cannot_be_wrapped(options: dict[str, Any], words: str) -> None:
    b2 = import_brian2()
    if "dt" in options:
        options = {"dt": 2 * b2.ms}
    group = neurons(**options)
    if "linked" in words:
        other = neurons("other")
        group.x = b2.linked_var(other, "v")
        refused(words, group, other)
        return
    name = options.get("name", "a")
    encoding = EncodingRecipe()
    refused(words, group, encoding=encoding, input=(name, "I"), output=name)


def test_statements_in_between_that_cannot_be_wrapped() -> None:
    b2 = import_brian2()
    group = neurons()
    group.run_regularly("x = v", when="end")
    refused("run_regularly 'x = v' runs in 'end': run it before the threshold", group)
    group = neurons()
    group.run_regularly("x = v", dt=5 * b2.ms)
    refused("run_regularly 'x = v' has steps of 5 ms", group)
    group = neurons()
    group.run_regularly("I = 0.5*v")
    refused("run_regularly 'I = 0.5.v' sets 'I', which the data set", group)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_pre": "g_post = w"}, r"on_pre 'g_post = w': only 'X_post \+= w' can be wrapped"),
        ({"on_pre": "g_post *= w"}, r"only 'X_post \+= w' can be wrapped"),
        ({"on_pre": "x_post += w"}, "'x' has no differential equation in group 'a'"),
        ({"on_pre": "w += 1"}, "on_pre 'w \\+= 1' changes 'w'"),
        ({"on_pre": "g_pre += w"}, "changes 'g_pre'"),
        ({"on_pre": "g_post += w*v_pre"}, "'v_pre' changes in time"),
        ({"on_pre": "g_post += w*v"}, "'v' changes in time"),
        ({"on_pre": "g_post += w*other"}, "'other' is in no namespace"),
        ({"on_pre": "g_post += w*rand()"}, r"'rand\(\)' is no product of numbers"),
        ({"on_pre": "g_post += w", "on_post": "w += 1"}, "on_post: plasticity cannot be wrapped"),
        ({"model": "w : 1\ndp/dt = -p/ms : 1 (event-driven)"}, "p changes in time"),
        ({"model": "w : 1\ndp/dt = -p/ms : 1 (clock-driven)"}, "p changes in time"),
        ({"model": "w : 1\nx_post = w*g_pre : 1 (summed)"}, "summed variables cannot be wrapped"),
    ],
)
def test_synapses_that_cannot_be_wrapped(options: dict[str, Any], words: str) -> None:
    refused(words, *joined(**options))


def test_more_synapses_that_cannot_be_wrapped() -> None:
    b2 = import_brian2()
    group = neurons()
    refused("there are none yet: call connect", group, b2.Synapses(group, group, on_pre="g += 1"))
    group, made = joined()
    made.run_regularly("w = 0.9*w")
    refused("what Synapses 's' runs in it cannot be wrapped: remove it", group, made)
    group, other = neurons(), neurons("b")
    away = b2.Synapses(group, other, on_pre="g += 1", name="away")
    away.connect()
    refused("synapses 'away': group 'b' is not in the network: add it", group, away)
    refused("group 'b': no synapses lead to it", group, other)
    network, _ = spiking_input()
    options = {"input": ("inp", "spikes"), "output": "last", "encoding": _poisson()}
    refused("it has 12 neurons, the encoded data 6 units", network, **options)
    refused("the data replace its 'spikes'", network, **(options | {"input": ("inp", "v")}))
    options |= {"inputs": 12, "populations": {"first": {"output": "v"}}}
    refused("its synapses need spikes", network, **options)


def test_a_current_with_units_needs_to_know_its_size() -> None:
    network, namespace = balanced()
    words = "what is a current of 1 at 'I'.*'scale': {'I': '1.amp'}"
    options = {"input": ("e", "I"), "output": "e", "namespace": namespace}
    refused(words, network, **options)


def test_brian2_is_imported_when_it_is_needed() -> None:
    assert biograd.wrap is wrap
    code = "import biograd, sys; print('brian2' in sys.modules, 'wrap' in dir(biograd))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]
