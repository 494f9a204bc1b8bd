"""A study of representations: what hidden layers hold when different rules have trained them.

For each rule and block, on examples that are sorted by label:

- dissimilarity of two examples ``1 - correlation`` of their activities, a matrix; matrices are
  compared by the correlation of their upper triangles;
- a linear classifier on the activity: how separable the classes are;
- a linear regression of the input on the activity: what share of the input's variance is left;
- norms of the layer's weights.

Source: Kriegeskorte, Mur & Bandettini 2008; Alain & Bengio 2016, arXiv 1610.01644; used to compare
rules by Czarnecki et al. 2017, arXiv 1703.00522.
"""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biograd import data, disk, experiment
from biograd.experiment import Experiment
from biograd.progress import Progress
from biograd.recipes import Positive, Range, Table, construct
from biograd.studies import Place, Report
from biograd.training import evaluate

Matrix = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class TrainedRule:
    """One rule."""

    estimator: str
    set: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Representations:
    """The settings of a study of representations."""

    cells: Table
    baseline: str
    """The cell with whose dissimilarities the others' are compared."""
    description: str = ""
    model: str = "ann"
    dataset: str = "mnist"
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    points: Annotated[int, Range(20)] = 400
    """Examples in a dissimilarity matrix, sorted by label."""
    probe_examples: Annotated[int, Range(20)] = 2000
    """Examples of the training split that a linear probe learns from; as many test it."""
    ridge: Positive = 1e-2


@dataclasses.dataclass(frozen=True)
class MeasuredBlock:
    """What was measured in one block."""

    dissimilarity: Matrix
    classified: float
    left: float
    norm: float


def run(settings: Representations, place: Place, progress: Progress) -> Report:
    """Train every cell, measure every block, write the pictures, and return the table."""
    cells = {
        name: construct(TrainedRule, table, "study", f"cells.{name}")
        for name, table in settings.cells.items()
    }
    found: dict[str, list[tuple[float, dict[str, MeasuredBlock]]]] = {name: [] for name in cells}
    for seed in settings.seeds:
        for name, cell in cells.items():
            progress.note(f"{name}, seed {seed}")
            found[name].append(_trained(settings, cell, seed, place, progress))
    rows = []
    for name, of_seeds in found.items():
        for block in of_seeds[0][1]:
            rows.append(_row(settings, found, name, block))
    first = {name: of_seeds[0][1] for name, of_seeds in found.items()}
    picture = _draw(first, place.folder / "dissimilarities.png")
    columns = {
        "cell": "",
        "block": "block",
        "test": "test accuracy %",
        "similar": "similarity",
        "classified": "linear probe %",
        "left": "input left %",
        "norm": "weight norm",
    }
    notes = [
        f"mean over {len(settings.seeds)} seeds; similarity: correlation of the dissimilarities "
        f"with those of {settings.baseline}; input left: share of its variance that is linear in "
        "the activity",
        f"dissimilarity matrices: {picture}",
    ]
    return Report(columns, rows, notes)


def _trained(
    settings: Representations,
    cell: TrainedRule,
    seed: int,
    place: Place,
    progress: Progress,
) -> tuple[float, dict[str, MeasuredBlock]]:
    """Return the test accuracy in per cent and what each block holds."""
    request = experiment.TrainingRequest(
        model=place.model(settings.model),
        dataset=settings.dataset,
        own=place.data(settings.dataset),
        allow_code=place.allow_code,
        estimator=cell.estimator,
        seed=seed,
        device="cpu",
        common=settings.set,
        assignments=cell.set,
        data_dir=place.data_dir,
        offline=place.offline,
    )
    configuration, parts = experiment.configure(request), request.parts()
    dataset = configuration.read(parts.data)
    made = Experiment(configuration, dataset, parts)
    progress.begin(made.trainer.total, f"{cell.estimator}, seed {seed}")
    for record in made.records():
        progress.step({"loss": record.loss, **record.metrics})
    accuracy = 100 * evaluate(made.engine, dataset.evaluated)["accuracy"]
    layers = _measure(settings, made, dataset.train)
    made.engine.detach()
    return accuracy, layers


