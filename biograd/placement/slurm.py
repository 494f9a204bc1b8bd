"""Where trainings run, and the options of Slurm jobs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from biograd.errors import RecipeError, nearest


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where trainings run.

    Attributes:
        engine: a key of ``ENGINES``.
        workers: trainings at a time; None: one for each core, of Slurm's jobs as many as it lets
            run; a Dask cluster that is reached by its address has its own.
        address: of a Dask scheduler; None: workers of this machine.
        options: of Slurm jobs, ``KEY=VALUE``, see ``OPTIONS``.
        folder: of the study; ``jobs`` in it receives what the processes say.
        device: what every training computes on (``devices.named``); where several CUDA devices are
            visible, ``auto`` and ``cuda`` take the one that the fewest trainings use.
    """

    engine: str = "local"
    workers: int | None = 1
    address: str | None = None
    options: tuple[str, ...] = ()
    folder: Path = Path(".")
    device: str = "auto"

    @property
    def logs(self) -> Path:
        """The folder for what the processes say."""
        return self.folder / "jobs"

    @property
    def here(self) -> bool:
        """Whether the trainings run on this machine."""
        return self.address is None and (
            self.engine != "submitit" or "cluster=local" in self.options
        )


class Option(NamedTuple):
    """An option of Slurm jobs: how its value is read, and what sbatch and submitit call it.

    Attributes:
        lines: it may be given several times, a line each.
    """

    read: Callable[[str], Any]
    flag: str
    parameter: str
    lines: bool = False


def _count(text: str) -> int:
    """Read a number of things."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError("must be a whole number from 1")
    return int(text)


def _minutes(text: str) -> int:
    """Read a time: minutes, or as Slurm writes it, ``[DAYS-]HOURS:MINUTES[:SECONDS]``."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?", text, re.ASCII)
    if found is None:
        return _count(text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    whole = (24 * days + hours) * 60 + minutes + (seconds > 0)
    return _count(str(whole))


def _gigabytes(text: str) -> float:
    """Read a size in gigabytes."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError("must be a number of gigabytes, such as 4 or 0.5")
    return size


def _word(text: str) -> str:
    """Read a name; what could begin another line or another word of a script is refused."""
    if not re.fullmatch(r"[\w.,:+@/=%*&|()\[\]-]+", text, re.ASCII):
        raise ValueError("must be one word of letters, digits and .,:+@/=%*&|()[]-")
    return text


def _shell(text: str) -> str:
    """Read a line of shell."""
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line of shell, such as 'module load cuda'")
    return text


def _value(text: str) -> Any:
    """Read a value as JSON, or else as text."""
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _cluster(text: str) -> str:
    """Read the kind of cluster."""
    if text not in ("slurm", "local"):
        raise ValueError(nearest(text, ("slurm", "local")))
    return text


OPTIONS = {
    "cluster": Option(_cluster, "", ""),
    "time": Option(_minutes, "time", "timeout_min"),
    "cpus": Option(_count, "cpus-per-task", "cpus_per_task"),
    "memory": Option(_gigabytes, "mem", "mem_gb"),
    "gpus": Option(_count, "gpus-per-node", "gpus_per_node"),
    "nodes": Option(_count, "nodes", "nodes"),
    "tasks_per_node": Option(_count, "ntasks-per-node", "tasks_per_node"),
    "partition": Option(_word, "partition", "slurm_partition"),
    "account": Option(_word, "account", "slurm_account"),
    "qos": Option(_word, "qos", "slurm_qos"),
    "constraint": Option(_word, "constraint", "slurm_constraint"),
    "gres": Option(_word, "gres", "slurm_gres"),
    "name": Option(_word, "job-name", "name"),
    "setup": Option(_shell, "", "slurm_setup", lines=True),  # runs before the training
    "slurm_teardown": Option(_shell, "", "slurm_teardown", lines=True),
    "slurm_srun_args": Option(_word, "", "slurm_srun_args", lines=True),
}
"""Any other ``slurm_NAME`` goes to submitit as it is, and to sbatch as ``--NAME``."""
ALIASES = {option.parameter: name for name, option in OPTIONS.items() if option.parameter} | {
    "slurm_time": "time",
    "slurm_nodes": "nodes",
    "slurm_ntasks_per_node": "tasks_per_node",
    "slurm_cpus_per_task": "cpus",
    "slurm_gpus_per_node": "gpus",
    "slurm_job_name": "name",
}
"""What submitit calls options that have a shorter name here."""
OTHERS = re.compile(r"slurm_[a-z][a-z_]*")
MINUTES = 60
"""Of a job, unless the option ``time`` says otherwise; a training goes on in the next job."""


def option(name: str) -> Option:
    """Return what is known of an option.

    Raises:
        RecipeError: there is none of that name.
    """
    if name in OPTIONS:
        return OPTIONS[name]
    if not OTHERS.fullmatch(name):
        raise RecipeError(f"option {name!r}: {nearest(name, [*OPTIONS, *ALIASES])}")
    return Option(_value, name.removeprefix("slurm_").replace("_", "-"), name)


def read_options(options: Iterable[str]) -> dict[str, Any]:
    """Return the options by name, with their values; those of several lines as lists.

    Raises:
        RecipeError: not ``KEY=VALUE``, unknown, given twice, or a value that is not valid.
    """
    found: dict[str, Any] = {}
    for text in options:
        typed, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"option {text!r}: must be KEY=VALUE, such as time=60")
        name = ALIASES.get(typed, typed)
        known = option(name)
        if name in found and not known.lines:
            raise RecipeError(f"option {typed!r} is given twice")
        try:
            read = known.read(value)
        except ValueError as error:
            raise RecipeError(f"option {typed}={value!r}: {error}") from None
        found[name] = [*found.get(name, ()), read] if known.lines else read
    return found


def processes(options: dict[str, Any]) -> int:
    """Return how many processes do one training together."""
    return int(options.get("nodes", 1)) * int(options.get("tasks_per_node", 1))
