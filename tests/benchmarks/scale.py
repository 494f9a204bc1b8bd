"""How a training step scales: a cost model fitted on some configurations and checked on others.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py             # everything, five minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py simulate    # tables of many ranks, at once

Parts: ``times``, ``allocator``, ``memory``, ``traffic``, ``shares``, ``quality``, ``simulate``.
``times`` and ``traffic`` keep the constants that they measure in ``scale.json``, from which
``simulate`` computes; cli/SCALE.md explains the tables.

A step is estimate, pullback, optimiser (Adam) and update.  Times are CPU times of the process, the
shortest of several rounds; in a round every configuration has its turn.  Freed memory is kept by
the process (``keep_memory``), else the page faults of large tensors add up to as much again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scale_model as model
import torch
from scale_model import PERTURBING, RULES, Case, Link
from scipy.optimize import nnls
from torch import Tensor

import biograd
from biograd import ranks
from biograd.data import Arrays
from biograd.networks import build
from biograd.neurons import Leaky
from biograd.ranks import parallel
from biograd.ranks.parallel import Share
from biograd.recipes import (
    EncodingRecipe,
    ModelRecipe,
    NetworkRecipe,
    TrainingRecipe,
)
from biograd.training import Trainer

KEPT = Path(__file__).with_name("scale.json")
NUMBERS = 1_000_000
"""Drawn at once, to measure what one costs."""


def keep_memory() -> None:
    """Let the C library keep what is freed, as ``MALLOC_MMAP_THRESHOLD_`` and its like would."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            threshold_of_maps, threshold_of_trimming = -3, -1
            library.mallopt(threshold_of_maps, 2**30)
            library.mallopt(threshold_of_trimming, 2**31 - 1)


def engine(case: Case) -> biograd.Engine:
    """Return the network of a case with its rule."""
    spiking = case.kind != "rate"
    parts: dict[str, Any] = {}  # a rate network has neither neurons nor an encoding
    if spiking:
        encoding = EncodingRecipe(duration_ms=float(case.steps), gain=0.5)
        parts = {"neuron": Leaky(resistance=8.0), "encoding": encoding}
    recipe = ModelRecipe(
        network=NetworkRecipe(
            substrate="brian2" if case.kind == "brian2" else "torch",
            kind="spiking" if spiking else "rate",
            hidden=case.hidden,
            gain=1.5,
        ),
        **parts,
    )
    torch.manual_seed(0)
    rules: dict[str, Callable[[], Any]] = {
        "backprop": biograd.Backpropagation,
        "direct_feedback": biograd.DirectFeedback,
        "weak": lambda: biograd.WeakGradient(case.copies),
        "weight_perturbation": lambda: biograd.WeightPerturbation(case.copies),
    }
    return biograd.attach(build(recipe, case.inputs, case.classes), rules[case.rule]())


