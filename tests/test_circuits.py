"""Circuits: spikes of plain Brian2 synapses, credit of the networks they contain, every rule."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import Gradients, batch, gradients, linear_loss, looped, order
from torch import Tensor, nn

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.circuit.circuit import Circuit
from biograd.circuit.graph import INPUT
from biograd.circuit.grids import Convolution
from biograd.circuit.projections import Masked
from biograd.contracts import Objective, Plan
from biograd.decorrelation import Decorrelation
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, Backpropagation, make
from biograd.local import LocalLosses
from biograd.neurons import Leaky
from biograd.randomness import generator
from biograd.recipes import (
    EncodingRecipe,
    ModelRecipe,
    NetworkRecipe,
    PopulationRecipe,
    ProjectionRecipe,
    construct,
    load_model,
)
from biograd.recording.observation import observe
from biograd.simulators.population import Population

CLASSES = 3
LIF = "dv/dt = (8 * I - v) / (10*ms) : 1\nI : 1"
PLAIN: dict[str, Any] = {
    "equations": LIF,
    "threshold": "v > 1",
    "reset": "v = 0",
    "method": "exact",
}
SYNAPTIC: dict[str, Any] = {
    "equations": "dv/dt = (8 * I + g - v) / (10*ms) : 1 (unless refractory)\n"
    "dg/dt = -g / (4*ms) : 1\nI : 1",
    "threshold": "v > 1",
    "reset": "v = 0",
    "refractory": "2*ms",
    "method": "exact",
}
"""The stimulus enters I, synapses enter g, or v if the neuron is not refractory."""
RATE: dict[str, Any] = {
    "equations": "dx/dt = (tanh(I) - x) / (5*ms) : 1\nI : 1",
    "method": "euler",
    "output": "x",
}
DRIVEN: dict[str, Any] = {
    "equations": "dx/dt = (sin(2 * g) - x) / (5*ms) : 1\ndg/dt = (0.3 - g) / (4*ms) : 1",
    "method": "rk4",
    "input": "g",
    "output": "x",
}


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling."""
    codegen = import_brian2().prefs.codegen
    kept, codegen.target = codegen.target, "numpy"
    yield
    codegen.target = kept


STRONG = {"resistance": 8.0}
"""Constants of neurons without equations."""


def circuit(
    populations: Mapping[str, Mapping[str, Any]],
    projections: Mapping[str, Mapping[str, Any]],
    inputs: Any = 6,
    seed: int = 0,
    **tables: Mapping[str, Any],
) -> Circuit:
    """Return a circuit in float64 whose biases are drawn, too."""
    table = {
        "network": {"substrate": "brian2", "kind": "circuit", "dtype": "float64", "gain": 2.0},
        "neuron": {} if all("equations" in p for p in populations.values()) else STRONG,
        "populations": populations,
        "projections": projections,
    }
    for name, values in tables.items():
        table[name] = {**table.get(name, {}), **values}
    made = biograd.build(construct(ModelRecipe, table, "test"), inputs, CLASSES, seed)
    stream = generator(0, "test biases")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                draw = torch.rand(parameter.shape, generator=stream, dtype=torch.float64)
                parameter.copy_(0.1 * draw)
    assert isinstance(made, Circuit)
    return made


def to(source: str, target: str, **settings: Any) -> dict[str, Any]:
    return {"source": source, "target": target, **settings}


def synapses(source: str, target: str, variable: str = "g", **settings: Any) -> dict[str, Any]:
    return to(source, target, variable=variable, bias=False, **settings)


# Plain Brian2 -------------------------------------------------------------------------------------


