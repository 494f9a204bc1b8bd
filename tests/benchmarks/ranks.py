"""What it takes to train by several ranks: time of a step, and what travels between them.

The network of ``models/spiking.toml`` for MNIST, random images, gloo on one machine, one thread a
rank.  Wall time is the best step's; CPU time is that of the busiest rank in its best step, which
other work on the machine does not lengthen, and does not count waiting for the other ranks.

    OMP_NUM_THREADS=1 python tests/benchmarks/ranks.py [RANKS]
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from biograd import estimators, networks, ranks, recipes
from biograd.data import Arrays
from biograd.engine import attach
from biograd.randomness import generator
from biograd.training import Trainer

STEPS = 16
CASES = [
    ("backprop", 64),
    ("backprop", 256),
    ("weak", 64),
    ("weak", 256),
    ("weight_perturbation", 64),
    ("weight_perturbation", 256),
]
Row = dict[str, float]


def trainer(rule: str, rows: int) -> Trainer:
    """Return the training of a case, for so many steps."""
    over = {"training": {"epochs": 1, "batch_size": rows}, "estimator": rule}
    recipe = recipes.load_model("spiking", "mnist", over, [])
    network = networks.build(recipe, (1, 28, 28), 10, 0)
    rule_of = estimators.make(rule, recipe.estimators.get(rule, {}))
    stream = generator(0, "images")
    split = Arrays(
        torch.rand(STEPS * rows, 1, 28, 28, generator=stream), torch.arange(STEPS * rows)
    )
    split = Arrays(split.inputs, split.targets % 10)
    return Trainer(attach(network, rule_of), recipe.training, split, 0)


def measure(rule: str, rows: int) -> Row:
    """Return wall and CPU milliseconds and kilobytes sent, of the best step on this rank."""
    steps, found = trainer(rule, rows).steps(), []
    for _ in range(STEPS - 1):
        start, used, sent = time.perf_counter(), time.process_time(), ranks.traffic()
        next(steps)
        wall, cpu = time.perf_counter() - start, time.process_time() - used
        found.append((1e3 * wall, 1e3 * cpu, (ranks.traffic() - sent) / 1e3))
    wall, cpu, sent = (min(column) for column in zip(*found, strict=True))
    return {"wall": wall, "cpu": cpu, "sent": sent}


def work(rank: int, size: int, port: int, folder: str) -> None:
    """Measure all cases as one of the ranks and write down what was found."""
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        ranks.join()
    rows = [measure(*case) for case in CASES]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rows))
    ranks.leave()


def run(size: int) -> list[Row]:
    """Return what the slowest of so many ranks measured, for each case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (size, port, folder), nprocs=size)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    return [
        {key: max(row[key] for row in rows) for key in rows[0]} for rows in zip(*found, strict=True)
    ]


def main() -> None:
    """Print the table."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    alone, together = run(1), run(size)
    print(f"| rule | batch | 1 rank ms | {size} ranks ms | wall ratio | CPU ratio | kB a step |")
    print("|---|---|---|---|---|---|---|")
    for (rule, rows), one, many in zip(CASES, alone, together, strict=True):
        wall, cpu = one["wall"] / many["wall"], one["cpu"] / many["cpu"]
        print(
            f"| {rule} | {rows} | {one['wall']:.0f} | {many['wall']:.0f} | {wall:.2f} | "
            f"{cpu:.2f} | {many['sent']:.2f} |"
        )


if __name__ == "__main__":
    main()
