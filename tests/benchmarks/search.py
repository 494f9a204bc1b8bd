"""Choose a recipe's defaults on a validation part of the training split.

The test split is never loaded into a comparison: ``dataset.validation`` replaces it by a part of
the training split.  Every combination of the given values is trained for each seed; the rows are
printed and appended to ``models/search.csv``.

    python tests/benchmarks/search.py spiking digits --seeds 3 \
        estimators.weak.sigma=0.1,0.2,0.4 training.learning_rate=0.003,0.01
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import time
from pathlib import Path

from biograd import data, experiment
from biograd.training import evaluate

TABLE = Path(__file__).parents[2] / "models" / "search.csv"
COLUMNS = (
    "model",
    "dataset",
    "estimator",
    "validation",
    "setting",
    "seeds",
    "accuracy",
    "lowest",
    "highest",
    "control",
    "seconds",
)


def accuracy(
    model: str,
    dataset: str,
    estimator: str | None,
    seed: int,
    assignments: tuple[str, ...],
    data_dir: Path | None,
) -> float:
    """Return the validation accuracy of one training."""
    configuration = experiment.configure(
        experiment.TrainingRequest(
            model=model,
            dataset=dataset,
            estimator=estimator,
            seed=seed,
            assignments=assignments,
            data_dir=data_dir,
            offline=True,
            device="cpu",
        )
    )
    loaded = data.load(
        configuration.data, name=configuration.dataset, data_dir=data_dir, offline=True
    )
    assert loaded.evaluated_on == "validation"
    run = experiment.Experiment(configuration, loaded)
    for _step in run.trainer.steps():
        pass
    found = evaluate(run.engine, loaded.test)["accuracy"]
    run.engine.detach()
    return found


def main() -> None:
    """Run the search that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("grid", nargs="*", metavar="KEY=VALUE,VALUE")
    parser.add_argument("--estimator")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validation", default="0.2")
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--no-table", action="store_true")
    choice = parser.parse_intermixed_args()
    keys = [axis.partition("=")[0] for axis in choice.grid]
    axes = [axis.partition("=")[2].split(",") for axis in choice.grid]
    for values in itertools.product(*axes):
        setting = tuple(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        assignments = (*setting, f"dataset.validation={choice.validation}")
        begin = time.perf_counter()
        scores = [
            accuracy(
                choice.model, choice.dataset, choice.estimator, seed, assignments, choice.data_dir
            )
            for seed in range(choice.seeds)
        ]
        seconds = (time.perf_counter() - begin) / choice.seeds
        control = ""
        if choice.control:
            found = accuracy(
                choice.model, choice.dataset, "frozen_hidden", 0, assignments, choice.data_dir
            )
            control = f"{found:.4f}"
        row = (
            choice.model,
            choice.dataset,
            choice.estimator or "recipe",
            choice.validation,
            " ".join(setting) or "as shipped",
            choice.seeds,
            f"{statistics.mean(scores):.4f}",
            f"{min(scores):.4f}",
            f"{max(scores):.4f}",
            control,
            f"{seconds:.1f}",
        )
        print(*row, flush=True)
        if not choice.no_table:
            new = not TABLE.exists()
            with TABLE.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(COLUMNS)
                writer.writerow(row)


if __name__ == "__main__":
    main()
