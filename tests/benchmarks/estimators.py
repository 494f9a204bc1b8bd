"""Test accuracy of every estimator on every substrate: digits, 64-30-30-10, the recipes' settings.

Prints a Markdown table: mean and range over seeds, CPU seconds of one training.

    python tests/benchmarks/estimators.py --seeds 3 --estimators backprop,weak,frozen_hidden
"""

from __future__ import annotations

import argparse
import statistics
import time

from biograd import data, experiment
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS
from biograd.training import evaluate

MODELS = ("ann", "spiking", "brian2")


def cell(model: str, estimator: str, seeds: int) -> str:
    """Return one cell of the table."""
    found, begin = [], time.process_time()
    for seed in range(seeds):
        request = experiment.TrainingRequest(
            model=model, estimator=estimator, seed=seed, device="cpu"
        )
        configuration = experiment.configure(request)
        dataset = data.load(configuration.data, name="digits")
        try:
            run = experiment.Experiment(configuration, dataset)
        except CapabilityError:
            return "cannot: no derivative"
        for _step in run.trainer.steps():
            pass
        found.append(100 * evaluate(run.engine, dataset.test)["accuracy"])
        run.engine.detach()
    seconds = (time.process_time() - begin) / seeds
    spread = f"{min(found):.1f}–{max(found):.1f}"
    return f"**{statistics.mean(found):.1f}** ({spread}), {seconds:.0f} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--estimators", default=",".join(ESTIMATORS), help="names, by commas")
    choice = parser.parse_args()
    print("| estimator |", " | ".join(f"`{model}`" for model in MODELS), "|")
    print("|---" * (len(MODELS) + 1) + "|")
    for name in choice.estimators.split(","):
        cells = [cell(model, name, choice.seeds) for model in MODELS]
        print(f"| `{name}` |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
