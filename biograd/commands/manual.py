"""The manual of the console, and the tables of rules and neurons, written from the code itself.

``python -m biograd.commands.manual`` rewrites ``cli/README.md`` and the tables in ``docs/``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence

import click

from biograd import recipes
from biograd.commands import COMMANDS, console
from biograd.neurons.neuron import Neuron

HEAD = """\
# The console

Written by `python -m biograd.commands.manual`; `biograd COMMAND --help` shows the same.

    biograd list                                    # what there is
    biograd train --model ann --dataset digits     # one run, one file
    biograd inspect runs/RUN.h5                     # what it holds
    biograd resume runs/RUN.h5 --epochs 40          # train on
    biograd compare --models ann,spiking --seeds 3  # many runs, one table and one page

Results go to stdout; progress, notes and errors go to stderr. With `--json`, stdout carries exactly
one object, with `schema_version` 1; a number that is not finite is `null`, and when a command fails
stdout stays empty. An error is one line; `--debug` adds the traceback. Every option can also
be set by an environment variable: `BIOGRAD_TRAIN_EPOCHS=5` is `biograd train --epochs 5`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed while running |
| 2 | wrong usage, or a recipe that is not valid |
| 3 | a check that was asked for did not pass (`doctor`, `data verify`, `matrix`, `reproduce`) |
| 4 | not a run file, or one that cannot be read |
| 5 | an optional package is missing; the message says how to install it |
| 129 | the terminal was closed (SIGHUP); what was learned is kept |
| 130 | Ctrl-C; what was learned is kept |
| 143 | SIGTERM; what was learned is kept |

`eval "$(_BIOGRAD_COMPLETE=bash_source biograd)"` completes commands and options in bash; zsh and
fish work alike.
"""


def text() -> str:
    """Return the manual as Markdown."""
    context = click.Context(console, info_name="biograd")
    parts = [HEAD]
    for name in COMMANDS:
        command = console.get_command(context, name)
        assert command is not None
        parts += sections(command, f"biograd {name}")
    return "\n".join(parts)


def sections(command: click.Command, path: str) -> Iterator[str]:
    """Yield the section of a command, and those of its sub-commands."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from sections(child, f"{path} {name}")
        return
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    usage = " ".join([path, *(str(argument.metavar) for argument in arguments), "[OPTIONS]"])
    rows = [_row(option) for option in command.params if isinstance(option, click.Option)]
    table = "\n".join(["| option | meaning |", "|---|---|", *rows])
    yield f"## `{usage}`\n\n{inspect.cleandoc(command.help or '')}\n\n{table}\n"


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    value = f" `{option.metavar}`".replace("|", "\\|") if option.metavar else ""
    help_text = " ".join((option.help or "").split())
    if option.show_default:
        help_text += f" [default: {option.default}]"
    return f"| {names}{value} | {help_text}{' [required]' if option.required else ''} |"


def estimators() -> str:
    """Return the table of all estimators as Markdown: what each class says of itself."""
    from biograd.estimators import ESTIMATORS

    head = ("`--estimator`", "rule", "needs of the substrate", "passes per step", "bias", "source")
    rows: list[Sequence[str]] = [head]
    for name, estimator in ESTIMATORS.items():
        rule = inspect.cleandoc(estimator.__doc__ or "").partition("\n")[0]
        needs = f"`{' '.join(sorted(estimator.needs))}`"
        bias = "; ".join(filter(None, (estimator.bias, estimator.caveat)))
        facts = (estimator.passes, bias, estimator.reference)
        rows.append((f"`{name}`", rule.rstrip("."), needs, *facts))
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = (" | ".join(map(_markdown, row)) for row in (head, ("---",) * len(head), *rest))
    return "".join(f"| {line} |\n" for line in lines)


def _markdown(cell: str) -> str:
    return cell.replace("``", "`").replace("|", "\\|")


def neurons() -> str:
    """Return the table of all named neurons: their equations in a word, who simulates them."""
    from biograd.neurons import NEURONS

    head = ("`neuron.kind`", "neuron", "simulators", "fields beside `kind` and `trainable`")
    rows: list[Sequence[str]] = [head]
    for name, kind in NEURONS.items():
        said = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        names = [f.name for f in dataclasses.fields(kind) if f.name not in ("kind", "trainable")]
        fields = ", ".join(f"`{one}`" for one in names)
        rows.append((f"`{name}`", said.rstrip("."), _simulators(kind), fields))
    return _table(rows)


def _simulators(kind: type[Neuron]) -> str:
    """Return the names of those that run a neuron with its default fields."""
    from biograd.errors import CapabilityError
    from biograd.simulators.population import Population

    found = []
    for name in ("torch", "snntorch", "brian2"):
        try:
            Population(kind(), 1, 1, 1.0, name)
            found.append(name)
        except CapabilityError:
            pass
    return ", ".join(found) or "torch, without steps"


TABLES = {"rules.md": ("estimators", estimators), "networks.md": ("neurons", neurons)}
"""Pages with a table between two marks, ``<!-- name -->`` and ``<!-- /name -->``."""


def with_table(page: str, name: str, table: str) -> str:
    """Return a page with a table between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    marks = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, start, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"no {' … '.join(mark.strip() for mark in marks)} in the page")
    return f"{before}{start}{table}{end}{after}"


def main() -> None:
    """Rewrite the manual beside the package, and the tables of the pages in a checkout."""
    folder = recipes.shipped("cli")
    (folder / "README.md").write_text(text(), encoding="utf-8")
    for file, (name, table) in TABLES.items():
        page = folder.parent / "docs" / file
        if page.is_file():
            old = page.read_text(encoding="utf-8")
            page.write_text(with_table(old, name, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
