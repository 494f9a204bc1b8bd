"""``biograd train``: a model, a dataset and an estimator become one run file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from biograd import recipes
from biograd.commands.options import (
    Answer,
    allow_code_option,
    command,
    data_dir_option,
    device_option,
    loss_option,
    metric_option,
    model_args_option,
    quiet_option,
    reset_option,
)
from biograd.display.columns import columns, costs, large, percent
from biograd.display.progress_display import ProgressDisplay
from biograd.errors import word
from biograd.metrics import headline, words, written


@command("train", together=True)
@click.option(
    "--model",
    metavar="NAME|FILE|CODE",
    default="spiking",
    show_default=True,
    help="A shipped model, a TOML file, or a module of your own: FILE.py:NAME or "
    "package.module:NAME of its class, or of a function that returns it.",
)
@model_args_option
@click.option(
    "--dataset",
    metavar="NAME|FILE|FUNCTION",
    default="digits",
    show_default=True,
    help="A shipped dataset, a TOML file, or your own: FILE.npz, FILE.h5, a folder, "
    "FILE.py:FUNCTION, package.module:function.",
)
@click.option(
    "--task",
    metavar="NAME",
    help="What the targets ask for: classes, regression, ...  [default: what they tell]",
)
@loss_option
@metric_option
@reset_option
@click.option("--estimator", metavar="NAME", help="How gradients are estimated.  [default: model]")
@click.option(
    "--epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Passes through the training data.  [default: model]",
)
@click.option(
    "--batch-size", type=click.IntRange(1), metavar="N", help="Examples a step.  [default: model]"
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of every random stream.",
)
@device_option
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The run file.  [default: named after the run, in runs/]",
)
@click.option("--force", is_flag=True, help="Overwrite the run file if there is one.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the model, as in training.learning_rate=0.01, or of the dataset, as "
    "in dataset.validation=0.1; repeatable.",
)
@allow_code_option
@data_dir_option
@click.option("--offline", is_flag=True, help="Do not download; use what is in the data folder.")
@click.option("--control", is_flag=True, help="Also train with frozen hidden layers, to compare.")
@quiet_option
def train(*, quiet: bool, model_args: tuple[str, ...], **choices: Any) -> Answer:
    """Train a network and write a run file.

    The names that --model, --dataset and --estimator take are shown by `biograd list`.  Ctrl-C
    keeps what was learned; `biograd resume` goes on from there.

    `torchrun --nproc-per-node N -m biograd train ...` trains by N processes, which divide every
    batch.
    """
    recipes.model_table(choices["model"])  # a misspelt name should not wait for torch
    recipes.dataset_table(choices["dataset"])
    from biograd import experiment

    with ProgressDisplay(quiet) as progress:
        asked = experiment.asked(choices.pop("dataset"))
        laid = {text: f"module.arguments.{text}" for text in model_args}
        choices["laid"] = {
            f"--model-arg {text}": recipes.override({}, [key]) for text, key in laid.items()
        }
        record = experiment.execute(experiment.TrainingRequest(**asked, **choices), progress)
    return Answer(record, summary(record))


def summary(record: Mapping[str, Any]) -> str:
    """Return the result of a run as a short table, with what to do next.

    ``record`` is the JSON object of ``train`` and ``resume``.
    """
    run = word(record["run"])
    rows = [(label, text) for label, text in _facts(record) if text]
    hints = [(f"biograd inspect {run}", "see what it holds")]
    if "epochs" in record.get("budget", {"epochs": 0}):
        more = 2 * max(int(record.get("epochs") or 0), 1)
        asks = f" {record['asks']}" if record.get("asks") else ""
        hints.append((f"biograd resume {run} --epochs {more}{asks}", "train on"))
    return f"{columns(rows)}\n\n{columns(hints)}"


def _silent(shares: Mapping[str, float]) -> str:
    """Return which layers say nothing, and what to do about it."""
    if not shares:
        return ""
    layers = ", ".join(f"{name} {percent(share)}" for name, share in shares.items())
    return f"{layers}: raise network.gain or encoding.gain, or lower the threshold"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    name = headline(record)

    def result(key: str) -> str:
        value = record.get(key)
        return "" if value is None else written(name, value)

    decorrelation = record.get("decorrelation") or "off"
    with_it = "" if decorrelation == "off" else f", decorrelation {decorrelation}"
    loss, evaluated = record.get("test_loss"), record.get("evaluated_on", "test")
    unseen = record.get("test", {}).get(name)
    return [
        ("run", str(record["run"])),
        ("model", str(record["model"])),
        ("dataset", str(record["dataset"])),
        ("estimator", f"{record['estimator']}{with_it}"),
        ("seed", str(record.get("seed", ""))),
        ("epochs", _epochs(record)),
        ("ended early", str(record.get("stopped", ""))),
        ("kept", f"epoch {record.get('best_epoch')}" if record.get("kept") == "best" else ""),
        (f"train {words(name)}", result(f"train_{name}")),
        (f"{evaluated} {words(name)}", result(f"test_{name}")),
        (f"test {words(name)}", "" if unseen is None else written(name, unseen)),
        ("frozen hidden", _control(record, result("frozen_hidden_control"))),
        (f"{evaluated} loss", "" if loss is None else f"{loss:.4f}"),
        ("silent units", _silent(record.get("silent") or {})),
        *costs(record),
    ]


def _control(record: Mapping[str, Any], found: str) -> str:
    """Return the control's result and its learning rate, which is the rule's, not its best."""
    rate = record.get("control_learning_rate")
    return found if not found or rate is None else f"{found} at the rule's learning rate, {rate:g}"


def _epochs(record: Mapping[str, Any]) -> str:
    """Return the number of epochs, and the budget that ended them if it was not theirs."""
    epochs = record.get("epochs", "")
    text = f"{epochs:.2f}" if isinstance(epochs, float) else str(epochs)
    (unit, amount), *_ = record.get("budget", {"epochs": epochs}).items()
    if unit == "epochs":
        return text
    return f"{text}, a budget of {large(amount) if unit == 'passes' else f'{amount:g}'} {unit}"
