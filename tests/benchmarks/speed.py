"""How long a step takes, as ratios in one process: substrates, passes, and what decorrelation adds.

Each figure is the best of several rounds, one thread, 64-100-100-10 for 20 steps, 32 examples.

    OMP_NUM_THREADS=1 python tests/benchmarks/speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

import biograd
from biograd.contracts import Objective, Plan
from biograd.engine import Engine
from biograd.networks import build, substrate
from biograd.neurons import Leaky
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.tasks.classes import cross_entropy


def best(work: Callable[[], object], rounds: int = 30) -> float:
    """Return the shortest time of a call in milliseconds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def network(name: str) -> torch.nn.Module:
    """Return the same spiking network on one of the substrates."""
    recipe = ModelRecipe(
        network=NetworkRecipe(substrate=name, kind="spiking", hidden=(100, 100), gain=1.5),  # type: ignore[arg-type]
        neuron=Leaky(resistance=8.0),
        encoding=EncodingRecipe(duration_ms=20.0, gain=0.5),
    )
    return build(recipe, 64, 10)


def step(engine: Engine, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Run one estimate, with its pullback and updates."""
    engine(inputs, targets).backward()
    engine.update()


def main() -> None:
    """Print the table."""
    inputs, targets = torch.rand(32, 64), torch.arange(32) % 10
    print("| work | torch ms | snnTorch / torch | Brian2 / torch |")
    print("|---|---|---|---|")
    rows: dict[str, list[float]] = {}
    for name in ("torch", "snntorch", "brian2"):
        runner = substrate(network(name))
        wide = runner.encode(inputs.repeat(17, 1), torch.Generator())
        work = [
            (
                "forward, 544 rows",
                partial(
                    runner.run,
                    Plan(graph=False),
                    wide,
                    targets.repeat(17),
                    Objective(cross_entropy),
                ),
            )
        ]
        for label, estimator, decorrelate in (
            ("weak gradient, 17 copies", biograd.WeakGradient(17), None),
            ("the same with decorrelation", biograd.WeakGradient(17), biograd.Decorrelation()),
            ("backpropagation", biograd.Backpropagation(), None),
        ):
            engine = biograd.attach(network(name), estimator, decorrelate)
            work.append((label, partial(step, engine, inputs, targets)))
        for label, call in work:
            rows.setdefault(label, []).append(best(call))
    for label, times in rows.items():
        ratios = [f"{value / times[0]:.2f}" for value in times[1:]]
        print(f"| {label} | {times[0]:.1f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