def batch(case: Case, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Return inputs and targets."""
    stream = torch.Generator().manual_seed(1)
    count = case.batch if rows is None else rows
    return torch.rand(count, case.inputs, generator=stream), torch.arange(count) % case.classes


def prepared(case: Case, size: int = 1) -> Callable[[], None]:
    """Return a training step, prepared; of the first of ``size`` ranks, which hears of no other."""
    attached, (inputs, targets) = engine(case), batch(case)
    attached.prepare(inputs, targets)
    optimiser = torch.optim.Adam(list(attached.parameters()), 1e-3)
    own = Share.of(case.batch, 0, size, attached.estimator.divides)
    inputs, targets = inputs[own.rows], targets[own.rows]

    def step() -> None:
        with parallel.sharing(own):
            result = attached(inputs, targets)
            float(result.loss)
            result.backward()
            optimiser.step()
            optimiser.zero_grad()
            attached.update()

    return step


def shortest(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the shortest CPU time of each in seconds, measured in turns, 10 ms or more each."""
    times = [math.inf] * len(works)
    for work in works:
        work()
    for _ in range(rounds):
        for place, work in enumerate(works):
            often = 1 if math.isinf(times[place]) else max(1, min(20, int(0.01 / times[place])))
            begin = time.process_time()
            for _ in range(often):
                work()
            times[place] = min(times[place], (time.process_time() - begin) / often)
    return times


# Configurations ---------------------------------------------------------------------------------


def fitted() -> list[Case]:
    """Return the configurations that the constants are fitted on."""
    found = []
    for rule in RULES:
        for copies in (5, 33) if rule in PERTURBING else (1,):
            for hidden in ((32,), (32, 32), (256, 256)):
                for rows in (16, 128):
                    found.append(Case(rule, "rate", copies, rows, hidden))
            for hidden in ((32,), (32, 32), (128, 128)):
                for rows in (16, 64):
                    for steps in (10, 40):
                        found.append(Case(rule, "spiking", copies, rows, hidden, steps))
    # where the regression itself counts
    found += [Case("weak", "rate", 129, 32, hidden) for hidden in ((128,), (256, 256))]
    return found


def fitted_brian2() -> list[Case]:
    """Return those of Brian2's own constants."""
    copies = {"weak": 17, "weight_perturbation": 5}
    return [
        Case(rule, "brian2", copies.get(rule, 1), rows, hidden, steps)
        for rule in RULES
        for hidden in ((32,), (96, 96))
        for rows in (16, 64)
        for steps in (10, 40)
    ]


def held_out() -> list[Case]:
    """Return the configurations that the model is checked on; many are larger."""
    found = []
    for kind, steps, longer in (("rate", 1, 1), ("spiking", 16, 60), ("brian2", 16, 60)):
        for rule in RULES:
            few, many = (9, 65) if rule in PERTURBING else (1, 1)
            some = 17 if rule in PERTURBING else 1
            cases = [
                Case(rule, kind, few, 48, (48, 48), steps),  # type: ignore[arg-type]
                Case(rule, kind, some, 96, (200,), steps),  # type: ignore[arg-type]
                Case(rule, kind, some, 32, (150, 100, 50), steps),  # type: ignore[arg-type]
                Case(rule, kind, some, 64, (128, 128), steps, 784),  # type: ignore[arg-type]
            ]
            if kind != "brian2":
                cases.append(Case(rule, kind, few, 64, (768, 768), steps))  # type: ignore[arg-type]
                cases.append(Case(rule, kind, some, 384, (64, 64), steps))  # type: ignore[arg-type]
                if rule in PERTURBING:
                    cases.append(Case(rule, kind, many, 32, (80, 80), steps))  # type: ignore[arg-type]
            if kind != "rate":
                cases.append(Case(rule, kind, few, 32, (64, 64), longer))  # type: ignore[arg-type]
            found += cases
    found.append(Case("backprop", "rate", 1, 64, (2048, 2048), 1, 784))
    found.append(Case("weight_perturbation", "rate", 5, 64, (2048, 2048), 1, 784))
    return found


# Times ------------------------------------------------------------------------------------------


def fit(
    amounts: Sequence[dict[str, float]], times: Sequence[float], known: dict[str, float]
) -> dict[str, float]:
    """Return constants in nanoseconds: non-negative least squares on relative errors."""
    names = [name for name in dict.fromkeys(n for w in amounts for n in w) if name not in known]
    matrix = np.array([[one.get(name, 0.0) for name in names] for one in amounts])
    rest = [
        1e9 * time - sum(known.get(name, 0.0) * amount for name, amount in one.items())
        for one, time in zip(amounts, times, strict=True)
    ]
    scale = 1e9 * np.array(times)
    found, _ = nnls(matrix / scale[:, None], np.array(rest) / scale)
    return dict(zip(names, map(float, found), strict=True))


def times(rounds: int) -> None:
    """Fit the constants, keep them, and print measured and predicted times."""
    groups = [fitted(), fitted_brian2(), held_out()]
    works: list[Callable[[], object]] = [prepared(case) for group in groups for case in group]
    works.append(lambda: torch.randn(NUMBERS))
    found = shortest(works, rounds)
    first, second, third = (len(group) for group in groups)
    parts = found[:first], found[first : first + second], found[first + second : -1]
    amounts = [[model.work(case) for case in group] for group in groups]
    constants = fit(
        [*amounts[0], {"number drawn": float(NUMBERS)}], [*parts[0], found[-1]], known={}
    )
    constants |= fit(amounts[1], parts[1], known=constants)
    _keep("nanoseconds", {name: float(f"{value:.4g}") for name, value in constants.items()})
    print("\n| constant | ns each |\n|---|---|")
    for name, value in constants.items():
        print(f"| {name} | {value:.4g} |")
    print("\n| configurations | number | median error | worst ratio |\n|---|---|---|---|")
    for label, part, group in (
        ("fitted, torch", parts[0], groups[0]),
        ("fitted, Brian2", parts[1], groups[1]),
        *(
            (f"held out, {kind}", *_of(kind, parts[2], groups[2]))
            for kind in ("rate", "spiking", "brian2")
        ),
        ("held out, all", parts[2], groups[2]),
    ):
        ratios = np.array(_ratios(constants, group, part))
        worst = ratios[np.abs(np.log(ratios)).argmax()]
        print(
            f"| {label} | {third if label.endswith('all') else len(group)} "
            f"| {np.median(np.abs(ratios - 1)):.1%} | {worst:.2f} |"
        )
    print("\n| network | rule | S | B | T | measured ms | predicted ms | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for case, measured in zip(groups[2], parts[2], strict=True):
        (ratio,) = _ratios(constants, [case], [measured])
        print(
            f"| {case.kind}, {case.name} | {case.rule} | {case.copies} | {case.batch} "
            f"| {case.steps} | {1000 * measured:.2f} | {1000 * ratio * measured:.2f} "
            f"| {ratio:.2f} |"
        )


def _of(
    kind: str, measured: Sequence[float], cases: Sequence[Case]
) -> tuple[list[float], list[Case]]:
    chosen = [pair for pair in zip(measured, cases, strict=True) if pair[1].kind == kind]
    return [one for one, _ in chosen], [case for _, case in chosen]


def _ratios(
    constants: dict[str, float], cases: Sequence[Case], measured: Sequence[float]
) -> list[float]:
    return [
        model.seconds(constants, model.work(case)) / one
        for case, one in zip(cases, measured, strict=True)
    ]


def _keep(name: str, values: object) -> None:
    """Keep what was measured beside this file, for ``simulate``."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    KEPT.write_text(json.dumps(kept | {name: values}, indent=2) + "\n", encoding="utf-8")


def kept() -> Any:
    """Return what ``times`` and ``traffic`` have measured."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


# The allocator ----------------------------------------------------------------------------------

ALLOCATED = (
    Case("backprop", "spiking", 1, 64, (128, 128), 40),
    Case("weak", "rate", 33, 128, (256, 256)),
    Case("weak", "spiking", 33, 64, (32, 32), 40),
    Case("weak", "spiking", 33, 64, (128, 128), 40),
    Case("weight_perturbation", "spiking", 33, 64, (128, 128), 40),
)


def _allocated(keeps: bool, results: Any) -> None:
    torch.set_num_threads(1)
    if keeps:
        keep_memory()
    results.put(shortest([prepared(case) for case in ALLOCATED], 6))


def allocator() -> None:
    """Compare steps in a process that keeps freed memory with one that returns it."""
    kept, returned = (_in_a_process(_allocated, keeps) for keeps in (True, False))
    print("\n| step | memory kept, ms | returned (as it comes), ms | ratio |\n|---|---|---|---|")
    for case, one, other in zip(ALLOCATED, kept, returned, strict=True):
        print(
            f"| {case.rule}, {case.kind}, {case.name}, S = {case.copies}, B = {case.batch}, "
            f"T = {case.steps} | {1000 * one:.1f} | {1000 * other:.1f} | {other / one:.2f} |"
        )


def _in_a_process(function: Callable[..., None], *arguments: object) -> Any:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=function, args=(*arguments, results))
    worker.start()
    found = results.get(timeout=300)
    worker.join()
    return found


# Memory -----------------------------------------------------------------------------------------


def allocated(case: Case) -> int:
    """Return the most bytes that a step takes from torch's allocator, above those it finds."""
    from torch.profiler import ProfilerActivity, profile

    step = prepared(case)
    step()
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False
    ) as profiler:
        step()
    events: Any = profiler.profiler
    found = [
        (event.start_ns(), event.nbytes())
        for event in events.kineto_results.events()
        if event.name() == "[memory]"
    ]
    sizes = [size for _, size in sorted(found, key=lambda pair: pair[0])]
    return int(np.cumsum(sizes).max())


