"""What comes out of a wrapped network, against Brian2 run by hand; and what its outputs learn."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import gradients
from torch import Tensor

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.engine import attach
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, make

b2 = import_brian2()
STEPS, UNITS = 40, 8


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling, in steps of 1 ms."""
    kept, step = b2.prefs.codegen.target, b2.defaultclock.dt
    b2.prefs.codegen.target, b2.defaultclock.dt = "numpy", 1 * b2.ms
    np.random.seed(0)
    yield
    b2.prefs.codegen.target, b2.defaultclock.dt = kept, step


def script(drive: str = "I") -> Any:
    """Return a loop of two populations, as a user writes it; always the same."""
    np.random.seed(0)
    e = b2.NeuronGroup(
        UNITS,
        f"dv/dt = ({drive} + g - v)/(10*ms) : 1\ndg/dt = -g/(5*ms) : 1\nI : 1",
        threshold="v > 1",
        reset="v = 0",
        method="euler",
        name="e",
    )
    i = b2.NeuronGroup(
        4,
        "dv/dt = -v/(8*ms) : 1",
        threshold="v > 1",
        reset="v = 0",
        method="euler",
        name="i",
    )
    ei = b2.Synapses(e, i, "w : 1", on_pre="v_post += w", name="ei")
    ei.connect(p=0.6)
    ei.w = "0.2 + 0.5*rand()"
    ie = b2.Synapses(i, e, "w : 1", on_pre="g_post -= 2*w", delay=2 * b2.ms, name="ie")
    ie.connect()
    ie.w = "0.3*rand()"
    return b2.Network(e, i, ei, ie)


def drive(rows: int = 3, units: int = UNITS) -> Tensor:
    stream = torch.Generator().manual_seed(1)
    return 4 * torch.rand(rows, STEPS, units, generator=stream, dtype=torch.float64)


def wrapped(network: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "input": ("e", "I"),
        "output": ["e", ("e", "v"), "i"],
        "inputs": UNITS,
        "encoding": {"kind": "given", "duration_ms": STEPS},
        "stimulus": "direct",
    }
    return biograd.wrap(network, **(settings | options))


def by_hand(network: Any, course: np.ndarray) -> dict[str, np.ndarray]:
    """Run the user's own network with ``I = course(t, i)`` and look at it with monitors."""
    monitors = {
        "e.spikes": b2.SpikeMonitor(network["e"]),
        "i.spikes": b2.SpikeMonitor(network["i"]),
        "e.v": b2.StateMonitor(network["e"], "v", record=True, when="after_thresholds"),
    }
    kept = b2.Network(*network.objects, *monitors.values())
    network["e"].run_regularly("I = course(t, i)", when="start")
    kept.run(STEPS * b2.ms, namespace={"course": b2.TimedArray(course, dt=1 * b2.ms)})
    network["e"].contained_objects.pop()
    found = {"e.v": np.asarray(monitors.pop("e.v").v).T}
    for name, monitor in monitors.items():
        found[name] = np.zeros((STEPS, len(monitor.source)))
        found[name][np.rint(monitor.t / b2.ms).astype(int), np.asarray(monitor.i)] = 1
    return found


def test_spikes_and_variables_are_those_of_brian2() -> None:
    """A time course goes in, spikes and potentials come out, by population."""
    inputs, spikes = drive(), 0
    for row in range(len(inputs)):
        network = script()
        circuit = wrapped(network)
        found = circuit.split(circuit(inputs[row : row + 1]))
        expected = by_hand(network, inputs[row].numpy())
        assert set(found) == {"e.spikes", "e.v", "i.spikes"}
        for name, values in expected.items():
            assert np.abs(found[name][0].detach().numpy() - values).max() < 1e-12, name
        spikes += int(expected["i.spikes"].sum())
        seen = circuit.courses(inputs[row : row + 1])
        assert all(torch.equal(seen[name], found[name]) for name in found)
    assert spikes > 20


def rates(circuit: Any) -> Any:
    def loss(outputs: Tensor, _targets: Tensor) -> Tensor:
        found = circuit.split(outputs)
        one = (found["e.spikes"].mean((1, 2)) - 0.05).square()
        return one + found["i.spikes"].mean((1, 2)) + found["e.v"].square().mean((1, 2))

    return loss


