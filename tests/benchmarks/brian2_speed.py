"""What a Brian2 population costs, as ratios in one run, compiled by Brian2's default target.

Times are CPU times of the process, the shortest of several rounds in turns, so that other work on
the machine hardly counts; only two processes at once are timed by the clock as well, and there an
idle machine with two cores is needed.

    OMP_NUM_THREADS=1 python tests/benchmarks/brian2_speed.py
    OMP_NUM_THREADS=1 python tests/benchmarks/brian2_speed.py processes

"synapses" is a network of 64 inputs (50 Hz), 100 hidden and 10 output neurons in many replicas of
100 steps: all of it in Brian2, with ``Synapses`` between the replicas, each with weights of its
own, against torch's matrix products between Brian2 populations.  Both produce the same spikes.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.networks import build
from biograd.neurons import Leaky
from biograd.neurons.neuron import constants_of
from biograd.recipes import (
    EncodingRecipe,
    ModelRecipe,
    NetworkRecipe,
    PopulationRecipe,
)
from biograd.simulators.population import Population, Simulator

Work = Callable[[], object]
INPUTS, HIDDEN, OUTPUTS, STEPS = 64, 100, 10, 100
EQUATIONS = "dv/dt = -v / (10*ms) : 1"
LEAKY = Leaky(resistance=8.0)
CONSTANTS = constants_of(LEAKY, 1.0, {})
RECIPE = PopulationRecipe(
    equations="dv/dt = (I - v) / (10*ms) : 1\nI : 1",
    threshold="v > 1",
    reset="v = 0",
    method="exact",
)


def shortest(works: Sequence[Work], rounds: int) -> list[float]:
    """Return the shortest CPU time of each in milliseconds, measured in turns."""
    times = [float("inf")] * len(works)
    for turn in range(rounds + 1):
        for place, work in enumerate(works):
            begin = time.process_time()
            work()
            if turn:  # the first prepares
                times[place] = min(times[place], 1000 * (time.process_time() - begin))
    return times


class Replicas:
    """The same network for rows of input spikes ``[rows, steps, inputs]``, in two ways.

    Args:
        rows: number of replicas, each with weights of its own.
        strength: of the input's weights, by which the hidden neurons fire.
    """

    def __init__(self, rows: int, strength: float, dtype: torch.dtype = torch.float32) -> None:
        stream = torch.Generator().manual_seed(0)
        self.spikes = (torch.rand(rows, STEPS, INPUTS, generator=stream) < 0.05).to(dtype)
        self.weights = [
            scale * torch.rand(rows, *shape, generator=stream).to(dtype)
            for shape, scale in (((INPUTS, HIDDEN), strength), ((HIDDEN, OUTPUTS), 0.05))
        ]
        recipe = PopulationRecipe(
            equations=EQUATIONS, input="v", threshold="v > 1", reset="v = 0", method="exact"
        )
        self.layers = [Brian2Layer(recipe, units, STEPS, 1.0) for units in (HIDDEN, OUTPUTS)]

    @torch.no_grad()
    def by_layers(self) -> list[Tensor]:
        """Return the spikes ``[rows, steps, units]`` of both populations."""
        found, spikes = [], self.spikes
        for weights, layer in zip(self.weights, self.layers, strict=True):
            spikes = layer(spikes @ weights)
            found.append(spikes)
        return found


class Synapses:
    """``Replicas`` with everything in Brian2, its spikes counted by monitors if asked."""

    def __init__(self, replicas: Replicas, trials: int = 1, monitors: bool = False) -> None:
        b2 = import_brian2()
        self.ms, self.rows = b2.ms, len(replicas.spikes)
        clock = b2.Clock(dt=1 * b2.ms)
        row, step, unit = (part.numpy() for part in replicas.spikes.nonzero(as_tuple=True))
        indices, times = np.tile(row * INPUTS + unit, trials), np.tile(step, trials)
        times = times + np.repeat(np.arange(trials) * STEPS, len(step))
        source: Any = b2.SpikeGeneratorGroup(
            self.rows * INPUTS, indices, times * b2.ms, clock=clock
        )
        parts = [source]
        for weights, units in zip(replicas.weights, (HIDDEN, OUTPUTS), strict=True):
            group = b2.NeuronGroup(
                self.rows * units,
                EQUATIONS,
                threshold="v > 1",
                reset="v = 0",
                method="exact",
                clock=clock,
            )
            parts += [group, self._connect(source, group, weights.double().numpy(), clock)]
            source = group
        self.monitors = [b2.SpikeMonitor(parts[place]) for place in (1, 3)] if monitors else []
        self.network = b2.Network(parts, self.monitors)
        self.run(0)

    def _connect(self, source: Any, target: Any, weights: NDArray[np.float64], clock: Any) -> Any:
        synapses = import_brian2().Synapses(
            source, target, "w : 1", on_pre="v_post += w", clock=clock
        )
        before, after = weights.shape[1:]
        row = np.arange(self.rows).reshape(-1, 1, 1)
        i = np.broadcast_to(row * before + np.arange(before)[:, None], (self.rows, before, after))
        j = np.broadcast_to(row * after + np.arange(after), (self.rows, before, after))
        synapses.connect(i=i.ravel(), j=j.ravel())
        synapses.variables["w"].get_value()[:] = np.broadcast_to(weights, i.shape).ravel()
        return synapses

    def run(self, steps: int = STEPS) -> None:
        """Simulate by ``Network.run``."""
        self.network.run(steps * self.ms, namespace={"ms": self.ms})

    def counts(self) -> list[int]:
        """Return the number of spikes of both populations."""
        return [int(monitor.num_spikes) for monitor in self.monitors]


def synapses() -> None:
    """Compare replicated synapses with matrix products between populations.

    Ratios of a step, and of a whole trial, in which ``Network.run`` has its fixed cost as well.
    """
    print("\n| replicas | hidden spikes a step | Synapses, us a step | layers | a step | a trial |")
    print("|---|---|---|---|---|---|")
    for rows, strength in ((128, 0.08), (512, 0.08), (512, 0.3)):
        share = _equal(rows, strength)
        replicas = Replicas(rows, strength=strength)
        rounds = 3
        slow = Synapses(replicas, trials=rounds + 1)
        fixed, trial = shortest([partial(slow.run, 0), slow.run], rounds)
        (fast,) = shortest([replicas.by_layers], 6)
        step = (trial - fixed) * 1000 / STEPS
        print(
            f"| {rows} | {share:.1%} | {step:.0f} | {fast * 1000 / STEPS:.0f} "
            f"| **{(trial - fixed) / fast:.1f}** | **{trial / fast:.1f}** |",
            flush=True,
        )
        if rows == 512:
            (whole,) = shortest([_weak_gradient()], 6)
            print(
                f"|  |  |  | a weak gradient, 16 noisy copies of 32 examples: "
                f"{whole * 1000 / STEPS:.0f} | **{(trial - fixed) / whole:.1f}** "
                f"| **{trial / whole:.1f}** |",
                flush=True,
            )


def _weak_gradient() -> Work:
    """Return an estimate with its update: 512 noisy replicas and 32 clean ones, a current as input.

    What the synapses simulate is a forward pass alone.
    """
    attached = engine("brian2", "weak", (HIDDEN,), STEPS)
    return partial(estimate, attached, torch.rand(32, INPUTS), torch.arange(32) % 10)


def _equal(rows: int, strength: float) -> float:
    """Check that both ways make as many spikes and return the share of hidden neurons in a step."""
    exact = Replicas(rows, strength=strength, dtype=torch.float64)
    watched = Synapses(exact, monitors=True)
    watched.run(STEPS + len(exact.layers))  # every synapse takes a step longer
    trains = exact.by_layers()
    counts = [int(spikes.sum()) for spikes in trains]
    if counts != watched.counts() or min(counts) < rows:
        raise AssertionError(f"not the same network: {counts} and {watched.counts()} spikes")
    return float(trains[0].mean())


def fixed() -> None:
    """Print what a trial costs before its first step."""
    b2 = import_brian2()
    print("\n| rows x 100 neurons | `Simulation.run`, ms + us a step | `Brian2Layer.forward` |")
    print("|---|---|---|")
    for rows in (1, 32):
        current = torch.rand(rows, 1, 100)
        drive = current.numpy().swapaxes(0, 1)
        layers = [Brian2Layer(RECIPE, 100, steps, 1.0) for steps in (5, 25)]
        with torch.no_grad():
            for layer in layers:
                layer(current)
            short, long, *forward = shortest(
                [
                    *(partial(one.simulation(rows).run, drive, one.steps) for one in layers),
                    *(partial(one, current) for one in layers),
                ],
                100,
            )
        cells = [_line(short, long), _line(*forward)]
        print(f"| {rows} | {' | '.join(cells)} |", flush=True)
    group = b2.NeuronGroup(100, EQUATIONS, threshold="v > 1", reset="v = 0", method="exact")
    network = b2.Network(group)
    run = partial(network.run, 0 * b2.ms, namespace={"ms": b2.ms})
    (plain,) = shortest([run], 10)
    gc.collect()
    gc.freeze()
    (frozen,) = shortest([run], 10)
    gc.unfreeze()
    print(
        f"\nA plain `Network.run` of no steps: {plain:.1f} ms; behind `gc.freeze`: {frozen:.1f} ms"
    )


def _line(short: float, long: float) -> str:
    """Return milliseconds for no step and microseconds a step, from trials of 5 and 25 steps."""
    slope = (long - short) / 20
    return f"{short - slope * 5:.3f} + {1000 * slope:.1f}"


def engine(substrate: str, estimator: str, hidden: tuple[int, ...], steps: int) -> biograd.Engine:
    """Return a spiking network on a substrate, with its estimator."""
    recipe = ModelRecipe(
        network=NetworkRecipe(substrate=substrate, kind="spiking", hidden=hidden, gain=1.5),  # type: ignore[arg-type]
        neuron=LEAKY,
        encoding=EncodingRecipe(duration_ms=float(steps), gain=0.5),
    )
    made: Any = biograd.Backpropagation() if estimator == "backprop" else biograd.WeakGradient(17)
    torch.manual_seed(0)
    return biograd.attach(build(recipe, 64, 10), made)


def estimate(attached: biograd.Engine, inputs: Tensor, targets: Tensor) -> None:
    """Make one estimate, with its pullback and updates."""
    attached(inputs, targets).backward()
    attached.update()


def gradients() -> None:
    """Compare estimates of the same gradient on Brian2, snnTorch and torch."""
    inputs, targets = torch.rand(32, 64), torch.arange(32) % 10
    print("\n| estimate, 32 examples | Brian2 ms | / snnTorch | / torch |")
    print("|---|---|---|---|")
    for estimator in ("backprop", "weak, 17 copies"):
        for hidden in ((30, 30), (100,)):
            for steps in (20, 50):
                times = shortest(
                    [
                        partial(estimate, engine(name, estimator, hidden, steps), inputs, targets)
                        for name in ("brian2", "snntorch", "torch")
                    ],
                    15,
                )
                name = "-".join(map(str, (64, *hidden, 10)))
                ratios = " | ".join(f"**{times[0] / other:.2f}**" for other in times[1:])
                print(f"| {estimator}, {name}, {steps} steps | {times[0]:.1f} | {ratios} |")


def by_hand(current: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """Return the spikes ``[steps, rows, units]`` of the same neurons in a loop of NumPy."""
    potential = np.zeros(current.shape)
    drive, train = CONSTANTS.gain * current, np.empty((steps, *current.shape), np.float32)
    for index in range(steps):
        if index:
            potential -= train[index - 1]
        potential *= CONSTANTS.beta
        potential += drive
        np.greater(potential, 1.0, out=train[index])
    return train


def forward() -> None:
    """Compare a population's forward pass with other simulators' of the same neurons."""
    print("\n| rows x 100 neurons, 50 steps | Brian2 ms | / NumPy | / torch | / snnTorch |")
    print("|---|---|---|---|---|")
    for rows in (32, 128, 512):
        current = 0.3 * torch.rand(rows, 1, 100)
        simulators: tuple[Simulator, ...] = ("brian2", "torch", "snntorch")
        brian, own, snn = (Population(LEAKY, 100, 50, 1.0, name) for name in simulators)
        with torch.no_grad():
            times = shortest(
                [
                    partial(brian, current),
                    partial(by_hand, current[:, 0].numpy(), 50),
                    partial(own, current),
                    partial(snn, current),
                ],
                10,
            )
        ratios = " | ".join(f"{times[0] / other:.2f}" for other in times[1:])
        print(f"| {rows} | {times[0]:.2f} | {ratios} |", flush=True)


def details() -> None:
    """Print what the check of the result costs, and what collecting garbage does."""
    layer = Brian2Layer(RECIPE, 100, 50, 1.0)
    print("\n| work | ms |")
    print("|---|---|")
    for rows in (32, 512):
        current = torch.rand(rows, 1, 100)
        with torch.no_grad():
            layer(current)
            check_alone = partial(layer._check, layer.simulation(rows))
            whole, check = shortest([partial(layer, current), check_alone], 20)
        print(f"| forward, {rows} x 100 neurons, 50 steps | {whole:.3f} |")
        print(f"| of this, the check that it did not blow up | {check:.3f} |")
    inputs, targets = torch.rand(32, 64), torch.arange(32) % 10
    attached = engine("brian2", "backprop", (30, 30), 20)
    times = {}
    for name, before, after in (
        ("as it comes", int, int),
        ("frozen", gc.freeze, gc.unfreeze),
        ("switched off", gc.disable, gc.enable),
    ):
        gc.collect()
        before()
        begin = time.process_time()
        for _ in range(150):
            estimate(attached, inputs, targets)
        times[name] = (time.process_time() - begin) / 0.15
        after()
    for name, value in times.items():
        print(f"| mean of 150 estimates, garbage collection {name} | {value:.2f} |")


def _megabytes(name: str) -> float:
    """Return a figure of this process's memory; "VmHWM" is the peak (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _memory(kind: str, results: Any) -> None:
    replicas = Replicas(512, strength=0.08)
    import_brian2()
    Replicas(1, strength=0.08).by_layers()  # compiled code and libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = _megabytes("VmRSS")
    if kind == "Synapses":
        Synapses(replicas).run()
    else:
        replicas.by_layers()
    results.put(_megabytes("VmHWM") - start)