def in_plain_brian2(
    network: Circuit, inputs: Tensor, lags: Mapping[str, int] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """Return the spikes ``[rows, steps, units]`` of NeuronGroups and Synapses, by Network.run.

    Only equations, weights, delays and the current of the stimulus are taken from the circuit.
    ``lags`` are added to the delays.
    """
    b2 = import_brian2()
    assert network.encoding is not None
    rows, steps, dt = len(inputs), network.steps, network.encoding.dt_ms * b2.ms
    encoded = network.encode(inputs, generator(0, "forward"))
    groups, parts = {}, []
    for name in order(network):
        layer = network.layer(name)
        recipe = layer.model.recipe
        options = {"refractory": 2 * b2.ms} if recipe.refractory else {}
        groups[name] = b2.NeuronGroup(
            rows * layer.units,
            recipe.equations,
            threshold=recipe.threshold,
            reset=recipe.reset,
            method=recipe.method,
            namespace={},
            dt=dt,
            **options,
        )
    for one in network.graph.projections:
        layer, lag = network.get_submodule(one.path), one.lag + lags.get(one.path, 0)
        source, target = (name.removeprefix("cells.") for name in (one.source, one.target))
        units = network.layer(target).units
        if one.source == INPUT:
            with torch.no_grad():
                current = layer(encoded).expand(-1, steps, -1)
            course = current.transpose(0, 1).reshape(steps, rows * units).numpy()
            stimulus = b2.TimedArray(course, dt=dt)
            groups[target].run_regularly(f"{one.port} = stimulus(t, i)", dt=dt)
            groups[target].namespace["stimulus"] = stimulus
            continue
        count = network.layer(source).units
        with torch.no_grad():
            weights = layer(torch.eye(count, dtype=torch.float64)).T.numpy()
        made = b2.Synapses(
            groups[source],
            groups[target],
            "w : 1",
            on_pre=f"{one.port}_post += w",
            delay=(lag - 1) * dt,
            dt=dt,
        )
        onto, fro = np.nonzero(weights)
        start = np.arange(rows)[:, None]
        made.connect(i=(start * count + fro).ravel(), j=(start * units + onto).ravel())
        made.w = np.tile(weights[onto, fro], rows)
        parts.append(made)
    monitors = {name: b2.SpikeMonitor(group) for name, group in groups.items()}
    b2.Network(*groups.values(), *parts, *monitors.values()).run(steps * dt, namespace={})
    found = {}
    for name, monitor in monitors.items():
        units = network.layer(name).units
        found[name] = np.zeros((rows, steps, units))
        times = np.rint(np.asarray(monitor.t / dt)).astype(int)
        neurons = np.asarray(monitor.i)
        found[name][neurons // units, times, neurons % units] = 1
    return found


def assert_like_plain_brian2(network: Circuit, inputs: Tensor, least: int) -> None:
    found, expected = network.activity(inputs), in_plain_brian2(network, inputs)
    entries = sum(train.size for train in expected.values())
    assert entries >= least
    for name, train in expected.items():
        assert 0.01 < train.mean() < 0.7, f"{name}: {train.mean()}"
        differing = int((found[f"cells.{name}"].numpy() != train).sum())
        assert differing == 0, f"{name}: {differing} of {train.size} differ"


LOOPS: dict[str, dict[str, dict[str, Any]]] = {
    "forward": {
        "into_e": to("input", "e"),
        "e_i": synapses("e", "i", delay_ms=2.0),
        "into_i": to("input", "i"),
    },
    "recurrent": {
        "into_e": to("input", "e"),
        "into_i": to("input", "i"),
        "e_e": synapses("e", "e", delay_ms=1.0),
        "e_i": synapses("e", "i"),
    },
    "excitatory and inhibitory": {
        "into_e": to("input", "e"),
        "into_i": to("input", "i"),
        "e_e": synapses("e", "e", kind="masked", density=0.2, sign="excitatory"),
        "e_i": synapses("e", "i", sign="excitatory", delay_ms=3.0),
        "i_e": synapses("i", "e", sign="inhibitory"),
        "i_i": synapses("i", "i", "v", kind="masked", density=0.5, sign="inhibitory"),
    },
    "onto the potential": {
        "into_e": to("input", "e"),
        "into_i": to("input", "i"),
        "e_i": synapses("e", "i", "v", delay_ms=1.0),
        "i_e": synapses("i", "e", "v"),
    },
}


@pytest.mark.parametrize("kind", ["current", "poisson"])
@pytest.mark.parametrize("name", LOOPS)
def test_spikes_of_plain_brian2_synapses(name: str, kind: str) -> None:
    populations = {"e": {"units": 40, **SYNAPTIC}, "i": {"units": 15, **SYNAPTIC}}
    network = circuit(
        populations,
        LOOPS[name],
        20,
        encoding={"kind": kind, "duration_ms": 200.0},
        network={"gain": 1.0},
    )
    assert looped(network) is (name != "forward")
    assert_like_plain_brian2(network, batch(10, features=20)[0], 100_000)


def test_spikes_of_a_convolution_and_a_shorter_step() -> None:
    network = circuit(
        {"grid": {"units": 3 * 4 * 4, **SYNAPTIC}, "last": {"units": 8, **SYNAPTIC}},
        {
            "into": to("input", "grid", kind="convolution", channels=3),
            "inner": synapses("grid", "grid", kind="convolution", channels=3, stride=1),
            "drive": to("input", "last"),
            "on": synapses("grid", "last", kind="convolution", channels=2, delay_ms=0.5),
        },
        (1, 8, 8),
        encoding={"duration_ms": 50.0, "dt_ms": 0.25},
        network={"gain": 1.0},
    )
    assert network.projections["on"].target_shape == (2, 2, 2)
    inputs = torch.rand(10, 1, 8, 8, generator=generator(3), dtype=torch.float64)
    assert_like_plain_brian2(network, inputs, 100_000)


@pytest.mark.parametrize("change", ["lag", "weight", "refractory"])
def test_a_small_difference_is_noticed(change: str) -> None:
    populations = {"e": {"units": 40, **SYNAPTIC}, "i": {"units": 15, **SYNAPTIC}}
    network = circuit(populations, LOOPS["recurrent"], 20, encoding={"duration_ms": 200.0})
    inputs = batch(10, features=20)[0]
    expected = in_plain_brian2(network, inputs)["e"]
    if change == "lag":
        late = {one.path: 1 for one in network.graph.projections if one.lag == 2}
        expected = in_plain_brian2(network, inputs, late)["e"]
    elif change == "weight":
        with torch.no_grad():
            network.projections["e_e"].weight.mul_(1.01)
    else:
        populations["e"] = {**populations["e"], "refractory": "3*ms"}
        other = circuit(populations, LOOPS["recurrent"], 20, encoding={"duration_ms": 200.0})
        other.load_state_dict(network.state_dict())
        network = other
    assert (network.activity(inputs)["cells.e"].numpy() != expected).any()


def test_the_stimulus_can_be_impulses() -> None:
    """An input onto the potential is added at the beginning of its own step."""
    network = circuit(
        {"a": {"units": 5, **PLAIN, "input": "v"}},
        {"into": to("input", "a", bias=False)},
        encoding={"kind": "poisson", "duration_ms": 60.0},
    )
    inputs, _ = batch()
    encoded = network.encode(inputs, generator(0, "forward"))
    with torch.no_grad():
        impulses = network.projections["into"](encoded)
    decay, potential = math.exp(-1 / 10), torch.zeros(8, 5, dtype=torch.float64)
    fired, expected = torch.zeros(8, 5, dtype=torch.float64), []
    for now in impulses.unbind(1):
        potential = decay * (potential + now) * (1 - fired)
        fired = (potential > 1).double()
        expected.append(fired)
    train = network.activity(inputs)["cells.a"]
    assert torch.equal(train, torch.stack(expected, 1)) and train.sum() > 20


# The networks that a circuit contains -------------------------------------------------------------


@functools.cache
def _built(make: Callable[..., tuple[Any, ...]], *key: Any) -> tuple[Any, list[dict[str, Tensor]]]:
    """Return networks, built once since Brian2 prepares their simulations, and their weights."""
    networks = make(*key)
    return networks, [copy.deepcopy(network.state_dict()) for network in networks]


def as_built(make: Callable[..., tuple[Any, ...]], *key: Any) -> tuple[Any, ...]:
    """Return networks as they were made, whatever other tests have learned."""
    networks, weights = _built(make, *key)
    for network, state in zip(networks, weights, strict=True):
        network.load_state_dict(state)
        network.zero_grad()
    return networks


def twins(recurrent: bool, hidden: tuple[int, ...] = (5, 4)) -> tuple[Circuit, Circuit]:
    """Return a stack of layers by ``hidden`` and by ``populations`` with the same weights."""
    encoding = {"kind": "poisson", "duration_ms": 20.0}
    stack = biograd.build(
        ModelRecipe(
            network=NetworkRecipe(
                "brian2", "spiking", hidden, recurrent=recurrent, gain=2.0, dtype="float64"
            ),
            neuron=Leaky(resistance=8.0),
            encoding=EncodingRecipe(**encoding),  # type: ignore[arg-type]
        ),
        6,
        CLASSES,
    )
    names = [f"p{place}" for place in range(len(hidden))]
    projections = {}
    for before, name in zip((INPUT, *names), names, strict=False):
        projections[f"to_{name}"] = to(before, name)
        if recurrent:
            projections[f"in_{name}"] = to(name, name, bias=False)
    populations = {name: {"units": units} for name, units in zip(names, hidden, strict=True)}
    made = circuit(populations, projections, encoding=encoding)
    assert isinstance(stack, Circuit) and looped(made) is recurrent and not looped(stack)
    with torch.no_grad():
        for one, other in zip(made.parameters(), stack.parameters(), strict=True):
            other.copy_(one)
    return stack, made


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_spikes_of_a_stack(recurrent: bool) -> None:
    stack, made = twins(recurrent, (60, 50))
    inputs, _ = batch(60)
    found, expected = made.activity(inputs), stack.activity(inputs)
    assert sum(train.numel() for train in found.values()) >= 100_000
    for one, other in zip(found.values(), expected.values(), strict=True):
        assert torch.equal(one, other) and 0.01 < one.mean() < 0.9
    assert (made(inputs) - stack(inputs)).abs().max() < 1e-9


RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "truncated": ("backprop", {"window": 3}),
    "weak in bins": ("weak", {"time_bin": 6}),
    "weak in steps": ("weak", {"time_bin": 1}),
    "weak, one site": ("weak", {"sites": "round_robin"}),
    "measured in bins": ("node_perturbation", {"activity": "measured", "time_bin": 6}),
    "gain in bins": ("gain", {"time_bin": 6}),
    "ottt in windows": ("ottt", {"window": 4}),
    "random eprop": ("eprop", {"feedback": "random"}),
    "weight_perturbation": ("weight_perturbation", {"sigma": 0.05, "copies": 9}),
    "forward gradients in bins": ("forward_gradient_activity", {"time_bin": 5}),
    "window of synthetic gradients": ("synthetic_gradient", {"window": 5}),
}
# decoupling cannot keep spikes; unitwise draws in every step where the other draws once
RULES |= {name: (name, {}) for name in ESTIMATORS if name not in (*RULES, "decoupling", "unitwise")}


def descend(engine: Engine, inputs: Tensor, targets: Tensor, steps: int = 3) -> list[Tensor]:
    """Return the gradients of some steps of gradient descent with all that learns by itself."""
    engine.prepare(inputs, targets)
    found = []
    for _ in range(steps):
        for values in gradients(engine, inputs, targets).values():
            found.append(values)
        with torch.no_grad():
            for parameter in engine.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.05)
                    parameter.grad = None
        engine.update()
    return found