def test_credit_through_variables_and_spikes_is_that_of_separate_circuits() -> None:
    """The gradient of a sum of losses is the sum of gradients, each by a narrower circuit."""
    network, targets = script(), torch.zeros(3)
    whole = wrapped(network, stimulus="one_to_one")
    rule = make("backprop")
    found = gradients(attach(whole, rule, loss=rates(whole)), drive(), targets)
    parts: list[dict[str, Tensor]] = []
    losses: dict[Any, Any] = {
        "e": lambda o, t: (o.mean((1, 2)) - 0.05).square(),
        "i": lambda o, t: o.mean((1, 2)),
        ("e", "v"): lambda o, t: o.square().mean((1, 2)),
    }
    for output, loss in losses.items():
        narrow = wrapped(network, output=[output], stimulus="one_to_one")
        if output == ("e", "v"):  # its synapses need the spikes, too
            assert narrow.layer("e").model.outputs == ("spikes", "v")
        parts.append(gradients(attach(narrow, rule, loss=loss), drive(), targets))
    for name, value in found.items():
        total = sum(part[name] for part in parts)
        assert value.abs().max() > 0, name
        assert (value - total).abs().max() < 1e-12 * value.abs().max(), name


def test_the_gradient_of_a_potential_is_that_of_finite_differences() -> None:
    """Without synapses that carry spikes no surrogate takes part."""
    network = script()
    network["ei"].w = 0
    network["i"].v = 0.5
    circuit = wrapped(network, output=[("e", "v"), ("i", "v")], stimulus="one_to_one")
    inputs = 0.1 * drive()

    def value() -> float:
        with torch.no_grad():
            return float(circuit(inputs).square().mean())

    circuit(inputs).square().mean().backward()
    weight = circuit.projections["stimulus"].weight
    for unit in range(2):
        with torch.no_grad():
            ends = []
            for step in (1e-5, -2e-5):
                weight[unit, 0] += step
                ends.append(value())
            weight[unit, 0] += 1e-5
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs(slope - float(weight.grad[unit, 0])) < 1e-6 * abs(slope)


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_every_rule_trains_populations_or_says_why(rule: str) -> None:
    """All groups are hidden: their synapses learn although nothing stands behind them."""
    circuit = wrapped(script(), output=["e", "i"])
    before = copy.deepcopy(circuit.state_dict())
    targets = torch.full((3, 12), 25.0, dtype=torch.float64)
    task = biograd.tasks.make("rates", 12, {"timed": True, "duration_ms": STEPS}, "here")
    try:
        engine = attach(circuit, make(rule), task=task)
        engine.prepare(drive(), targets)
        optimiser = torch.optim.Adam(engine.parameters(), 0.01)
        for _ in range(2):
            optimiser.zero_grad()
            engine(drive(), targets).backward()
            optimiser.step()
            engine.update()
    except CapabilityError as error:
        assert "\n" not in str(error)
        assert rule in REFUSING, f"{rule}: {error}"
        return
    assert rule not in REFUSING
    for name in ("projections.ei.weight", "projections.ie.weight"):
        assert not torch.equal(circuit.state_dict()[name], before[name]), name
    assert torch.equal(circuit.projections["stimulus"].weight, torch.ones(UNITS, 1).double())


REFUSING = {
    "feedback_alignment",  # no matrix between the populations and the loss
    "sign_symmetry",
    "weight_mirror",
    "kolen_pollack",
    "decoupling",  # cannot keep spikes
    "forward_forward",  # needs classes
    "frozen_hidden",  # trains a readout alone
}


def test_outputs_of_a_linear_readout_have_steps_too() -> None:
    inputs = drive()
    for kind, size in (("course", (3, STEPS, 2)), ("leaky", (3, STEPS, 2)), ("rate", (3, 2))):
        circuit = wrapped(script(), classes=2, readout=kind)
        assert circuit(inputs).shape == size
        with pytest.raises(CapabilityError, match="wrap the network without classes"):
            circuit.split(circuit(inputs))
    counts = wrapped(script(), output=["e", "i"], readout="rate")
    course = wrapped(script(), output=["e", "i"])
    assert torch.equal(counts(inputs), course(inputs).sum(1))


def test_several_groups_receive_the_data() -> None:
    equations = "dv/dt = (I - v)/(10*ms) : 1\nI : 1"
    options = {"threshold": "v > 1", "reset": "v = 0", "method": "euler"}
    groups = [b2.NeuronGroup(3, equations, name=name, **options) for name in ("one", "two")]
    circuit = biograd.wrap(
        b2.Network(*groups), [("one", "I"), ("two", "I")], ["one", "two"], inputs=5
    )
    assert sorted(circuit.projections) == ["stimulus_one_I", "stimulus_two_I"]
    assert [site.name for site in circuit.sites] == ["one", "two", "readout"]
    assert circuit(torch.rand(2, 5)).shape == (2, 20, 6)


