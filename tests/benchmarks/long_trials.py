"""Memory and time of one gradient over the length of a trial, each in a fresh process.

64-256-256-10 leaky neurons, 32 examples, constant currents, one loss at the end (``--steps``: one
in every step).  Memory is the peak of the resident memory in the first step above what was resident
before it; time is the CPU time of the second; one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/long_trials.py --out found.json --picture found.svg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LENGTHS = (100, 1000, 10000)
STORED = 1000  # what stores every step is not run longer
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "e-prop, online": ("eprop", {"online": True}),
    "direct feedback, online": ("direct_feedback", {"online": True}),
    "OTTT, online": ("ottt", {"online": True}),
    "SLTT, online": ("sltt", {"online": True}),
    "back-propagation, window of 50": ("backprop", {"window": 50, "recompute": True}),
    "back-propagation, recomputed": ("backprop", {"recompute": True}),
    "e-prop": ("eprop", {}),
    "OTTT": ("ottt", {}),
    "back-propagation": ("backprop", {}),
}


def one(rule: str, length: int, steps: bool) -> dict[str, float]:
    """Take two steps and return what the second needs."""
    import torch

    from biograd import networks, tasks
    from biograd.engine import attach
    from biograd.estimators import ESTIMATORS
    from biograd.recipes import ModelRecipe, construct

    name, given = RULES[rule]
    tables = {
        "network": {"kind": "spiking", "substrate": "torch", "hidden": [256, 256]},
        "neuron": {"kind": "leaky", "reset": "subtract"},
        "encoding": {"kind": "current", "dt_ms": 1.0, "duration_ms": float(length)},
        "decorrelation": {"rule": "off"},
    }
    task = tasks.Classes(10, timed=steps)
    network = networks.build(construct(ModelRecipe, tables, "b"), (64,), 10, 0, timed=steps)
    if rule.endswith("recomputed"):
        given = given | {"chunk": max(10, round(length**0.5))}
    inputs, targets = torch.rand(32, 64), torch.randint(0, 10, (32,))
    small = tables | {"encoding": {"kind": "current", "dt_ms": 1.0, "duration_ms": 4.0}}
    warm = networks.build(construct(ModelRecipe, small, "b"), (64,), 10, 0, timed=steps)
    attach(warm, ESTIMATORS[name](**given), task=task)(
        inputs, targets[:, None].expand(-1, 4).contiguous() if steps else targets
    ).backward()  # what is imported at first is not the trial's
    engine = attach(network, ESTIMATORS[name](**given), task=task)
    if steps:
        targets = targets[:, None].expand(-1, length).contiguous()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    engine(inputs, targets).backward()
    peak, begun = resident("VmHWM"), time.process_time()
    engine(inputs, targets).backward()
    return {"MB": peak - before, "seconds": time.process_time() - begun}


def resident(name: str) -> float:
    """Return a line of the process's status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measured(rule: str, length: int, steps: bool) -> dict[str, float]:
    """Return the figures of a fresh process, in which large arrays are given back at once."""
    command = [sys.executable, __file__, "--one", rule, str(length), *(["--steps"] * steps)]
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}  # no gaps in the heap are counted
    found: dict[str, float] = json.loads(subprocess.check_output(command, text=True, env=own))
    return found


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Draw memory and time over the number of steps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(7.1, 2.9), layout="constrained")
    for place, rule in enumerate(RULES):
        own = [row for row in rows if row["rule"] == rule]
        style = {"color": f"C{place}", "linestyle": "-" if given(rule) else "--", "marker": "o"}
        for axis, key in zip(axes, ("MB", "seconds"), strict=True):
            axis.loglog([r["steps"] for r in own], [r[key] for r in own], ms=3, label=rule, **style)
    axes[0].set(xlabel="steps of a trial", ylabel="peak memory of a gradient / MB")
    axes[1].set(xlabel="steps of a trial", ylabel="CPU time of a gradient / s")
    axes[1].legend(fontsize=6, frameon=False)
    figure.savefig(path)


def given(rule: str) -> bool:
    """Return whether a rule runs trials in parts."""
    return bool({"online", "recompute"} & RULES[rule][1].keys())


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2)
    parser.add_argument("--steps", action="store_true", help="a loss in every step")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--out")
    parser.add_argument("--picture")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], int(args.one[1]), args.steps)))
        return
    rows = []
    for rule in RULES:
        for length in args.lengths:
            if given(rule) or length <= STORED:
                row = {"rule": rule, "steps": length, **measured(rule, length, args.steps)}
                print("{rule:32} {steps:6} {MB:7.0f} MB {seconds:7.2f} s".format(**row), flush=True)
                rows.append(row)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