@pytest.mark.parametrize(
    ("recurrent", "beside"),
    [(False, ""), (True, ""), (True, "decorrelation"), (True, "local losses")],
)
@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_estimates_of_a_stack(rule: str, recurrent: bool, beside: str) -> None:
    """Same seed, three steps: population by population and step by step, as layers."""
    name, settings = RULES[rule]
    if beside == "local losses" and name in ("synthetic_gradient", "eprop"):
        pytest.skip("leaves blocks with a local loss alone")
    inputs, targets = batch()
    found = []
    for network in as_built(twins, recurrent):
        engine = attach(
            network,
            make(name, settings),
            Decorrelation(rate=0.05) if beside == "decorrelation" else None,
            LocalLosses("cross_entropy") if beside == "local losses" else None,
            seed=2,
        )
        try:
            found.append(descend(engine, inputs, targets))
        except CapabilityError as error:
            if name == "three_factor":
                assert beside == "local losses" and "leave local out" in str(error)
                return
            assert recurrent and "window" in settings and name == "synthetic_gradient"
            assert "no states can be handed from window to window" in str(error)
            return
        finally:
            engine.detach()
    assert any(value.any() for value in found[0])
    for place, (one, other) in enumerate(zip(*found, strict=True)):
        error = (one - other).abs().max() / one.abs().max().clamp_min(1e-9)
        assert error < 1e-7, f"{place}: {error:.1e}"


@pytest.mark.parametrize("recurrent", [False, True])
def test_another_weight_gives_other_estimates(recurrent: bool) -> None:
    stack, made = twins(recurrent)
    with torch.no_grad():
        made.projections["to_p1"].weight.mul_(1.1)
    inputs, targets = batch()
    one, other = (
        list(gradients(attach(network, make("weak"), seed=2), inputs, targets).values())
        for network in (stack, made)
    )
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(one, other, strict=True))


# Delays, and the two ways to run ------------------------------------------------------------------

FORWARD: dict[str, dict[str, Any]] = {
    "to_a": to("input", "a", delay_ms=2.0),
    "to_b": to("a", "b", variable="I", delay_ms=3.0),
    "past_b": to("input", "b", variable="I"),
    "onto_b": synapses("a", "b", delay_ms=1.0),
    "to_c": synapses("b", "c", "v"),
    "past_c": to("a", "c", variable="I", kind="masked", density=0.6),
}
BOTH_WAYS = {
    "backprop": ("backprop", {}),
    "truncated": ("backprop", {"window": 3}),
    "weak": ("weak", {}),
    "weak in bins": ("weak", {"time_bin": 6}),
    "measured": ("node_perturbation", {"activity": "measured", "time_bin": 6}),
    "gain": ("gain", {"time_bin": 4}),
    "ottt": ("ottt", {"window": 4}),
    "sltt": ("sltt", {}),
    "eprop": ("eprop", {}),
    "direct_feedback": ("direct_feedback", {"through_time": True}),
    "forward_gradient_activity": ("forward_gradient_activity", {}),
    "forward_forward": ("forward_forward", {}),
    "predictive_coding": ("predictive_coding", {}),
    "synthetic_gradient": ("synthetic_gradient", {}),
}


