"""NIR files: a second reader finds the same spikes, and the way there and back changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from nir_simulator import Simulator
from torch import Tensor, nn

import biograd
from biograd.__main__ import main
from biograd.brian.import_brian2 import import_brian2
from biograd.checking import construct
from biograd.circuit.circuit import Circuit
from biograd.circuit.grids import Convolution
from biograd.circuit.projections import Masked
from biograd.circuit.readouts import Readout
from biograd.engine import attach
from biograd.errors import CapabilityError, MissingExtraError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.interchange import export_nir, import_nir, to_nir
from biograd.interchange.nir_neuron import NirNeuron, milliseconds
from biograd.interchange.weighing import Origin, weighing
from biograd.neurons import NEURONS, Leaky, LeakyIntegrator, Neuron
from biograd.neurons.coefficients import coefficients
from biograd.neurons.neuron import step
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe
from biograd.substrate.network import Network

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.filterwarnings("ignore:.*learned = :UserWarning")
STEPS, CLASSES = 20, 3
Graph = Any


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling."""
    codegen = import_brian2().prefs.codegen
    kept, codegen.target = codegen.target, "numpy"
    yield
    codegen.target = kept


# Networks -----------------------------------------------------------------------------------------


def built(inputs: Any = 5, timed: bool = False, **tables: Mapping[str, Any]) -> Network:
    """Return a network in float64 whose biases are drawn, too."""
    circuit = tables.get("network", {}).get("kind") == "circuit"
    own_neurons = {"equations", "neuron"}
    populations = tables.get("populations", {"only": tables.get("population", {})}).values()
    table: dict[str, Any] = {
        "network": {"kind": "spiking", "dtype": "float64", "gain": 1.5}
        | ({} if circuit else {"hidden": [7, 6]}),
        "neuron": {"resistance": 8.0}
        if any(not own_neurons & p.keys() for p in populations)
        else {},
    }
    for name, values in tables.items():
        table[name] = {**table.get(name, {}), **values}
    made = biograd.build(construct(ModelRecipe, table, "test"), inputs, CLASSES, timed=timed)
    stream = generator(0, "test biases")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.rand(parameter.shape, generator=stream))
    assert isinstance(made, Network)
    return made


def circuit(
    populations: Mapping[str, Any], projections: Mapping[str, Any], inputs: Any = 5, **tables: Any
) -> Network:
    kind = {"substrate": "brian2", "kind": "circuit"}
    return built(
        inputs,
        **{"network": {**kind, **tables.pop("network", {})}},
        populations=populations,
        projections=projections,
        **tables,
    )


def to(source: str, target: str, **settings: Any) -> dict[str, Any]:
    return {"source": source, "target": target, **settings}


LIF: dict[str, Any] = {
    "equations": "dv/dt = (8 * I - v) / (10*ms) : 1\nI : 1",
    "threshold": "v > 1",
    "reset": "v = 0",
    "method": "exact",
}
VOLTS: dict[str, Any] = {
    "equations": "dv/dt = (EL - v + R * I + shift) / tau : volt\nshift = 2*mV : volt\nI : amp",
    "threshold": "-50*mV < v",
    "reset": "v = -66*mV",
    "namespace": {"EL": "-70*mV", "R": "100*Mohm", "tau": "8*ms"},
    "initial": {"v": "-68*mV"},
    "scale": {"I": "1*nA"},
    "trainable": {"tau": [0.5, 2.0]},
}
TAKES = {**LIF, "threshold": "2 * v - 3 > -1", "reset": "v -= 0.8"}
SUMS = {**LIF, "equations": "dv/dt = 300 * I / second : 1\nI : 1", "method": "euler"}
GRADED = {
    "equations": "dx/dt = (0.5 * I - x) / (5*ms) : 1\nI : 1",
    "method": "exact",
    "output": "x",
}
ENDLESS = {**LIF, "reset": ""}


def stack(**settings: Any) -> Callable[[], Network]:
    keys = ("substrate", "recurrent", "readout")
    network = {key: settings.pop(key) for key in keys if key in settings}
    return lambda: built(network=network, neuron=settings)


def own(population: Mapping[str, Any], **settings: Any) -> Callable[[], Network]:
    """Return a stack of neurons of one's own equations, that feed back to themselves."""
    network = {"substrate": "brian2", "hidden": [6], "recurrent": True, **settings}
    return lambda: built(network=network, population=population)


def loops() -> Network:
    """Two populations that excite and inhibit each other, over delays, some of it sparse."""
    return circuit(
        {"a": {"units": 6, **LIF}, "b": {"units": 4}, "c": {"units": 5, **VOLTS}},
        {
            "into": to("input", "a", kind="masked", density=0.6),
            "a_b": to("a", "b", sign="excitatory"),
            "b_a": to("b", "a", sign="inhibitory", kind="masked", density=0.5, bias=False),
            "a_a": to("a", "a", delay_ms=2.0),
            "b_c": to("b", "c", delay_ms=3.0),
            "a_c": to("a", "c", kind="masked", density=0.5),
            "again": to("input", "c", bias=False),
        },
    )


def grid() -> Network:
    """Two convolutions, the second of spikes, and a dense layer."""
    return circuit(
        {"a": {"units": 32, **LIF}, "b": {"units": 12}, "c": {"units": 4, **TAKES}},
        {
            "into": to("input", "a", kind="convolution", channels=2, stride=1),
            "a_b": to("a", "b", kind="convolution", channels=3, kernel=3, stride=2, bias=False),
            "b_c": to("b", "c", delay_ms=1.0),
            "skip": to("input", "c"),
        },
        (1, 4, 4),
    )


def named() -> Network:
    """Named neurons, constants of each neuron's own, some of them learned, sparse connections."""
    mixed = {"time_constant_ms": "uniform(5, 20)", "trainable": {"threshold": [0.7, 1.5]}}
    filtered = {"resistance": 20.0, "synaptic_time_constant_ms": [2.0, 3.0, 4.0, 5.0]}
    graded = {"kind": "integrator", "synaptic_time_constant_ms": 3.0}
    return circuit(
        {
            "a": {"units": 6, "neuron": {"resistance": 12.0, "reset": "zero", **mixed}},
            "b": {"units": 5, "neuron": {"trainable": {"resistance": [0.5, 2]}, **graded}},
            "c": {"units": 4, "neuron": filtered},
        },
        {
            "into": to("input", "a", kind="sparse", density=0.6),
            "a_b": to("a", "b", kind="sparse", density=0.5, sign="excitatory", bias=False),
            "b_c": to("b", "c"),
            "c_a": to("c", "a", delay_ms=2.0, sign="inhibitory"),
            "a_c": to("input", "c"),
            "own": to("c", "c", kind="one_to_one", bias=False, sign="inhibitory"),
            "with_bias": to("c", "c", kind="one_to_one", delay_ms=1.0),
        },
        network={"substrate": "torch"},
    )


def images_of_layers() -> Network:
    """Convolutions, windows that are summed, dense layers that feed back to themselves."""
    shape = {"channels": [2], "hidden": [6], "pooling": 2, "pool": "sum", "stride": 1}
    return built((1, 6, 6), network={**shape, "gain": 3.0})


def windows() -> Network:
    """Means of windows, another padding."""
    kernel = {"kind": "convolution", "channels": 2, "stride": 1, "padding": "valid"}
    return circuit(
        {"a": {"units": 32}, "b": {"units": 5}},
        {
            "into": to("input", "a", **kernel),
            "a_b": to("a", "b", pooling=2),
            "input_b": to("input", "b", pooling=3, pool="sum"),
        },
        (1, 6, 6),
        network={"substrate": "torch"},
    )


CIRCUITS: dict[str, Callable[[], Network]] = {
    "loops": loops,
    "grid": grid,
    "named": named,
    "layers": images_of_layers,
    "windows": windows,
    "lif": own(LIF),
    "volts": own(VOLTS),
    "takes": own(TAKES),
    "sums": own(SUMS),
    "endless": own(ENDLESS, readout="rate"),
    "graded": own(GRADED, readout="potential"),
}
STACKS: dict[str, Callable[[], Network]] = {
    f"{reset}-{synaptic:g}-{recurrent}-{readout}": stack(
        reset=reset,
        synaptic_time_constant_ms=synaptic,
        recurrent=recurrent,
        readout=readout,
        time_constant_ms=tau,
    )
    for (reset, synaptic, recurrent), (readout, tau) in zip(
        itertools.product(("zero", "subtract"), (0.0, 4.3), (False, True)),
        itertools.cycle([("membrane", 10.0), ("rate", 12.34), ("filtered_rate", 100 / 7)]),
        strict=False,
    )
}
NETWORKS = STACKS | CIRCUITS


def neurons(network: Any) -> list[Any]:
    return [one.cells.neuron for one in network.graph.blocks.values()]


def data(network: Network, rows: int = 8) -> Tensor:
    assert network.encoding is not None
    return torch.rand(rows, *network.encoding.shape, generator=generator(1), dtype=torch.float64)


