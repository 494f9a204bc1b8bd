"""Run commands on mutants in this process, and judge what they did."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

ALLOWED = (0, 1, 2, 3, 4, 5)
"""Exit codes of the console; 1 only with a message that is not "unexpected"."""
SECONDS = 60
"""A command that takes longer hangs."""
LARGE = 2**26
"""Bytes beyond which a file is not read to see whether it changed."""
MEGABYTES = 1024
"""Memory that a command may take more than was taken before it.

Libraries that it is the first to load take up to some 400 MB and an honest file of these up to some
200 MB; a declared size that is believed takes all that there is.
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        prepare: writes the good files into a folder, once.
        mutate: damages a copy of that folder by a seeded stream, and says how.
        commands: words of the console; ``{folder}`` is the copy, ``{out}`` an empty folder.
        main: runs the words of a command; None: the console.
        writers: commands that may change the copy if they end well; let them come last.
        growing: ending of folders in which a writer may change what is its own all the same.
        drawn: how many of the commands a mutant is given to, drawn by its number; 0: all.
    """

    prepare: Callable[[Path], None]
    mutate: Callable[[random.Random, Path], str]
    commands: tuple[tuple[str, ...], ...]
    writers: tuple[str, ...] = ()
    main: Callable[[Sequence[str]], int] | None = None
    growing: str = "\0"
    drawn: int = 0

    def given_to(self, stream: random.Random) -> list[tuple[str, ...]]:
        """Return commands for one mutant, in their order."""
        count = len(self.commands)
        chosen = stream.sample(range(count), min(self.drawn or count, count))
        return [self.commands[place] for place in sorted(chosen)]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What a command did wrong with a mutant."""

    number: int
    mutation: str
    command: str
    what: str

    def __str__(self) -> str:
        """Return one line."""
        return f"mutant {self.number} ({self.mutation}), {self.command}: {self.what}"


@dataclasses.dataclass
class Tally:
    """What came out of many mutants."""

    mutants: int = 0
    commands: int = 0
    codes: Counter[int] = dataclasses.field(default_factory=Counter)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    peak: float = 0.0
    slowest: float = 0.0

    def __str__(self) -> str:
        """Return the figures in a few lines."""
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        return (
            f"{self.mutants} mutants, {self.commands} commands, {len(self.faults)} faults\n"
            f"exit codes {codes}\n"
            f"most memory taken {self.peak:.0f} MB, slowest command {self.slowest:.1f} s of CPU"
        )


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended; seconds are the processor's, which a busy machine does not change."""

    code: int
    errors: str
    seconds: float
    megabytes: float
    hung: bool


class Hang(BaseException):
    """A command took too long."""


