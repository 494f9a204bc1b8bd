"""``biograd matrix``: which rule works on which network, simulated by whom."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from biograd import user_code
from biograd.commands.options import (
    Answer,
    allow_code_option,
    command,
    loss_option,
    model_args_option,
    quiet_option,
    reset_option,
)
from biograd.display.columns import width
from biograd.display.progress_display import ProgressDisplay
from biograd.errors import RecipeError

if TYPE_CHECKING:
    from biograd.diagnosis.compatibility import Compatibility, Rows
    from biograd.engine import Engine

LABELS = {
    "dense": ("dense", ""),
    "convolution": ("conv", "convolution"),
    "residual": ("res", "residual"),
    "recurrent": ("rec", "recurrent"),
    "batch norm": ("bat", "batch normalisation"),
    "local losses": ("loc", "local losses"),
    "spiking": ("spk", "spiking"),
    "spiking recurrent": ("rec", ""),
    "spiking local": ("loc", ""),
    "event-driven": ("evt", "event-driven"),
    "own equations": ("eqs", "equations of one's own"),
    "circuit": ("circ", "circuit with a loop"),
    "LSTM": ("lstm", ""),
    "own weights": ("own", "weights of one's own"),
    "functional": ("func", "functional.linear"),
    "tied": ("tied", ""),
    "frozen": ("frz", "first layer frozen"),
    "loop": ("loop", "loop over snnTorch's steps"),
    "stateful": ("state", "state kept between calls"),
    "weight norm": ("norm", "weight normalisation"),
    "compiled": ("comp", "compiled"),
    "autocast": ("cast", "autocast to bfloat16"),
    "yours": ("yours", ""),
    "no derivative": ("opq", "a population whose equations cannot be differentiated"),
}
"""Networks by their name over a column, and what the legend says of it."""
USER = "user"
"""Stands over the networks that users bring along."""
WORKS, NOWHERE = "✓", "·"
REFERS = ("refused", "broken")
"""What a cell says by the number of a note."""


@command("matrix")
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="NAME",
    help="Only this estimator; repeatable.  [default: all]",
)
@click.option(
    "--model",
    metavar="FILE.py:NAME",
    help="Only a module of your own, on data of --dataset; or a recipe.",
)
@model_args_option
@click.option("--dataset", metavar="NAME|FILE|FUNCTION", help="Of --model.  [default: digits]")
@click.option("--task", metavar="NAME", help="Of --model.  [default: what the targets tell]")
@loss_option
@reset_option
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Of --model; repeatable."
)
@allow_code_option
@quiet_option
def matrix(rules: tuple[str, ...], model: str | None, quiet: bool, **choices: Any) -> Answer:
    """Try every rule on every kind of network, on torch, snnTorch, Brian2, and on users' modules.

    Every cell is run: the rule is attached to a tiny network and works if each hidden layer then
    has a gradient that is finite and not zero.  The notes are what a user would read instead.
    With --model the rules are tried on that alone, on rows of its data.  Exit code 3 if a cell
    fails in another way than by a clear refusal.
    """
    from biograd.diagnosis import compatibility as module
    from biograd.estimators import ESTIMATORS

    module.check(rules)
    given = [name for name, value in choices.items() if value]
    if model is None and given:
        option = {"model_args": "model-arg", "assignments": "set"}.get(given[0], given[0])
        raise RecipeError(f"--{option.replace('_', '-')}: only with --model")
    with ProgressDisplay(quiet) as progress:
        if model is not None:
            begin = _beginning(model, **choices)
            progress.begin(len(rules or ESTIMATORS), f"every rule on {model}")
            cells = module.fill_own(rules, begin, lambda cell: progress.step({}))
        else:
            count = len(rules or ESTIMATORS) * len(module.columns())
            progress.begin(count, "every rule on every kind of network")
            cells = module.fill(rules, lambda cell: progress.step({}))
    broken = [cell for cell in cells if cell.status == "broken"]
    failure = ""
    if broken:
        first = broken[0]
        failure = (
            f"matrix: {len(broken)} cells are broken, the first: {first.rule} on "
            f"{first.substrate}, {first.network}: {first.reason}"
        )
    record = {"cells": [dataclasses.asdict(cell) for cell in cells]}
    return Answer(record, text(cells), failure)


def _beginning(
    model: str, *, model_args: tuple[str, ...], dataset: str | None, **choices: Any
) -> Callable[[str], tuple[Engine, Rows]]:
    """Return what attaches a rule to the module, made anew, with rows of its data."""
    from biograd import experiment

    arguments = tuple(f"module.arguments.{text}" for text in model_args)
    common = (*choices.pop("assignments"), *arguments)
    asked = experiment.asked(dataset or "digits")
    request = experiment.TrainingRequest(model, **asked, **choices, common=common, epochs=1)
    data = experiment.configure(request).read(request.parts().data)

    def begin(rule: str) -> tuple[Engine, Rows]:
        configuration = experiment.configure(dataclasses.replace(request, estimator=rule))
        with user_code.named("the module"):
            made = experiment.Experiment(configuration, data, request.parts())
        rows = data.shown(data.train, ROWS)
        return made.engine, (*placed(made.network, rows.inputs, rows.targets), rows.index)

    from biograd.diagnosis.compatibility import ROWS
    from biograd.training import placed

    return begin


def text(cells: Sequence[Compatibility]) -> str:
    """Return the cells as a table of a hundred characters, its notes below."""
    built = {(c.substrate, c.network) for c in cells if c.status != "no network"}
    columns = list(dict.fromkeys((cell.substrate, cell.network) for cell in cells))
    groups = [
        [c for c in columns if c in built and (c[0] == USER) is of_users]
        for of_users in (False, True)
    ]
    notes = list(dict.fromkeys(_note(cell) for cell in cells if cell.status in REFERS))
    marks = {(c.rule, c.substrate, c.network): _mark(c, notes) for c in cells}
    rules = list(dict.fromkeys(cell.rule for cell in cells))
    table = [line for shown in groups if shown for line in (*_table(rules, shown, marks), "")]
    seen = [LABELS[name] for name in LABELS if any(cell.network == name for cell in cells)]
    legend = "".join(f", {short} {long}" for short, long in seen if long)
    words = (
        f"{WORKS} works, {NOWHERE} no such network, 1 see note 1; RULE is the row's class{legend}"
    )
    below = [_wrap(f"{number:2}  ", note) for number, note in enumerate(notes, 1)]
    return "\n".join([*table, _wrap("", words), *below, *_missing(cells, built)])


def _table(
    rules: Sequence[str],
    shown: Sequence[tuple[str, str]],
    marks: Mapping[tuple[str, str, str], str],
) -> Iterator[str]:
    """Yield the lines of a table of rules and networks."""
    lines = [_substrates(shown), [LABELS[network][0] for _, network in shown]]
    lines += [[marks[rule, *column] for column in shown] for rule in rules]
    sizes = [max(map(len, cells)) for cells in zip(*lines[1:], strict=True)]
    names = ["", "rule", *rules]
    indent = max(map(len, names))
    for place, (name, line) in enumerate(zip(names, lines, strict=True)):
        yield f"{name.ljust(indent)}{_line(line, sizes, shown, place > 0)}".rstrip()


def _note(cell: Compatibility) -> str:
    """Return what a user reads, the class of the rule as RULE: many refuse in the same words."""
    from biograd.estimators import ESTIMATORS

    return cell.reason.replace(ESTIMATORS[cell.rule].__name__, "RULE")


def _mark(cell: Compatibility, notes: Sequence[str]) -> str:
    if cell.status == "works":
        return WORKS
    if cell.status == "no network":
        return NOWHERE
    return f"{'!' if cell.status == 'broken' else ''}{notes.index(_note(cell)) + 1}"


def _substrates(shown: Sequence[tuple[str, str]]) -> list[str]:
    """Return the name of each substrate over the first of its columns."""
    before = [None, *(substrate for substrate, _ in shown[:-1])]
    return ["" if s == last else s for (s, _), last in zip(shown, before, strict=True)]


def _line(
    cells: Sequence[str], sizes: Sequence[int], shown: Sequence[tuple[str, str]], centred: bool
) -> str:
    """Align a line; a substrate's name may run over the columns that follow it."""
    line, last = "", None
    for cell, size, (substrate, _) in zip(cells, sizes, shown, strict=True):
        line += " " if substrate == last else "  "
        start, last = len(line), substrate
        line += cell.center(size) if centred else " " * size
        if not centred and cell:
            line = line[:start] + cell
        elif not centred:
            line = line.ljust(start + size)
    return line


def _missing(cells: Sequence[Compatibility], built: set[tuple[str, str]]) -> list[str]:
    """Say why there is no such network, once for each reason."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if (cell.substrate, cell.network) not in built:
            networks = reasons.setdefault(f"{cell.substrate}: {cell.reason}", [])
            if cell.network not in networks:
                networks.append(cell.network)
    return [
        _wrap(f" {NOWHERE}  ", f"{reason} ({', '.join(networks)})")
        for reason, networks in reasons.items()
    ]


def _wrap(head: str, words: str) -> str:
    limit = width() if sys.stdout and sys.stdout.isatty() else 100
    indent = " " * len(head)
    return textwrap.fill(words, limit, initial_indent=head, subsequent_indent=indent)
