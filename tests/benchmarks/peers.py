"""How long a step takes beside other libraries: each measured in a fresh process, in turns.

    OMP_NUM_THREADS=1 python tests/benchmarks/peers.py --rounds 3 --json peers.json

Figures are CPU times of the process, the median of seven steps after two, and of the rounds; what
counts are the ratios.  Before anything is timed, spikes and gradients are compared: biograd's with
snnTorch's where the threshold is subtracted, with SpikingJelly's and Norse's where the potential is
set to zero; they have no other reset in common.  Peers are written as their users should: one
product for all steps of the input, steps taken apart by ``unbind``.

``biograd.fuse`` is a network of snnTorch run layer by layer.  ``biograd`` is with compiled loops
(``biograd[fast]``), ``biograd, plain`` without, and ``biograd, memory given back`` with the
allocator as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd.neurons import Leaky
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.simulators.population import Population

BETA, SLOPE, CLASSES = 0.9, 10.0, 10
TAU = -1 / torch.tensor(BETA, dtype=torch.float64).log().item()
SWITCHES: dict[str, dict[str, str]] = {
    "biograd": {},
    "biograd, plain": {"BIOGRAD_COMPILED": "0"},
    "biograd, memory given back": {"BIOGRAD_KEEP_MEMORY": "0"},
    "biograd.fuse": {},
    "snnTorch": {},
    "SpikingJelly": {},
    "Norse": {},
}
FUSED = "biograd.fuse"
PEERS = ("snnTorch", "SpikingJelly", "Norse")
CASES: dict[str, dict[str, int]] = {
    "layer": {"steps": 100, "batch": 128, "units": 512},
    "step, constant current, 20 steps": {"steps": 20, "batch": 128, "units": 512},
    "step, constant current, 100 steps": {"steps": 100, "batch": 128, "units": 512},
    "step, spikes, 20 steps": {"steps": 20, "batch": 128, "units": 512},
    "convolution, 25 steps": {"steps": 25, "batch": 32, "units": 0},
    "recurrent, 100 steps": {"steps": 100, "batch": 32, "units": 256},
    "recurrent, 400 steps": {"steps": 400, "batch": 32, "units": 256},
}


class Course(nn.Module):
    """A peer's neurons over a trial: ``[rows, steps or 1, units]`` to spikes of every step."""

    def __init__(self, peer: str, steps: int, reset: str) -> None:
        super().__init__()
        self.peer, self.steps, self.reset = peer, steps, reset

    def surrogate(self) -> Any:
        import snntorch.surrogate

        return snntorch.surrogate.fast_sigmoid(slope=SLOPE)

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes."""
        found: Tensor = getattr(self, self.peer.lower())(current)
        return found

    def snntorch(self, current: Tensor) -> Tensor:
        """One call of its cell a step."""
        import snntorch

        cell: Any = snntorch.Leaky(BETA, spike_grad=self.surrogate(), reset_mechanism=self.reset)
        snntorch.SpikingNeuron.instances.clear()
        state, train = torch.zeros_like(current[:, 0]), []
        for now in current.expand(-1, self.steps, -1).unbind(1):
            spikes, state = cell(now, state)
            train.append(spikes)
        return torch.stack(train, 1)

    def spikingjelly(self, current: Tensor) -> Tensor:
        """Its neuron of several steps, in its fastest form for the CPU."""
        from spikingjelly.activation_based import neuron, surrogate

        node = neuron.LIFNode(
            tau=1 / (1 - BETA),
            decay_input=False,
            v_reset=0.0 if self.reset == "zero" else None,
            surrogate_function=surrogate.ATan(alpha=2.0),
            detach_reset=True,
            step_mode="m",
        )
        course = current.expand(-1, self.steps, -1).transpose(0, 1)
        found: Tensor = node(course.contiguous()).transpose(0, 1)
        return found

    def norse(self, current: Tensor) -> Tensor:
        """Its neuron without a synapse, step by step."""
        from norse.torch.functional import lif_box
        from norse.torch.functional.reset import reset_value

        p = lif_box.LIFBoxParameters(
            tau_mem_inv=torch.tensor(1000 * (1 - BETA)), reset_method=reset_value, alpha=SLOPE
        )
        state = lif_box.LIFBoxFeedForwardState(v=torch.zeros_like(current[:, 0]))
        train = []
        for now in (current / (1 - BETA)).expand(-1, self.steps, -1).unbind(1):
            spikes, state = lif_box.lif_box_feed_forward_step(now, state, p)
            train.append(spikes)
        return torch.stack(train, 1)


def own(steps: int, units: int, reset: str, surrogate: str = "fast_sigmoid") -> Population:
    """Return biograd's neurons with the peers' dynamics, ``v <- beta v + I``."""
    slope = SLOPE if surrogate == "fast_sigmoid" else torch.pi  # SpikingJelly's ATan(2)
    neuron = Leaky(
        time_constant_ms=TAU,
        resistance=1 / (1 - BETA),
        reset=reset,
        surrogate=surrogate,
        slope=slope,
    )  # type: ignore[arg-type]
    return Population(neuron, units, steps, 1.0)


def layer(name: str, steps: int, batch: int, units: int) -> Callable[[], object]:
    """Return the work of a layer of neurons, forward and back, for a current that varies."""
    current = (0.5 * torch.rand(batch, steps, units)).requires_grad_()
    course: nn.Module = (
        Course(name, steps, "subtract" if name == "snnTorch" else "zero")
        if name in PEERS
        else own(steps, units, "subtract")
    )
    weights = torch.rand(batch, steps, units)

    def work() -> None:
        current.grad = None
        course(current).backward(weights)

    return work


def recipe(steps: int, units: int, kind: str, encoding: str) -> ModelRecipe:
    """Return the network 784-units-10 of biograd."""
    return ModelRecipe(
        network=NetworkRecipe(kind=kind, hidden=(units,), readout="rate"),  # type: ignore[arg-type]
        neuron=Leaky(time_constant_ms=TAU, resistance=1 / (1 - BETA)),
        encoding=EncodingRecipe(kind=encoding, duration_ms=float(steps)),
    )


class Network(nn.Module):
    """The same network of a peer."""

    def __init__(self, peer: str, steps: int, units: int) -> None:
        super().__init__()
        self.into, self.course = nn.Linear(784, units), Course(peer, steps, "subtract")
        self.readout = nn.Linear(units, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs for ``[batch, steps or 1, 784]``."""
        found: Tensor = self.readout(self.course(self.into(inputs)).mean(1))
        return found