def _megabytes(name: str) -> float:
    """Return a figure of this process's memory; "VmHWM" is the peak (Linux only)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _resident(case: Case, results: Any) -> None:
    torch.set_num_threads(1)
    small = prepared(replace(case, hidden=(8,), batch=2, copies=min(case.copies, 3)))
    small()  # libraries are loaded, code is compiled
    start = _megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    step = prepared(case)
    for _ in range(3):
        step()
    results.put((start, _megabytes("VmHWM") - start))


def memory_cases() -> list[Case]:
    """Return the configurations whose memory is measured in this process."""
    found = []
    for rule in RULES:
        few, many = (5, 65) if rule in PERTURBING else (1, 1)
        found += [
            Case(rule, "rate", few, 32, (100, 100)),
            Case(rule, "rate", many, 128, (256, 256)),
            Case(rule, "rate", few, 64, (1024, 1024), 1, 784),
            Case(rule, "spiking", few, 32, (100, 100), 20),
            Case(rule, "spiking", many, 64, (128, 128), 40),
            Case(rule, "spiking", few, 64, (300, 200, 100), 20, 784),
        ]
    return found


RESIDENT = (
    Case("backprop", "rate", 1, 64, (2048, 2048), 1, 784),
    Case("weight_perturbation", "rate", 5, 64, (2048, 2048), 1, 784),
    Case("weak", "rate", 65, 256, (256, 256)),
    Case("backprop", "spiking", 1, 256, (256, 256), 40),
    Case("weak", "spiking", 33, 128, (128, 128), 40),
    Case("weak", "brian2", 33, 128, (128, 128), 40),
    Case("backprop", "brian2", 1, 256, (256, 256), 40),
)


def memory() -> None:
    """Print bytes that torch allocates in a step, and those that the process occupies."""
    cases = memory_cases()
    measured = [allocated(case) for case in cases]
    predicted = [4 * model.peak(case) for case in cases]
    ratios = np.array(predicted) / np.array(measured)
    worst = ratios[np.abs(np.log(ratios)).argmax()]
    print(
        f"\nPeak of a step, torch's allocator, {len(cases)} configurations, nothing fitted: median "
        f"error {np.median(np.abs(ratios - 1)):.1%}, worst ratio {worst:.2f}"
    )
    print("\n| network | rule | S | B | T | measured MB | predicted MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for case, one, other in zip(cases, measured, predicted, strict=True):
        print(
            f"| {case.kind}, {case.name} | {case.rule} | {case.copies} | {case.batch} "
            f"| {case.steps} | {one / 2**20:.2f} | {other / 2**20:.2f} | {other / one:.2f} |"
        )
    print(
        "\n| a process of its own | rule | S | B | T | before MB | added MB | predicted | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in RESIDENT:
        start, added = _in_a_process(_resident, case)
        floats = 4 * (model.resting(case) + model.peak(case)) / 2**20
        print(
            f"| {case.kind}, {case.name} | {case.rule} | {case.copies} | {case.batch} "
            f"| {case.steps} | {start:.0f} | {added:.0f} | {floats:.0f} | {floats / added:.2f} |",
            flush=True,
        )


# Two processes ----------------------------------------------------------------------------------

DIVIDED = (
    Case("backprop", "rate", 1, 256, (256, 256)),
    Case("backprop", "spiking", 1, 128, (128, 128), 20),
    Case("weak", "rate", 17, 128, (128, 128)),
    Case("weak", "spiking", 17, 64, (128, 128), 20),
    Case("weight_perturbation", "rate", 33, 256, (64, 64)),
    Case("weight_perturbation", "spiking", 33, 64, (128, 128), 20),
)
MESSAGES = (1, 1_000, 10_000, 100_000, 1_000_000, 4_000_000)
"""Floats."""


def way(case: Case) -> model.Way:
    """Return what of a case biograd divides among ranks."""
    return "copies" if engine(case).estimator.divides == "copies" else "examples"


@dataclass
class Seen:
    """What a rank saw of one case: seconds of the shortest step, and bytes handed over in each."""

    wall: float
    spent: float
    bytes: int


def _watch(case: Case, steps: int) -> Seen:
    split = Arrays(*batch(case, (steps + 2) * case.batch))
    recipe = TrainingRecipe(epochs=1, batch_size=case.batch, learning_rate=1e-3)
    trainer = Trainer(engine(case), recipe, split, seed=0)
    seen = Seen(math.inf, math.inf, 0)
    run = trainer.steps()
    for _ in range(steps):
        begin, spent, before = time.perf_counter(), time.process_time(), ranks.traffic()
        next(run)
        seen.bytes = ranks.traffic() - before
        seen.wall = min(seen.wall, time.perf_counter() - begin)
        seen.spent = min(seen.spent, time.process_time() - spent)
    return seen


def _messages(count: int) -> list[float]:
    """Return the shortest seconds of a sum over the ranks, by size."""
    found = []
    for size in MESSAGES:
        values, best = torch.ones(size), math.inf
        for _ in range(count):
            ranks.table([0.0])  # all begin together
            begin = time.perf_counter()
            ranks.add(values)
            best = min(best, time.perf_counter() - begin)
        found.append(best)
    return found


def _rank(rank: int, size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    keep_memory()
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        ranks.join()
    seen = [vars(_watch(case, 40)) for case in DIVIDED]
    messages = _messages(40) if size > 1 else []
    found = {"seen": seen, "messages": messages}
    (Path(folder) / f"{size}.{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    ranks.leave()


def _ranks(size: int) -> list[Any]:
    """Return what each of so many processes found."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (size, port, folder), nprocs=size)
        files = [Path(folder) / f"{size}.{rank}.json" for rank in range(size)]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return latency and bandwidth, from relative errors."""
    ends = np.array([[2.0, model.wire(4 * size, 2)] for size in sizes])
    (latency, slowness), _ = nnls(ends / np.array(values)[:, None], np.ones(len(values)))
    return float(latency), 1 / float(slowness)


def traffic(rounds: int) -> None:
    """Print what two processes exchange, and how much faster they are than one."""
    load = os.getloadavg()[0]
    turns = [(_ranks(1), _ranks(2)) for _ in range(rounds)]
    reduced = np.min([one["messages"] for _, pair in turns for one in pair], 0)
    latency, bandwidth = _line(MESSAGES, reduced)
    link = Link("loopback", float(f"{latency:.3g}"), float(f"{bandwidth:.3g}"))
    _keep("loopback", {"latency": link.latency, "bandwidth": link.bandwidth})
    print(f"\nLoad average before: {load:.1f} on {os.cpu_count()} cores")
    print("\n| sum over two processes, floats | measured us | predicted us |\n|---|---|---|")
    for size, value in zip(MESSAGES, reduced, strict=True):
        print(f"| {size} | {1e6 * value:.0f} | {1e6 * link.reduce(4 * size, 2):.0f} |")
    print(f"\nlatency {1e6 * latency:.0f} us, bandwidth {bandwidth / 1e9:.2f} GB/s")
    print("\n| step | divided | counted bytes a step | formula |\n|---|---|---|---|")
    for place, case in enumerate(DIVIDED):
        counted = {one["seen"][place]["bytes"] for _, pair in turns for one in pair}
        formula = sum(model.traffic(case, way(case), 2).values())
        print(
            f"| {case.rule}, {case.kind}, {case.name} | {way(case)} "
            f"| {', '.join(map(str, sorted(counted)))} | {formula} |"
        )
    constants = kept()["nanoseconds"]
    print("\n| step | one process, ms | two, ms | ratio | predicted | by CPU time | predicted |")
    print("|---|---|---|---|---|---|---|")
    for place, case in enumerate(DIVIDED):
        one = [alone[0]["seen"][place] for alone, _ in turns]
        two = [[rank["seen"][place] for rank in pair] for _, pair in turns]
        wall = min(s["wall"] for s in one), min(max(s["wall"] for s in pair) for pair in two)
        spent = min(s["spent"] for s in one), min(max(s["spent"] for s in pair) for pair in two)
        both = [model.step(constants, case, way(case), count, link) for count in (1, 2)]
        busy = [model.seconds(constants, model.share(case, way(case), n)) for n in (1, 2)]
        print(
            f"| {case.rule}, {case.kind}, {case.name}, S = {case.copies}, B = {case.batch} "
            f"| {1000 * wall[0]:.2f} | {1000 * wall[1]:.2f} | **{wall[0] / wall[1]:.2f}** "
            f"| {both[0] / both[1]:.2f} | **{spent[0] / spent[1]:.2f}** | {busy[0] / busy[1]:.2f} |"
        )


SHARED = (
    Case("backprop", "rate", 1, 1024, (256, 256)),
    Case("weak", "rate", 17, 512, (128, 128)),
    Case("weak", "spiking", 17, 128, (128, 128), 12, 784),
    Case("weight_perturbation", "rate", 129, 256, (128, 128)),
    Case("weight_perturbation", "spiking", 129, 64, (128, 128), 12, 784),
)
SIZES = (1, 8, 64)


def shares(rounds: int) -> None:
    """Print the time of one rank's share of a step, without what ranks exchange."""
    constants = kept()["nanoseconds"]
    works = [prepared(case, size) for case in SHARED for size in SIZES]
    found = iter(shortest(works, rounds))
    print(
        "\nOne rank's share of a step, in a process alone, CPU ms: measured (predicted)\n\n"
        "| step | "
        + " | ".join(f"R = {size}" for size in SIZES)
        + " | 1 over 64 |\n|---"
        + "|---" * (len(SIZES) + 1)
        + "|"
    )
    for case in SHARED:
        measured = [next(found) for _ in SIZES]
        shared = [model.share(case, way(case), size) for size in SIZES]
        predicted = [model.seconds(constants, amounts) for amounts in shared]
        both = [*zip(measured, predicted, strict=True)]
        cells = " | ".join(f"{1000 * one:.2f} ({1000 * other:.2f})" for one, other in both)
        ratios = [times[0] / times[-1] for times in (measured, predicted)]
        print(
            f"| {case.rule}, {case.kind}, {case.name}, S = {case.copies}, B = {case.batch} "
            f"| {cells} | {ratios[0]:.1f} ({ratios[1]:.1f}) |"
        )