def courses(network: Network, inputs: Tensor) -> np.ndarray:
    encoded = network.encode(inputs, generator(0, "forward"))
    return encoded.expand(-1, network.steps, -1).numpy()


def trained_a_little(network: Network) -> Network:
    """Move the learned constants of populations, so that every neuron has its own."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "factors" in name:
                parameter.add_(torch.linspace(-1, 1, len(parameter)))
    return network


# The second reader --------------------------------------------------------------------------------


def differences(
    network: Network, reader: Simulator, inputs: Tensor, order: list[str] | None = None
) -> tuple[int, float, float]:
    """Return how many spikes differ, and by how much potentials and outputs do."""
    mine, outputs = network.activity(inputs), network(inputs).detach().numpy()
    spikes, off, potentials = 0, 0.0, 0.0
    for row, course in enumerate(courses(network, inputs)):
        found = reader.run(course)
        for values, name in zip(mine.values(), order or reader.order, strict=True):
            theirs = np.array(found[name]).reshape(STEPS, -1)
            wrong = abs(values[row].numpy() - theirs)
            if network.spiking:
                spikes += int((wrong > 0).sum())
            else:
                potentials = max(potentials, wrong.max())
        off = max(off, abs(reader.output(course) - outputs[row]).max())
    return spikes, potentials, off


@pytest.mark.parametrize("subtract", ["loop", "node"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_reader_finds_the_same_spikes(name: str, subtract: Any, tmp_path: Path) -> None:
    network = trained_a_little(NETWORKS[name]())
    inputs = data(network)
    if subtract == "node" and name in ("takes", "grid"):
        with pytest.raises(CapabilityError, match="something else than the threshold"):
            to_nir(network, subtract)
        return
    path = export_nir(network, tmp_path / "out.nir", subtract=subtract)
    for values in network.activity(inputs).values():
        assert values.any() and (0.02 < values.mean() < 0.9 or not network.spiking)
    spikes, potentials, off = differences(network, Simulator(path), inputs)
    assert spikes == 0 and potentials < 1e-12 and off < 1e-11


@pytest.mark.parametrize(
    ("node", "member"),
    [
        ("blocks_0_synapse", "weight"),
        ("blocks_1_recurrent", "weight"),
        ("blocks_0", "tau"),
        ("blocks_0_filter", "tau"),
        ("blocks_0_spikes", "threshold"),
        ("blocks_1_reset", "scale"),
        ("readout_leak", "tau"),
        ("readout", "bias"),
    ],
)
def test_the_second_reader_tells_a_constant_that_is_off(
    node: str, member: str, tmp_path: Path
) -> None:
    network = STACKS["subtract-4.3-True-rate"]()
    if node == "readout_leak":
        network = stack(readout="membrane", recurrent=True)()
    inputs = data(network, 40)
    reader = Simulator(export_nir(network, tmp_path / "out.nir"))
    assert differences(network, reader, inputs)[0] == 0
    reader.nodes[node][member] = reader.nodes[node][member] * 1.01
    spikes, _, off = differences(network, reader, inputs)
    assert spikes > 0 or (node.startswith("readout") and off > 1e-6)


def test_a_reader_that_resets_otherwise_finds_other_spikes(tmp_path: Path) -> None:
    """What "node" notes is no detail, and "loop" needs no note."""
    network = stack(reset="subtract")()
    inputs = data(network)
    for subtract, same in (("node", False), ("loop", True)):
        path = tmp_path / f"{subtract}.nir"
        reader = Simulator(export_nir(network, path, subtract=subtract))  # type: ignore[arg-type]
        for node in reader.nodes.values():
            node.pop("metadata", None)
        assert (differences(network, reader, inputs)[0] == 0) is same


def test_a_reader_that_forgets_the_order_of_a_loop_finds_other_spikes(tmp_path: Path) -> None:
    network = loops()
    path = export_nir(network, tmp_path / "out.nir")
    reader = Simulator(path)
    assert reader.order == ["a", "b_spikes", "c"]
    reader.order = ["b_spikes", "a", "c"]
    assert differences(network, reader, data(network), ["a", "b_spikes", "c"])[0] > 0


def test_snntorch_reads_the_same_network(tmp_path: Path) -> None:
    """Its steps are of 0.1 ms, by Euler: the time constant is set so that the decays agree."""
    pytest.importorskip("nirtorch")
    from snntorch.import_nir import import_from_nir

    encoding = {"dt_ms": 0.1, "duration_ms": 6.0}
    network = built(
        network={"dtype": "float32", "readout": "rate"},
        neuron={"reset": "zero", "time_constant_ms": 3.0},
        encoding=encoding,
    )
    graph = to_nir(network)
    for node in graph.nodes.values():
        if isinstance(node, nir.LIF):
            node.tau = np.array(1e-4 / (1 - np.exp(-1e-4 / node.tau)))
    theirs = import_from_nir(graph)
    inputs = data(network).float()
    mine, state, found = network.activity(inputs), None, []
    spikes: dict[str, list[Tensor]] = {"blocks_0": [], "blocks_1": []}
    for name, kept in spikes.items():
        theirs.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, kept=kept: kept.append(output.detach())
        )
    for _ in range(network.steps):
        out, state = theirs(inputs, state)
        found.append(out.detach())
    for values, kept in zip(mine.values(), spikes.values(), strict=True):
        assert values.any() and torch.equal(values, torch.stack(kept, 1))
    assert (torch.stack(found, 1).sum(1) - network(inputs)).abs().max() < 1e-4


# There and back -----------------------------------------------------------------------------------


def check_same(one: Graph, two: Graph, tolerance: float = 1e-12) -> None:
    """Check that two graphs have the same nodes, edges and constants."""
    assert sorted(one.nodes) == sorted(two.nodes) and sorted(one.edges) == sorted(two.edges)
    for name, node in one.nodes.items():
        other = two.nodes[name]
        assert type(node) is type(other), name
        mine, theirs = node.to_dict(), other.to_dict()
        for key in mine.keys() - {"metadata"}:
            if isinstance(mine[key], str):
                assert mine[key] == theirs[key], (name, key)
                continue
            first, second = np.asarray(mine[key], float), np.asarray(theirs[key], float)
            assert first.shape == second.shape, (name, key)
            scale = abs(first).max() if first.size else 0.0
            assert (abs(first - second) <= tolerance * scale).all(), (name, key)


@pytest.mark.parametrize(
    ("node", "member", "change"), [("blocks_0", "tau", 1e-9), ("readout", "weight", 1e-9)]
)
def test_graphs_that_differ_are_told_apart(node: str, member: str, change: float) -> None:
    one, two = to_nir(stack()()), to_nir(stack()())
    check_same(one, two, 0)
    setattr(two.nodes[node], member, getattr(two.nodes[node], member) * (1 + change))
    with pytest.raises(AssertionError):
        check_same(one, two)


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_changes_no_spike(name: str, tmp_path: Path) -> None:
    network = trained_a_little(NETWORKS[name]())
    inputs = data(network, 40)
    path = export_nir(network, tmp_path / "out.nir")
    again = import_nir(path)
    paths = (path for path in network.populations)
    assert sorted(again.populations) == sorted(paths)
    before, after = network.activity(inputs), again.activity(inputs)
    for one, two in zip(before.values(), after.values(), strict=True):
        assert one.any() and (one - two).abs().max() < 1e-12
        assert not network.spiking or torch.equal(one, two)
    assert (network(inputs) - again(inputs)).abs().max() < 1e-11
    check_same(nir.read(path), to_nir(again))
    third = import_nir(to_nir(again))
    for one, two in zip(after.values(), third.activity(inputs).values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("substrate", ["torch", "snntorch", "brian2"])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_every_simulator_writes_and_reads_the_same(reset: str, substrate: Any) -> None:
    first = stack(reset=reset, recurrent=True)()
    other = stack(reset=reset, recurrent=True, substrate=substrate)()
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            other.get_parameter(name).copy_(parameter)
    check_same(to_nir(first), to_nir(other), 0)
    again = import_nir(to_nir(first), substrate=substrate)
    assert again.simulator == substrate  # type: ignore[union-attr]
    inputs = data(first)
    expected, found = first.activity(inputs), again.activity(inputs)
    for one, two in zip(expected.values(), found.values(), strict=True):
        assert torch.equal(one, two)


def test_single_precision_stays_single() -> None:
    network = built(network={"dtype": "float32"})
    again = import_nir(to_nir(network))
    inputs = data(network).float()
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(network(inputs), again(inputs))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


ENCODINGS: dict[str, dict[str, float]] = {
    "current": {"gain": 2.0},
    "poisson": {"max_rate_hz": 300.0},
    "latency": {"threshold": 0.2, "time_constant_ms": 4.0},
    "delta": {"threshold": 0.2},
    "rows": {"gain": 2.0},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_encoding_comes_back(encoding: str) -> None:
    network = built((1, 5, 3), encoding={"kind": encoding, **ENCODINGS[encoding]})
    again = import_nir(to_nir(network))
    assert again.encoding is not None and network.encoding is not None
    assert again.encoding.recipe == network.encoding.recipe
    assert again.encoding.shape == network.encoding.shape
    inputs = data(network)
    assert torch.equal(network(inputs), again(inputs)) and network(inputs).std() > 0


def test_surrogate_masks_and_signs_come_back() -> None:
    network = loops()
    assert isinstance(network, Circuit)
    for name in ("a", "c"):
        network.layer(name).surrogate, network.layer(name).slope = "gaussian", 3.0
    again = import_nir(to_nir(network))
    kept = [(one.surrogate, one.slope) for one in neurons(again)]
    assert kept == [("gaussian", 3.0), ("fast_sigmoid", 10.0), ("gaussian", 3.0)]
    for name in ("into", "b_a", "a_c"):
        one, two = network.projections[name], again.projections[name]
        assert isinstance(one, Masked) and isinstance(two, Masked)
        assert torch.equal(one.mask, two.mask) and one.sign == two.sign
    signed = again.projections["a_b"]
    assert isinstance(signed, Masked) and signed.sign == "excitatory" and signed.mask.all()
    stacked = import_nir(to_nir(stack(surrogate="arctan", slope=4.0)()))
    assert {(one.surrogate, one.slope) for one in neurons(stacked)} == {("arctan", 4.0)}
    earlier = to_nir(stack()())
    earlier.metadata |= {"surrogate": "gaussian", "slope": 2.0}
    for node in earlier.nodes.values():
        node.metadata = {k: v for k, v in node.metadata.items() if k == "takes"}
    assert {(one.surrogate, one.slope) for one in neurons(import_nir(earlier))} == {
        ("gaussian", 2.0)
    }


def test_what_was_learned_by_every_neuron_is_noted() -> None:
    graph = to_nir(trained_a_little(own(VOLTS)()))
    node = graph.nodes["blocks_0"]
    assert node.metadata["learned"] == "tau [0.5, 2]"
    assert node.tau.min() > 0.004 and node.tau.max() < 0.016 and len(set(node.tau)) == 6
    assert np.allclose(node.v_leak, -0.068) and np.allclose(node.r, 0.1)


@pytest.mark.parametrize("tau", [20.0, 3.0])
def test_outputs_in_every_step_are_read(tau: float, tmp_path: Path) -> None:
    network = built(timed=True, network={"readout_time_constant_ms": tau, "recurrent": True})
    inputs = data(network)
    reader = Simulator(export_nir(network, tmp_path / "out.nir"))
    assert reader.read == "steps"
    again = import_nir(tmp_path / "out.nir")
    assert network(inputs).shape == (8, STEPS, CLASSES)
    assert differences(network, reader, inputs)[0] == 0
    assert differences(network, reader, inputs)[2] < 1e-12
    assert torch.equal(network(inputs), again(inputs))
    reader.nodes["readout_leak"]["tau"] *= 1.01
    assert differences(network, reader, inputs)[2] > 1e-6


def test_dropout_comes_back() -> None:
    network = built(network={"dropout": 0.3})
    again = import_nir(to_nir(network))
    drops = [one.after["dropout"].p for one in again.graph.blocks.values()]
    assert drops == [0.3, 0.3]
    inputs = data(network)
    assert not torch.equal(network(inputs), network(inputs))
    assert torch.equal(network.eval()(inputs), again.eval()(inputs))


def test_named_neurons_come_back_as_they_are() -> None:
    again = import_nir(to_nir(named()))
    one, two, three = neurons(again)
    assert (type(one), type(two), type(three)) == (Leaky, LeakyIntegrator, Leaky)
    assert len(set(one.time_constant_ms)) == 6 and (one.reset, one.resistance) == ("zero", 12.0)
    assert three.synaptic_time_constant_ms == (2.0, 3.0, 4.0, 5.0)
    for simulator in ("torch", "brian2"):
        again = import_nir(to_nir(named()), substrate=simulator)  # type: ignore[arg-type]
        inputs = data(again)
        assert (again(inputs) - named()(inputs)).abs().max() < 1e-11


def test_decorrelation_is_folded() -> None:
    network = stack()()
    inputs = data(network)
    engine = attach(
        network, make("backprop"), biograd.Decorrelation(rule="kappa", rate=0.05, centre=True)
    )
    for _ in range(5):
        engine(inputs, torch.arange(8) % CLASSES, torch.arange(8)).backward()
        engine.update()
    network.eval()
    expected, spikes = network(inputs), network.activity(inputs)
    graph = to_nir(network)
    engine.detach()
    assert (network(inputs) - expected).abs().max() > 1e-3
    again = import_nir(graph)
    for one, two in zip(spikes.values(), again.activity(inputs).values(), strict=True):
        assert torch.equal(one, two)
    assert (again(inputs) - expected).abs().max() < 1e-11


def test_names_and_origin_survive_a_copy() -> None:
    again = copy.deepcopy(import_nir(to_nir(loops())))
    assert isinstance(again.origin, Origin)
    check_same(to_nir(loops()), to_nir(again))


# Graphs of others ---------------------------------------------------------------------------------


def draws(*shape: int, low: float = -1.0, high: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)


def lif(*shape: int, **settings: Any) -> Any:
    """Return neurons each of which has its own constants."""
    values = {
        "tau": draws(*shape, low=0.004, high=0.02),
        "r": draws(*shape, low=10, high=20, seed=1),
        "v_leak": draws(*shape, low=-0.2, high=0.2, seed=2),
        "v_threshold": draws(*shape, low=0.6, high=1.2, seed=3),
        "v_reset": draws(*shape, low=-0.3, high=0.1, seed=4),
    }
    return nir.LIF(**(values | settings))


def cuba(*shape: int) -> Any:
    node = lif(*shape)
    values = {name: getattr(node, name) for name in ("r", "v_leak", "v_threshold", "v_reset")}
    return nir.CubaLIF(
        tau_mem=node.tau,
        tau_syn=draws(*shape, low=0.002, high=0.006, seed=5),
        w_in=draws(*shape, low=0.5, high=2, seed=6),
        **values,
    )


def leaky(*shape: int) -> Any:
    node = lif(*shape)
    return nir.LI(tau=node.tau, r=node.r, v_leak=node.v_leak)


def alike(units: int, **settings: Any) -> Any:
    """Return neurons that are all the same, as in ``[neuron]``."""
    every = np.ones(units)
    values = {"tau": 0.01 * every, "r": 20 * every, "v_leak": 0 * every, "v_threshold": every}
    return nir.LIF(**(values | settings))


def shaped(*shape: int) -> Any:
    return nir.Input(input_type=np.array(shape))


def end(*shape: int) -> Any:
    return nir.Output(output_type=np.array(shape))


def graph(edges: str, **nodes: Any) -> Graph:
    """Return a graph; ``edges``: "a b, b c"."""
    pairs = [tuple(edge.split()) for edge in edges.split(",")]
    return nir.NIRGraph(nodes, pairs, type_check=False)


def plain_stack(readout: Any = None) -> Graph:
    """The most usual graph: dense layers, a readout without a bias."""
    last = readout or nir.LI(tau=np.full(3, 0.02), r=np.full(3, 2.0), v_leak=np.zeros(3))
    return graph(
        "x 0,0 1,1 2,2 3,3 4,4 5,5 y",
        **{"x": shaped(5), "0": nir.Affine(draws(6, 5), draws(6)), "1": alike(6)},
        **{"2": nir.Linear(draws(4, 6)), "3": alike(4, r=np.full(4, 30.0))},
        **{"4": nir.Linear(draws(3, 4)), "5": last, "y": end(3)},
    )


def recurrent_stack() -> Graph:
    """The recurrence is a layer without delay, as in the NIR paper's recurrent network."""
    node = cuba(6)
    every = np.ones(6)
    same = {"tau_mem": 0.01, "tau_syn": 0.004, "r": 12.0, "v_leak": 0.0, "v_threshold": 1.0}
    same |= {"v_reset": 0.0, "w_in": 1.5}
    for name, value in same.items():
        setattr(node, name, value * every)
    return graph(
        "x w,w n,n rec,rec n,n out,out y",
        x=shaped(5),
        w=nir.Linear(draws(6, 5)),
        n=node,
        rec=nir.Affine(draws(6, 6), draws(6)),
        out=nir.Affine(draws(3, 6), draws(3)),
        y=end(3),
    )


