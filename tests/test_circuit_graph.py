"""Graphs: what follows from them, the same spikes on every simulator, every rule, every key."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import pytest
import torch
from networks_for_tests import looped, order
from torch import Tensor, nn

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.circuit.circuit import Circuit
from biograd.circuit.graph import INPUT, SKIP, Block, Graph, Projection
from biograd.circuit.unread import TAKES
from biograd.contracts import Transport
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.neurons import NEURONS, Leaky
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, NetworkRecipe, PopulationRecipe, construct, load_model
from biograd.simulators.population import Population

SIMULATORS = ("torch", "snntorch", "brian2")
CLASSES = 3
STRONG: dict[str, dict[str, Any]] = {
    "leaky": {"resistance": 12.0},
    "alpha": {"resistance": 12.0},
    "adaptive_threshold": {"resistance": 12.0},
    "adaptive_current": {"resistance": 14.0},
    "integrator": {"resistance": 2.0},
    "rate": {"activation": "tanh", "time_constant_ms": 5.0},
}
"""Neurons as they spike often, or are far from zero; others with their defaults."""
NEURON_NAMES = [name for name in NEURONS if name != "event_driven"]
NO_SNNTORCH = {"alpha", "adaptive_current", "rate"}


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling."""
    codegen = import_brian2().prefs.codegen
    kept, codegen.target = codegen.target, "numpy"
    yield
    codegen.target = kept