# Quality ----------------------------------------------------------------------------------------


def gradient(case: Case, attached: biograd.Engine) -> Tensor:
    """Return an estimate of the gradient of all parameters that the rule perturbs."""
    attached.network.zero_grad()
    attached(*batch(case)).backward()
    found = dict(attached.network.named_parameters())
    chosen = [v for k, v in found.items() if case.rule != "weak" or "readout" not in k]
    return torch.cat([v.grad.flatten() for v in chosen if v.grad is not None])


def quality(draws: int = 8) -> None:
    """Print how well an estimate agrees with back-propagation, and what the law says."""
    print("\n| network | rule | S | N | U | measured cosine | law |\n|---|---|---|---|---|---|---|")
    for hidden in ((30, 30), (100, 100)):
        for rule, copies in (
            ("weight_perturbation", 33),
            ("weight_perturbation", 257),
            ("weak", 9),
            ("weak", 33),
        ):
            case = Case(rule, "rate", copies, 32, hidden)
            # a small noise: the law leaves curvature out
            estimator: Any = (
                biograd.WeightPerturbation(copies, sigma=0.001)
                if rule == "weight_perturbation"
                else biograd.WeakGradient(copies, sigma=0.02)
            )
            torch.manual_seed(0)
            recipe = ModelRecipe(network=NetworkRecipe(kind="rate", hidden=hidden, gain=1.4))
            network = build(recipe, case.inputs, case.classes).double()
            exact = gradient(case, biograd.attach(network, biograd.Backpropagation()))
            attached = biograd.attach(network, estimator)
            if rule == "weak":
                exact = exact[: sum(p.numel() for p in network.blocks.parameters())]
            cosines = [
                float(torch.cosine_similarity(gradient(case, attached), exact, dim=0))
                for _ in range(draws)
            ]
            print(
                f"| {case.name} | {rule} | {copies} | {case.parameters} | {case.units} "
                f"| {np.mean(cosines):.3f} | {model.cosine(case):.3f} |"
            )


