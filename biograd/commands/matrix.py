"""``biograd matrix``: which rule works on which network, simulated by whom."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from biograd.commands.columns import width
from biograd.commands.display import ProgressDisplay
from biograd.commands.options import Answer, command, quiet_option

if TYPE_CHECKING:
    from biograd.diagnosis.compatibility import Compatibility

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
@quiet_option
def matrix(rules: tuple[str, ...], quiet: bool) -> Answer:
    """Try every rule on every kind of network, on torch, snnTorch, Brian2, and on users' modules.

    Every cell is run: the rule is attached to a tiny network and works if each hidden layer then
    has a gradient that is finite and not zero.  The notes are what a user would read instead.
    Exit code 3 if a cell fails in another way than by a clear refusal.
    """
    from biograd.diagnosis import compatibility as module
    from biograd.estimators import ESTIMATORS

    module.check(rules)
    with ProgressDisplay(quiet) as progress:
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
    legend = ", ".join(f"{short} {long}" for short, long in LABELS.values() if long)
    words = (
        f"{WORKS} works, {NOWHERE} no such network, 1 see note 1; RULE is the row's class; {legend}"
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