def table(simulator: str, **tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the table of a spiking recipe with other tables laid over it."""
    made: dict[str, Any] = {
        "network": {"kind": "spiking", "substrate": simulator, "dtype": "float64", "gain": 2.0},
        "neuron": {"resistance": 12.0},
    }
    for name, values in tables.items():
        made[name] = {**made.get(name, {}), **values}
    return made


def build(
    simulator: str, inputs: Any = (1, 8, 8), timed: bool = False, **tables: Mapping[str, Any]
) -> Any:
    recipe = construct(ModelRecipe, table(simulator, **tables), "test")
    network = biograd.build(recipe, inputs, CLASSES, timed=timed)
    stream = generator(0, "biases")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                draws = torch.rand(parameter.shape, generator=stream, dtype=torch.float64)
                parameter.copy_(0.1 * draws)
    return network


def images(rows: int = 6) -> tuple[Tensor, Tensor]:
    inputs = torch.rand(rows, 1, 8, 8, generator=generator(0, "images"), dtype=torch.float64)
    return inputs, torch.arange(rows) % CLASSES


def to(source: str, target: str, **settings: Any) -> dict[str, Any]:
    return {"source": source, "target": target, **settings}


# The same on every simulator ----------------------------------------------------------------------


def shape(name: str, large: bool) -> dict[str, Any]:
    """Return the tables of a network; the large one has a million entries in 32 rows."""
    width = [120, 60] if large else [12, 8]
    steps = 180.0 if large else 25.0
    encoding = {"duration_ms": steps, "gain": 1.5}
    tables: dict[str, Any] = {
        "dense": {"network": {"hidden": width}},
        "recurrent": {"network": {"hidden": width, "recurrent": True}},
        "convolution": {"network": {"hidden": [8], "channels": [3, 4], "stride": 1, "pooling": 2}},
    }.get(name, {"network": {"kind": "circuit"}})
    if name in ("delayed", "masked"):
        far = {"delay_ms": 3.0} if name == "delayed" else {"kind": "masked", "density": 0.3}
        tables["populations"] = {"a": {"units": width[0]}, "b": {"units": width[1]}}
        tables["projections"] = {
            "into": to("input", "a", **({} if name == "delayed" else far)),
            "on": to("a", "b", **far),
            "past": to("input", "b"),
        }
    return tables | {"encoding": encoding}


SHAPES = ("dense", "convolution", "recurrent", "delayed", "masked")


def simulators(neuron: str) -> list[str]:
    return [name for name in SIMULATORS if neuron not in NO_SNNTORCH or name != "snntorch"]


def networks_of(neuron: str, kind: str, large: bool = False) -> dict[str, Any]:
    one = {"kind": neuron, **STRONG.get(neuron, {})}
    given = shape(kind, large)
    made = {}
    for simulator in simulators(neuron):
        whole = table(simulator, **given) | {"neuron": one}
        made[simulator] = biograd.build(construct(ModelRecipe, whole, "test"), (1, 8, 8), CLASSES)
    return made


def stepped(network: Any) -> Any:
    """Return the network with populations that run step by step."""
    twin = copy.deepcopy(network)
    for part in twin.modules():
        if isinstance(part, Population):
            part.transport, part.handed = Transport(window=10**6, slots=True), []
    return twin


def check_same(neuron: str, kind: str, rows: int, large: bool) -> int:
    """Return how many entries were compared: spikes bit for bit, rates to 1e-12."""
    networks, inputs = networks_of(neuron, kind, large), images(rows)[0]
    first = networks["torch"].activity(inputs)
    others = {name: network.activity(inputs) for name, network in networks.items()}
    others["stepped"] = stepped(networks["torch"]).activity(inputs)
    for name, found in others.items():
        for key, course in first.items():
            if NEURONS[neuron].spiking:
                assert 0.002 < course.mean() < 0.9, f"{key}: {course.mean()}"
                differing = int((course != found[key]).sum())
                assert differing == 0, f"{name}: {differing} of {course.numel()}"
            else:
                gap = (course - found[key]).abs().max()
                assert course.std() > 1e-3 and gap < 1e-12 * course.abs().max(), name
    return sum(course.numel() for course in first.values())


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_the_same_courses(neuron: str, kind: str) -> None:
    assert check_same(neuron, kind, 4, large=False) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_a_million_entries_are_the_same(neuron: str, kind: str) -> None:
    rows = {"convolution": 22}.get(kind, 32)
    assert check_same(neuron, kind, rows, large=True) >= 1_000_000


def gradient(network: Any, rule: str = "backprop") -> Tensor:
    """Return all gradients of a step in one vector."""
    engine, (inputs, targets) = attach(network, make(rule), seed=1), images()
    network.zero_grad()
    engine(inputs, targets, torch.arange(len(inputs))).backward()
    engine.detach()
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in network.parameters()
        ]
    )


@pytest.mark.parametrize("rule", ["backprop", "weak"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("neuron", NEURON_NAMES)
def test_the_same_gradients(neuron: str, kind: str, rule: str) -> None:
    found = {name: gradient(one, rule) for name, one in networks_of(neuron, kind).items()}
    scale = found["torch"].abs().max()
    assert scale > 0
    for name, values in found.items():
        assert (values - found["torch"]).abs().max() < 1e-7 * scale, name


def test_another_constant_or_an_earlier_delay_is_noticed() -> None:
    """The control: a threshold that differs by a hundredth, a delay by a step."""
    inputs, given = images()[0], shape("delayed", large=False)
    first = build("torch", **given).activity(inputs)
    late = copy.deepcopy(given)
    late["projections"]["on"]["delay_ms"] = 2.0
    for tables in ({**given, "neuron": {"threshold": 1.01}}, late):
        other = build("brian2", **tables).activity(inputs)
        assert any(not torch.equal(other[name], course) for name, course in first.items())


EVERYTHING: dict[str, dict[str, Any]] = {
    "image": to("input", "grid", kind="convolution", channels=3, stride=1),
    "onto_a": to("grid", "a", pooling=2, pool="max", delay_ms=1.0),
    "some": to("input", "a", kind="sparse", density=0.2),
    "lateral": to("a", "a", bias=False),
    "one": to("a", "b", kind="one_to_one"),
    "past": to("a", "b", kind="skip"),
    "back": to("b", "a", sign="inhibitory", bias=False, delay_ms=1.0),
    "last": to("b", "c", kind="masked", density=0.5),
    "again": to("c", "c", kind="one_to_one", bias=False),
}


def everything(simulator: str, **changes: Any) -> Any:
    """Return a circuit of all parts: a loop of two populations, one within itself, a skip."""
    populations = {
        "grid": {"units": 192, "normalisation": "batch"},
        "a": {"units": 10, "normalisation": "layer"},
        "b": {"units": 10, "dropout": 0.2},
        "c": {"units": 6, "neuron": {"kind": "adaptive_threshold", "resistance": 12.0}},
    }
    return build(
        simulator,
        network={"kind": "circuit"},
        populations=populations,
        projections=EVERYTHING,
        encoding={"duration_ms": 15.0, "gain": 1.5},
        **changes,
    )


def test_a_circuit_of_everything_is_the_same() -> None:
    networks, (inputs, _) = {name: everything(name) for name in SIMULATORS}, images()
    first = networks["torch"].eval().activity(inputs)
    assert order(networks["torch"]) == ("grid", "a", "b", "c") and looped(networks["torch"])
    kinds = {name: type(layer).__name__ for name, layer in networks["torch"].projections.items()}
    assert {name: kind for name, kind in kinds.items() if kind != "GatheringLinear"} == {
        **{"image": "Convolution", "some": "Sparse", "back": "Masked", "last": "Masked"},
        **dict.fromkeys(("one", "again"), "OneToOne"),
    }
    assert networks["torch"].graph.groups == [
        ["cells.grid"],
        ["cells.a", "cells.b"],
        ["cells.c"],
    ]
    for name, network in networks.items():
        found = network.eval().activity(inputs)
        for key, course in first.items():
            assert course.any() and torch.equal(found[key], course), f"{name}: {key}"
    values = {name: gradient(network.train()) for name, network in networks.items()}
    scale = values["torch"].abs().max()
    for name, found in values.items():
        assert scale > 0 and (found - values["torch"]).abs().max() < 1e-7 * scale, name


# What follows from a graph ------------------------------------------------------------------------


def test_units_that_do_not_match_one_to_one_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"x\.kind = 'one_to_one': leads from 64"):
        course({}, {}, to("input", "b", kind="one_to_one"))


def block(name: str, **settings: Any) -> Block:
    return Block(f"cells.{name}", nn.Identity(), name, spiking=True, **settings)


def edge(source: str, target: str, lag: int = 0, port: str = "I") -> Projection:
    path = f"projections.{source}_{target}"
    source = source if source == INPUT else f"cells.{source}"
    return Projection(path, source, f"cells.{target}", nn.Linear(1, 1), port, lag)


def test_populations_that_feed_each_other_are_one_group() -> None:
    """a | b <-> d, with c between them | e within itself | f behind all, though it stands first."""
    graph = Graph(
        [
            *(block(name) for name in "fabcde"),
            edge(INPUT, "a"),
            edge("a", "b"),
            edge("b", "c"),
            edge("c", "d"),
            edge("d", "b", lag=1),
            edge("d", "e"),
            edge("e", "e", lag=1),
            edge("e", "f", lag=1),
        ],
        timed=True,
    )
    short = [[name.removeprefix("cells.") for name in group] for group in graph.groups]
    assert short == [["a"], ["b", "c", "d"], ["e"], ["f"]]
    assert {name.removeprefix("cells.") for name in graph.together} == set("bcd")
    slow = Graph([block("a"), edge(INPUT, "a"), edge("a", "a", lag=2)], timed=True)
    assert set(slow.together) == {"cells.a"}  # its own loop takes more than a step


def test_sites_are_ports_and_know_their_layers() -> None:
    graph = Graph(
        [
            block("a"),
            block("b", ports=("I", "g"), inner=""),
            edge(INPUT, "a"),
            edge("a", "a", lag=1),
            edge("a", "b"),
            edge("b", "b", lag=1, port="g"),
            edge(INPUT, "b", port="g"),
        ],
        timed=True,
    )
    first, inner, last = graph.sites
    assert (first.name, inner.name, last.name) == ("a", "b.g", "b")
    assert first.modules == ("projections.input_a", "projections.a_a") and first.inner is None
    assert first.time == (True, False)
    assert inner.block == "b" and last.block is None
    assert inner.inner == ("projections.b_b",) and last.inner == ()
    assert first.activity == "cells.a.activity" and last.activity == "cells.b"


def test_a_port_that_receives_nothing_is_refused() -> None:
    parts = [block("a", ports=("I", "g")), edge(INPUT, "a")]
    with pytest.raises(CapabilityError, match="population 'a': nothing leads to its 'g'"):
        Circuit(parts, nn.Linear(1, 1))


def one_step(lag: int) -> Any:
    projections = {"into": to("input", "a"), "on": to("a", "b", delay_ms=float(lag))}
    populations = {"a": {"units": 8}, "b": {"units": 8}}
    return build(
        "torch",
        network={"kind": "circuit"},
        populations=populations,
        projections=projections,
        encoding={"gain": 1.5},
    )


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_a_delay_shifts_what_arrives(lag: int) -> None:
    """By hand: the spikes of a, ``lag`` steps later, through the layer and into b."""
    network, (inputs, _) = one_step(lag), images()
    found = network.activity(inputs)
    train, layer = found["cells.a"], network.projections["on"]
    late = torch.cat((torch.zeros_like(train[:, :lag]), train[:, :-lag]), 1)
    with torch.no_grad():
        expected = network.layer("b")(layer(late))
    assert torch.equal(found["cells.b"], expected) and expected.any()
    assert not torch.equal(found["cells.b"], network.layer("b")(layer(train)))


def test_a_skip_adds_what_its_source_passes_on() -> None:
    """Behind the neurons: layer by layer, and as a projection of a circuit."""
    inputs = images()[0]
    network = build("torch", network={"hidden": [8, 8], "residual": True})
    found = network.activity(inputs)
    first, second = (found[name] for name in network.populations)
    with torch.no_grad():
        passed = network.blocks[1].activity(network.get_submodule("blocks.1.synapse")(first))
        read = network.readout(network.filtered(passed + first))
    assert torch.equal(second, passed + first) or torch.equal(second, passed)
    assert (network(inputs) - read).abs().max() < 1e-12 and first.any() and passed.any()
    plain = build("torch", network={"hidden": [8, 8]})
    assert not torch.equal(plain(inputs), network(inputs))


def test_dropout_is_of_a_trial_and_off_in_evaluation() -> None:
    inputs = images()[0]
    network = build("torch", network={"hidden": [40], "dropout": 0.5})
    plain = build("torch", network={"hidden": [40]})
    assert torch.equal(network.eval()(inputs), plain(inputs))
    kept = network.train().blocks[0](network.get_submodule("blocks.0.synapse")(inputs.flatten(1)))
    train = plain.activity(inputs)["blocks.0.activity"]
    silent = (kept == 0).all(1) & train.any(1)
    assert 0.1 < silent.double().mean() < 0.6
    seen = kept[~silent.unsqueeze(1).expand_as(kept)]
    assert set(seen.unique().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("channels", [False, True])
def test_normalisation_is_over_batch_and_time(channels: bool) -> None:
    """tdBN: in training a channel's current has the deviation of the threshold."""
    grid = {"channels": [3], "hidden": [], "stride": 1} if channels else {"hidden": [7]}
    network = build("torch", network={**grid, "normalisation": "batch"}, neuron={"threshold": 1.5})
    nn.init.zeros_(network.get_submodule("blocks.0.normalise.norm").bias)
    inputs, seen = images()[0], []
    handle = network.get_submodule("blocks.0.normalise").register_forward_hook(
        lambda _module, _given, output: seen.append(output.detach())
    )
    network.train()(inputs)
    handle.remove()
    (current,) = seen
    current = current.reshape(-1, 3, 64).transpose(1, 2) if channels else current
    flat = current.reshape(-1, current.shape[-1])
    assert flat.mean(0).abs().max() < 1e-6
    assert (flat.std(0, unbiased=False) - 1.5).abs().max() < 1e-3


def test_which_layers_receive_spikes() -> None:
    """Max pooling keeps spikes, the average does not; nor does dropout, a skip, a graded unit."""

    def into(**network: Any) -> list[str]:
        made = build("torch", network=network, encoding={"kind": kind})
        layers = [*(name for site in made.sites for name in site.modules)]
        return [name for name in layers if made.spikes_into(name)]

    kind = "poisson"
    assert into(hidden=[8, 8]) == ["blocks.0.synapse", "blocks.1.synapse", "readout"]
    assert into(hidden=[8, 8], residual=True) == ["blocks.0.synapse", "blocks.1.synapse"]
    assert into(hidden=[8, 8], dropout=0.2) == ["blocks.0.synapse"]
    kind = "current"
    pooled = {"channels": [2], "stride": 1, "hidden": [8], "pooling": 2}
    assert into(**pooled) == ["readout"]
    assert into(**pooled, pool="max") == ["blocks.1.synapse", "readout"]
    assert into(hidden=[8], recurrent=True) == ["blocks.0.recurrent", "readout"]
    graded = build("torch", network={"hidden": [8]}, neuron={"kind": "integrator"})
    assert not graded.spikes_into("readout")
    with_all = everything("torch")
    assert {n for n in EVERYTHING if with_all.spikes_into(f"projections.{n}")} == {
        *("onto_a", "lateral", "one", "past", "again")
    }
    assert not with_all.spikes_into("projections.back")  # behind dropout and a skip


# Every rule ---------------------------------------------------------------------------------------

RULES_REFUSED = {"decoupling": "cannot keep spikes as targets"}
BATCH_REFUSED = dict.fromkeys(
    ("likelihood_ratio", "forward_gradient_weight", "forward_gradient_activity"),
    "ties the examples",
)


def convolutional(**network: Any) -> Any:
    """Return a small network of the shipped recipe, 4C3-P2-6C3-P2."""
    settings = [
        *("network.channels=[4, 6]", "network.kernel=3", "network.dtype=float64"),
        *("network.gain=2.0", "encoding.duration_ms=8.0", "neuron.resistance=12.0"),
        *(f"network.{name}={value}" for name, value in network.items()),
    ]
    recipe = load_model("spiking_convolution", assignments=settings)
    return biograd.build(recipe, (1, 8, 8), CLASSES)


@pytest.mark.parametrize("normalisation", ["none", "batch", "layer"])
@pytest.mark.parametrize("rule", ESTIMATORS)
def test_rules_on_a_convolutional_spiking_network(rule: str, normalisation: str) -> None:
    """They run and learn in every layer, or refuse with a line that is known."""
    network, (inputs, targets) = convolutional(normalisation=normalisation), images(9)
    before = copy.deepcopy(network.state_dict())
    frozen = normalisation != "none" and ESTIMATORS[rule].reach == "currents"
    try:
        engine = attach(network, make(rule), seed=1, outside="freeze" if frozen else "refuse")
        engine.prepare(inputs, targets)
        optimiser = torch.optim.SGD(engine.parameters(), 0.1)
        for _ in range(2):
            optimiser.zero_grad()
            engine(inputs, targets, torch.arange(9)).backward()
            optimiser.step()
            engine.update()
    except CapabilityError as error:
        assert "\n" not in str(error)
        words = RULES_REFUSED.get(rule) or (normalisation == "batch" and BATCH_REFUSED.get(rule))
        assert words and words in str(error), str(error)
        return
    assert rule not in RULES_REFUSED and (normalisation != "batch" or rule not in BATCH_REFUSED)
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter).all()
        moved = not torch.equal(parameter, before[name])
        later = rule == "synthetic_gradient"  # its synthesisers start from zero
        if (not later and "synapse.weight" in name) or name == "readout.weight":
            assert moved is (ESTIMATORS[rule].learns_hidden or name == "readout.weight"), name
        assert not (moved and frozen and ".normalise." in name), name


