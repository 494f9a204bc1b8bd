"""A stand-in for Slurm: its commands, on this machine, for what submitit asks of them.

``install`` writes ``sbatch``, ``srun``, ``squeue``, ``scancel`` and ``scontrol`` into a folder, and
each calls this file.  A job is a process of its own; its state is in a file, for all to see.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
STATES = Path(os.environ.get("STAND_IN_FOR_SLURM", "/nowhere"))


def stand_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in on the path, its looks quick, and return the folder of its states."""
    from biograd.placement import submitit

    states = place / "states"
    states.mkdir()
    install(place / "bin")
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_FOR_SLURM", str(states))
    monkeypatch.setattr(sys.modules[__name__], "STATES", states)
    for name, seconds in {"pause": 0.1, "asking": 0.1, "grace": 0.3}.items():
        monkeypatch.setattr(submitit.SlurmJobs, name, seconds)
    return states


def install(folder: Path) -> None:
    """Write the commands."""
    folder.mkdir()
    for name in COMMANDS:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        command.chmod(0o755)


def note(job: str, kind: str, text: object) -> None:
    new = STATES / f"new-{job}-{os.getpid()}"
    new.write_text(str(text))
    new.replace(STATES / f"{job}.{kind}")  # at once, for others look at it


def read(job: str, kind: str) -> str:
    with contextlib.suppress(OSError):
        return (STATES / f"{job}.{kind}").read_text()
    return ""


def sbatch(script: str) -> None:
    """Queue the tasks of a script and leave a process that runs them, so many at a time."""
    if (STATES / "refuse").exists():
        sys.exit("sbatch: error: invalid partition specified: nowhere\nsbatch: error: failed")
    text = Path(script).read_text()
    number = len(list(STATES.glob("*.script"))) + 1
    note(str(number), "script", text)
    found = re.search(r"--array='?0-(\d+)%(\d+)", text)
    count, limit = (int(found[1]) + 1, int(found[2])) if found else (1, 1)
    jobs = [f"{number}_{task}" for task in range(count)] if found else [str(number)]
    for job in jobs:
        note(job, "state", "PENDING")
    print(f"Submitted batch job {number}", flush=True)
    if os.fork():
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    control(str(STATES / f"{number}.script"), jobs, limit)  # its own copy: submitit moves the file


def control(script: str, jobs: list[str], limit: int) -> None:
    """Run the jobs; one that is to be queued again is."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    while jobs or running:
        while jobs and len(running) < limit:
            job = jobs.pop(0)
            if read(job, "state") != "CANCELLED":
                running[job] = start(script, job)
        for job, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[job]
            if read(job, "requeue"):
                note(job, "requeue", "")
                note(job, "state", "PENDING")
                jobs.append(job)
            elif read(job, "state") != "CANCELLED":
                note(job, "state", "FAILED" if code else "COMPLETED")
        time.sleep(0.02)


def _asked(script: str, flag: str) -> int:
    """Return a number that a script asks for; 0: it does not."""
    found = re.search(rf"#SBATCH --{flag}=(\d+)", Path(script).read_text())
    return int(found[1]) if found else 0


def start(script: str, job: str) -> subprocess.Popen[bytes]:
    main, _, task = job.partition("_")
    nodes, each = (_asked(script, flag) or 1 for flag in ("nodes", "ntasks-per-node"))
    variables = {"SLURM_JOB_ID": str(1000 * int(main) + int(task)) if task else main}
    variables |= {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NNODES": str(nodes)}
    variables |= {"SLURM_NTASKS": str(nodes * each), "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    variables |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_CPUS_ON_NODE": "2"}
    if cpus := _asked(script, "cpus-per-task"):
        variables["SLURM_CPUS_PER_TASK"] = str(cpus)
    if task:
        variables |= {"SLURM_ARRAY_JOB_ID": main, "SLURM_ARRAY_TASK_ID": task}
    process = subprocess.Popen(
        ["bash", "-c", 'trap "" USR2; . "$0"', script],  # which Slurm sends to what the shell runs
        env=os.environ | variables,
        start_new_session=True,
    )
    note(job, "process", process.pid)
    note(job, "state", "RUNNING")
    with (STATES / "running").open("a") as file:
        file.write(f"{sum(p.read_text() == 'RUNNING' for p in STATES.glob('*.state'))}\n")
    return process


def srun(*arguments: str) -> None:
    """Run a command once for every task, with its output in the files that are named."""
    count = int(os.environ["SLURM_NTASKS"])
    each = count // int(os.environ["SLURM_NNODES"])
    tasks = []
    for task in range(count):
        variables = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % each)}
        variables["SLURM_NODEID"] = str(task // each)
        os.environ |= variables
        if count == 1:
            run_task(list(arguments))
        tasks.append(os.fork())
        if not tasks[-1]:
            run_task(list(arguments))
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the tasks hear it themselves
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks) != 0)


def run_task(given: list[str]) -> None:
    values = {"%A": os.environ.get("SLURM_ARRAY_JOB_ID", "")}
    values["%t"] = os.environ["SLURM_PROCID"]
    values |= {"%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""), "%j": os.environ["SLURM_JOB_ID"]}
    while given[0].startswith("--"):
        option = given.pop(0)
        if option in ("--output", "--error"):
            path = given.pop(0)
            for sign, value in values.items():
                path = path.replace(sign, value)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1 if option == "--output" else 2)
    os.execvp(given[0], given)


def squeue(*options: str) -> None:
    """Say the state of all jobs."""
    assert "--format=%i %T" in options
    for path in STATES.glob("*.state"):
        print(path.stem, path.read_text())


def scancel(*jobs: str) -> None:
    """End jobs."""
    for job in jobs:
        note(job, "state", "CANCELLED")
        send(job, signal.SIGTERM)


def scontrol(request: str, *given: str) -> None:
    """Queue a job again, or write the names of nodes, a line each."""
    if request == "requeue":
        note(given[0], "requeue", "yes")
    else:
        print(os.environ["SLURM_JOB_NODELIST"])


def send(job: str, number: signal.Signals) -> None:
    """Send a signal to all processes of a job."""
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int(read(job, "process")), number)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
