"""What decorrelation is worth, and what it costs at inference.

Accuracy: spiking digits 64-30-30-10, 30 epochs, 9 copies for rules that make copies.  Prints one
row for each estimator and rule, train and test accuracy, mean and standard deviation over seeds,
and the paired difference to training without it.  The settings are the recipe's; only the copies,
the epochs and the rule are set here.

    python tests/benchmarks/decorrelation.py --seeds 5
    python tests/benchmarks/decorrelation.py --model ann \
        --estimators backprop feedback_alignment node_perturbation --rules off kappa

Cost: a convolution and a dense layer in evaluation, with the transform over without, both timed in
turns in one process.

    OMP_NUM_THREADS=1 python tests/benchmarks/decorrelation.py --inference

Price: a step of training of 784-128-128-10 with 64 examples by back-propagation, over one without.

    OMP_NUM_THREADS=1 python tests/benchmarks/decorrelation.py --steps
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import biograd
from biograd import data, estimators, experiment
from biograd.training import evaluate

COPIES = 9
RULES = {
    "off": ("decorrelation.rule=off",),
    "kappa": ("decorrelation.rule=kappa",),
    "copi": ("decorrelation.rule=copi",),
    "scaled": ("decorrelation.rule=scaled", "decorrelation.rate=0.00001"),
    "foldiak": ("decorrelation.rule=foldiak",),
}
LAYERS = {
    "convolution 16 -> 32, 28 x 28": (lambda: nn.Conv2d(16, 32, 3, padding=1), (16, 28, 28)),
    "convolution 64 -> 64, 16 x 16": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 16, 16)),
    "convolution 128 -> 128, 8 x 8": (lambda: nn.Conv2d(128, 128, 3, padding=1), (128, 8, 8)),
    "dense 784 -> 256": (lambda: nn.Linear(784, 256), (784,)),
}
"""A layer and the shape of its input."""


def accuracies(
    rule: str, seed: int, model: str, estimator: str, epochs: int
) -> tuple[float, float]:
    """Return train and test accuracy in per cent."""
    settings = [f"training.epochs={epochs}", *RULES[rule]]
    if "copies" in vars(estimators.make(estimator)):
        settings.append(f"estimators.{estimator}.copies={COPIES}")
    configuration = experiment.configure(
        experiment.TrainingRequest(
            model=model,
            estimator=estimator,
            seed=seed,
            device="cpu",
            assignments=tuple(settings),
        )
    )
    dataset = data.load(configuration.data, name="digits")
    run = experiment.Experiment(configuration, dataset)
    for _step in run.trainer.steps():
        pass
    train, test = (evaluate(run.engine, part)["accuracy"] for part in (dataset.train, dataset.test))
    run.engine.detach()
    return 100 * train, 100 * test


def compare(choice: argparse.Namespace) -> None:
    """Print accuracies as Markdown."""
    rules = list(dict.fromkeys(["off", *choice.rules]))
    print("| estimator | decorrelation | train % | test % | test, paired difference to off |")
    print("|---|---|---|---|---|")
    for estimator in choice.estimators:
        without: list[float] = []
        for rule in rules:
            rows = [
                accuracies(rule, seed, choice.model, estimator, choice.epochs)
                for seed in range(choice.seeds)
            ]
            train, test = (list(column) for column in zip(*rows, strict=True))
            without = without or test
            gain = [now - off for now, off in zip(test, without, strict=True)]
            difference = "" if rule == "off" else f"{statistics.mean(gain):+.2f} ({_spread(gain)})"
            print(f"| {estimator} | {rule} | {_both(train)} | {_both(test)} | {difference} |")


def _spread(values: list[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def _both(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def price() -> None:
    """Print the time of a training step with each rule over that without, medians in turns."""
    inputs, targets = torch.rand(64, 784), torch.arange(64) % 10
    engines = {}
    for rule in RULES:
        network = nn.Sequential(
            *(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        )
        decorrelation = None if rule == "off" else biograd.Decorrelation(rule, 1e-5)
        engines[rule] = biograd.attach(network, biograd.Backpropagation(), decorrelation)
    times: dict[str, list[float]] = {rule: [] for rule in engines}
    for _ in range(15):
        for rule, engine in engines.items():
            begin = time.process_time()
            engine(inputs, targets).backward()
            engine.update()
            times[rule].append(time.process_time() - begin)
    for rule, found in times.items():
        median = statistics.median(found)
        print(f"{rule}: {1000 * median:.1f} ms, {median / statistics.median(times['off']):.1f}")


@torch.no_grad()
def inference() -> None:
    """Print the cost of inference behind a transform over that of the plain layer."""
    print("| layer | examples | plain ms | decorrelated / plain | largest difference |")
    print("|---|---|---|---|---|")
    for name, (make, shape) in LAYERS.items():
        for batch in (1, 32):
            plain, behind = make(), make()
            inputs = torch.randn(batch, *shape)
            network = nn.Sequential(behind, nn.Flatten(), nn.Linear(behind(inputs)[0].numel(), 3))
            decorrelation = biograd.Decorrelation()
            biograd.attach(network, biograd.Backpropagation(), decorrelation)
            network.eval()
            matrix = decorrelation.matrices["0"]
            matrix.add_(torch.randn_like(matrix) / matrix.shape[-1])
            plain.weight.copy_(decorrelation.effective("0", behind)[0])
            plain.bias.copy_(behind.bias)
            difference = float((behind(inputs) - plain(inputs)).abs().max())
            times = _times(plain, behind, inputs)
            ratio = f"{times[0]:.3f} | {times[1] / times[0]:.3f}"
            print(f"| {name} | {batch} | {ratio} | {difference:.1e} |")


def _times(plain: nn.Module, behind: nn.Module, inputs: torch.Tensor) -> tuple[float, float]:
    """Return the shortest times in milliseconds, measured in turns."""
    torch.empty(7 * 2**20)  # freed: from now on the allocator keeps blocks of up to 28 MB
    best = [float("inf")] * 2
    for turn in range(300):
        for place in (turn % 2, 1 - turn % 2):
            layer = (plain, behind)[place]
            begin = time.perf_counter()
            layer(inputs)
            best[place] = min(best[place], 1000 * (time.perf_counter() - begin))
    return best[0], best[1]


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--model", default="spiking")
    parser.add_argument("--estimators", nargs="+", default=["weak"])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--inference", action="store_true", help="the cost instead")
    parser.add_argument("--steps", action="store_true", help="the price of a step instead")
    choice = parser.parse_args()
    if choice.inference:
        inference()
    elif choice.steps:
        price()
    else:
        compare(choice)


if __name__ == "__main__":
    main()