@pytest.mark.parametrize("normalisation", ["batch", "layer"])
def test_online_credit_passes_a_normalisation(normalisation: str) -> None:
    """In a window of the whole trial it is back-propagation, the normalisation's gain as well."""
    network, (inputs, targets) = convolutional(normalisation=normalisation), images(9)
    found, kept = [], copy.deepcopy(network.state_dict())
    for rule in (make("backprop"), make("ottt", {"window": 8})):
        network.load_state_dict(kept)
        engine = attach(network, rule, seed=1)
        network.zero_grad()
        engine(inputs, targets).backward()
        engine.detach()
        found.append({name: p.grad for name, p in network.named_parameters()})
        statistics = {n: v for n, v in network.state_dict().items() if "running" in n}
        found[-1] |= {n: v.clone() for n, v in statistics.items()}
    for name, value in found[0].items():
        assert value.any() and (found[1][name] - value).abs().max() < 1e-10 * value.abs().max()


def test_at_least_twenty_rules_run() -> None:
    assert len(ESTIMATORS) - len(RULES_REFUSED | BATCH_REFUSED) >= 20


# Every key ----------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "hidden": (6, 4),
    "channels": (2,),
    "kernel": 5,
    "stride": 1,
    "pooling": 2,
    "pool": "max",
    "recurrent": True,
    "residual": True,
    "activation": "tanh",
    "normalisation": "layer",
    "label_inputs": True,
    "dropout": 0.3,
    "gain": 2.0,
    "dtype": "float64",
    "substrate": "brian2",
    "readout": "rate",
    "readout_time_constant_ms": 5.0,
    "delays": {"start_ms": 3.0},
}
BASES: dict[str, dict[str, Any]] = {
    "rate": {"kind": "rate", "hidden": (5, 5)},
    "rate, channels": {"kind": "rate", "hidden": (5, 5), "channels": (3,)},
    "rate, pooled": {"kind": "rate", "hidden": (5, 5), "channels": (3,), "pooling": 3},
    "rate, recurrent": {"kind": "rate", "hidden": (5, 5), "recurrent": True},
    "spiking": {"kind": "spiking", "hidden": (5, 5)},
    "spiking, channels": {"kind": "spiking", "hidden": (5, 5), "channels": (3,), "pooling": 3},
    "circuit": {"kind": "circuit"},
    "local_mixer": {"kind": "local_mixer"},
}