def test_timed_arrays_of_neurons_are_read() -> None:
    """``i`` is a number of the neuron, not of its copy: three rows, each as Brian2 runs it."""
    course = 3 * np.random.rand(STEPS, UNITS)
    network = script("I + course(t, i)*i/N")
    names = {"course": b2.TimedArray(course, dt=1 * b2.ms)}
    circuit = wrapped(network, namespace=names)
    found = circuit.split(circuit(torch.zeros(3, STEPS, UNITS)))
    again = b2.TimedArray(course, dt=1 * b2.ms)
    monitor = b2.StateMonitor(network["e"], "v", record=True, when="after_thresholds")
    b2.Network(*network.objects, monitor).run(STEPS * b2.ms, namespace={"course": again})
    for row in found["e.v"].detach().numpy():
        assert np.abs(row - np.asarray(monitor.v).T).max() < 1e-12
    assert found["e.spikes"].any()


@pytest.mark.parametrize("delay", [0.2, 0.5, 1.3, 1.5, 2.5, 2.49])
def test_delays_are_rounded_as_brian2_does_and_said(delay: float) -> None:
    source = b2.SpikeGeneratorGroup(1, [0], [0] * b2.ms, name="s", dt=1 * b2.ms)
    group = b2.NeuronGroup(1, "dv/dt = 0/second : 1", method="euler", name="a", dt=1 * b2.ms)
    synapses = b2.Synapses(source, group, on_pre="v += 1", delay=delay * b2.ms, name="syn")
    synapses.connect()
    with pytest.warns(RuntimeWarning, match=rf"synapses 'syn': a delay of {delay:g} ms is no"):
        circuit = biograd.wrap(
            b2.Network(source, group, synapses),
            ("s", "spikes"),
            ("a", "v"),
            inputs=1,
            encoding={"kind": "given", "duration_ms": 6},
        )
    spike = torch.zeros(1, 6, 1)
    spike[0, 0] = 1
    found = circuit(spike)[0, :, 0].detach().numpy()
    monitor = b2.StateMonitor(group, "v", record=True, when="after_thresholds", dt=1 * b2.ms)
    b2.Network(source, group, synapses, monitor).run(6 * b2.ms)
    assert np.array_equal(found, np.asarray(monitor.v[0]))


# Back into the network


def learned(circuit: Any, steps: int = 2) -> None:
    engine = attach(circuit, make("backprop"), loss=rates(circuit))
    optimiser = torch.optim.SGD(engine.parameters(), 5.0)
    for _ in range(steps):
        optimiser.zero_grad()
        engine(drive(), torch.zeros(3)).backward()
        optimiser.step()
    engine.detach()


def test_what_was_learned_is_in_the_network() -> None:
    """The user's network with its new weights spikes as the circuit does."""
    network = script()
    before = {name: np.array(network[name].w[:]) for name in ("ei", "ie")}
    circuit = wrapped(network)
    learned(circuit)
    found = circuit.write_back()
    assert set(found.values) == {"ei.w", "ie.w"} and found.left == ()
    assert all(not np.array_equal(network[name].w[:], old) for name, old in before.items())
    inputs = drive()[:1]
    expected = by_hand(network, inputs[0].numpy())
    for name, course in circuit.split(circuit(inputs)).items():
        assert np.abs(course[0].detach().numpy() - expected[name]).max() < 1e-9
    again = wrapped(network)
    for name in before:
        one, two = (c.projections[name].weight / 1 for c in (circuit, again))
        scales = [c.layer("e" if name == "ie" else "i").model.scales for c in (circuit, again)]
        port = "g" if name == "ie" else "v"
        assert torch.allclose(one * scales[0][port], two * scales[1][port], rtol=1e-12)