def both_ways(kind: str) -> tuple[Circuit, Circuit]:
    """Return a circuit, and the same with a projection of weight zero that leads back."""
    populations = {
        "a": {"units": 5, **SYNAPTIC},
        "b": {"units": 4, **SYNAPTIC},
        "c": {"units": 4, **SYNAPTIC},
    }
    encoding = {"kind": kind} | ({"gain": 2.0} if kind == "current" else {})
    forward = circuit(populations, FORWARD, encoding=encoding)
    loop = FORWARD | {"loop": to("c", "c", variable="I", bias=False)}
    stepped = circuit(populations, loop, encoding=encoding)
    assert looped(stepped) and not looped(forward)
    with torch.no_grad():
        stepped.projections["loop"].weight.zero_()
    assert stepped.load_state_dict(_stepped(forward), strict=False).unexpected_keys == []
    return forward, stepped


def _stepped(network: Circuit) -> dict[str, Tensor]:
    return {n: v for n, v in network.state_dict().items() if "cells" not in n}


@pytest.mark.parametrize(
    ("rule", "kind"), [*((rule, "poisson") for rule in BOTH_WAYS), ("weak in bins", "current")]
)
def test_population_by_population_is_step_by_step(rule: str, kind: str) -> None:
    """Delays, several layers and several variables at a site, bins and windows."""
    inputs, targets = batch()
    found: list[Gradients] = []
    for network in as_built(both_ways, kind):
        engine = attach(network, make(*BOTH_WAYS[rule]), seed=2)
        engine.prepare(inputs, targets)
        found.append(gradients(engine, inputs, targets))
        engine.detach()
        assert [site.name for site in network.sites] == ["a", "b.g", "b", "c.v", "c", "readout"]
    assert any(value.any() for value in found[0].values())
    for name, value in found[0].items():
        error = (value - found[1][name]).abs().max() / value.abs().max().clamp_min(1e-9)
        assert error < 1e-9, f"{name}: {error:.1e}"


def test_the_outputs_of_both_ways_are_the_same() -> None:
    inputs, _ = batch()
    one, other = as_built(both_ways, "poisson")
    assert torch.equal(one(inputs), other(inputs))
    trains, seen = one.activity(inputs), other.activity(inputs)
    assert all(torch.equal(seen[name], train) and train.any() for name, train in trains.items())


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("time_bin", [None, 6, 1])
def test_noise_is_added_to_what_arrives(time_bin: int | None, stepwise: bool) -> None:
    """In every copy the site's current is the clean one and the noise, also behind delays."""
    network = as_built(both_ways, "poisson")[stepwise]
    inputs, targets = batch()
    substrate = attach(network, make("frozen_hidden")).substrate
    encoded = substrate.encode(inputs, generator(0))
    objective = Objective(linear_loss)
    substrate.run(Plan(graph=False), encoded, targets, objective)
    count = 1 if time_bin is None else math.ceil(20 / time_bin)
    for name in ("c", "c.v"):
        noise = torch.randn(3, 8, count, 4, generator=generator(1), dtype=torch.float64)
        plan = Plan(noise={name: noise}, observe=True, time_bin=time_bin)
        trace = substrate.run(plan, encoded, targets, objective)
        site = trace.sites[name]
        assert site.observed is not None and site.shape.steps == 20
        assert (site.observed - site.current() - noise).abs().max() < 1e-12
        other = trace.sites["c" if name == "c.v" else "c.v"]
        assert other.observed is not None
        assert (other.observed - other.current()).abs().max() < 1e-12
        assert not torch.equal(trace.losses[1:], trace.losses[:1].expand(3, -1))
    substrate.close()


@pytest.mark.parametrize("stepwise", [False, True])
def test_behind_a_cut_no_credit_flows(stepwise: bool) -> None:
    network = as_built(both_ways, "poisson")[stepwise]
    inputs, targets = batch()
    substrate = attach(network, make("frozen_hidden")).substrate
    encoded = substrate.encode(inputs, generator(0))

    def credited(*cut: str) -> set[str]:
        network.zero_grad()
        plan = Plan(cut=frozenset(cut))
        substrate.run(plan, encoded, targets, Objective(linear_loss)).loss.backward()
        return {
            name.split(".")[1]
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and parameter.grad.any() and "weight" in name
        }

    loop = {"loop"} if stepwise else set()
    everything = {*FORWARD, *loop, "weight"}
    assert credited() == everything
    assert credited("b") == everything - {"to_b", "past_b"}
    assert credited("b.g") == everything - {"onto_b"}
    assert credited("c") == everything - {"past_c", *loop}
    assert credited("c", "c.v") == {"weight"}
    # behind the activity of b: what leads into c is left, and a by its other way
    network.zero_grad()
    plan = Plan(boundaries=frozenset(("a", "b", "c")))
    substrate.run(plan, encoded, targets, Objective(linear_loss)).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.projections.parameters())
    substrate.close()


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_delay_shifts_what_arrives(lag: int) -> None:
    """An input delayed by d steps is the same as an encoding that starts d steps later."""
    settings = {"encoding": {"kind": "poisson", "duration_ms": 30.0}}
    network = circuit(
        {"a": {"units": 5, **PLAIN}}, {"to_a": to("input", "a", delay_ms=lag)}, **settings
    )
    plain = circuit({"a": {"units": 5, **PLAIN}}, {"to_a": to("input", "a")}, **settings)
    plain.load_state_dict(network.state_dict())
    encoded = network.encode(batch()[0], generator(0))
    shifted = torch.cat((torch.zeros_like(encoded[:, :lag]), encoded[:, : 30 - lag]), 1)
    assert torch.equal(network.simulate(encoded), plain.simulate(shifted))
    assert lag == 0 or not torch.equal(network.simulate(encoded), plain.simulate(encoded))


