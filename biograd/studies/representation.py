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
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biograd import data, disk, experiment
from biograd.analyses.dissimilarity import rdm, rsa
from biograd.errors import word
from biograd.experiment import Experiment
from biograd.pages.markup import Figures, document, html, listing, section, short, table
from biograd.plots.of_representation import matrices
from biograd.plots.panel import Panel, save
from biograd.plots.style import layer_title
from biograd.progress import Progress
from biograd.recipes import Positive, Range, Table, construct
from biograd.studies import SAVED, Place, Report
from biograd.studies.results.gathering import with_similarity
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
    labels: NDArray[np.int64]
    """Of the examples in the matrix."""
    classified: float
    left: float
    norm: float


Found = dict[str, list[tuple[float, dict[str, MeasuredBlock]]]]


def run(settings: Representations, place: Place, progress: Progress) -> Report:
    """Train every cell, measure every block, write the pictures, and return the table."""
    cells = {
        name: construct(TrainedRule, table, "study", f"cells.{name}")
        for name, table in settings.cells.items()
    }
    found: Found = {name: [] for name in cells}
    for seed in settings.seeds:
        for name, cell in cells.items():
            progress.note(f"{name}, seed {seed}")
            found[name].append(_trained(settings, cell, seed, place, progress))
    rows = []
    for name, of_seeds in found.items():
        for block in of_seeds[0][1]:
            rows.append(_row(settings, found, name, block))
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
        "dissimilarities of the first seed: report.html, dissimilarities.pdf",
    ]
    made, panels = Report(columns, rows, notes), _panels(settings, found)
    with disk.writing(place.folder, "run the study again"):
        place.folder.mkdir(parents=True, exist_ok=True)
        save(panels, place.folder / "dissimilarities", "double", ("pdf", "png"))
        text = _page(settings, made, panels, place)
        disk.write_bytes(place.folder / "report.html", text.encode())
    return made


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
            rdm(test[chosen].numpy()),
            labels[count:][chosen].numpy(),
            100 * classified(learn, labels[:count], test, labels[count:], settings.ridge),
            100 * variance_left(learn, pixels[:count], test, pixels[count:], settings.ridge),
            float(weight.detach().norm()),
        )
    return layers


def agreement(one: Matrix, other: Matrix) -> float:
    """Return the correlation of the upper triangles of two matrices, silent examples left out."""
    return rsa(one, other, "pearson")


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
    found: Found,
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


def _panels(settings: Representations, found: Found) -> list[Panel]:
    """Return the dissimilarities of each block, the cells beside one another, of the first seed."""
    first = {name: of_seeds[0][1] for name, of_seeds in found.items()}
    base, panels = first[settings.baseline], []
    for block, measured in base.items():
        names = [name for name, blocks in first.items() if block in blocks]
        made = matrices(
            layer_title(block),
            np.stack([first[name][block].dissimilarity for name in names]),
            names,
            measured.labels,
        )
        similar = [
            agreement(first[name][block].dissimilarity, measured.dissimilarity) for name in names
        ]
        panels.append(with_similarity(made, similar, settings.baseline))
    return panels


def _page(settings: Representations, made: Report, panels: list[Panel], place: Place) -> str:
    drawing = Figures()
    heads, keys = list(made.columns.values()), list(made.columns)
    rows = [[short(row[key]) for key in keys] for row in made.rows]
    told = "".join(f'<p class="note">{html(note)}.</p>' for note in made.notes)
    command = f"biograd run {word(place.folder.name)}/{SAVED} --out {word(place.folder.name)}"
    return document(
        settings.description or "Representations",
        f"{len(settings.cells)} rules, {len(settings.seeds)} seeds, model {settings.model} on "
        f"{settings.dataset}; the blocks are those of the hidden layers, examples sorted by class.",
        "",
        [
            section("Dissimilarities", drawing.grid(panels)),
            section("Numbers", table(["rule", *heads[1:]], rows, "Numbers"), told),
            section("Settings", listing(dataclasses.asdict(settings), "Settings")),
            section("Repeat", f"<pre>{html(command)}</pre>"),
        ],
    )