def images() -> Graph:
    return graph(
        "x c1,c1 n1,n1 c2,c2 n2,n2 f,f w,w n3,n3 y",
        x=shaped(1, 4, 4),
        c1=nir.Conv2d((4, 4), draws(2, 1, 3, 3), 1, 1, 1, 1, abs(draws(2))),
        n1=lif(2, 4, 4),
        c2=nir.Conv2d((4, 4), draws(3, 2, 3, 3), 2, 1, 1, 1, abs(draws(3))),
        n2=cuba(3, 2, 2),
        f=nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
        w=nir.Affine(draws(3, 12), draws(3)),
        n3=lif(3),
        y=end(3),
    )


def pooled() -> Graph:
    """Sums and means of windows, a padding of its own, leaky integrators of rest 0."""
    every = np.ones((2, 6, 6))
    return graph(
        "x c,c n1,n1 p,p f,f w,w n2,x q,q g,g v,v n2,n2 y",
        x=shaped(1, 6, 6),
        c=nir.Conv2d((6, 6), draws(2, 1, 3, 3), 1, 1, 1, 1, abs(draws(2))),
        n1=nir.LIF(
            tau=every * draws(2, 6, 6, low=0.004, high=0.02), r=12 * every, v_leak=0 * every,
            v_threshold=every, v_reset=0 * every,
        ),
        p=nir.SumPool2d(np.full(2, 2), np.full(2, 2), np.zeros(2, int)),
        f=nir.Flatten({"input": np.array([2, 3, 3])}, 0, -1),
        w=nir.Affine(draws(3, 18), draws(3)),
        q=nir.AvgPool2d(np.full(2, 3), np.full(2, 1), np.zeros(2, int)),
        g=nir.Flatten({"input": np.array([1, 4, 4])}, 0, -1),
        v=nir.Linear(draws(3, 16)),
        n2=nir.CubaLI(
            tau_syn=draws(3, low=0.002, high=0.006), tau_mem=draws(3, low=0.004, high=0.02),
            r=np.full(3, 2.0), v_leak=np.zeros(3), w_in=np.full(3, 1.5),
        ),
        y=end(3),
    )  # fmt: skip