# Gradients ----------------------------------------------------------------------------------------

SMOOTH: dict[str, dict[str, Any]] = {
    "to_a": to("input", "a"),
    "to_b": to("a", "b", kind="masked", density=0.6, delay_ms=2.0),
    "past_b": to("input", "b"),
    "a_a": to("a", "a", bias=False),
    "b_a": to("b", "a", delay_ms=1.0, sign="inhibitory"),
    "to_c": to("b", "c"),
    "c_b": to("c", "b", bias=False),
}


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("loop", [False, True])
def test_the_gradient_of_smooth_neurons_is_that_of_finite_differences(
    loop: bool, window: int | None
) -> None:
    projections = {n: s for n, s in SMOOTH.items() if loop or n not in ("a_a", "b_a", "c_b")}
    network = circuit(
        {"a": {"units": 5, **RATE}, "b": {"units": 4, **RATE}, "c": {"units": 3, **DRIVEN}},
        projections,
        network={"readout": "potential"},
        encoding={"kind": "poisson"},
    )
    assert looped(network) is loop and not network.spiking
    inputs, targets = batch()
    found = gradients(
        attach(network, Backpropagation(window=window), loss=linear_loss), inputs, targets
    )
    encoded = network.encode(inputs, generator(0, "encoding"))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            place = int(found[name].abs().argmax())
            flat, step = parameter.view(-1), 1e-5
            kept = flat[place].item()
            values = []
            for sign in (1, -1):
                flat[place] = kept + sign * step
                values.append(float(linear_loss(network.simulate(encoded), targets).mean()))
            flat[place] = kept
            expected = (values[0] - values[1]) / (2 * step)
            assert abs(expected) > 1e-6
            assert abs(found[name].view(-1)[place].item() - expected) < 1e-7 * abs(expected) + 1e-9


def test_a_short_window_takes_credit_away() -> None:
    network = twins(True)[1]
    inputs, targets = batch()
    whole, cut = (
        gradients(attach(network, Backpropagation(window=window)), inputs, targets)
        for window in (None, 2)
    )
    assert (whole["readout.weight"] - cut["readout.weight"]).abs().max() < 1e-12
    assert not torch.allclose(whole["projections.in_p0.weight"], cut["projections.in_p0.weight"])


@pytest.mark.parametrize("stepwise", [False, True])
def test_constants_of_neurons_learn_in_a_circuit(stepwise: bool) -> None:
    recipe = {
        **RATE,
        "units": 3,
        "equations": "dx/dt = (tanh(k * I) - x) / (5*ms) : 1\nI : 1",
        "namespace": {"k": 1.5},
        "trainable": {"k": [0.2, 5.0]},
    }
    projections = {"into": to("input", "a")} | (
        {"a_a": to("a", "a", bias=False)} if stepwise else {}
    )
    network = circuit({"a": recipe}, projections, network={"readout": "potential"})
    inputs, targets = batch()
    engine = attach(network, make("backprop"), loss=linear_loss)
    (name,) = [name for name in dict(network.named_parameters()) if "factors" in name]
    found = gradients(engine, inputs, targets)[name]
    factors = network.get_parameter(name)
    with torch.no_grad():
        for place in range(3):
            values = []
            for step in (1e-5, -1e-5):
                factors[place] += step
                values.append(float(linear_loss(network(inputs), targets).mean()))
                factors[place] -= step
            expected = (values[0] - values[1]) / 2e-5
            assert abs(found[place].item() - expected) < 1e-6 * abs(expected) and expected


# Every rule ---------------------------------------------------------------------------------------

MIXED: dict[str, dict[str, Any]] = {
    "to_a": to("input", "a", kind="convolution", channels=2),
    "to_b": to("a", "b", kind="masked", density=0.5, delay_ms=1.0),
    "past_b": to("input", "b"),
    "a_b": synapses("a", "b"),
    "b_b": synapses("b", "b", kind="masked", density=0.6),
    "b_a": to("b", "a", bias=False),
}


def mixed(threshold: str = "v > 1") -> tuple[Circuit]:
    """Return a circuit of everything: kinds of layers, loops, a delay, two input variables."""
    first = {"units": 8, **PLAIN, "threshold": threshold}
    populations = {"a": first, "b": {"units": 5, **SYNAPTIC}}
    encoding = {"duration_ms": 12.0, "gain": 2.0}
    return (circuit(populations, MIXED, (1, 4, 4), encoding=encoding),)


def images() -> tuple[Tensor, Tensor]:
    inputs = torch.rand(9, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    return inputs, torch.arange(9) % CLASSES


def off(layer: nn.Module) -> Tensor:
    assert isinstance(layer, Masked)
    return layer.weight[~layer.mask]


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_every_rule_trains_every_layer(rule: str) -> None:
    """Or says why not; weights that do not exist stay out of everything."""
    (network,), (inputs, targets) = as_built(mixed), images()
    decorrelation = Decorrelation(rate=0.01)
    engine = attach(network, make(rule), decorrelation)
    if rule == "decoupling":
        with pytest.raises(CapabilityError, match="cannot keep spikes as targets") as refused:
            engine(inputs, targets, torch.arange(9))
        assert "\n" not in str(refused.value)
        engine.detach()
        return
    assert list(decorrelation.layers) == [
        f"projections.{name}" for name in ("b_a", "a_b", "past_b")
    ] + ["readout"]
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(engine.parameters(), 0.01, weight_decay=0.1)
    before = copy.deepcopy(network.state_dict())
    for _ in range(3):
        optimiser.zero_grad()
        engine(inputs, targets, torch.arange(9)).backward()
        optimiser.step()
        engine.update()
    masked = [network.projections["to_b"], network.projections["b_b"]]
    for layer in masked:
        assert isinstance(layer, Masked) and not off(layer).any()
        assert 0 < layer.mask.double().mean() < 1
        if ESTIMATORS[rule].learns_hidden:
            grad = layer.weight.grad
            assert grad is not None and not grad[~layer.mask].any()
            assert grad[layer.mask].any()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter).all()
        if ESTIMATORS[rule].learns_hidden or name.startswith("readout"):
            assert not torch.equal(parameter, before[name]), name
        else:
            assert torch.equal(parameter, before[name]), name
    engine.detach()


