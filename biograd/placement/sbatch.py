"""A plain array script for Slurm, for clusters on which nothing but sbatch should be needed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from biograd.errors import RecipeError
from biograd.placement.jobs import THREADS
from biograd.placement.slurm import MINUTES, OPTIONS, Placement, read_options

SCRIPT = """\
#!/bin/bash
{directives}
set -euo pipefail

# Slurm makes no folder for its log, so this script does.
logs={logs}
mkdir -p -- "$logs"
exec >>"$logs/${{SLURM_ARRAY_JOB_ID:-0}}_$SLURM_ARRAY_TASK_ID.log" 2>&1

{threads}
{setup}
# exec: the signal before the time limit then reaches the training, which commits and ends.
exec {command} --task "$SLURM_ARRAY_TASK_ID"

# Submit this from the folder in which it was made: its paths are relative to that.  Submitted again
# it goes on with what was cut short.  When all tasks have ended, collect the results with the same
# command, without --task.
"""


def sbatch(command: Sequence[str], count: int, placement: Placement) -> str:
    """Return a script whose array task ``i`` of ``count`` runs ``command --task i``.

    At most ``placement.workers`` run at a time, if that is given.  Before its time limit a task is
    asked to stop, so that it commits.

    Raises:
        RecipeError: the options are not valid, or there is nothing to do.
    """
    if count < 1:
        raise RecipeError("there is no task to submit")
    options = read_options(placement.options)
    if options.pop("cluster", "slurm") != "slurm":
        raise RecipeError("option cluster=local: a script for sbatch is for Slurm")
    workers, minutes = placement.workers, options.setdefault("time", MINUTES)
    setup = options.pop("setup", "")
    flags = {
        "job-name": "biograd",
        "array": f"0-{count - 1}" + (f"%{min(workers, count)}" if workers else ""),
        "output": "/dev/null",
        "requeue": "",
        "signal": f"B:TERM@{min(60, 30 * minutes)}",
    }
    for name, value in options.items():
        flags[OPTIONS[name].flag] = _megabytes(value) if name == "memory" else str(value)
    return SCRIPT.format(
        directives="\n".join(
            f"#SBATCH --{flag}" + (f"={value}" if value else "") for flag, value in flags.items()
        ),
        logs=shlex.quote(str(placement.logs)),
        threads="\n".join(f'export {name}="${{SLURM_CPUS_PER_TASK:-1}}"' for name in THREADS),
        setup=f"{setup}\n" if setup else "",
        command=shlex.join(command),
    )


def _megabytes(gigabytes: float) -> str:
    return f"{max(1, round(gigabytes * 1024))}M"