def everything() -> Graph:
    """Skips, loops over two populations, delays, one-to-one links, integrators."""
    fire = {
        "r": draws(4, low=100, high=300),
        "v_threshold": np.ones(4),
        "v_reset": np.full(4, -0.1),
    }
    return graph(
        "x w1,w1 a,a s,s b,b w2,w2 a,b d,d w3,w3 c,a w4,w4 c,c c2,c2 e,x w5,w5 e,e out,out y,c i",
        **{"x": shaped(5), "w1": nir.Affine(draws(4, 5), draws(4)), "a": lif(4)},
        **{"s": nir.Scale(draws(4, low=0.5, high=2)), "b": nir.IF(**fire)},
        **{"w2": nir.Linear(-0.3 * abs(draws(4, 4))), "d": nir.Delay(np.full(4, 0.003))},
        **{"w3": nir.Linear(draws(6, 4)), "w4": nir.Affine(draws(6, 4), draws(6))},
        **{"c": cuba(6), "c2": nir.Linear(draws(3, 6)), "e": leaky(3)},
        **{"w5": nir.Linear(draws(3, 5)), "out": nir.Linear(draws(3, 3)), "y": end(3)},
        **{"i": nir.I(draws(6, low=10, high=30))},
    )


def without_an_integrator() -> Graph:
    made = everything()
    del made.nodes["i"]
    made.edges.remove(("c", "i"))
    return made


def direct() -> Graph:
    """Edges without nodes, a threshold of its own, an integrator, a filter without spikes."""
    node = leaky(5)
    return graph(
        "x n,n p,p h,h t,t i,i y",
        x=shaped(5),
        n=lif(5),
        p=nir.CubaLI(
            tau_syn=node.tau / 3, tau_mem=node.tau, r=node.r, v_leak=node.v_leak, w_in=2 * node.r
        ),
        h=nir.LI(tau=node.tau, r=node.r, v_leak=0 * node.r),
        t=nir.Threshold(np.full(5, 3.0)),
        i=nir.I(draws(5, low=10, high=30)),
        y=end(5),
    )