def test_a_layer_without_its_guard_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masked, "_guard", lambda self: None)
    (network,), (inputs, targets) = mixed(), images()
    gradients(attach(network, make("weight_perturbation")), inputs, targets)
    grad = network.projections["to_b"].weight.grad
    assert grad is not None and grad[~network.projections["to_b"].mask].any()


def test_local_losses_train_a_circuit() -> None:
    (network,), (inputs, targets) = as_built(mixed), images()
    for rule in ("backprop", "weak", "forward_gradient_activity", "feedback_alignment"):
        engine = attach(network, make(rule), local=LocalLosses("cross_entropy"))
        engine.prepare(inputs, targets)
        assert engine.local is not None and engine.local.names == ("a", "b")
        found = gradients(engine, inputs, targets)
        assert all(value.any() and torch.isfinite(value).all() for value in found.values())
        engine.detach()


@pytest.mark.parametrize("rule", ["backprop", "eprop", "weak"])
def test_a_population_without_a_derivative(rule: str) -> None:
    (network,), (inputs, targets) = mixed("v > 1 or v < -9"), images()
    if rule == "weak":
        found = gradients(attach(network, make(rule)), inputs, targets)
        assert all(value.any() for value in found.values())
        return
    with pytest.raises(CapabilityError, match=r"the substrate 'brian2' cannot do.*threshold") as e:
        attach(network, make(rule))
    assert "\n" not in str(e.value)


def test_credit_of_one_current_counts_once() -> None:
    """A population with two input variables is one block: e-prop is back-propagation there."""
    network = circuit(
        {"a": {"units": 5, **SYNAPTIC}},
        {"to_a": to("input", "a"), "onto_a": to("input", "a", variable="g")},
        encoding={"kind": "poisson"},
    )
    inputs, targets = batch()
    found, expected = (
        gradients(attach(network, make(rule), seed=1), inputs, targets)
        for rule in ("eprop", "backprop")
    )
    assert [site.name for site in network.sites] == ["a.g", "a", "readout"]
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-12 and value.any()


def test_smooth_local_credit_of_two_currents_is_exact() -> None:
    """The measured gain of neurons without a threshold, by noise on both of their currents."""
    network = circuit(
        {"a": {"units": 4, **RATE, "equations": "dx/dt = (I + g - x) / (5*ms) : 1\nI : 1\ng : 1"}},
        {"to_a": to("input", "a"), "onto_a": to("input", "a", variable="g", bias=False)},
        network={"readout": "potential"},
    )
    inputs, targets = batch()
    rule = make("gain", {"sigma": 1e-3, "ridge": 0.0, "copies": 4001})
    found, expected = (
        gradients(attach(network, one, seed=1, loss=linear_loss), inputs, targets)
        for one in (rule, make("backprop"))
    )
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 0.1 * value.abs().max(), name


# Masked layers ------------------------------------------------------------------------------------


def test_the_mask_is_drawn_with_the_weights_and_sets_their_size() -> None:
    def made(seed: int) -> Masked:
        network = circuit(
            {"a": {"units": 300}},
            {"into": to("input", "a", kind="masked", density=0.1)},
            200,
            seed=seed,
        )
        layer = network.projections["into"]
        assert isinstance(layer, Masked)
        return layer

    one, same, other = made(0), made(0), made(1)
    assert torch.equal(one.mask, same.mask) and torch.equal(one.weight, same.weight)
    assert not torch.equal(one.mask, other.mask)
    assert abs(float(one.mask.double().mean()) - 0.1) < 0.01
    assert abs(one.fan_in - 20) < 1
    # 6000 weights: the standard error of their standard deviation is 1 %
    size = one.weight.detach()[one.mask].std() * math.sqrt(one.fan_in)
    assert abs(float(size) / 2.0 - 1) < 0.05
    assert not off(one).any()


def test_a_copy_of_a_masked_layer_is_guarded_too() -> None:
    (network,) = mixed()
    for twin in (network, copy.deepcopy(network)):
        layer = twin.projections["to_b"]
        layer.weight.sum().backward()
        assert torch.equal(layer.weight.grad, layer.mask.double())


@pytest.mark.parametrize("sign", ["excitatory", "inhibitory"])
@pytest.mark.parametrize("kind", ["dense", "masked"])
def test_the_sign_of_a_projection_stays(kind: str, sign: str) -> None:
    density = {"density": 0.5} if kind == "masked" else {}
    network = circuit(
        {"a": {"units": 5}}, {"into": to("input", "a", kind=kind, sign=sign, **density)}
    )
    inputs, targets = batch()
    engine = attach(network, make("backprop"))
    optimiser = torch.optim.SGD(engine.parameters(), 2.0)
    layer = network.projections["into"]
    eye = torch.eye(6, dtype=torch.float64)
    before = (layer(eye) - layer.bias).T
    for _ in range(20):
        optimiser.zero_grad()
        engine(inputs, targets).backward()
        optimiser.step()
    after = (layer(eye) - layer.bias).T
    assert not torch.allclose(before, after)
    for weights in (before, after):
        assert ((weights if sign == "excitatory" else -weights) >= 0).all() and weights.any()


def test_a_convolution_is_torchs() -> None:
    layer = Convolution((2, 5, 4), 3, kernel=3, stride=2)
    assert layer.target_shape == (3, 3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator(0)))
        layer.bias.copy_(torch.randn(3, generator=generator(1)))
    inputs = torch.randn(4, 7, 40, generator=generator(2))
    found = layer(inputs)
    for step in range(7):
        images = inputs[:, step].view(4, 2, 5, 4)
        expected = nn.functional.conv2d(images, layer.weight, layer.bias, stride=2, padding=1)
        assert torch.equal(found[:, step], expected.flatten(1))