def test_only_what_was_trained_is_written() -> None:
    network = script()
    circuit = wrapped(network, stimulus="one_to_one", classes=2, readout="rate")
    circuit.projections["ie"].requires_grad_(False)
    kept = np.array(network["ie"].w[:])
    assert circuit.write_back().values == {}
    with torch.no_grad():
        weight, mask = circuit.projections["ei"].weight, circuit.projections["ei"].mask
        post, pre = mask.nonzero()[0].tolist()
        weight[post, pre] += 0.25
    old = np.array(network["ei"].w[:])
    found = circuit.write_back()
    assert dict(found.values) == {"ei.w": 1}
    assert found.left == ("projections.stimulus", "readout")
    assert np.array_equal(network["ie"].w[:], kept)
    changed = np.flatnonzero(network["ei"].w[:] != old)
    assert [(int(network["ei"].j[k]), int(network["ei"].i[k])) for k in changed] == [(post, pre)]
    scale = circuit.layer("i").model.scales["v"]
    assert network["ei"].w[changed[0]] == pytest.approx(old[changed[0]] + 0.25 * scale)


def test_copies_write_to_the_same_network_other_processes_do_not() -> None:
    network = script()
    circuit = wrapped(network)
    copied = copy.deepcopy(circuit)
    with torch.no_grad():
        copied.projections["ie"].weight.mul_(2)
    old = np.array(network["ie"].w[:])
    copied.write_back()
    assert np.allclose(network["ie"].w[:], 2 * old, rtol=1e-14)
    away = copy.copy(circuit)
    away.origins = pickle.loads(pickle.dumps(circuit.origins))
    with pytest.raises(CapabilityError, match="came from another process"):
        away.write_back()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_pre": "v_post += k"}, "has no variable of the synapses that could hold a weight"),
        ({"model": "w : 1 (shared)"}, "w is shared by all synapses"),
        ({"model": "w : integer"}, "w is int32, no real number"),
        ({"on_pre": "v_post += w**2"}, "is not proportional to w"),
        ({"on_pre": "v_post += 1/w"}, "is not proportional to w"),
        ({"on_pre": "v_post += w*u"}, r"which of u, w is the weight\? Give write_back"),
        ({"on_pre": "v_post += u*w", "variables": {"s": "w"}}, "w has no effect on"),
        ({"on_pre": "v_post += w\ng_post += w"}, "w acts on v and on g, which were trained apart"),
        ({"variables": {"t": "w"}}, "variables.t"),
        ({"variables": {"s": "y"}}, "variables.s = 'y'"),
        ({"n": 2}, "some pairs of neurons have several synapses"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    group = b2.NeuronGroup(
        3,
        "dv/dt = (I - v)/(10*ms) : 1\ndg/dt = -g/(5*ms) : 1\nI : 1",
        threshold="v > 1",
        reset="v = 0",
        method="euler",
        name="a",
    )
    model = options.get("model", "w : 1\nu : 1")
    on_pre = options.get("on_pre", "v_post += w")
    synapses = b2.Synapses(group, group, model, on_pre=on_pre, name="s", namespace={"k": 0.5})
    synapses.connect(n=options.get("n", 1))
    synapses.w = 2
    network = b2.Network(group, synapses)
    circuit = biograd.wrap(network, ("a", "I"), "a", inputs=3)
    old = np.array(synapses.w[:])
    with torch.no_grad():
        for name, layer in circuit.projections.items():
            if name != "stimulus":
                layer.weight.add_(0.1 if name.endswith("g") else 0.2)
    with pytest.raises(biograd.BiogradError, match=words) as refused:
        circuit.write_back(options.get("variables"))
    assert "\n" not in str(refused.value)
    assert np.array_equal(synapses.w[:], old)


def test_a_named_variable_of_several_is_written() -> None:
    group = b2.NeuronGroup(
        3,
        "dv/dt = (I - v)/(10*ms) : volt\nI : volt",
        threshold="v > 15*mV",
        reset="v = 0*mV",
        method="euler",
        name="a",
    )
    synapses = b2.Synapses(
        group, group[1:], "w : 1\nu : volt", on_pre="v_post += 3*w*u - 1*mV", name="s"
    )
    synapses.connect(condition="i != j")
    synapses.w, synapses.u = "0.5 + rand()", "2*mV + 1*mV*rand()"
    scale = {"a": {"scale": {"I": "10*mV"}}}
    circuit = biograd.wrap(
        b2.Network(group, synapses), ("a", "I"), "a", inputs=3, populations=scale
    )
    effect = 3 * synapses.w[:] * np.asarray(synapses.u[:]) - 1e-3
    with torch.no_grad():
        circuit.projections["s"].weight.mul_(1.5)
    assert dict(circuit.write_back({"s": "w"}).values) == {"s.w": len(synapses)}
    found = 3 * synapses.w[:] * np.asarray(synapses.u[:]) - 1e-3
    assert np.allclose(found, 1.5 * effect, rtol=1e-12)
