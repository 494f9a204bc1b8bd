"""What decorrelation is worth: spiking digits 64-30-30-10, weak gradient with 9 copies, 30 epochs.

Prints one row for each rule, train and test accuracy, mean and standard deviation over seeds, and
the paired difference to training without it.  The settings are the recipe's; only the copies, the
epochs and the rule are set here.

    python tests/benchmarks/decorrelation.py --seeds 5
"""

from __future__ import annotations

import argparse
import statistics

from biograd import data, experiment
from biograd.training import evaluate

SETTINGS = ("training.epochs=30", "estimators.weak.copies=9")
RULES = {
    "off": ("decorrelation.rule=off",),
    "kappa": ("decorrelation.rule=kappa",),
    "scaled": ("decorrelation.rule=scaled", "decorrelation.rate=0.00001"),
}


def accuracies(rule: str, seed: int, model: str, estimator: str) -> tuple[float, float]:
    """Return train and test accuracy in per cent."""
    configuration = experiment.configure(
        experiment.Request(
            model=model,
            estimator=estimator,
            seed=seed,
            device="cpu",
            assignments=(*SETTINGS, *RULES[rule]),
        )
    )
    dataset = data.load(configuration.data, name="digits")
    run = experiment.Experiment(configuration, dataset)
    for _step in run.trainer.steps():
        pass
    train, test = (evaluate(run.engine, part)[0] for part in (dataset.train, dataset.test))
    run.engine.detach()
    return 100 * train, 100 * test


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="spiking")
    parser.add_argument("--estimator", default="weak")
    choice = parser.parse_args()
    found = {
        rule: [
            accuracies(rule, seed, choice.model, choice.estimator) for seed in range(choice.seeds)
        ]
        for rule in RULES
    }
    print("| decorrelation | train % | test % | test, paired difference to off |")
    print("|---|---|---|---|")
    for rule, rows in found.items():
        train, test = zip(*rows, strict=True)
        gain = [row[1] - off[1] for row, off in zip(rows, found["off"], strict=True)]
        difference = "" if rule == "off" else f"{statistics.mean(gain):+.2f} ({_spread(gain)})"
        print(f"| {rule} | {_both(train)} | {_both(test)} | {difference} |")


def _spread(values: list[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def _both(values: tuple[float, ...]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