# What is read, what is recorded -------------------------------------------------------------------


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize(
    "readout", ["membrane", "rate", "filtered_rate", "first_spike", "potential"]
)
def test_all_readouts(readout: str, stepwise: bool) -> None:
    smooth = readout == "potential"
    projections = {"into": to("input", "a")} | (
        {"a_a": to("a", "a", bias=False)} if stepwise else {}
    )
    network = circuit(
        {"a": {"units": 5, **(RATE if smooth else PLAIN)}},
        projections,
        network={"readout": readout},
    )
    inputs, _ = batch()
    train = network.activity(inputs)["cells.a"]
    left = torch.arange(20, 0, -1, dtype=torch.float64)
    decay = math.exp(-1 / 20)
    weights = {
        "membrane": (1 - decay**left) / (1 - decay**left).mean(),
        "rate": torch.ones_like(left),
        "filtered_rate": decay ** (left - 1),
        "potential": torch.full_like(left, 0.05),
    }
    if readout == "first_spike":
        first = torch.where(train.any(1), train.argmax(1), 20)
        read = 1 - first.double() / 20
    else:
        read = torch.einsum("t,rtu->ru", weights[readout], train)
    assert train.any() and (network(inputs) - network.readout(read)).abs().max() < 1e-12


def test_a_current_has_the_units_of_its_variable() -> None:
    equations = "dv/dt = (200*Mohm * I - v) / (10*ms) : volt\nI : amp"
    recipe = {
        "units": 5,
        "equations": equations,
        "threshold": "v > 1*mV",
        "reset": "v = 0*mV",
        "method": "exact",
    }
    scaled = {**recipe, "scale": {"I": "10*pA"}}
    bare = {**recipe, "equations": equations.replace("* I", "* 10*pA * I").replace("amp", "1")}
    for loop in (False, True):
        projections = {"into": to("input", "a")} | (
            {"a_a": to("a", "a", bias=False)} if loop else {}
        )
        found = []
        for one in (scaled, bare):
            network = circuit({"a": one}, projections)
            found.append(gradients(attach(network, make("backprop")), *batch()))
            assert network.activity(batch()[0])["cells.a"].any()
        for name, value in found[1].items():
            assert (found[0][name] - value).abs().max() < 1e-9 * value.abs().max()


def test_a_circuit_can_be_copied_and_run_again() -> None:
    network = both_ways("poisson")[1]
    inputs, _ = batch()
    first = network(inputs)
    network(3 * inputs)
    twin = copy.deepcopy(network)
    assert torch.equal(network(inputs), first) and torch.equal(twin(inputs), first)
    with torch.no_grad():
        twin.projections["to_a"].weight.mul_(2)
    assert not torch.equal(twin(inputs), first) and torch.equal(network(inputs), first)


@pytest.mark.parametrize("stepwise", [False, True])
def test_what_a_run_records_of_a_circuit(stepwise: bool) -> None:
    """Spikes keep their steps; the course of another variable is averaged over them."""
    network = as_built(both_ways, "poisson")[stepwise]
    inputs, _ = batch()
    found = observe(network, (), inputs)
    for name, train in network.activity(inputs).items():
        assert train.shape[:2] == (8, 20) and torch.equal(found[name].values, train)
    loop = {"a_a": to("a", "a", bias=False)} if stepwise else {}
    smooth = circuit({"a": {"units": 5, **RATE}}, {"into": to("input", "a"), **loop})
    course = smooth.activity(inputs)["cells.a"]
    assert course.shape == (8, 20, 5) and not smooth.spiking
    assert torch.equal(observe(smooth, (), inputs)["cells.a"].values, course.mean(1))


@pytest.mark.slow
def test_the_shipped_circuit_trains_and_is_recorded(tmp_path: Path) -> None:
    """One epoch on a part of its trial: far above the 10 % of chance, and spikes in the file."""
    run = biograd.train(
        "circuit",
        "digits",
        epochs=1,
        path=tmp_path / "run.h5",
        settings=("encoding.duration_ms=12", "dataset.validation=0.2"),
    )
    assert run.summary["test_accuracy"] > 0.5
    spikes = {name: run.spikes(name) for name in run.layers}
    assert set(spikes) == {"cells.excitatory", "cells.inhibitory"}
    network, engine = biograd.trained(run)
    assert isinstance(network, Circuit) and looped(network)
    assert [site.name for site in network.sites] == [
        "inhibitory",
        "excitatory.g",
        "excitatory",
        "readout",
    ]
    for name in ("onto_inhibitory", "recurrent_excitation"):
        layer = network.projections[name]
        assert isinstance(layer, Masked) and not off(layer).any() and layer.weight.any()
    engine.detach()


def test_the_shipped_circuit_has_credit_in_every_layer() -> None:
    network = biograd.build("circuit", (1, 8, 8), 10).double()
    inputs = torch.rand(16, 1, 8, 8, generator=generator(0), dtype=torch.float64)
    found = gradients(attach(network, make("backprop")), inputs, torch.arange(16) % 10)
    assert all(value.any() for value in found.values())
    assert {name.split(".")[1] for name in found if "projections" in name} == {
        "stimulus",
        "onto_inhibitory",
        "inhibition",
        "recurrent_excitation",
    }


def test_several_input_variables_hand_no_states_over() -> None:
    network = circuit(
        {"a": {"units": 5, **SYNAPTIC}},
        {"to_a": to("input", "a"), "onto_a": to("input", "a", variable="g")},
    )
    engine = attach(network, make("synthetic_gradient", {"window": 5}))
    with pytest.raises(
        CapabilityError, match=r"populations\.a has several input variables"
    ) as error:
        engine(*batch())
    assert "\n" not in str(error.value)


def test_nothing_of_a_trial_is_held() -> None:
    network = twins(True)[1]
    network(batch()[0])
    for cell in network.cells.values():
        assert cell.passed is None and not cell._states


def test_neurons_without_equations_are_those_of_the_recipe() -> None:
    layer = twins(False)[1].layer("p0")
    assert isinstance(layer, Population) and layer.neuron == Leaky(resistance=8.0)


# Recipes that do not hold together ----------------------------------------------------------------

A: dict[str, Any] = {"units": 5, **PLAIN}
INTO = to("input", "a")