def signature(kind: str, **changes: Any) -> str:
    """Return what can be told of a network from outside: parts, sites, outputs in training."""
    network = {**BASES[kind], **changes}
    parts: dict[str, Any] = {"network": network}
    if network["kind"] == "local_mixer":
        parts["mixer"] = {"channels": 4}
    if network["kind"] in ("spiking", "circuit"):
        parts["neuron"] = {"resistance": 20.0}
    if network["kind"] == "circuit":
        parts["populations"], parts["projections"] = {"a": {"units": 5}}, {"x": to("input", "a")}
    made = biograd.build(construct(ModelRecipe, parts, "test"), (1, 8, 8), CLASSES)
    inputs = images()[0]
    torch.manual_seed(0)
    outputs = made.train()(inputs)
    simulated = getattr(made, "simulator", "")
    return f"{made}{made.sites}{simulated}{outputs.dtype}{outputs.detach().sum().item()!r}"


@pytest.mark.parametrize("kind", BASES)
def test_every_key_of_the_network_is_obeyed_or_refused(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(NetworkRecipe)}
    assert fields == {*OTHER, "kind"} and set(TAKES) == {one["kind"] for one in BASES.values()}
    plain, refused = signature(kind), set()
    for name, value in OTHER.items():
        if BASES[kind].get(name) == value:
            continue
        try:
            found = signature(kind, **{name: value})
        except RecipeError as error:
            assert f"network.{name}" in str(error) and "\n" not in str(error), str(error)
            refused.add(name)
        else:
            assert found != plain, f"{kind} ignores network.{name} = {value!r}"
    assert refused, "some key belongs to another kind of network"
    assert refused < set(OTHER)


