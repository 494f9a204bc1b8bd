"""The console: one file for each command, loaded when that command is asked for.

Why a registry with the help in it: listing the commands must not import them, or ``--help`` would
wait for torch.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

from biograd import __version__
from biograd.commands.options import CONTEXT, debug_option
from biograd.errors import nearest


class Listing(NamedTuple):
    """Where a command lives, ``module:name``, and what it does in one line."""

    home: str
    help: str


COMMANDS = {
    "train": Listing("biograd.commands.train:train", "Train a network and write a run file."),
    "resume": Listing("biograd.commands.resume:resume", "Go on with a run that was interrupted."),
    "reproduce": Listing(
        "biograd.commands.reproduce:reproduce",
        "Repeat a run from its file and compare.",
    ),
    "inspect": Listing("biograd.commands.inspect:inspect", "Show what a run file holds."),
    "validate": Listing(
        "biograd.commands.validate:validate",
        "Read a run file to the last value and compare it with the layout.",
    ),
    "probe": Listing("biograd.commands.probe:probe", "Say how good a run's gradient estimate is."),
    "analyse": Listing("biograd.commands.analyse:analyse", "Analyse what a run holds."),
    "plot": Listing("biograd.commands.plot:plot", "Draw figures of a run."),
    "report": Listing("biograd.commands.report_page:report", "Show runs on a page."),
    "watch": Listing("biograd.commands.watch:watch", "Follow a run that goes on."),
    "export": Listing("biograd.commands.export:export", "Export a run for other tools."),
    "compare": Listing(
        "biograd.commands.compare:compare", "Compare models and rules under equal conditions."
    ),
    "run": Listing("biograd.commands.run:run", "Run a whole study and print its table."),
    "list": Listing(
        "biograd.commands.list:listing", "List what the other commands and the recipes take."
    ),
    "matrix": Listing("biograd.commands.matrix:matrix", "Try every rule on every kind of network."),
    "data": Listing("biograd.commands.data:data", "Fetch and verify datasets."),
    "doctor": Listing("biograd.commands.doctor:doctor", "Check this machine and its packages."),
}


class LazyGroup(click.Group):
    """A group that imports a command only when it is run or its own help is shown."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands in the order of their use."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the command ``name``; None if there is none."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].home.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with, or name the nearest."""
        name = arguments[0]
        if name not in COMMANDS and not name.startswith("-") and not context.resilient_parsing:
            raise click.UsageError(f"no command {name!r}: {nearest(name, COMMANDS)}", context)
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their help from the registry."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    "biograd",
    cls=LazyGroup,
    context_settings={**CONTEXT, "auto_envvar_prefix": "BIOGRAD"},
    epilog="biograd COMMAND --help explains one command; cli/README.md is the manual.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def console() -> None:
    """Train rate and spiking networks, and keep every run in one file."""


console.params.append(debug_option())