def _measure(
    settings: Representations, made: Experiment, split: data.Source
) -> dict[str, MeasuredBlock]:
    """Measure every block on examples of the training split that no probe has learned from."""
    count = min(settings.probe_examples, len(split) // 2)
    batch = split.take(torch.arange(2 * count))
    inputs, labels = batch.inputs, batch.targets
    found = {name: one.values for name, one in made.observe(inputs).items()}
    sorted_points = labels[count:].argsort(stable=True)
    chosen = sorted_points[torch.linspace(0, count - 1, min(settings.points, count)).round().long()]
    layers = {}
    for site, (name, value) in zip(made.engine.hidden, found.items(), strict=False):
        values = value.flatten(1) if value.dim() == 2 else value.mean(1)
        learn, test = values[:count].double(), values[count:].double()
        pixels = inputs.flatten(1).double()
        weight = made.network.get_submodule(site).get_parameter("weight")
        layers[name] = MeasuredBlock(
            dissimilarity(test[chosen]),
            100 * classified(learn, labels[:count], test, labels[count:], settings.ridge),
            100 * variance_left(learn, pixels[:count], test, pixels[count:], settings.ridge),
            float(weight.detach().norm()),
        )
    return layers


def dissimilarity(values: Tensor) -> Matrix:
    """Return ``1 - correlation`` of every pair of rows, ``[n, n]``; 1 for a constant row.

    >>> dissimilarity(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 2.0, 1.0]])).round(6)
    array([[0., 0., 2.],
           [0., 0., 2.],
           [2., 2., 0.]])
    """
    centred = values.double() - values.double().mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    unit = torch.where(norm > 0, centred / norm.clamp_min(1e-300), 0.0)
    return (1 - unit @ unit.T).fill_diagonal_(0.0).abs().numpy()


def agreement(one: Matrix, other: Matrix) -> float:
    """Return the correlation of the upper triangles of two dissimilarity matrices."""
    upper = np.triu_indices(len(one), 1)
    return float(np.corrcoef(one[upper], other[upper])[0, 1])


def _fit(learn: Tensor, targets: Tensor, test: Tensor, ridge: float) -> Tensor:
    """Return the ridge regression's predictions for ``test``; inputs standardised, intercept."""
    mean, spread = learn.mean(0), learn.std(0).clamp_min(1e-9)
    design, centre = (learn - mean) / spread, targets.mean(0)
    gram = design.T @ design
    gram.diagonal().add_(ridge * len(learn))
    weights = torch.linalg.solve(gram, design.T @ (targets - centre))
    return (test - mean) / spread @ weights + centre


def classified(
    learn: Tensor, labels: Tensor, test: Tensor, expected: Tensor, ridge: float
) -> float:
    """Return the accuracy of a linear classifier (ridge regression on one-hot labels)."""
    classes = int(max(labels.max(), expected.max())) + 1
    one_hot = torch.nn.functional.one_hot(labels, classes).double()
    return float((_fit(learn, one_hot, test, ridge).argmax(1) == expected).double().mean())


def variance_left(
    learn: Tensor, pixels: Tensor, test: Tensor, expected: Tensor, ridge: float
) -> float:
    """Return the share of the inputs' variance that is linear in the activity, at least 0."""
    residual = (_fit(learn, pixels, test, ridge) - expected).square().sum()
    return float((1 - residual / (expected - expected.mean(0)).square().sum()).clamp_min(0))


def _row(
    settings: Representations,
    found: dict[str, list[tuple[float, dict[str, MeasuredBlock]]]],
    name: str,
    block: str,
) -> dict[str, Any]:
    here = [layers[block] for _accuracy, layers in found[name]]
    there = [layers[block] for _accuracy, layers in found[settings.baseline]]
    pairs = zip(here, there, strict=True)
    return {
        "cell": name,
        "block": block,
        "test": statistics.mean(accuracy for accuracy, _layers in found[name]),
        "similar": statistics.mean(
            agreement(one.dissimilarity, other.dissimilarity) for one, other in pairs
        ),
        "classified": statistics.mean(layer.classified for layer in here),
        "left": statistics.mean(layer.left for layer in here),
        "norm": statistics.mean(layer.norm for layer in here),
    }


def _draw(found: dict[str, dict[str, MeasuredBlock]], path: Path) -> Path:
    """Draw the dissimilarity matrices: a row for each cell, a column for each block."""
    from matplotlib.figure import Figure

    blocks = list(next(iter(found.values())))
    size = (1.6 * len(blocks) + 1.4, 1.7 * len(found) + 0.6)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(len(found), len(blocks), squeeze=False)
    image = None
    for place, (name, layers) in enumerate(found.items()):
        row = axes[place]
        for axis, (block, layer) in zip(row, layers.items(), strict=True):
            image = axis.imshow(layer.dissimilarity, vmin=0, vmax=1.5, cmap="magma")
            axis.set_xticks([])
            axis.set_yticks([])
            if place == 0:
                axis.set_title(
                    block.removesuffix(".activity").replace("blocks.", "block "), fontsize=8
                )
        row[0].set_ylabel(textwrap.fill(name, 20), fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.6)
        bar.set_label("dissimilarity, 1 - correlation", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    with disk.replacing(path) as stream:
        figure.savefig(stream, format="png", bbox_inches="tight")
    return path