def memory() -> None:
    """Print the memory that 512 replicas take above what was there before."""
    print("\n| 512 replicas | MB above start |")
    print("|---|---|")
    for kind in ("Synapses", "layers"):
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        worker = context.Process(target=_memory, args=(kind, results))
        worker.start()
        print(f"| {kind} | {results.get(timeout=300):.0f} |", flush=True)
        worker.join()


def _train(seed: int, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    inputs, targets = torch.rand(32, 64), torch.arange(32) % 10
    attached = engine("brian2", "weak", (100,), 50)
    for _ in range(3):
        estimate(attached, inputs, targets)
    barrier.wait()
    begin, spent = time.perf_counter(), time.process_time()
    for _ in range(150):
        estimate(attached, inputs, targets)
    results.put((time.perf_counter() - begin, time.process_time() - spent))


def _at_once(count: int) -> tuple[float, float]:
    """Return the longest time and the mean CPU time of workers that train at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=_train, args=(seed, barrier, results)) for seed in range(count)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    return max(wall for wall, _ in found), float(np.mean([spent for _, spent in found]))


def processes() -> None:
    """Compare two trainings in two processes with one after the other."""
    busy = os.getloadavg()[0]
    rounds = [(_at_once(1), _at_once(2)) for _ in range(3)]
    alone, both = (np.min([one[place] for one in rounds], 0) for place in (0, 1))
    print(
        f"\nTwo processes: {2 * alone[0] / both[0]:.2f} times the trainings in the same time; "
        f"{2 * alone[1] / both[1]:.2f} by CPU time, as with a core for each; "
        f"load average before: {busy:.1f}"
    )


PARTS = {
    "synapses": synapses,
    "fixed": fixed,
    "gradients": gradients,
    "forward": forward,
    "details": details,
    "memory": memory,
    "processes": processes,
}


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
