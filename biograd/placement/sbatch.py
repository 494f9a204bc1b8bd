"""A plain array script for Slurm, for clusters on which nothing but sbatch should be needed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from biograd.errors import RecipeError
from biograd.placement.allotment import SHELL
from biograd.placement.slurm import MINUTES, Placement, option, processes, read_options

SCRIPT = """\
#!/bin/bash
{directives}
set -euo pipefail

# Slurm makes no folder for its log, so this script does.
logs={logs}
mkdir -p -- "$logs"
exec >>"$logs/${{SLURM_ARRAY_JOB_ID:-0}}_$SLURM_ARRAY_TASK_ID.log" 2>&1

{lines}
# exec: the signal before the time limit then reaches the training, which commits and ends.
exec {command} --task "$SLURM_ARRAY_TASK_ID"

# Submit this from the folder in which it was made: its paths are relative to that.  Submitted again
# it goes on with what was cut short.  When all tasks have ended, collect the results with the same
# command, without --task.
"""
TOGETHER = """\
# The tasks of the job train together, as processes of torchrun do.
nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export MASTER_ADDR="${nodes%%$'\\n'*}" MASTER_PORT="$((20000 + SLURM_JOB_ID % 40000))"\
"""
RANK = (
    'export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID" '
    'LOCAL_WORLD_SIZE="$((SLURM_NTASKS / SLURM_NNODES))"; exec "$@"'
)
SUBMITITS = (
    *("slurm_additional_parameters", "slurm_array_parallelism", "slurm_signal_delay_s"),
    *("slurm_srun_args", "slurm_stderr_to_stdout", "slurm_use_srun"),
)
"""Options that say what submitit does, not what sbatch does."""


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
    for name in SUBMITITS:
        if name in options:
            raise RecipeError(f"option {name}: is submitit's, and has no effect on a script")
    lines, words = [*SHELL, *options.pop("setup", [])], shlex.join(command)
    if processes(options) > 1:
        lines.append(TOGETHER)
        words = f"srun bash -c {shlex.quote(RANK)} rank {words}"
    if options.pop("slurm_teardown", None):
        raise RecipeError("option slurm_teardown: a script ends with its training: leave it out")
    return SCRIPT.format(
        directives="\n".join(_directives(options, count, placement.workers)),
        logs=shlex.quote(str(placement.logs)),
        lines="\n".join(lines),
        command=words,
    )


def _directives(options: dict[str, Any], count: int, workers: int | None) -> list[str]:
    minutes = options.setdefault("time", MINUTES)
    flags: dict[str, Any] = {
        "job-name": "biograd",
        "array": f"0-{count - 1}" + (f"%{min(workers, count)}" if workers else ""),
        "output": "/dev/null",
        "requeue": True,
        "signal": f"B:TERM@{min(60, 30 * minutes)}",
    }
    for name, value in options.items():
        flags[option(name).flag] = _megabytes(value) if name == "memory" else value
    return [_directive(flag, value) for flag, value in flags.items() if value is not False]


def _directive(flag: str, value: Any) -> str:
    if value is True:
        return f"#SBATCH --{flag}"
    return f"#SBATCH --{flag}={shlex.quote(value if isinstance(value, str) else json.dumps(value))}"


def _megabytes(gigabytes: float) -> str:
    return f"{max(1, round(gigabytes * 1024))}M"