FOREIGN: dict[str, tuple[Callable[[], Graph], list[str], list[type]]] = {
    "plain": (plain_stack, ["1", "3"], [Leaky, Leaky]),
    "recurrent": (recurrent_stack, ["n"], [Leaky]),
    "images": (images, ["n1", "n2", "n3"], [NirNeuron, NirNeuron, NirNeuron]),
    "pooled": (pooled, ["n1", "n2"], [Leaky, LeakyIntegrator]),
    "everything": (
        without_an_integrator,
        ["a", "b", "c", "e"],
        [NirNeuron, NirNeuron, NirNeuron, NirNeuron],
    ),
    "direct": (direct, ["n", "p", "t", "i"], [NirNeuron, NirNeuron, NirNeuron, NirNeuron]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_graphs_of_others_come_back(name: str, tmp_path: Path) -> None:
    """They are simulated as the second reader does, and written as they were."""
    make_graph, order, kinds = FOREIGN[name]
    nir.write(tmp_path / "in.nir", make_graph())
    network = import_nir(tmp_path / "in.nir", 1.0, float(STEPS))
    assert [type(one.cells.neuron) for one in network.graph.blocks.values()] == kinds
    written = to_nir(network)
    check_same(make_graph(), written)
    check_same(make_graph(), to_nir(import_nir(written)))
    assert [written.nodes[n] and n for n in json.loads(written.metadata["order"])] == order
    reader = Simulator(tmp_path / "in.nir", 1.0, order)
    reader.read = written.metadata["read"]
    inputs = data(network)
    assert tuple(inputs.shape[1:]) == (
        STEPS,
        math.prod(make_graph().nodes["x"].input_type["input"]),
    )
    mine = network.activity(inputs)
    for row, course in enumerate(courses(network, inputs)):
        found = reader.run(course)
        for values, node in zip(mine.values(), order, strict=True):
            theirs = np.array(found[node]).reshape(STEPS, -1)
            assert theirs.any() and abs(values[row].numpy() - theirs).max() < 1e-12, node
        off = abs(reader.output(course) - network(inputs)[row].detach().numpy()).max()
        assert off < 1e-11
    for node in reader.nodes.values():
        for key in {"weight", "tau", "r"} & node.keys():
            node[key] = node[key] * 1.01
    assert abs(reader.output(course) - network(inputs)[-1].detach().numpy()).max() > 1e-6


@pytest.mark.parametrize("name", ["everything", "direct", "images"])
def test_the_scan_back_is_that_of_the_steps(name: str) -> None:
    """The derivative of neurons of their own, by autograd of one step after the other."""
    for block in import_nir(FOREIGN[name][0](), 1.0, float(STEPS)).graph.blocks.values():
        cells = block.cells
        shape = (3, STEPS, cells.units)
        drive = 2 * torch.rand(shape, generator=generator(0), dtype=torch.float64)
        drive.requires_grad_()
        weight = torch.randn(shape, generator=generator(1), dtype=torch.float64)
        (found,) = torch.autograd.grad((cells(drive) * weight).sum(), drive)
        c = cells.constants()
        x, out, total = cells.neuron.begin(drive[:, 0]), torch.zeros_like(drive[:, 0]), 0.0
        for index in range(STEPS):
            x, out = step(cells.neuron, c, x, out, {"I": drive[:, index]})
            total = total + (out * weight[:, index]).sum()
        assert coefficients(cells.neuron, c) is not None
        (expected,) = torch.autograd.grad(total, drive)
        assert expected.any() and (found - expected).abs().max() < 1e-12


def test_a_plain_stack_has_the_readout_of_biograd() -> None:
    """The mean of the leaky integrator is the readout "membrane", whatever its resistance."""
    network = import_nir(plain_stack(), 1.0, float(STEPS))
    assert network.filtered.kind == "membrane" and network.filtered.time_constant_ms == 20.0
    assert [site.name for site in network.sites][-1] == "readout" and len(network.sites) == 3
    last = import_nir(plain_stack(), 1.0, float(STEPS), read="last")
    assert last.filtered.kind == "filtered_rate"
    check_same(plain_stack(), to_nir(last))


def test_spikes_that_are_read_are_counted() -> None:
    spiking = plain_stack(alike(3))
    network = import_nir(spiking, 1.0, float(STEPS))
    inputs = data(network)
    counts = list(network.activity(inputs).values())[-1].sum(1)
    assert torch.equal(network(inputs), counts) and counts.any()
    check_same(spiking, to_nir(network))
    with torch.no_grad():
        network.readout.weight[0, 1] = 0.5  # type: ignore[index, union-attr]
    assert isinstance(to_nir(network).nodes["readout"], nir.Linear)


def test_graphs_within_a_graph_are_put_in_their_place() -> None:
    inner = graph(
        "in n,n w,w n,n out",
        **{"in": shaped(6), "out": end(6), "n": alike(6), "w": nir.Linear(draws(6, 6))},
    )
    outer = graph(
        "x a,a g,g b,b y",
        **{"x": shaped(5), "a": nir.Linear(draws(6, 5)), "g": inner},
        **{"b": nir.Linear(draws(3, 6)), "y": end(3)},
    )
    flat = graph(
        "x a,a g.n,g.n g.w,g.w g.n,g.n b,b y",
        **{"x": shaped(5), "a": nir.Linear(draws(6, 5)), "g.n": alike(6)},
        **{"g.w": nir.Linear(draws(6, 6)), "b": nir.Linear(draws(3, 6)), "y": end(3)},
    )
    network = import_nir(outer, 1.0, float(STEPS))
    check_same(flat, to_nir(network))


def test_constants_that_are_given_once_hold_for_all() -> None:
    given = plain_stack()
    for name in ("1", "3"):
        for key in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
            setattr(given.nodes[name], key, np.array(getattr(given.nodes[name], key)[0]))
    check_same(plain_stack(), to_nir(import_nir(given, 1.0, float(STEPS))))


def test_how_a_spike_resets_can_be_chosen() -> None:
    value = import_nir(plain_stack(), 1.0, float(STEPS), reset="value")
    subtract = import_nir(plain_stack(), 1.0, float(STEPS), reset="subtract")
    assert {one.reset for one in neurons(value)} == {"zero"}
    assert {one.reset for one in neurons(subtract)} == {"subtract"}
    noted = to_nir(subtract, "node")
    check_same(plain_stack(), noted)
    assert noted.nodes["1"].metadata["reset"] == "subtract"
    check_same(noted, to_nir(import_nir(noted), "node"))


def test_an_encoding_can_be_chosen() -> None:
    encoding = EncodingRecipe(kind="poisson", dt_ms=0.5, duration_ms=10.0)
    network = import_nir(plain_stack(), encoding=encoding)
    assert network.encoding is not None
    assert (network.steps, network.encoding.dt_ms, network.encoding.shape) == (20, 0.5, (5,))
    finer = import_nir(plain_stack(), 0.25, encoding=encoding)
    assert finer.steps == 40


def test_a_file_of_biograd_can_be_read_in_other_steps() -> None:
    network = stack(reset="subtract")()
    finer = import_nir(to_nir(network), 0.5)
    (one, _), constants = neurons(finer), finer.layer("blocks.0.synapse").constants()
    assert finer.steps == 40
    assert one.reset == "subtract" and constants.beta == math.exp(-0.5 / 10)


@pytest.mark.parametrize("rule", ESTIMATORS)
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_every_rule_trains_what_was_imported(name: str, rule: str) -> None:
    network = import_nir(FOREIGN[name][0](), 1.0, float(STEPS))
    inputs, targets = data(network), torch.arange(8) % CLASSES
    engine = attach(network, make(rule), biograd.Decorrelation(rate=0.01))
    if rule == "decoupling":
        with pytest.raises(CapabilityError, match="cannot keep spikes as targets"):
            engine(inputs, targets, torch.arange(8))
        engine.detach()
        return
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(engine.parameters(), 0.01)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    # a synthesiser begins at zero and learns from the one behind it
    for _ in range(6 if rule == "synthetic_gradient" else 2):
        optimiser.zero_grad()
        engine(inputs, targets, torch.arange(8)).backward()
        optimiser.step()
        engine.update()
    for key, parameter in network.named_parameters():
        learns = ESTIMATORS[rule].learns_hidden or key.startswith("readout")
        assert torch.isfinite(parameter).all()
        assert torch.equal(parameter, before[key]) is not learns, key
    trained = to_nir(network)
    engine.detach()
    assert trained.nodes.keys() == to_nir(network).nodes.keys()


# What NIR cannot express --------------------------------------------------------------------------


def population(**changes: Any) -> Callable[[], Network]:
    return own({**LIF, **changes})


ADEX = {
    "equations": "dv/dt = (I - v + exp(v) - w) / (10*ms) : 1\ndw/dt = -w / (30*ms) : 1\nI : 1",
    "method": "euler",
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "rate": (lambda: biograd.build("ann", 5, 3), "Circuit: NIR describes populations in time"),
    "event": (lambda: biograd.build("event", 5, 3), "EventNetwork: NIR describes populations"),
    "module": (lambda: nn.Linear(5, 3), "Linear: NIR describes populations in time"),
    "first_spike": (stack(readout="first_spike"), "network.readout = 'first_spike': NIR cannot"),
    "adaptive": (stack(kind="adaptive_threshold"), "blocks.0: AdaptiveThreshold: NIR has no node"),
    "current": (stack(kind="adaptive_current"), "blocks.0: AdaptiveCurrent: NIR has no node"),
    "alpha": (stack(kind="alpha"), "blocks.0: AlphaSynapse: NIR has no node"),
    "recurrent rate": (
        lambda: biograd.build("ann_recurrent", (4, 5), 3), "blocks.0: Rate: NIR has no node"
    ),
    "waits": (stack(refractory_ms=2.0), "blocks.0: neuron.refractory_ms: NIR's neurons are never"),
    "residual": (
        lambda: built(network={"hidden": [5], "residual": True}),
        "blocks.0.skip: NIR has no node for a skip past neurons",
    ),
    "norm": (
        lambda: built(network={"normalisation": "batch"}),
        "blocks.0: NIR has no node for a TimeNormalisation",
    ),
    "maximum": (
        lambda: built((1, 6, 6), network={"channels": [2], "pooling": 2, "pool": "max"}),
        "blocks.1.synapse: NIR has no node for Pooling",
    ),
    "adex": (population(**ADEX), r"blocks.0: .*2 differential equations \(v, w\)"),
    "refractory": (population(refractory="2*ms"), r"refractoriness \(refractory = '2\*ms'\)"),
    "noise": (
        population(
            equations="dv/dt = (I - v) / (10*ms) + xi * (1*ms)**-0.5 : 1\nI : 1", method=""
        ),
        r"noise \(xi\)",
    ),
    "impulse": (
        population(equations="dv/dt = -v / (10*ms) : 1", input="v"),
        "input = 'v', a variable that impulses change",
    ),
    "synapse": (
        population(equations="dv/dt = (g - v) / (10*ms) : 1\ndg/dt = (I - g) / (4*ms) : 1\nI : 1"),
        r"2 differential equations \(g, v\)",
    ),
    "update": (population(update="v = clip(v, -1, 2)"), "statements that run in every step"),
    "square": (
        population(equations="dv/dt = (I - v**2) / (10*ms) : 1\nI : 1", method="euler"),
        "which is not linear",
    ),
    "product": (
        population(equations="dv/dt = (I * v - v) / (10*ms) : 1\nI : 1", method="euler"),
        "which is not linear",
    ),
    "conductance": (
        population(equations="dv/dt = (I**2 - v) / (10*ms) : 1\nI : 1"),
        "which is not linear",
    ),
    "grows": (
        population(equations="dv/dt = (I + v) / (10*ms) : 1\nI : 1"),
        "which does not decay",
    ),
    "time": (
        population(equations="dv/dt = (I - v + t / second) / (10*ms) : 1\nI : 1", method="euler"),
        "'t' is not a constant",
    ),
    "euler": (population(method="euler"), "method = 'euler', only the exact solution"),
    "threshold": (population(threshold="v >= 1"), r"threshold = 'v >= 1'; a node spikes at v >"),
    "two": (population(threshold="v > 1 or v < -5"), "threshold = 'v > 1 or v < -5'"),
    "below": (population(threshold="v < -1"), "threshold = 'v < -1'"),
    "curved": (population(threshold="v**2 > 1"), r"threshold = 'v\*\*2 > 1'"),
    "driven": (population(threshold="v > I"), "threshold = 'v > I'"),
    "halves": (population(reset="v *= 0.5"), "reset = 'v .= 0.5'"),
    "scales": (population(reset="v = v / 2"), "resets to a constant, or by one"),
    "more": (
        population(equations=LIF["equations"] + "\nn : 1", reset="v = 0; n += 1"),
        "resets its potential and nothing else",
    ),
    "begins": (population(initial={"v": 0.5}), "begins at 0.5, only one at rest: set initial.v"),
    "output": (
        population(equations=LIF["equations"] + "\nn : 1", output="n", reset="v = 0; n += 1"),
        "output = 'n'; a node passes on spikes or a potential",
    ),
    "both": (population(output="v"), "a threshold where output = 'v' is passed on"),
    "ports": (
        lambda: circuit(
            {"a": {"units": 4, **LIF, "equations": "dv/dt = (I + J - v) / ms : 1\nI : 1\nJ : 1"}},
            {"x": to("input", "a"), "z": to("input", "a", variable="J")},
        ),
        r"populations.a: NIR cannot express several input variables \(I, J\)",
    ),
    "shapes": (
        lambda: circuit(
            {"a": {"units": 16}, "b": {"units": 16}},
            {
                "x": to("input", "a", kind="convolution", channels=1, stride=1),
                "z": to("a", "b", kind="convolution", channels=1, stride=1),
                "w": to("input", "a"),
            },
            (1, 4, 4),
        ),
        r"z: NIR cannot bring \(16,\) units into the grid \(1, 4, 4\) of a convolution",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_nir_cannot_express_is_refused_by_name(case: str, tmp_path: Path) -> None:
    network, words = REFUSED[case]
    with pytest.raises(CapabilityError, match=words) as refused:
        export_nir(network(), tmp_path / "out.nir")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


CHANGED: dict[str, Any] = {
    "time_constant_ms": 12.0,
    "synaptic_time_constant_ms": 3.0,
    "resistance": 9.0,
    "threshold": 1.2,
    "reset": "zero",
    "refractory_ms": 2.0,
    "surrogate": "arctan",
    "slope": 4.0,
    "trainable": {"time_constant_ms": [0.5, 2.0]},
}


def said(kind: str, **fields: Any) -> str:
    """Return what the nodes of two populations say."""
    made = to_nir(built(neuron={"kind": kind, "resistance": 8.0, **fields}))
    return str({name: (node.to_dict(), node.metadata) for name, node in made.nodes.items()})


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field.name)
        for kind, neuron in NEURONS.items()
        for field in dataclasses.fields(neuron)
        if field.name != "kind"
    ],
)
def test_every_field_changes_the_nodes_or_is_refused(kind: str, field: str) -> None:
    if vars(NEURONS[kind]).get("nir") is Neuron.nir:
        with pytest.raises(CapabilityError, match=f"{NEURONS[kind].__name__}: NIR has no node"):
            NEURONS[kind]().nir(None)
        return
    try:
        assert said(kind, **{field: CHANGED[field]}) != said(kind)
    except CapabilityError as error:
        assert field in str(error)
    assert said(kind) == said(kind)


# What survives -----------------------------------------------------------------------------------


def said_by(made: Graph) -> dict[str, str]:
    """Return what a graph and its nodes note."""
    notes = {name: str(sorted(node.metadata.items())) for name, node in made.nodes.items()}
    return notes | {"graph": str(sorted((k, str(v)) for k, v in made.metadata.items()))}


def returned(network: Network) -> Circuit:
    """Return the network that was written and read, and check that it is written the same."""
    first = to_nir(network)
    again = import_nir(first)
    second = to_nir(again)
    check_same(first, second, 0)
    assert said_by(first) == said_by(second)
    return again


WRITTEN = [
    (kind, field.name)
    for kind, neuron in NEURONS.items()
    if vars(neuron).get("nir") is not Neuron.nir
    for field in dataclasses.fields(neuron)
    if field.name != "kind"
]
SEVERAL = {name: (CHANGED[name], CHANGED[name] / 2) * 3 for name in (
    "time_constant_ms", "synaptic_time_constant_ms", "resistance", "threshold",
)}  # fmt: skip


@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
@pytest.mark.parametrize(("kind", "field"), WRITTEN)
def test_every_field_comes_back_or_is_named(kind: str, field: str, each: bool) -> None:
    if each and field not in SEVERAL:
        pytest.skip("the same for all neurons")
    value = SEVERAL[field] if each else CHANGED[field]
    fields = {"kind": kind, "resistance": 8.0, field: value}
    network = built(network={"hidden": [6, 6]}, neuron=fields)
    if field == "refractory_ms":
        with pytest.raises(CapabilityError, match=field):
            to_nir(network)
    elif field == "trainable":
        with pytest.warns(UserWarning, match=r"learned = 'time_constant_ms \[0\.5, 2\]'.*fixed"):
            again = returned(trained_a_little(network))
        assert len(set(neurons(again)[0].time_constant_ms)) == 6
    else:
        again = returned(network)
        assert neurons(again) == neurons(network)
        assert getattr(neurons(again)[0], field) == value != getattr(NEURONS[kind](), field)


def test_what_is_not_noted_is_not_there() -> None:
    """The check sees it: without its note, or with another, a network is written otherwise."""
    first = to_nir(built())
    for key, value in (("slope", 3.0), ("surrogate", "gaussian"), ("learned", "tau [1, 2]")):
        other = copy.deepcopy(first)
        other.nodes["blocks_0"].metadata[key] = value
        assert said_by(to_nir(import_nir(other))) != said_by(first), key


WAYS: dict[str, dict[str, Any]] = {
    "dense": {},
    "without a bias": {"bias": False},
    "delay": {"delay_ms": 3.0},
    "masked": {"kind": "masked", "density": 0.5},
    "sparse": {"kind": "sparse", "density": 0.5},
    "sparse without a bias": {"kind": "sparse", "density": 0.5, "bias": False},
    "one to one": {"kind": "one_to_one"},
    "one to one without a bias": {"kind": "one_to_one", "bias": False},
    "convolution": {"kind": "convolution", "channels": 1, "kernel": 3, "stride": 1},
    "convolution, stride": {"kind": "convolution", "channels": 4, "kernel": 3, "stride": 2},
    "convolution, valid": {
        "kind": "convolution", "channels": 4, "kernel": 3, "stride": 1, "padding": "valid",
    },
    "convolution without a bias": {
        "kind": "convolution", "channels": 1, "stride": 1, "bias": False,
    },
    "sum of windows": {"pooling": 2, "pool": "sum"},
    "mean of windows": {"pooling": 2},
}  # fmt: skip
SIGNED = {
    f"{name}, {sign}": {**WAYS[name], "sign": sign}
    for name in ("dense", "masked", "sparse", "one to one", "one to one without a bias")
    for sign in ("excitatory", "inhibitory")
}
COMES_AS = {"Sparse": {"Masked"}, "OneToOne": {"OneToOne", "Masked"}}


@pytest.mark.parametrize("way", WAYS | SIGNED)
def test_every_projection_comes_back(way: str) -> None:
    """The same weights between the same units, of the same sign, that learn at the same places."""
    network = circuit(
        {"a": {"units": 16}, "b": {"units": 16}},
        {
            "into": to("input", "a", kind="convolution", channels=1, stride=1),
            "a_b": to("a", "b", **(WAYS | SIGNED)[way]),
        },
        (1, 4, 4),
        network={"substrate": "torch"},
        neuron={"resistance": 20.0},
    )
    again = returned(network)
    one, two = (next(p for p in n.graph.projections if p.path.endswith("a_b"))
                for n in (network, again))  # fmt: skip
    kind = type(one.layer).__name__
    assert type(two.layer).__name__ in COMES_AS.get(kind, {kind})
    assert (one.lag, one.source, one.target, str(one.before)) == (
        two.lag, two.source, two.target, str(two.before),
    )  # fmt: skip
    assert getattr(one.layer, "sign", "both") == getattr(two.layer, "sign", "both")
    assert (one.layer.bias is None) == (two.layer.bias is None)
    inputs = 3 * data(network)
    assert torch.equal(network(inputs), again(inputs)) and network(inputs).std() > 0


@pytest.mark.parametrize("kind", ["membrane", "rate", "filtered_rate", "potential", "counts"])
@pytest.mark.parametrize("timed", [False, True])
def test_every_readout_comes_back(kind: str, timed: bool) -> None:
    keys: dict[str, Any] = {"readout": kind}
    if kind in ("membrane", "filtered_rate"):
        keys["readout_time_constant_ms"] = 7.0
    keys["hidden"] = [7, CLASSES] if kind == "counts" else [7, 6]
    neuron = {"kind": "integrator"} if kind == "potential" else {}
    if timed and kind in ("rate", "potential"):
        with pytest.raises(RecipeError, match="one value of a trial"):
            built(timed=timed, network=keys, neuron=neuron)
        return
    network = built(timed=timed, network=keys, neuron=neuron)
    again = returned(network)
    inputs = 3 * data(network)
    assert torch.equal(network(inputs), again(inputs)) and network(inputs).std() > 0
    parts = [getattr(n, "behind" if timed else "filtered", None) for n in (network, again)]
    assert str(parts[0]) == str(parts[1])


@pytest.mark.parametrize("kind", ["membrane", "filtered_rate"])
def test_a_readout_of_graded_neurons_comes_back(kind: str) -> None:
    """Its integrator is no population, though what it reads does not spike."""
    network = built(network={"readout": kind}, neuron={"kind": "integrator"})
    again = returned(network)
    assert len(again.graph.blocks) == 2 and str(again.filtered) == str(network.filtered)
    inputs = data(network)
    assert torch.equal(network(inputs), again(inputs)) and network(inputs).std() > 0
    foreign = to_nir(network)
    del foreign.metadata["order"]
    if kind == "membrane":  # of a graph that notes no order, one more population
        assert len(import_nir(foreign).graph.blocks) == 3


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_normalisations_are_refused_by_name(kind: str) -> None:
    with pytest.raises(CapabilityError, match=r"blocks\.0: NIR has no node for a \w*Normalisation"):
        to_nir(built(network={"normalisation": kind}))


def test_no_neuron_inherits_a_form() -> None:
    """What a class adds would be lost; a form of its own is written."""

    class More(Leaky):
        more: float = 1.0

    class Own(Leaky):
        def nir(self, p: Any) -> Mapping[str, Any]:
            return {**Leaky.nir(self, p), "rest": 0.25}

    network = stack()()
    one, two = (block.cells for block in network.graph.blocks.values())  # type: ignore[union-attr, operator]
    one.neuron = More()
    with pytest.raises(CapabilityError, match=r"blocks.0: More: NIR has no node"):
        to_nir(network)
    one.neuron = two.neuron = Own()
    assert (to_nir(network).nodes["blocks_0"].v_leak == 0.25).all()


def changed(make_graph: Callable[[], Graph], change: Callable[[Graph], Any]) -> Callable[[], Graph]:
    def made() -> Graph:
        found = make_graph()
        change(found)
        return found

    return made


def put(name: str, node: Any) -> Callable[[Graph], None]:
    return lambda found: found.nodes.__setitem__(name, node)


def values(name: str, key: str, value: Any) -> Callable[[Graph], None]:
    return lambda found: setattr(found.nodes[name], key, value)


def edge(one: str, two: str) -> Callable[[Graph], None]:
    return lambda found: found.edges.append((one, two))


UNREADABLE: dict[str, tuple[Callable[[], Graph], str]] = {
    "pool": (
        changed(plain_stack, put("2", nir.SumPool2d(np.ones(2), np.ones(2), np.zeros(2)))),
        r"node '2': biograd pools grids \(channels, height, width\)",
    ),
    "oblong pool": (
        changed(pooled, values("p", "kernel_size", np.array([2, 3]))),
        "node 'p': biograd pools .* in square windows",
    ),
    "pooled twice": (
        changed(pooled, put("f", nir.SumPool2d(np.ones(2), np.ones(2), np.zeros(2)))),
        "node 'f': pooling is right behind a population",
    ),
    "line": (
        changed(plain_stack, put("2", nir.Conv1d(None, draws(1, 1, 3), 1, 0, 1, 1, draws(1)))),
        "node '2': biograd has nothing for a Conv1d",
    ),
    "inputs": (changed(plain_stack, put("z", shaped(5))), "needs one Input node, found 'x', 'z'"),
    "outputs": (changed(plain_stack, put("z", end(5))), "needs one Output node, found 'y', 'z'"),
    "nowhere": (changed(plain_stack, edge("x", "q")), "an edge names 'q', which is no node"),
    "read twice": (changed(plain_stack, edge("3", "y")), "node 'y': it sums what several"),
    "not read": (
        lambda: graph(
            "x a,a y,x n,n b,b n", x=shaped(5), a=nir.Linear(draws(3, 5)), n=alike(5),
            b=nir.Linear(draws(5, 5)), y=end(3),
        ),
        "node 'y': no population leads to it",
    ),
    "sums": (changed(plain_stack, edge("x", "2")), "node '2': it sums what several nodes bring"),
    "shared": (changed(plain_stack, edge("2", "1")), "node '2': its weights act in several"),
    "two layers": (
        lambda: graph(
            "x a,a b,b n,n y", x=shaped(5), a=nir.Linear(draws(5, 5)),
            b=nir.Linear(draws(5, 5)), n=alike(5), y=end(5),
        ),
        "node 'b': a layer right behind 'a', no population between",
    ),
    "no population": (
        lambda: graph("x a,a y", x=shaped(5), a=nir.Linear(draws(3, 5)), y=end(3)),
        "a graph without populations",
    ),
    "dead end": (everything, "node 'i': it leads nowhere"),
    "open end": (
        changed(plain_stack, lambda g: (put("q", nir.Linear(draws(3, 6)))(g), edge("1", "q")(g))),
        "node 'q': it leads nowhere",
    ),
    "nothing in": (
        changed(plain_stack, lambda g: g.edges.remove(("x", "0"))),
        "node '1': nothing leads to it",
    ),
    "sign": (
        changed(plain_stack, values("2", "metadata", {"sign": "excitatory"})),
        "node '2': it notes sign = 'excitatory', its weights have others",
    ),
    "mask": (
        changed(plain_stack, values("2", "metadata", {"mask": np.ones((2, 2), np.uint8)})),
        "a mask of another shape than its weights",
    ),
    "shape": (changed(plain_stack, put("2", nir.Linear(draws(4, 9)))), "weights from 9 units to 4"),
    "readout": (changed(plain_stack, put("4", nir.Linear(draws(3, 9)))), "weights from 9 units"),
    "batched": (
        changed(plain_stack, put("2", nir.Linear(draws(2, 4, 6)))), "not a matrix"
    ),
    "sizes": (changed(plain_stack, values("1", "tau", np.ones(5))), "tau has 5 values for 6"),
    "infinite": (changed(plain_stack, values("1", "r", np.full(6, np.inf))), "not finite"),
    "time": (changed(plain_stack, values("1", "tau", np.zeros(6))), "tau must be above zero"),
    "delays": (
        changed(without_an_integrator, put("d", nir.Delay(draws(4, low=0.001, high=0.003)))),
        r"node 'd': a delay of 2\.7\d+ ms is no multiple of dt_ms = 1",
    ),
    "between": (
        changed(without_an_integrator, put("d", nir.Delay(np.full(4, 0.0025)))),
        "a delay of 2.5 ms is no multiple of dt_ms = 1",
    ),
    "late": (
        changed(without_an_integrator, put("d", nir.Delay(np.full(4, 0.02)))),
        "nothing arrives within a trial of 20 ms",
    ),
    "bias": (
        lambda: graph(
            "x a,a d,d n,n y", x=shaped(5), a=nir.Affine(draws(5, 5), draws(5)),
            d=nir.Delay(np.full(5, 0.001)), n=alike(5), y=end(5),
        ),
        "node 'd': it delays a bias, too",
    ),
    "threshold": (
        lambda: graph(
            "x a,a t,t y", x=shaped(5), a=nir.Linear(draws(5, 5)),
            t=nir.Threshold(np.ones(5)), y=end(5),
        ),
        "node 't': a threshold needs a node I, LI, CubaLI in front of it",
    ),
    "kernel": (
        changed(images, put("c2", nir.Conv2d((4, 4), draws(3, 2, 3, 1), 2, 1, 1, 1, draws(3)))),
        r"node 'c2': biograd's convolutions have square kernels",
    ),
    "groups": (
        changed(images, put("c2", nir.Conv2d((4, 4), draws(2, 1, 3, 3), 1, 1, 1, 2, draws(2)))),
        r"node 'c2': biograd's convolutions .* no groups",
    ),
    "last": (lambda: plain_stack(alike(3)), "read = 'last': what is read last must be a leaky"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_biograd_cannot_read_is_refused_by_name(case: str) -> None:
    made, words = UNREADABLE[case]
    read: Any = "last" if case == "last" else None
    with pytest.raises(RecipeError, match=words) as refused:
        import_nir(made(), 1.0, float(STEPS), read=read)
    assert "\n" not in str(refused.value)


def test_choices_that_are_missing_or_wrong(tmp_path: Path) -> None:
    for arguments, words in (
        ({}, "dt_ms: missing: NIR has no time steps"),
        ({"dt_ms": -1.0}, "import_nir: dt_ms = -1.0: must be > 0"),
        ({"dt_ms": "1"}, "import_nir: dt_ms = '1': must be a number"),
        ({"duration_ms": 0}, "import_nir: duration_ms = 0.0: must be > 0"),
        ({"substrate": "nest"}, "import_nir: substrate = 'nest'"),
        ({"encoding": "rows"}, "encoding = 'rows': must be an EncodingRecipe"),
        ({"dt_ms": 1.0}, "graph: duration_ms: missing"),
        ({"dt_ms": 1.0, "duration_ms": 0.5}, "encoding.duration_ms = 0.5 is not a multiple"),
        ({"reset": "zero"}, "reset = 'zero': take 'value' or 'subtract'"),
        ({"read": "max"}, "read = 'max': take 'mean', 'sum', 'last' or 'steps'"),
        ({"encoding": EncodingRecipe(kind="rows", duration_ms=5.3)}, "not a multiple"),
    ):
        with pytest.raises(RecipeError, match=words) as refused:
            import_nir(plain_stack(), **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
    with pytest.raises(RecipeError, match="encoding 'current' gives 4 units, the input has 5"):
        graph = to_nir(import_nir(plain_stack(), encoding=EncodingRecipe()))
        graph.metadata["datum_shape"] = np.array([4])
        import_nir(graph)
    with pytest.raises(CapabilityError, match="of their own: snnTorch has no such neuron"):
        import_nir(images(), 1.0, 20.0, substrate="snntorch")
    with pytest.raises(RecipeError, match="subtract = 'graph': take 'loop' or 'node'"):
        to_nir(stack()(), "graph")  # type: ignore[arg-type]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    path = tmp_path / "file.nir"
    with pytest.raises(RecipeError, match=r"file.nir: cannot be read as a NIR file: .*No such"):
        import_nir(path)
    path.write_text("not HDF5")
    with pytest.raises(RecipeError, match=r"file.nir: cannot be read as a NIR file") as refused:
        import_nir(path)
    assert "\n" not in str(refused.value)
    nir.write(path, alike(3))
    with pytest.raises(RecipeError, match=r"file.nir: cannot be read as a NIR file"):
        import_nir(path)
    with pytest.raises(RecipeError, match=r"LIF: give a nir.NIRGraph or the path of a file"):
        import_nir(alike(3))
    network = stack()()
    with pytest.raises(RecipeError, match=r"file.nir: exists; choose another path"):
        export_nir(network, path)
    export_nir(network, path, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.nir"]
    with pytest.raises(biograd.BiogradError, match="cannot be written"):
        export_nir(network, tmp_path / "none" / "file.nir")


def test_without_nir_the_install_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "nir":
            raise ModuleNotFoundError("No module named 'nir'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    for attempt in (
        lambda: export_nir(stack()(), tmp_path / "out.nir"),
        lambda: import_nir(tmp_path / "in.nir"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'biograd\[nir\]'") as refused:
            attempt()
        assert refused.value.exit_code == 5


# Numbers ------------------------------------------------------------------------------------------


def test_a_time_is_the_number_that_someone_wrote() -> None:
    for tau in (10.0, 20.0, 1.1, 12.34, 1e3, 0.1):
        assert milliseconds(tau / 1000) == tau
    for tau in np.random.default_rng(0).uniform(0.7, 200, 200):
        assert abs(milliseconds(tau / 1000) - tau) < 1e-15 * tau


@pytest.mark.parametrize(
    ("kind", "through", "how"),
    [
        ("membrane", True, "mean"),
        ("filtered_rate", True, "last"),
        ("rate", False, "sum"),
        ("potential", False, "mean"),
    ],
)
def test_every_readout_follows_from_a_leaky_integrator(kind: str, through: bool, how: Any) -> None:
    """The table of ``weighing``, step by step."""
    course = torch.rand(1, STEPS, 1, dtype=torch.float64, generator=generator(3))
    left, r, weight, bias = math.exp(-1 / 20), 1.7 if through else 1.0, 0.8, 0.3
    potential, seen = 0.0, []
    for now in (weight * course + bias).flatten().tolist():
        potential = left * potential + (1 - left) * r * now if through else now
        seen.append(potential)
    read = {"mean": sum(seen) / STEPS, "sum": sum(seen), "last": seen[-1]}[how]
    unit, share = weighing(left if through else None, how, STEPS)
    mine = Readout(kind, STEPS, 1.0, 20.0)(course).item() * weight * r / unit + r * share * bias
    assert abs(mine - read) < 1e-12 * abs(read)


def test_a_convolution_lies_where_it_lay() -> None:
    again = import_nir(to_nir(grid()))
    assert isinstance(again, Circuit)
    one, two = again.projections["into"], again.projections["a_b"]
    assert isinstance(one, Convolution) and isinstance(two, Convolution)
    assert one.target_shape == (2, 4, 4) and two.target_shape == (3, 2, 2)
    assert one.bias is not None and two.bias is None


# The console --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "run.h5"
    settings = ["network.hidden=[8]", "dataset.training_examples=100", "dataset.test_examples=50"]
    biograd.train("spiking", "digits", epochs=1, path=path, settings=settings).close()
    return path


def test_a_run_is_exported(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_file.with_suffix(".nir")
    assert main(["export", str(run_file), "--format", "nir", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["file"] == str(out) and record["format"] == "nir" and out.is_file()
    with biograd.load(run_file) as run:
        network, engine = biograd.trained(run)
    inputs = torch.rand(20, 1, 8, 8, generator=generator(0))
    expected = network.activity(inputs)["blocks.0.activity"]
    again = import_nir(out)
    assert torch.equal(again.activity(inputs)["blocks.0.activity"], expected) and expected.any()
    assert (again(inputs) - network(inputs)).abs().max() < 1e-4
    engine.detach()
    assert main(["export", str(run_file), "--format", "nir"]) == 2
    assert "exists; choose another path" in capsys.readouterr().err
    assert main(["export", str(run_file), "--format", "nir", "--force", "--subtract", "node"]) == 0
    assert str(out) in capsys.readouterr().out
    assert isinstance(nir.read(out).nodes["blocks_0"], nir.LIF)


def test_the_spikes_of_a_run_are_exported(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "spikes.h5"
    assert main(["export", str(run_file), "--format", "sonata", "-o", str(out)]) == 0
    assert out.is_file() and str(out) in capsys.readouterr().out


def test_what_the_console_refuses(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for arguments, code, words in (
        ([str(run_file)], 2, "missing option '--format'"),
        ([str(run_file), "--format", "nri"], 2, "did you mean 'nir'"),
        ([str(tmp_path / "no.h5"), "--format", "nir"], 4, "there is no such run"),
        ([str(run_file), "--format", "sonata", "--subtract", "node"], 2, "only with --format nir"),
    ):
        assert main(["export", *arguments]) == code
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "nir", None)
    out = str(tmp_path / "out.nir")
    assert main(["export", str(run_file), "--format", "nir", "-o", out]) == 5
    assert "pip install 'biograd[nir]'" in capsys.readouterr().err


# Graphs that are damaged, or written by others


def _graph(first: Any, edges: Any = None, **others: Any) -> Any:
    """Return input, ``first``, neurons, a readout and an output."""
    one = np.ones(5)
    nodes = {
        "input": nir.Input(np.array([4])),
        "first": first,
        "cells": nir.LIF(one * 0.01, one, one * 0, one, v_reset=one * 0),
        "last": nir.Linear(np.ones((3, 5))),
        "output": nir.Output(np.array([3])),
    }
    chain = [("input", "first"), ("first", "cells"), ("cells", "last"), ("last", "output")]
    return nir.NIRGraph(nodes | others, [*chain, *(edges or [])], type_check=False)


def _read(graph: Any, **choices: Any) -> Any:
    return biograd.import_nir(graph, **{"dt_ms": 1.0, "duration_ms": 10.0, **choices})


ODD = {
    "NaN": np.nan,
    "infinite": np.inf,
    "complex": 1j,
    "text": "a",
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("node", ["Linear", "Affine", "Scale", "Conv2d", "Delay", "LIF", "bias"])
def test_a_value_that_is_no_finite_number_names_its_node(case: str, node: str) -> None:
    kind: Any = complex if case == "complex" else object if case == "text" else float

    def odd(*shape: int) -> Any:
        values = np.ones(shape, kind)
        values.ravel()[-1] = ODD[case] if case != "text" else {}
        return values

    one, key = np.ones(5), "weight"
    first: Any = nir.Linear(np.ones((5, 4)))
    others, edges = {}, []
    if node == "Linear":
        first.weight = odd(5, 4)
    elif node in ("Affine", "bias"):
        first = nir.Affine(np.ones((5, 4)), one)
        key = "bias" if node == "bias" else "weight"
        setattr(first, key, odd(*getattr(first, key).shape))
    elif node == "Scale":
        first = nir.Scale(np.ones(4))
        first.scale, key = odd(4), "scale"
    elif node == "Conv2d":
        first = nir.Conv2d((4, 4), np.ones((1, 1, 3, 3)), 1, 0, 1, 1, np.ones(1))
        first.weight = odd(1, 1, 3, 3)
    elif node == "Delay":
        first = nir.Delay(np.ones(4))
        first.delay, key = odd(4), "delay"
    graph = _graph(first, edges, **others)
    if node == "LIF":
        graph.nodes["cells"].tau, key = odd(5), "tau"
    name = "cells" if node == "LIF" else "first"
    with pytest.raises(RecipeError, match=f"node '{name}': {key}"):
        _read(graph)


def test_a_finite_graph_is_read_in_any_format_of_numbers(tmp_path: Path) -> None:
    for kind in (">f4", "<f8", "f2", "i2", "u8", "g"):
        network = _read(_graph(nir.Linear(np.ones((5, 4)).astype(kind))))
        assert torch.isfinite(network(torch.ones(2, 10, 4, dtype=torch.float64)[:, :, :])).all()


LOOPS: dict[str, Any] = {
    "of itself": [("first", "first")],
    "of two": [("first", "other"), ("other", "first")],
    "at the readout": [("flat", "flat"), ("flat", "output")],
}


@pytest.mark.parametrize("case", LOOPS)
@pytest.mark.timeout(20)
def test_a_loop_without_neurons_is_refused(case: str) -> None:
    flat = nir.Flatten({"input": np.array([5])}, 0, -1)
    graph = _graph(nir.Scale(np.ones(4)), LOOPS[case], other=nir.Delay(np.ones(4)), flat=flat)
    with pytest.raises((RecipeError, CapabilityError), match="node '"):
        _read(graph)


@pytest.mark.timeout(20)
def test_a_file_that_holds_itself_or_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.nir"
    for damage in ("loop", "huge", "shape", "kind"):
        nir.write(path, _graph(nir.Linear(np.ones((5, 4)))))
        with h5py.File(path, "r+") as file:
            nodes = file["node/nodes"]
            if damage == "loop":
                nodes["first/self"] = nodes
            elif damage == "huge":
                del nodes["first/weight"]
                nodes.create_dataset("first/weight", (10**6, 10**6), "f8", chunks=(100, 100))
            elif damage == "shape":
                del nodes["input/shape"]
                nodes["input/shape"] = [2**40, 2**40]
            else:
                del nodes["first/weight"]
                nodes["first/weight"] = np.zeros((5, 4), [("a", "f4")])
        with pytest.raises(RecipeError) as caught:
            _read(path)
        assert "\n" not in str(caught.value)


def test_the_steps_of_snntorch_are_asked_for() -> None:
    tau, one = np.full(5, 1e-3), np.ones(5)
    graph = _graph(nir.Linear(np.ones((5, 4))))
    graph.nodes["cells"] = nir.LIF(tau, tau / 1e-4, one * 0, one, v_reset=one * 0)
    with pytest.warns(UserWarning, match="node 'cells': r = tau / 0.1 ms, as snnTorch writes it"):
        _read(graph)
    _read(graph, dt_ms=0.1)  # no warning, which would be an error
    _read(_graph(nir.Linear(np.ones((5, 4)))))