@pytest.mark.parametrize(
    ("populations", "projections", "words"),
    [
        ({}, {}, "populations: missing"),
        ({"a": PLAIN}, {"into": INTO}, "populations.a.units: missing"),
        ({"input": A}, {}, "'input' cannot be the name of a population"),
        ({"readout": A}, {}, "'readout' cannot be the name of a population"),
        ({"items": A}, {}, "'items' cannot be the name of a population"),
        ({"a b": A}, {}, "'a b' cannot be the name of a population"),
        ({"a": A}, {"pop": INTO}, "'pop' cannot be the name of a projection"),
        ({"a": A}, {"a.b": INTO}, "'a.b' cannot be the name of a projection"),
        ({"a": A}, {"x": to("inputs", "a")}, r"projections.x.source = 'inputs': did you .*'input'"),
        ({"a": A}, {"x": to("input", "aa")}, "projections.x.target = 'aa': did you mean 'a'"),
        ({"a": A}, {"x": to("input", "input")}, "projections.x.target = 'input'"),
        ({"a": A}, {"x": to("a", "a")}, "populations.a: no projection leads to it from the input"),
        (
            {"a": A, "b": A},
            {"x": INTO, "y": to("input", "b")},
            "populations.a: no projection leads from it to 'b'",
        ),
        (
            {"a": A},
            {"x": {**INTO, "variable": "J"}},
            r"populations.a: variable 'J': the equations have no such variable",
        ),
        ({"a": {**A, "input": "J"}}, {"x": INTO}, "populations.a.input = 'J'"),
        ({"a": A}, {"x": {**INTO, "delay_ms": 0.5}}, "delay_ms = 0.5: no multiple of"),
        ({"a": A}, {"x": {**INTO, "delay_ms": 20}}, "delay_ms = 20: nothing would arrive"),
        ({"a": A}, {"x": {**INTO, "delay_ms": -1}}, "delay_ms = -1.0: must be >= 0"),
        ({"a": A}, {"x": {**INTO, "density": 0}}, "density = 0.0: must be > 0"),
        ({"a": A}, {"x": {**INTO, "kind": "spars"}}, "kind = 'spars'"),
        ({"a": A}, {"x": {**INTO, "kind": "convolution"}}, "of 'input' lie in no grid"),
        ({"a": A}, {"x": {"source": "input"}}, "missing key projections.x.target"),
        (
            {"a": {"units": 5, "threshold": "v > 1"}},
            {"x": INTO},
            "populations.a.threshold: .* without",
        ),
        ({"a": {**A, "equations": "dv/dt = -v : 1\nI : 1"}}, {"x": INTO}, "populations.a"),
        ({"a": {**A, "scale": {"J": 1}}}, {"x": INTO}, "populations.a.scale.J: no current flows"),
        (
            {"a": {**A, "input": "J"}},
            {"x": {**INTO, "variable": "I"}},
            "populations.a.input = 'J': no projection leads to it",
        ),
        (
            {"a": A},
            {"x": {**INTO, "density": 0.5}},
            "projections.x.density: has no effect on kind = 'dense': .* kind = 'masked'",
        ),
        (
            {"a": A},
            {"x": {**INTO, "kind": "masked", "stride": 1}},
            "projections.x.stride: has no effect on kind = 'masked': .* kind = 'convolution'",
        ),
        ({"a": {**A, "initial": {"v": [0.5]}}}, {"x": INTO}, "initial.v: 1 values for 5 neurons"),
        ({"a": {**A, "units": 10**13}}, {"x": INTO}, "too large for this machine's memory: lower"),
        (
            {"a": {**A, "units": 10**30}},
            {"x": INTO},
            r"populations\.a\.units: .*: must be below 2\^63",
        ),
        ({"a": {**A, "scale": {"I": "1*mV"}}}, {"x": INTO}, "I is a plain number"),
        ({"a": {**A, "scale": {"I": -1.0}}}, {"x": INTO}, "must be above zero"),
        ({"a": {**A, "unit": 5}}, {"x": INTO}, "unknown key populations.a.unit"),
    ],
)
def test_a_recipe_that_does_not_hold_together(
    populations: Any, projections: Any, words: str
) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        circuit(populations, projections)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("network.hidden=[5]", r"network\.hidden: has no effect on a circuit, which is made of"),
        ("network.recurrent=true", r"network\.recurrent: has no effect on a circuit"),
        ("network.activation=tanh", r"network\.activation: has no effect on a circuit"),
        ("population.threshold='v > 1'", r"\[population\]: a circuit has \[populations\.NAME\]"),
        (
            "neuron.threshold=2.0",
            r"neuron\.threshold: has no effect on neurons of the equa",
        ),
        ("neuron.kind=event_driven", r"neuron\.kind = 'event_driven'"),
    ],
)
def test_what_says_nothing_of_a_circuit_is_refused(key: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        biograd.build(load_model("circuit", "digits", None, [key]), (1, 8, 8), 10)
    assert "\n" not in str(refused.value)


def test_a_convolution_that_does_not_fit() -> None:
    into = {"into": to("input", "a", kind="convolution", channels=2)}
    with pytest.raises(RecipeError, match=r"8 outputs \(2, 2, 2\), but populations.a.units = 5"):
        circuit({"a": A}, into, (1, 4, 4))
    signed = {"into": {**into["into"], "sign": "excitatory"}}
    with pytest.raises(RecipeError, match="the weights of a convolution have either sign"):
        circuit({"a": {**A, "units": 8}}, signed, (1, 4, 4))


@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_equations_are_simulated_by_brian2(substrate: str) -> None:
    with pytest.raises(RecipeError, match=r"populations\.a\.equations: need network\.substrate"):
        circuit({"a": A}, {"into": INTO}, network={"substrate": substrate})


def test_populations_belong_to_a_circuit() -> None:
    recipe = ModelRecipe(
        populations={"a": PopulationRecipe(units=3)},
        projections={"into": ProjectionRecipe("input", "a")},
    )
    with pytest.raises(RecipeError, match=r"need network.kind = 'circuit'"):
        biograd.build(recipe, 6, CLASSES)