POPULATION: dict[str, Any] = {
    "units": 6,
    "neuron": {"kind": "leaky", "threshold": 0.5},
    "normalisation": "layer",
    "dropout": 0.3,
}
PROJECTION: dict[str, Any] = {
    "source": "a",
    "target": "a",
    "variable": "I",
    "kind": "masked",
    "sign": "inhibitory",
    "delay_ms": 2.0,
    "delays": {"start_ms": 3.0},
    "bias": False,
    "pooling": 2,
    "pool": "max",
    "density": 0.5,
    "channels": 4,
    "kernel": 5,
    "stride": 1,
    "padding": "valid",
}


def course(
    population: Mapping[str, Any], projection: Mapping[str, Any], base: Mapping[str, Any]
) -> str:
    made = build(
        "torch",
        network={"kind": "circuit"},
        populations={"a": {"units": 8, **population}, "b": {"units": 8}},
        projections={"into": to("input", "a"), "on": to("a", "b"), "x": {**base, **projection}},
        encoding={"gain": 2.0},
    )
    torch.manual_seed(0)
    outputs = made.train()(images()[0])
    return f"{made}{made.graph.projections}{outputs.detach().sum().item()!r}"


def test_every_key_of_populations_is_obeyed_or_refused() -> None:
    """Keys of equations are refused without equations."""
    base = to("input", "b")
    plain = course({}, {}, base)
    hints = get_type_hints(PopulationRecipe, include_extras=True)
    for field in dataclasses.fields(PopulationRecipe):
        if field.name in POPULATION:
            assert course({field.name: POPULATION[field.name]}, {}, base) != plain, field.name
            continue
        text = str in (hints[field.name], *get_args(hints[field.name]))
        value: Any = "v" if text else {"v": [0.5, 2.0] if field.name == "trainable" else 1.0}
        words = "populations.a.equations" if field.name == "equations" else field.name
        with pytest.raises(RecipeError, match=f"{words}|equations: missing"):
            course({field.name: value}, {}, base)


