"""What every command shares: its two options, its answer, and how the answer is printed.

A command returns an :class:`Answer`; it prints nothing on stdout itself.  With ``--json`` stdout
carries exactly one object, so whatever else is printed meanwhile goes to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from biograd import devices, ranks
from biograd.display import printing
from biograd.errors import BiogradError, CheckFailed, nearest

SCHEMA_VERSION = 1
CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclasses.dataclass
class ConsoleSettings:
    """What the error boundary has to know of the command line."""

    debug: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command found out.

    Attributes:
        record: the JSON object, less its ``schema_version``.
        text: the same for people: text, or something that rich can draw.
        failure: one line if a check that was asked for did not pass (exit code 3).
        error: one line if a part of the work failed (exit code 1).
    """

    record: Mapping[str, Any]
    text: Any
    failure: str = ""
    error: str = ""


class Words(click.Choice[str]):
    """A choice that names the nearest word when it refuses one."""

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Return the word, or fail with the words that are known."""
        if value not in self.choices:
            self.fail(f"{value!r}: {nearest(value, self.choices)}", parameter, context)
        return str(value)


class DeviceName(click.ParamType[str]):
    """The name of a device, whether or not it is here."""

    name = "device"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Return the name, or fail with those that there are."""
        try:
            return devices.named(str(value), "device")
        except BiogradError as error:
            self.fail(str(error), parameter, context)


class Command(click.Command):
    """A command whose usage errors always know which command they belong to."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Read the arguments."""
        try:
            return super().parse_args(context, arguments)
        except click.UsageError as error:
            error.ctx = error.ctx or context
            raise


def debug_option() -> click.Option:
    """Return the option that every command and group takes."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(ConsoleSettings).debug |= value


def _json_option() -> click.Option:
    words = "Print one JSON object on stdout and nothing else."
    return click.Option(["--json", "as_json"], is_flag=True, help=words)


quiet_option = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
own_data_option = click.option(
    "--dataset",
    metavar="FILE|FUNCTION",
    help="Data of your own, if the run learned from any that no file brings back: "
    "FILE.py:FUNCTION or package.module:function; or where their file is now.",
)
allow_code_option = click.option(
    "--allow-code", is_flag=True, help="Run code that the file of a recipe or a study names."
)
model_args_option = click.option(
    "--model-arg",
    "model_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of your class or function, as in width=64; repeatable.",
)
loss_option = click.option(
    "--loss",
    metavar="NAME|FUNCTION",
    help="In place of the task's: its own by name (squared_error, huber, ...), torch's (l1_loss, "
    "...), or FILE.py:FUNCTION.",
)
metric_option = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME|FUNCTION",
    help="Beside the task's own: one of biograd's by name (macro_f1, ...), or "
    "[NAME=]FILE.py:NAME, a function of outputs and targets, or an object or a class as "
    "torchmetrics has them; repeatable.",
)
own_metric_option = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="[NAME=]FILE.py:NAME",
    help="Likewise a metric of yours; repeatable.",
)
reset_option = click.option(
    "--reset",
    metavar="METHOD|FUNCTION",
    help="What puts a module that keeps a state back before every pass: a method of its layers, as "
    "reset_mem, or FILE.py:FUNCTION.",
)


device_option = click.option(
    "--device",
    type=DeviceName(),
    default="auto",
    show_default=True,
    metavar=devices.CHOICES,
    help="Where to compute; auto takes CUDA if there is one.",
)
run_device_option = click.option(
    "--device",
    type=DeviceName(),
    metavar=devices.CHOICES,
    help="Where to compute.  [default: where the run was, or the CPU]",
)


def own_parts_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for what a run file does not bring back: data, module, loss, reset."""
    options = [
        click.option(
            "--model",
            metavar="FILE.py:NAME",
            help="Your module's code, if the run trained one: a run file imports nothing by "
            "itself.",
        ),
        own_data_option,
        click.option("--loss", metavar="FILE.py:FUNCTION", help="Likewise your loss."),
        click.option("--reset", metavar="FILE.py:FUNCTION", help="Likewise your reset."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where datasets are kept.  [default: the cache folder of the user]",
)


def command(
    name: str, parent: click.Group | None = None, *, together: bool = False
) -> Callable[[Callable[..., Answer]], click.Command]:
    """Turn a function that returns an :class:`Answer` into a command with the shared options.

    Args:
        together: whether several processes of ``torchrun`` do its work together.
    """

    def decorate(function: Callable[..., Answer]) -> click.Command:
        @functools.wraps(function)
        def call(*, as_json: bool, **values: Any) -> None:
            if not together:
                ranks.refuse(f"`biograd {name}`")
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                answer = function(**values)
            if ranks.speaks():
                show(answer, as_json)

        make = parent.command if parent else click.command
        made = make(name, cls=Command, context_settings=CONTEXT)(call)
        made.params += [_json_option(), debug_option()]
        return made

    return decorate


def show(answer: Answer, as_json: bool) -> None:
    """Print an answer on stdout.

    Raises:
        CheckFailed: the answer carries a failure; it is printed first.
        BiogradError: the answer carries an error, likewise.
    """
    if as_json:
        printing.dump({"schema_version": SCHEMA_VERSION, **answer.record})
    elif isinstance(answer.text, str):
        printing.page(answer.text)
    else:
        printing.draw(answer.text)
    if answer.error:
        raise BiogradError(answer.error)
    if answer.failure:
        raise CheckFailed(answer.failure)
