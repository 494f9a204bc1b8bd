"""What a process may use of its machine: cores, threads, and a CUDA device of its own.

Devices are dealt by locks of the system: each lock that is held stands for one process on one
device, so that studies, and workers that know nothing of each other, share the devices of a node,
and whoever dies gives its own back.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from biograd import devices, disk

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ALLOTTED = "${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(OMP_NUM_THREADS= nproc)}}"
"""Cores of a task of a Slurm job, as its shell can tell them."""
SHELL = (
    *(f'export {name}="{ALLOTTED}"' for name in THREADS),
    # since Slurm 22.05 srun does not take it over from sbatch
    '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
)
"""Lines of shell that let a job compute with the cores that it was given."""
MOST = 64
"""Processes on a device that are told apart."""


def cores() -> int:
    """Return how many cores this process may use, in a Slurm job those of its task."""
    affinity = getattr(os, "sched_getaffinity", None)
    found = len(affinity(0)) if affinity else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(found, int(given)) if given.isdecimal() and int(given) else found


def threads(workers: int) -> dict[str, str]:
    """Return the variables that give each of so many processes its share of the cores.

    A smaller number that the user has set stays.
    """
    share = max(1, cores() // workers)

    def limited(given: str) -> int:
        return min(share, int(given)) if given.isdecimal() and int(given) else share

    return {name: str(limited(os.environ.get(name, ""))) for name in THREADS}


class Dealt:
    """A CUDA device that was dealt to a process, until it is given back."""

    def __init__(self, name: str, place: tuple[str, int], lock: disk.Lock | None) -> None:
        self.name, self._place, self._lock = name, place, lock

    def back(self) -> None:
        """Give the device back; harmless when it was."""
        with _turn:
            _mine.discard(self._place)
        if self._lock is not None:
            self._lock.release()


_mine: set[tuple[str, int]] = set()
"""Places on devices that this process has dealt."""
_turn = threading.Lock()


def deal(names: Sequence[str]) -> Dealt | None:
    """Return the first of those devices that the fewest processes use; None: there is no choice."""
    if len(names) < 2:
        return None
    folder = _folder()
    with _turn:
        for place in range(MOST):
            for name in names:
                if (name, place) in _mine:
                    continue
                lock = None if folder is None else _lock(folder, name, place)
                if folder is None or lock is not None:
                    _mine.add((name, place))
                    return Dealt(name, (name, place), lock)
    return None


def shared(device: str) -> list[str]:
    """Return the CUDA devices among which trainings that compute on ``device`` are divided."""
    return devices.visible() if device in ("auto", "cuda") else []


@contextlib.contextmanager
def own_device(names: Sequence[str]) -> Iterator[None]:
    """Let this process, which has not used CUDA yet, see the one of the devices dealt to it."""
    dealt = deal(names)
    if dealt is not None:
        os.environ[devices.VISIBLE] = dealt.name
    try:
        yield
    finally:
        if dealt is not None:
            dealt.back()


def _folder() -> Path | None:
    """Return the folder of the locks, of this user on this machine; None: there can be none."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    place = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(place) / f"biograd-{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()  # others may write beside it: it may be a link, or somebody else's
        if stat.S_ISDIR(about.st_mode) and about.st_uid == user:
            return folder
    return None


def _lock(folder: Path, name: str, place: int) -> disk.Lock | None:
    """Return the lock of a place on a device, taken; None: another process has it."""
    try:
        lock = disk.Lock(folder / f"cuda-{re.sub(r'[^0-9A-Za-z-]', '_', name)}-{place}")
    except OSError:
        return None
    if lock.take(1):
        return lock
    lock.release()
    return None
