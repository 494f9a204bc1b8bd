"""What an example costs: operations counted by hand, alike on every simulator; peak memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_for_tests import SUBSTRATES, batch, spiking
from torch import Tensor, nn

import biograd
from biograd import experiment
from biograd.circuit.grids import Convolution, Pooling
from biograd.circuit.projections import Masked, OneToOne, Sparse
from biograd.networks import Network
from biograd.randomness import generator
from biograd.recipes import (
    EncodingRecipe,
    ModelRecipe,
    NetworkRecipe,
    PopulationRecipe,
    ProjectionRecipe,
)
from biograd.recording.costs import Operations, count, operations, peak_memory

CURRENT = {"kind": "current"}
POISSON = {"kind": "poisson", "max_rate_hz": 500.0}


def synaptic(layer: nn.Module, values: Tensor, rows: int = 1) -> float | None:
    found = Operations()
    count(found, layer, values, rows, spikes=True)
    assert found.multiply_accumulates == 0
    return found.synaptic_operations


def analogue(layer: nn.Module, values: Tensor, rows: int = 1) -> float:
    found = Operations()
    count(found, layer, values, rows, spikes=False)
    assert found.synaptic_operations is None
    return found.multiply_accumulates


# One layer, by hand


def test_a_spike_costs_the_weights_that_are_not_zero() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[1.0, 0.0, -3.0], [0.0, 0.0, 5.0]])  # fan-out 1, 0, 2
    assert synaptic(layer, torch.tensor([[1.0, 1.0, 2.0]])) == 1 + 0 + 2 * 2
    assert synaptic(layer, torch.tensor([[[1.0, 0, 1], [0, 1, 1]]])) == 1 + 2 + 2  # in two steps
    assert synaptic(layer, torch.zeros(1, 3)) == 0
    assert synaptic(layer, torch.tensor([[1.0, 0, 0], [0, 0, 1]]), rows=2) == (1 + 2) / 2
    assert analogue(layer, torch.zeros(1, 3)) == 3  # analogue zeros are multiplied like all else


def taps(layer: Any, height: int, width: int) -> dict[tuple[int, int, int], int]:
    """Return the fan-out of every input of a two-dimensional convolution, tap by tap."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else value

    stride, padding = pair(layer.stride), pair(layer.padding)
    dilation = pair(getattr(layer, "dilation", 1))
    sizes = [
        (size + 2 * pad - dil * (kernel - 1) - 1) // step + 1
        for size, pad, dil, kernel, step in zip(
            (height, width), padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    outputs, inputs = weight.shape[:2]
    found = dict.fromkeys(itertools.product(range(inputs * groups), range(height), range(width)), 0)
    for out, i, a, b in itertools.product(*map(range, weight.shape)):
        if weight[out, i, a, b] == 0:
            continue
        source = out // (outputs // groups) * inputs + i
        for y, x in itertools.product(*map(range, sizes)):
            row = y * stride[0] - padding[0] + a * dilation[0]
            column = x * stride[1] - padding[1] + b * dilation[1]
            if 0 <= row < height and 0 <= column < width:
                found[source, row, column] += 1
    return found


CONVOLUTIONS = {
    "stride 2": nn.Conv2d(2, 3, 3, stride=2, padding=1),
    "groups": nn.Conv2d(4, 6, (1, 2), stride=(1, 2), padding=(0, 1), groups=2, bias=False),
    "dilated": nn.Conv2d(1, 2, 2, dilation=2),
    "projection": Convolution((2, 5, 6), 3, stride=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_has_the_fan_out_of_each_input(kind: str) -> None:
    layer, shape = CONVOLUTIONS[kind], (5, 6)
    stream = generator(0, kind)
    weight = torch.randn(layer.weight.shape, generator=stream)  # type: ignore[arg-type]
    layer.weight.data = weight * (torch.rand(weight.shape, generator=stream) < 0.7)  # type: ignore[union-attr]
    fans = taps(layer, *shape)
    assert len(set(fans.values())) > 2  # at the border it is another one
    channels = 1 + max(place[0] for place in fans)
    spikes = (torch.rand(1, channels, *shape, generator=stream) < 0.4).float()
    values = spikes.flatten(1) if kind == "projection" else spikes
    expected = sum(fan for place, fan in fans.items() if spikes[0][place])
    assert synaptic(layer, values) == expected > 0
    assert analogue(layer, values) == sum(fans.values()) > expected


def test_projections_count_what_exists() -> None:
    mask = torch.tensor([[True, False, True], [True, False, False]])
    for sign in ("both", "excitatory", "inhibitory"):
        layer = Masked(mask, sign=sign)  # type: ignore[arg-type]
        layer.weight.data = torch.where(mask, torch.tensor([[-1.0, 2, 3], [4, 5, 6]]), 0.0)
        assert synaptic(layer, torch.tensor([[1.0, 1, 1]])) == 3
        assert synaptic(layer, torch.tensor([[0.0, 1, 2]])) == 2
    assert synaptic(OneToOne(4), torch.tensor([[1.0, 1, 0, 3]])) == 5
    some = Sparse(3, 2, torch.tensor([[0, 0], [0, 2], [1, 0]]), sign="inhibitory")
    some.weight.data = torch.tensor([1.0, 0.0, -2.0])  # fan-out 2, 0, 0
    assert synaptic(some, torch.tensor([[1.0, 1, 2]])) == 2
    assert synaptic(some, torch.tensor([[[1.0, 1, 1], [1, 0, 0]]])) == 4
    assert analogue(some, torch.zeros(1, 3)) == 2


class Pooled(nn.Module):
    """Spikes of a population in a grid of 3 x 3, a pooling, a layer."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.population = spiking("torch").get_submodule("blocks.0.activity")  # they fire
        self.pooling = Pooling((1, 3, 3), 2, 1, kind)
        self.readout = nn.Linear(4, 5, bias=False)
        nn.init.ones_(self.readout.weight)

    def forward(self, spikes: Tensor) -> Tensor:
        return self.readout(self.pooling(spikes))  # type: ignore[no-any-return]


def test_a_pooling_costs_what_arrives_in_its_windows() -> None:
    """Windows of 2 x 2, each step apart: a corner lies in one of them, the centre in four."""
    spikes = torch.zeros(1, 2, 9)
    spikes[0, 0, [0, 4]] = 1  # first step: a corner, the centre
    spikes[0, 1, [1]] = 1  # second step: the middle of an edge
    arrived = (1 + 4) + 2
    found = operations(Pooled("max"), spikes)
    assert found.synaptic_operations == arrived + (4 + 2) * 5  # 4, then 2 windows with a spike
    assert found.multiply_accumulates == 0
    for kind in ("average", "sum"):
        found = operations(Pooled(kind), spikes)
        assert found.synaptic_operations == arrived
        assert found.multiply_accumulates == 2 * 4 * 5  # analogue values, zero or not
    found = operations(Pooled("max"), spikes + 0.5)
    assert found.synaptic_operations is None
    assert found.multiply_accumulates == 2 * 4 * 4 + 2 * 4 * 5


def test_a_parametrised_weight_counts_as_it_acts() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * torch.tensor([1.0, 0.0])

    layer = nn.Linear(2, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Half())
    assert synaptic(layer, torch.ones(1, 2)) == 3


# Whole networks


def fan_out(layer: nn.Module) -> Tensor:
    return (layer.weight != 0).double().sum(0)  # type: ignore[operator]


def by_hand(network: Network, inputs: Tensor) -> Operations:
    """Count a spiking network of dense layers from the spikes that it records."""
    activity = network.activity(inputs)
    arriving = network.encode(inputs, generator(0, "forward")).double()
    mac, spikes = 0.0, 0.0
    for index, block in enumerate(network.blocks):  # type: ignore[arg-type]
        if index == 0 and not network.encoding.spikes:  # type: ignore[union-attr]
            mac += arriving.shape[1] * float(fan_out(block["synapse"]).sum())
        else:
            spikes += float((arriving.sum(1) @ fan_out(block["synapse"])).mean())
        arriving = activity[f"blocks.{index}.activity"].double()
        if "recurrent" in block:  # what is fed back in a step is of the step before
            fed = arriving[:, :-1].sum(1)
            spikes += float((fed @ fan_out(block["recurrent"])).mean())
    spikes += float((arriving.sum(1) @ fan_out(network.readout)).mean())  # type: ignore[arg-type]
    return Operations(mac, spikes)


@pytest.mark.parametrize("encoding", [CURRENT, POISSON], ids=lambda e: e["kind"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_counts_are_those_of_the_spikes_on_every_simulator(
    recurrent: bool, encoding: dict[str, Any]
) -> None:
    inputs, _ = batch(6)
    found = {}
    for substrate in SUBSTRATES:
        network = spiking(substrate, {"recurrent": recurrent}, encoding=encoding)
        with torch.no_grad():
            network.get_parameter("blocks.1.synapse.weight")[:2, 1:3] = 0.0  # pruned
        found[substrate] = operations(network, inputs)
        expected = by_hand(network, inputs)
        assert found[substrate].multiply_accumulates == expected.multiply_accumulates
        assert found[substrate].synaptic_operations == pytest.approx(
            expected.synaptic_operations, rel=1e-12
        )
        assert found[substrate].synaptic_operations
    assert found["torch"] == found["snntorch"] == found["brian2"]
    assert found["torch"].multiply_accumulates == (6 * 5 if encoding is CURRENT else 0)
    full = spiking("torch", {"recurrent": recurrent}, encoding=encoding)
    assert operations(full, inputs).synaptic_operations != found["torch"].synaptic_operations


def test_rows_are_multiplied_in_every_step() -> None:
    encoding = {"kind": "rows", "duration_ms": 8.0}
    recipe = ModelRecipe(
        network=NetworkRecipe(kind="spiking", hidden=(5,)), encoding=EncodingRecipe(**encoding)
    )
    network = biograd.build(recipe, (1, 4, 3), 2)
    found = operations(network, torch.rand(4, 1, 4, 3))
    assert found.multiply_accumulates == 8 * 3 * 5
    binary = operations(network, torch.ones(4, 1, 4, 3))  # a current of 1 is no spike
    assert binary.multiply_accumulates == 8 * 3 * 5


def test_the_readout_counts_the_spikes_that_it_reads() -> None:
    inputs, _ = batch(6)
    counts = {}
    for readout in ("membrane", "rate", "first_spike"):
        network = spiking(network={"readout": readout})
        counts[readout] = operations(network, inputs).synaptic_operations
        spikes = network.activity(inputs)["blocks.1.activity"].double()
    assert counts["membrane"] == counts["rate"]
    saved = float((spikes.sum(1) - spikes.amax(1)).sum(1).mean()) * 3
    assert counts["rate"] - counts["first_spike"] == pytest.approx(saved, rel=1e-12)  # type: ignore[operator]
    assert saved > 0


def test_event_driven_spikes_count_alike() -> None:
    inputs, _ = batch(6)
    kinds = [({"kind": "current", "gain": 2.0}, 6 * 5), ({"kind": "latency"}, 0)]
    for encoding, mac in kinds:
        network = spiking(neuron={"kind": "event_driven"}, encoding=encoding)
        found = operations(network, inputs)
        times = list(network.spike_times(inputs).values())  # type: ignore[operator]
        counts = [t.isfinite().sum(-1).double().mean(0) for t in times]
        expected = float(counts[0].sum()) * 4 + float(counts[1].sum()) * 3
        if not mac:
            seen = network.encode(inputs, generator(0)) < network.membrane.duration  # type: ignore[operator]
            expected += float(seen.sum(-1).double().mean(0).sum()) * 5
        assert found == Operations(mac, pytest.approx(expected, rel=1e-12))
        assert expected > 0


def circuit(output: str = "spikes") -> Network:
    cell: dict[str, Any] = {
        "equations": "dv/dt = (8 * I - v) / (10 * ms) : 1\nI : 1",
        "threshold": "v > 1",
        "reset": "v = 0",
        "method": "exact",
    }
    recipe = ModelRecipe(
        network=NetworkRecipe(
            substrate="brian2",
            kind="circuit",
            dtype="float64",
            readout="rate" if output == "spikes" else "potential",
        ),
        populations={
            "first": PopulationRecipe(units=6, **cell),
            "second": PopulationRecipe(units=4, output=output, **cell),
        },
        projections={
            "stimulus": ProjectionRecipe("input", "first"),
            "onward": ProjectionRecipe("first", "second", kind="masked", density=0.5),
            "back": ProjectionRecipe("second", "first", delay_ms=3.0),
        },
        encoding=EncodingRecipe(duration_ms=20.0, gain=2.0),
    )
    from biograd.brian.import_brian2 import import_brian2

    import_brian2().prefs.codegen.target = "numpy"
    return biograd.build(recipe, 5, 3)  # type: ignore[return-value]


def test_a_circuit_counts_what_arrives_within_the_trial() -> None:
    network, inputs = circuit(), batch(5, features=5)[0]
    spikes = {name: value.double() for name, value in network.activity(inputs).items()}
    layers = network.projections
    mask = layers["onward"].mask  # type: ignore[index]
    forward = spikes["cells.first"].sum(1) @ mask.double().sum(0)
    back = spikes["cells.second"][:, : 20 - 4].sum((1, 2)) * 6  # 3 ms, and the step of a way back
    read = spikes["cells.second"].sum((1, 2)) * 3
    found = operations(network, inputs)
    assert found.multiply_accumulates == 5 * 6
    assert found.synaptic_operations == pytest.approx(
        float((forward + back + read).mean()), rel=1e-12
    )
    assert float(back.mean()) > 0 and not mask.all()


def test_what_passes_on_a_potential_is_multiplied() -> None:
    found = operations(circuit("v"), batch(5, features=5)[0])
    # 20 steps of what leads back, one value for each unit of the readout
    assert found.multiply_accumulates == 5 * 6 + 20 * 4 * 6 + 4 * 3
    assert found.synaptic_operations


def taken(size: int) -> int:
    """Return the taps of a 3-tap, stride 2, zero-padded convolution along one axis."""
    return sum(0 <= 2 * y - 1 + a < size for y in range(-(-size // 2)) for a in range(3))


def test_rate_networks_multiply_by_the_formula() -> None:
    inputs = torch.rand(3, 1, 8, 8)
    dense = biograd.build("ann", (1, 8, 8), 10)
    assert operations(dense, inputs) == Operations(64 * 30 + 30 * 30 + 30 * 10)
    recipe = ModelRecipe(network=NetworkRecipe(channels=(4, 6), hidden=(7,)))
    convolution = biograd.build(recipe, (1, 8, 8), 10)
    expected = 1 * 4 * taken(8) ** 2 + 4 * 6 * taken(4) ** 2 + 6 * 2 * 2 * 7 + 7 * 10
    assert taken(8) == 11 and operations(convolution, inputs) == Operations(expected)
    recurrent = biograd.build("ann_recurrent", (1, 8, 8), 10)
    units, steps = 64, recurrent.steps
    assert operations(recurrent, inputs) == Operations(steps * (8 * units + units**2) + units * 10)
    mixer = biograd.build(ModelRecipe(network=NetworkRecipe(kind="local_mixer")), (1, 8, 8), 10)
    assert operations(mixer, inputs) == Operations(64 * 256 + 256 * 256 + 256 * 10)


def test_a_module_of_the_users_spikes_where_a_population_does() -> None:
    inputs = (batch(6)[0] > 0.5).double()
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    assert operations(plain, inputs) == Operations(6 * 5 + 5 * 3)  # binary data are no spikes
    made = spiking("torch", {"hidden": (5,)}, encoding=CURRENT)
    population = made.get_submodule("blocks.0.activity")
    stack = nn.Sequential(
        nn.Linear(6, 5), nn.Unflatten(1, (1, 5)), population, biograd.Readout("rate", 20),
        nn.Linear(5, 3),
    ).double()  # fmt: skip
    stack[0].load_state_dict(made.get_submodule("blocks.0.synapse").state_dict())
    values = 3 * batch(6)[0]
    spikes = stack[:3](values).sum((1, 2)).mean().item()
    assert operations(stack, values) == Operations(6 * 5, pytest.approx(3 * spikes, rel=1e-12))
    assert spikes > 0


def test_counting_leaves_no_trace() -> None:
    network, (inputs, targets) = spiking(), batch(6)
    engine = biograd.attach(network, biograd.WeakGradient(copies=5), biograd.Decorrelation())
    engine(inputs, targets).backward()
    before = {name: value.clone() for name, value in engine.state().items()}
    hooks = [len(part._forward_hooks) for part in network.modules()]
    first = operations(network.train(), inputs)
    assert network.training and hooks == [len(part._forward_hooks) for part in network.modules()]
    assert all(torch.equal(before[name], value) for name, value in engine.state().items())
    engine.detach()
    assert operations(network, inputs) == first


# The summary of a run


def test_the_summary_says_what_the_probes_cost(tmp_path: Path) -> None:
    settings = ("network.hidden=[7]", "estimators.weak.copies=5", "decorrelation.rule=off")
    run = biograd.train("spiking", epochs=1, path=tmp_path / "a.h5", settings=settings)
    summary = run.summary
    assert summary["multiply_accumulates"] == 64 * 7
    assert run.probe is not None
    layer = run.spikes("blocks.0.activity")
    ended = len(layer.timestamps) - int(layer.trial_ptr[-1 - len(run.probe)])
    expected = 10 * ended / len(run.probe)
    assert summary["synaptic_operations"] == pytest.approx(expected, rel=1e-12) and expected > 0
    assert summary["forward_passes"] == 44 * 32 * 5
    assert 0 < summary["training_seconds"] < summary["seconds"]
    assert 50e6 < summary["peak_memory_bytes"] < 1e11
    rate = biograd.train("ann", epochs=0, path=tmp_path / "b.h5").summary
    assert rate["synaptic_operations"] is None and rate["forward_passes"] == 0
    assert rate["multiply_accumulates"] == 64 * 30 + 30 * 30 + 30 * 10
    assert rate["training_seconds"] == 0


def test_the_peak_is_that_of_the_process() -> None:
    source = (
        "from biograd.recording.costs import peak_memory as peak\n"
        "before = peak(); block = bytearray(300_000_000); del block; after = peak()\n"
        "print(before, after, peak() - after)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    before, after, more = map(int, done.stdout.split())
    assert 290_000_000 < after - before < 320_000_000 and more == 0
    assert (peak_memory() or 0) > 50_000_000


def test_the_resumed_run_keeps_the_larger_peak(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    experiment.execute(experiment.TrainingRequest(model="ann", epochs=1, out=path))
    from biograd.runs.writer import RunWriter

    writer, (tensors, meta) = RunWriter.resume(path)
    writer.commit(meta["step"], (tensors, {**meta, "peak_memory_bytes": 10**12}))
    writer.close("interrupted")
    assert experiment.proceed(path)["peak_memory_bytes"] == 10**12
