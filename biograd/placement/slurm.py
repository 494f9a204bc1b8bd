"""Where trainings run, and the options of Slurm jobs."""

from __future__ import annotations

import dataclasses
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
    """

    engine: str = "local"
    workers: int | None = 1
    address: str | None = None
    options: tuple[str, ...] = ()
    folder: Path = Path(".")

    @property
    def logs(self) -> Path:
        """The folder for what the processes say."""
        return self.folder / "jobs"


class Option(NamedTuple):
    """An option of Slurm jobs: how its value is read, and what sbatch and submitit call it."""

    read: Callable[[str], Any]
    flag: str
    parameter: str


def _count(text: str) -> int:
    """Read a number of things."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError("must be a whole number from 1")
    return int(text)


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


def _cluster(text: str) -> str:
    """Read the kind of cluster."""
    if text not in ("slurm", "local"):
        raise ValueError(nearest(text, ("slurm", "local")))
    return text


OPTIONS = {
    "cluster": Option(_cluster, "", ""),
    "time": Option(_count, "time", "timeout_min"),  # minutes
    "cpus": Option(_count, "cpus-per-task", "cpus_per_task"),
    "memory": Option(_gigabytes, "mem", "mem_gb"),
    "gpus": Option(_count, "gpus-per-node", "gpus_per_node"),
    "partition": Option(_word, "partition", "slurm_partition"),
    "account": Option(_word, "account", "slurm_account"),
    "qos": Option(_word, "qos", "slurm_qos"),
    "constraint": Option(_word, "constraint", "slurm_constraint"),
    "gres": Option(_word, "gres", "slurm_gres"),
    "setup": Option(_shell, "", "slurm_setup"),  # runs before the training
}
MINUTES = 60
"""Of a job, unless the option ``time`` says otherwise; a training goes on in the next job."""


def read_options(options: Iterable[str]) -> dict[str, Any]:
    """Return the options by name, with their values.

    Raises:
        RecipeError: not ``KEY=VALUE``, unknown, given twice, or a value that is not valid.
    """
    found: dict[str, Any] = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"option {text!r}: must be KEY=VALUE, such as time=60")
        if name not in OPTIONS:
            raise RecipeError(f"option {name!r}: {nearest(name, OPTIONS)}")
        if name in found:
            raise RecipeError(f"option {name!r} is given twice")
        try:
            found[name] = OPTIONS[name].read(value)
        except ValueError as error:
            raise RecipeError(f"option {name}={value!r}: {error}") from None
    return found
