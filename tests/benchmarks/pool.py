"""How much faster a study is with two processes, as a ratio in one run on an idle machine.

    python tests/benchmarks/pool.py

Both ways start a process for each of eight trainings of one thread (spiking digits, weak gradient);
the time for starting them counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from biograd.placement import processes
from biograd.placement.jobs import Work
from biograd.recipes import construct
from biograd.studies import Place
from biograd.studies.design import Trainings
from biograd.studies.trainings import planned, train

STUDY = {"grid": {"models": ["spiking"], "control": False}, "seeds": list(range(8))}


def seconds(workers: int) -> float:
    """Return how long all trainings take."""
    with tempfile.TemporaryDirectory() as folder:
        trainings = planned(construct(Trainings, STUDY, "study"), Place(Path(folder)))
        begin = time.perf_counter()
        failures = processes.run(
            [Work(one.name, train, (one,)) for one in trainings], workers, lambda event: None
        )
        assert not failures, failures
        return time.perf_counter() - begin


def main() -> None:
    """Print the ratio."""
    os.environ["OMP_NUM_THREADS"] = "1"
    busy = os.getloadavg()[0]
    one, two = seconds(1), seconds(2)
    print(
        f"one process {one:.0f} s, two {two:.0f} s: {one / two:.2f} times (load before {busy:.1f})"
    )


if __name__ == "__main__":
    main()