# Many ranks -------------------------------------------------------------------------------------

LINKS = (
    Link("10 GbE", 50e-6, 1.25e9),
    Link("100 Gb/s InfiniBand", 5e-6, 12.5e9),
    Link("PCIe 4.0 x16", 10e-6, 25e9),
)
"""Assumed, not measured: latency of a message of the library, not of the wire alone."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
NETWORKS = {
    "digits": Case("backprop", "rate", 1, 32, (30, 30)),
    "MNIST, spiking": Case("backprop", "spiking", 1, 64, (128, 128), 12, 784),
    "10^8 parameters": Case("backprop", "rate", 1, 1024, (4096,) * 7, 1, 784),
}
WAYS: tuple[tuple[str, int, model.Way], ...] = (
    ("backprop", 1, "examples"),
    ("weak", 17, "examples"),
    ("weight_perturbation", 1025, "copies"),
    ("weight_perturbation", 1025, "sums"),
)


def simulate() -> None:
    """Print what the model says of up to 1024 ranks."""
    for line in simulated(kept()["nanoseconds"]):
        print(line)


def simulated(constants: dict[str, float]) -> Iterator[str]:
    """Yield the tables of many ranks."""
    shown = (1, 8, 64, 1024)
    for name, base in NETWORKS.items():
        yield f"\n{name}: {base.name}, N = {base.parameters}, B = {base.batch}, T = {base.steps}\n"
        head = " | ".join(f"R = {count}" for count in shown)
        yield f"| rule | divided | link | {head} | less than half efficient from |"
        yield "|---" * (4 + len(shown)) + "|"
        for rule, copies, way in WAYS:
            case = replace(base, rule=rule, copies=copies)
            for link in LINKS[:2]:
                times = {count: model.step(constants, case, way, count, link) for count in COUNTS}
                cells = " | ".join(_duration(times[count]) for count in shown)
                limit = next((c for c in COUNTS if times[1] / (c * times[c]) < 0.5), None)
                label = rule if copies == 1 else f"{rule}, S = {copies}"
                yield f"| {label} | {way} | {link.name} | {cells} | {limit or 'never'} |"
    yield from _grown(constants)
    yield from _parts(constants)
    yield from _faster(constants)
    yield from _price(constants)


def _grown(constants: dict[str, float]) -> Iterator[str]:
    """Yield the efficiency where the batch grows with the ranks."""
    yield "\nBatch B on every rank, R B in all: efficiency, 10 GbE; and 100 Gb/s InfiniBand\n"
    yield "| network | rule | R = 8 | R = 64 | R = 1024 |"
    yield "|---|---|---|---|---|"
    for name, base in NETWORKS.items():
        for rule, copies, way in WAYS[:2]:
            cells = []
            for count in (8, 64, 1024):
                case = replace(base, rule=rule, copies=copies)
                grown = replace(case, batch=count * base.batch)
                both = [
                    model.step(constants, case, way, 1, link)
                    / model.step(constants, grown, way, count, link)
                    for link in LINKS[:2]
                ]
                cells.append("; ".join(f"{one:.0%}" for one in both))
            yield f"| {name} | {rule} | {' | '.join(cells)} |"


def _parts(constants: dict[str, float]) -> Iterator[str]:
    """Yield what a step on 64 ranks is made of."""
    link = LINKS[0]
    yield f"\nWhere the time of a step on 64 ranks goes, {link.name}\n"
    yield "| network | rule | divided | fixed | the same on all ranks | shares | exchange |"
    yield "|---|---|---|---|---|---|---|"
    for name, base in NETWORKS.items():
        for rule, copies, way in WAYS:
            case = replace(base, rule=rule, copies=copies)
            amounts = model.share(case, way, 64)
            fixed = {n: a for n, a in amounts.items() if n == "step" or n.startswith("layer, ")}
            every = {"parameter": amounts["parameter"]}
            if rule == "weak":
                every["number drawn"] = amounts["number drawn"]
            elif way == "copies":
                every["number drawn"] = case.noisy / 2 * case.parameters
            parts = [model.seconds(constants, part) for part in (fixed, every)]
            rest = model.seconds(constants, amounts) - sum(parts)
            parts += [rest, model.exchange(case, way, 64, link)]
            cells = " | ".join(f"{part / sum(parts):.0%}" for part in parts)
            yield f"| {name} | {rule} | {way} | {cells} |"


def _faster(constants: dict[str, float]) -> Iterator[str]:
    """Yield how a faster processor moves the limit."""
    base = NETWORKS["10^8 parameters"]
    yield "\nIf a rank were faster than one core here: efficiency of 64 ranks, 10^8 parameters\n"
    yield "| rule | divided | link | as measured | x 100 | x 1000 |"
    yield "|---|---|---|---|---|---|"
    for rule, copies, way in WAYS:
        case = replace(base, rule=rule, copies=copies)
        for link in LINKS:
            cells = []
            for faster in (1, 100, 1000):
                alone, many = (
                    model.step(constants, case, way, count, link, faster) for count in (1, 64)
                )
                cells.append(f"{alone / (64 * many):.0%}")
            yield f"| {rule} | {way} | {link.name} | {' | '.join(cells)} |"


def _price(constants: dict[str, float]) -> Iterator[str]:
    """Yield the copies that a good estimate takes, and the time of a step with them."""
    wanted = 0.5
    yield f"\nCopies for a cosine of {wanted} with the true gradient, and a step with them\n"
    yield (
        "| network | rule | unknowns | S | one rank | 1024 ranks, 10 GbE | backprop, one rank "
        "| memory, one rank |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, base in NETWORKS.items():
        exact = model.step(constants, base, "examples", 1, LINKS[0])
        for rule, way in (("weak", "examples"), ("weight_perturbation", "copies")):
            case = replace(base, rule=rule, copies=3)
            case = replace(case, copies=model.copies_for(case, wanted))
            times = [model.step(constants, case, way, count, LINKS[0]) for count in (1, 1024)]  # type: ignore[arg-type]
            unknowns = case.units if rule == "weak" else case.parameters
            cells = " | ".join(_duration(one) for one in (*times, exact))
            size = _size(4 * (model.resting(case) + model.peak(case)))
            yield f"| {name} | {rule} | {unknowns} | {case.copies} | {cells} | {size} |"


def _size(bytes: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if bytes >= size:
            return f"{bytes / size:.3g} {unit}"
    return f"{bytes / 1000:.3g} kB"


def _duration(seconds: float) -> str:
    units = ((31_557_600, "years"), (86_400, "days"), (3600, "h"), (300, "min"), (1, "s"))
    for size, unit in units:
        if seconds >= size:
            return f"{seconds / (60 if unit == 'min' else size):.3g} {unit}"
    if seconds >= 0.9995:
        return "1 s"
    return f"{1000 * seconds:.3g} ms"


def main() -> None:
    """Measure and print the parts that are asked for."""
    parts: dict[str, Callable[[int], None]] = {
        "times": times,
        "allocator": lambda _: allocator(),
        "memory": lambda _: memory(),
        "traffic": lambda rounds: traffic(max(1, (rounds + 1) // 3)),
        "shares": shares,
        "quality": lambda _: quality(),
        "simulate": lambda _: simulate(),
    }
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=list(parts))
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    for part in given.parts:
        parts[part](given.rounds)


if __name__ == "__main__":
    main()
