"""How long ``biograd train`` takes to its first step beside a script that knows torch alone.

    OMP_NUM_THREADS=1 python tests/benchmarks/start.py --rounds 7 --json start.json

Figures are CPU times of fresh processes, in turns, their medians.  The script of torch takes one
step of Adam on random numbers of the same shape, without reading data; what it waits for is torch,
and ``torch._dynamo``, which Adam imports.  With ``BIOGRAD_DATA`` the folder of MNIST, that is
measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BARE = """
import time, torch
from torch import nn
network = nn.Sequential(nn.Linear({inputs}, 128), nn.ReLU(), nn.Linear(128, 10))
optimiser = torch.optim.Adam(network.parameters(), 1e-3)
inputs, targets = torch.rand(64, {inputs}), torch.randint(0, 10, (64,))
nn.functional.cross_entropy(network(inputs), targets).backward()
optimiser.step()
print(time.process_time())
"""
OURS = """
import os, sys, time
from biograd.__main__ import main

def watch():
    from biograd.training.trainer import Trainer
    step = Trainer._train

    def first(*given):
        step(*given)
        sys.__stdout__.write(f"{{time.process_time()}}\\n")
        sys.__stdout__.flush()
        os._exit(0)

    Trainer._train = first

import biograd.recipes as recipes
load = recipes.model_table
recipes.model_table = lambda *given: (watch(), load(*given))[1]  # before it imports the trainer
main(["train", "--model", "{model}", "--dataset", "{dataset}", "-q", "--force", "-o", "run.h5"])
"""
WORDS = """
import atexit, sys, time
atexit.register(lambda: sys.__stdout__.write(f"{{time.process_time()}}\\n"))
from biograd.__main__ import main
main({words!r})
"""
SCRIPTS = {
    "torch alone, 64 inputs": BARE.format(inputs=64),
    "biograd train --model spiking --dataset digits": OURS.format(
        model="spiking", dataset="digits"
    ),
    "biograd train --model ann --dataset digits": OURS.format(model="ann", dataset="digits"),
    "biograd --help": WORDS.format(words=["--help"]),
    "biograd list models": WORDS.format(words=["list", "models"]),
    "biograd list": WORDS.format(words=["list"]),
}
MNIST = {
    "torch alone, 784 inputs": BARE.format(inputs=784),
    "biograd train --model spiking --dataset mnist": OURS.format(model="spiking", dataset="mnist"),
}


def once(script: str) -> float:
    """Return the seconds of CPU that a process had used when it printed them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def table(rounds: int) -> dict[str, float]:
    """Measure all in turns; print and return the median of each."""
    scripts = SCRIPTS | (MNIST if os.environ.get("BIOGRAD_DATA") else {})
    for script in scripts.values():  # files are read from memory from now on
        once(script)
    turns = [{name: once(script) for name, script in scripts.items()} for _ in range(rounds)]
    found = {name: statistics.median(turn[name] for turn in turns) for name in scripts}
    print("| | s | to torch alone |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.2f} | {seconds / found['torch alone, 64 inputs']:.2f} |")
    return found


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    found = table(words.rounds)
    if words.json:
        words.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