TIMERS = {signal.SIGPROF: (signal.ITIMER_PROF, 1.0), signal.SIGALRM: (signal.ITIMER_REAL, 10.0)}
"""Timers of the processor's and the wall's time; a machine that is busy may take the latter."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let the system end this process after some seconds of work; C code may hear no signal."""
    spent, kept = time.process_time(), resource.getrlimit(resource.RLIMIT_CPU)
    end = int(spent + seconds) + 2  # a second at least to come to an end in
    resource.setrlimit(resource.RLIMIT_CPU, (end, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, kept)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[list[bool]]:
    """Raise :class:`Hang` after some seconds of work; the list says whether that happened."""
    rang: list[bool] = []

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        rang.append(True)
        raise Hang(f"more than {seconds} s")

    before = {number: signal.signal(number, ring) for number in TIMERS}
    for timer, factor in TIMERS.values():
        signal.setitimer(timer, factor * seconds, 1.0)  # again, if somebody caught it
    try:
        yield rang
    finally:
        for timer, _ in TIMERS.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def resident(peak: bool = False) -> float:
    """Return the memory of this process in MB, or its peak since the last :func:`forget_peak`."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", text)
    return int(found[1]) / 1024 if found else 0.0


def forget_peak() -> None:
    """Let the peak of the memory begin anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run(
    words: Sequence[str],
    seconds: float = SECONDS,
    main: Callable[[Sequence[str]], int] | None = None,
) -> Ended:
    """Run a command of the console in this process."""
    from biograd.__main__ import main as console

    errors, begun = io.StringIO(), time.process_time()
    forget_peak()
    before = resident()
    rang: list[bool] = []
    try:
        with (
            limited(2 * seconds),
            alarm(seconds) as rang,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
        ):
            code = (main or console)(list(words))
    except Hang:
        code = -1
    except BaseException:
        code = -2
        errors.write("escaped: " + traceback.format_exc(limit=-3))
    return Ended(
        code=code,
        errors=errors.getvalue(),
        seconds=time.process_time() - begun,
        megabytes=resident(peak=True) - before,
        hung=bool(rang),
    )


def snapshot(folder: Path) -> dict[str, str]:
    """Return what lies in a folder: kind, permissions and content of everything."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        if path.is_symlink():
            said = f"link to {os.readlink(path)}"
        elif state.st_size > LARGE:
            said = f"{state.st_size} bytes, of {state.st_mtime_ns}"
        elif path.is_file():
            said = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            said = "folder"
        found[str(path.relative_to(folder))] = f"{state.st_mode:o} {said}"
    return found


def judged(ended: Ended, before: dict[str, str], after: dict[str, str], left: list[str]) -> str:
    """Return what a command did wrong, "" if nothing."""
    lines = ended.errors.splitlines()
    if ended.hung:
        return f"hangs ({ended.seconds:.0f} s)"
    if ended.code not in ALLOWED or "biograd: unexpected" in ended.errors:
        return f"uncaught, exit code {ended.code}: {lines[-1] if lines else ''}"
    if ended.code and not (lines and lines[-1].startswith("biograd")):
        return f"exit code {ended.code} without a word"
    if "Traceback" in ended.errors:
        return "a traceback"
    if before != after:
        return f"changed {sorted(set(before.items()) ^ set(after.items()))[:2]}"
    if ended.code and left:
        return f"left behind {left[:3]}"
    if ended.megabytes > MEGABYTES:
        return f"took {ended.megabytes:.0f} MB"
    return ""


def campaign(
    target: Target,
    folder: Path,
    numbers: Sequence[int],
    seed: int = 0,
    said: Callable[[str], None] = lambda line: None,
) -> Tally:
    """Give the mutants of some numbers to all commands of a target.

    Args:
        folder: where to work.
        seed: of the whole campaign; a mutant follows from it and its number alone.
        said: called with a line before each mutant, and with every fault.
    """
    tally, good = Tally(), folder / "good"
    if not good.exists():
        good.mkdir(parents=True)
        target.prepare(good)
    for number in numbers:
        work, out = folder / "mutant", folder / "out"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work, symlinks=True)
        stream = random.Random(f"{seed} {number}")
        mutation = target.mutate(stream, work)
        said(f"{number} {mutation}")
        before = snapshot(work)
        for command in target.given_to(stream):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            words = [word.format(folder=work, out=out) for word in command]
            ended = run(words, main=target.main)
            left = [path.name for path in out.rglob("*")]
            after = snapshot(work)
            expected = after
            if command[0] not in target.writers:
                expected = before
            elif ended.code:
                own = {name.split("/")[0] for name in before if name.endswith(target.growing)}
                expected = {n: s for n, s in after.items() if n.split("/")[0] in own}
                expected |= {n: s for n, s in before.items() if n.split("/")[0] not in own}
            what = judged(ended, expected, after, left)
            tally.commands += 1
            tally.codes[ended.code] += 1
            tally.peak = max(tally.peak, ended.megabytes)
            tally.slowest = max(tally.slowest, ended.seconds)
            if what:
                tally.faults.append(Fault(number, mutation, " ".join(command), what))
                said(f"FAULT {tally.faults[-1]}")
            before = after
        tally.mutants += 1
    return tally


def quiet() -> None:
    """Keep what third parties write aside from the figures."""
    import warnings

    warnings.simplefilter("ignore")
    sys.setrecursionlimit(1000)


def said(act: Callable[[], object]) -> int:
    """Do what a library's user does, and say what went wrong as the console would."""
    from biograd.errors import BiogradError

    try:
        act()
    except BiogradError as error:
        print(f"biograd: {error}", file=sys.stderr)
        return error.exit_code
    return 0