@pytest.mark.parametrize(
    "base", [to("input", "b"), to("input", "b", kind="convolution", channels=2, kernel=3, stride=4)]
)
def test_every_key_of_projections_is_obeyed_or_refused(base: dict[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(biograd.recipes.ProjectionRecipe)}
    assert fields == set(PROJECTION)
    plain = course({}, {}, base)
    for name, value in PROJECTION.items():
        try:
            found = course({}, {name: value}, base)
        except RecipeError as error:
            assert "projections.x." in str(error) or "populations.b" in str(error)
            assert "\n" not in str(error)
        else:
            assert found != plain or name == "variable", f"ignored: {name} = {value!r}"


@pytest.mark.parametrize("kind", ["spiking", "rate", "circuit"])
def test_outputs_in_every_step(kind: str) -> None:
    """Of networks in time; the mean of a spiking network's is not what its trial is read as."""
    tables: dict[str, Any] = {"network": {"kind": kind, "hidden": [6], "recurrent": True}}
    if kind == "circuit":
        tables = {"network": {"kind": kind}, "populations": {"a": {"units": 6}}}
        tables["projections"] = {"into": to("input", "a")}
    recipe = table("torch", **tables)
    if kind == "rate":
        del recipe["neuron"]
    made = biograd.build(construct(ModelRecipe, recipe, "test"), (1, 8, 8), CLASSES, timed=True)
    outputs = made(images()[0])
    assert outputs.shape == (6, 20, CLASSES) and outputs.std(1).max() > 0
    assert made.sites[-1].time == (True,)


def test_a_network_without_time_has_no_output_in_every_step() -> None:
    with pytest.raises(RecipeError, match="an output in every step needs a network in time"):
        biograd.build("ann", 6, CLASSES, timed=True)
    assert SKIP == "passed" and Leaky().kind == "leaky"