class Convolutions(nn.Module):
    """12C5-P2-64C5-P2 of a peer, all steps of a layer in one product."""

    def __init__(self, peer: str, steps: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 5, padding=2), nn.Conv2d(12, 64, 5, padding=2)
        self.course, self.pool = Course(peer, steps, "subtract"), nn.AvgPool2d(2)
        self.readout = nn.Linear(64 * 7 * 7, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs for ``[batch, 1, 784]``."""
        course = self.spikes(self.first(inputs.view(-1, 1, 28, 28)).unsqueeze(1))
        steps = course.shape[1]
        into = self.second(self.pool(course.flatten(0, 1))).unflatten(0, (-1, steps))
        found = self.pool(self.spikes(into).flatten(0, 1)).flatten(1).unflatten(0, (-1, steps))
        outputs: Tensor = self.readout(found.mean(1))
        return outputs

    def spikes(self, current: Tensor) -> Tensor:
        """Return the spikes of neurons that lie in a grid."""
        found: Tensor = self.course(current.flatten(2)).unflatten(2, current.shape[2:])
        return found


class Fused(nn.Module):
    """784-units-10 of snnTorch, layer by layer."""

    def __init__(self, steps: int, units: int, constant: bool) -> None:
        super().__init__()
        import snntorch

        grad = Course("snnTorch", steps, "subtract").surrogate()
        cells: Any = snntorch.Leaky(BETA, spike_grad=grad, init_hidden=True)
        self.network = biograd.fuse(nn.Sequential(nn.Linear(784, units), cells))
        self.readout, self.steps = nn.Linear(units, CLASSES), steps if constant else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs for ``[batch, steps or 1, 784]``."""
        given = inputs[:, 0] if self.steps else inputs.transpose(0, 1)
        found: Tensor = self.readout(self.network(given, self.steps).mean(0))
        return found


class Recurrent(nn.Module):
    """snnTorch's recurrent layer, its input of all steps in one product."""

    def __init__(self, steps: int, units: int) -> None:
        super().__init__()
        self.into, self.steps, self.units = nn.Linear(64, units), steps, units
        self.back, self.readout = nn.Linear(units, units), nn.Linear(units, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs for ``[batch, steps, 64]``."""
        import snntorch

        grad = Course("snnTorch", self.steps, "subtract").surrogate()
        cell: Any = snntorch.RLeaky(BETA, linear_features=self.units, spike_grad=grad)
        cell.recurrent = self.back
        snntorch.SpikingNeuron.instances.clear()
        spikes, state = cell.init_rleaky()
        train = []
        for now in self.into(inputs).unbind(1):
            spikes, state = cell(now, spikes, state)
            train.append(spikes)
        found: Tensor = self.readout(torch.stack(train, 1).mean(1))
        return found


def training(name: str, network: nn.Module, inputs: Tensor) -> Callable[[], object]:
    """Return the work of a gradient, without the optimiser's update."""
    targets = torch.arange(len(inputs)) % CLASSES
    if name in (*PEERS, FUSED):

        def work() -> None:
            network.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()

        return work
    with torch.no_grad():  # the peers' outputs are means; saturated losses make subnormal numbers
        network.readout.weight /= network.steps  # type: ignore[union-attr, operator]
    engine = biograd.attach(network, biograd.Backpropagation())

    def estimate() -> None:
        network.zero_grad()
        engine(inputs, targets).backward()
        engine.update()

    return estimate


def step(name: str, case: str, steps: int, batch: int, units: int) -> Callable[[], object]:
    """Return the work of a training step of 784-units-10."""
    poisson = "spikes" in case
    if name not in (*PEERS, FUSED):
        kind = "poisson" if poisson else "current"
        network = biograd.build(recipe(steps, units, "spiking", kind), 784, CLASSES)
        level = 0.02 if poisson else 1.0
        return training(name, network, level * torch.rand(batch, 784))
    peer = Fused(steps, units, not poisson) if name == FUSED else Network(name, steps, units)
    inputs = torch.rand(batch, 1, 784)
    if not poisson:
        return training(name, peer, inputs)
    targets = torch.arange(batch) % CLASSES

    def work() -> None:
        peer.zero_grad()
        spikes = (torch.rand(batch, steps, 784) < 0.02).float()
        functional.cross_entropy(peer(spikes), targets).backward()

    return work


def convolution(name: str, steps: int, batch: int, units: int) -> Callable[[], object]:
    """Return the work of a training step of 12C5-P2-64C5-P2."""
    inputs = torch.rand(batch, 1, 784)
    if name in PEERS:
        return training(name, Convolutions(name, steps), inputs)
    given = recipe(steps, 1, "spiking", "current")
    kernel = {"channels": (12, 64), "kernel": 5, "stride": 1, "pooling": 2, "hidden": ()}
    given = dataclasses.replace(given, network=dataclasses.replace(given.network, **kernel))
    return training(name, biograd.build(given, (1, 28, 28), CLASSES), inputs.view(-1, 1, 28, 28))


def recurrent(name: str, steps: int, batch: int, units: int) -> Callable[[], object]:
    """Return the work of a training step of a recurrent layer, for inputs that vary."""
    inputs = torch.rand(batch, steps, 64)
    if name == "snnTorch":
        return training(name, Recurrent(steps, units), inputs)
    given = recipe(steps, units, "spiking", "given")
    given = dataclasses.replace(given, network=dataclasses.replace(given.network, recurrent=True))
    network = biograd.build(given, 64, CLASSES)
    return training(name, network, inputs)


def work_of(case: str, name: str) -> Callable[[], object]:
    """Return what is timed."""
    torch.manual_seed(0)
    size = CASES[case]
    if case == "layer":
        return layer(name, **size)
    if case.startswith("recurrent"):
        return recurrent(name, **size)
    if case.startswith("convolution"):
        return convolution(name, **size)
    return step(name, case, **size)


def measured(case: str, name: str) -> dict[str, float]:
    """Return milliseconds of CPU, the median of seven, and the peak of the memory."""
    work, times = work_of(case, name), []
    for _ in range(9):
        begin = time.process_time()
        work()
        times.append(1000 * (time.process_time() - begin))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": statistics.median(times[2:]), "first_ms": times[0], "peak_mb": memory}


def check() -> None:
    """Compare spikes and gradients of a layer with those of every peer that is installed."""
    pairs = {"snnTorch": ("subtract", "fast_sigmoid"), "SpikingJelly": ("zero", "arctan")}
    pairs["Norse"] = ("zero", "")
    for name, (reset, surrogate) in pairs.items():
        if not there(name):
            print(f"{name}: not installed")
            continue
        current = (0.5 * torch.rand(16, 100, 64, dtype=torch.float64)).requires_grad_()
        weights = torch.rand_like(current)
        ours = own(100, 64, reset, surrogate or "fast_sigmoid")(current)
        theirs = Course(name, 100, reset).double()(current)
        differ = int((ours != theirs).sum())
        found = torch.autograd.grad((ours * weights).sum(), current)[0]
        said = f"{name}: {differ} of {ours.numel()} spikes differ"
        if surrogate:
            expected = torch.autograd.grad((theirs * weights).sum(), current)[0]
            said += f", gradients by {float((found - expected).norm() / expected.norm()):.1e}"
        print(said)


def there(name: str) -> bool:
    """Return whether a library is installed."""
    try:
        __import__({"snnTorch": "snntorch"}.get(name, name.lower().split(",")[0]))
    except ImportError:
        return False
    return True


def fresh(case: str, name: str) -> Mapping[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", case, name]
    environment = {**os.environ, **SWITCHES[name]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{case}, {name}: {done.stderr.strip().splitlines()[-1]}")
    found: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(cases: list[str], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure all in turns and print a row for each case and library."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    print("| case | library | ms | to biograd | peak MB |\n|---|---|---|---|---|")
    for case in cases:
        names = [name for name in SWITCHES if there(name)]
        if case.startswith("recurrent"):
            names = [name for name in names if name not in ("SpikingJelly", "Norse")]
        if not case.startswith("step"):
            names.remove(FUSED)
        turns: dict[str, list[Mapping[str, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                turns[name].append(fresh(case, name))
        best = {
            name: {key: statistics.median(one[key] for one in seen) for key in seen[0]}
            for name, seen in turns.items()
        }
        found[case] = best
        for name, one in best.items():
            ratio = one["ms"] / best["biograd"]["ms"]
            print(f"| {case} | {name} | {one['ms']:.1f} | {ratio:.2f} | {one['peak_mb']:.0f} |")
    return found


def main() -> None:
    """Check, measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=2, metavar=("CASE", "LIBRARY"))
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(measured(*words.one)))
        return
    check()
    found = table(words.cases, words.rounds)
    if words.json:
        words.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
