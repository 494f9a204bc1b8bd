"""What a step of the rules costs beside what one would write by hand, each a row of one table.

    OMP_NUM_THREADS=1 python tests/benchmarks/steps.py --rounds 3 --json steps.json

All that a row compares runs in turns in one fresh process; a figure is the median CPU time of seven
turns after two, and of the rounds.  The step is that of the gradient, and of what learns by itself,
without the optimiser's; for decorrelation also with Adam.  Before anything is timed, gradients of
what is equal are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd.estimators import Estimator

Work = Callable[[], object]
CLASSES = 10


def layered(*sizes: int) -> nn.Sequential:
    """Return dense layers with ReLUs between them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))


def rows(batch: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return inputs and classes."""
    torch.manual_seed(1)
    return torch.rand(batch, inputs), torch.arange(batch) % CLASSES


def ours(
    network: nn.Module,
    estimator: Estimator,
    batch: tuple[Tensor, Tensor],
    decorrelate: biograd.Decorrelation | None = None,
    adam: bool = False,
) -> Work:
    """Return a step of biograd."""
    engine = biograd.attach(network, estimator, decorrelate)
    optimiser = torch.optim.Adam(network.parameters(), 1e-4) if adam else None

    def work() -> None:
        network.zero_grad()
        engine(*batch).backward()
        engine.update()
        if optimiser is not None:
            optimiser.step()

    return work


def decorrelation(hidden: tuple[int, ...], adam: bool) -> dict[str, Work]:
    """Return a step without and with decorrelation by kappa."""
    batch, rule = rows(64, 784), biograd.Backpropagation
    return {
        "without": ours(layered(784, *hidden), rule(), batch, adam=adam),
        "kappa": ours(layered(784, *hidden), rule(), batch, biograd.Decorrelation(), adam),
    }


DEEP = (1024,) * 7


def loop(copies: int = 17, sigma: float = 0.01) -> Work:
    """Return weight perturbation as a loop: one draw a pair, added and taken away in place."""
    network, (x, y) = layered(*DEEP).requires_grad_(False), rows(32, 1024)
    parameters, pairs = [*network.parameters()], (copies - 1) // 2

    def work() -> list[Tensor]:
        found = [torch.zeros_like(parameter) for parameter in parameters]
        functional.cross_entropy(network(x), y)
        for _ in range(pairs):
            draws, losses = [torch.randn_like(parameter) for parameter in parameters], []
            for scale in (sigma, -2 * sigma):
                for parameter, draw in zip(parameters, draws, strict=True):
                    parameter.add_(draw, alpha=scale)
                losses.append(float(functional.cross_entropy(network(x), y)))
            for parameter, total, draw in zip(parameters, found, draws, strict=True):
                parameter.add_(draw, alpha=sigma)
                total.add_(draw, alpha=(losses[0] - losses[1]) / (2 * sigma * pairs))
        return found

    return work


def perturbation() -> dict[str, Work]:
    """Return weight perturbation of six layers, 17 copies."""
    batch, rule = rows(32, 1024), biograd.WeightPerturbation
    return {
        "loop": loop(),
        "biograd": ours(layered(*DEEP), rule(17), batch),
        "biograd, signs": ours(layered(*DEEP), rule(17, directions="rademacher"), batch),
        "biograd, rank 1": ours(layered(*DEEP), rule(17, rank=1), batch),
    }


def product() -> Work:
    """Return a forward gradient by ``torch.func.jvp``."""
    network, (x, y) = layered(*DEEP), rows(32, 1024)
    values = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(given: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(network, given, (x,))
        return functional.cross_entropy(found, y)

    def work() -> None:
        directions = {name: torch.randn_like(value) for name, value in values.items()}
        _, slope = torch.func.jvp(loss, (values,), (directions,))
        for name, parameter in network.named_parameters():
            parameter.grad = slope * directions[name]

    return work


def forward_gradient() -> dict[str, Work]:
    """Return a forward gradient on the weights of six layers, one direction."""
    batch, rule = rows(32, 1024), biograd.ForwardGradientWeight
    return {
        "torch.func.jvp": product(),
        "biograd": ours(layered(*DEEP), rule(), batch),
        "biograd, signs": ours(layered(*DEEP), rule(directions="rademacher"), batch),
        "biograd, rank 1": ours(layered(*DEEP), rule(rank=1), batch),
    }


def weak() -> dict[str, Work]:
    """Return the weak gradient of six layers, 8 copies, beside back-propagation."""
    batch = rows(32, 1024)
    return {
        "back-propagation": ours(layered(*DEEP), biograd.Backpropagation(), batch),
        "weak, 8 copies": ours(layered(*DEEP), biograd.WeakGradient(8), batch),
        "node perturbation, 8": ours(layered(*DEEP), biograd.NodePerturbation(8), batch),
    }


class Aligned(torch.autograd.Function):
    """A layer whose credit passes through another weight, as written by hand."""

    @staticmethod
    def forward(ctx, x, weight, bias, feedback):  # type: ignore[no-untyped-def]
        """Return ``x W^T + b``."""
        ctx.save_for_backward(x, feedback)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, credit):  # type: ignore[no-untyped-def,override]
        """Return credit for input, weight and bias."""
        x, feedback = ctx.saved_tensors
        back = credit @ feedback if ctx.needs_input_grad[0] else None
        return back, credit.T @ x, credit.sum(0), None


def by_hand(direct: bool) -> Work:
    """Return feedback alignment, or the direct one, of 784-1024-1024-1024-10 by hand."""
    network, (x, y) = layered(784, 1024, 1024, 1024), rows(64, 784)
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    feedback = [0.03 * torch.randn_like(layer.weight) for layer in layers]
    broadcast = [0.03 * torch.randn(CLASSES, len(layer.weight)) for layer in layers[:-1]]

    def align() -> None:
        network.zero_grad()
        h = x
        for place, (layer, back) in enumerate(zip(layers, feedback, strict=True)):
            h = Aligned.apply(h, layer.weight, layer.bias, back)
            h = h.relu() if place < len(layers) - 1 else h
        functional.cross_entropy(h, y).backward()

    @torch.no_grad()
    def send() -> None:
        network.zero_grad()
        seen = [x]
        for layer in layers[:-1]:
            seen.append(layer(seen[-1]).relu_())
        error = layers[-1](seen[-1]).softmax(1)
        error[torch.arange(len(y)), y] -= 1
        error /= len(y)
        credits = [(error @ b).mul_(h > 0) for b, h in zip(broadcast, seen[1:], strict=True)]
        for layer, h, credit in zip(layers, seen, [*credits, error], strict=True):
            layer.weight.grad, layer.bias.grad = credit.T @ h, credit.sum(0)

    return send if direct else align


def feedback(direct: bool) -> dict[str, Work]:
    """Return a step of feedback alignment, or the direct one, beside that by hand."""
    rule = biograd.DirectFeedback() if direct else biograd.FeedbackAlignment()
    network = layered(784, 1024, 1024, 1024)
    return {"by hand": by_hand(direct), "biograd": ours(network, rule, rows(64, 784))}


CASES: dict[str, Callable[[], dict[str, Work]]] = {
    "kappa, 784-128-128": lambda: decorrelation((128, 128), False),
    "kappa, 784-1024-1024-1024": lambda: decorrelation((1024,) * 3, False),
    "kappa, 784-1024-1024-1024, with Adam": lambda: decorrelation((1024,) * 3, True),
    "weight perturbation, 17 copies, 6 x 1024": perturbation,
    "forward gradient on weights, 6 x 1024": forward_gradient,
    "weak gradient, 6 x 1024": weak,
    "feedback alignment, 784-1024-1024-1024": lambda: feedback(False),
    "direct feedback, 784-1024-1024-1024": lambda: feedback(True),
}
MEMORY = {"biograd": "biograd", "snnTorch": "snnTorch"}
LONG = {"steps": 400, "batch": 128, "units": 512}


def measured(case: str) -> dict[str, float]:
    """Return milliseconds of CPU for each way, the median of seven turns."""
    works = CASES[case]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(9):
        for name, work in works.items():
            begin = time.process_time()
            work()
            times[name].append(1000 * (time.process_time() - begin))
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def peak(library: str) -> float:
    """Return by how many MB a layer of neurons over 400 steps raises the peak of the memory."""
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = peers.layer(library, **LONG)
    for _ in range(3):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def fresh(*words: str) -> str:
    """Return the last line that this program prints in a process of its own."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def table(cases: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Measure in turns and print a row for each way, with its ratio to the first."""
    found: dict[str, dict[str, float]] = {}
    print("| case | | ms | to the first |\n|---|---|---|---|")
    for case in cases:
        turns = [json.loads(fresh("--one", case)) for _ in range(rounds)]
        found[case] = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        first = next(iter(found[case].values()))
        for name, ms in found[case].items():
            print(f"| {case} | {name} | {ms:.1f} | {ms / first:.2f} |", flush=True)
    memory = {name: float(fresh("--peak", name)) for name in MEMORY}
    found["peak memory, 400 steps"] = memory
    for name, size in memory.items():
        print(f"| peak memory, 400 steps, 512 neurons | {name} | {size:.0f} MB | |", flush=True)
    return found


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=list(CASES))
    parser.add_argument("--peak", choices=list(MEMORY))
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    if words.one:
        print(json.dumps(measured(words.one)))
    elif words.peak:
        print(peak(words.peak))
    else:
        found = table(words.cases, words.rounds)
        if words.json:
            words.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
