"""The long share: ``python -m tests.fuzz TARGET --mutants N --seed S --folder F``.

A child process does the work, so that a crash of a C library is one fault and not the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import TARGETS, target
from .harness import Fault, Tally, campaign, quiet

GIGABYTES = 12
"""Address space of the child."""


def work(name: str, folder: Path, first: int, last: int, seed: int) -> None:
    """Do the mutants of a range, and write after each how it went, as a line of JSON."""
    quiet()
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30, resource.RLIM_INFINITY))
    found = target(name)
    with open(folder / "log.jsonl", "a") as log:
        for number in range(first, last):
            said = [""]

            def say(line: str, said: list[str] = said, number: int = number) -> None:
                said[0] = line if not line.startswith("FAULT") else said[0]
                print(json.dumps({"begun": number, "how": line}), file=log, flush=True)

            tally = campaign(found, folder, [number], seed, say)
            record = {
                "number": number,
                "how": said[0],
                "commands": tally.commands,
                "codes": {str(k): v for k, v in tally.codes.items()},
                "faults": [[fault.command, fault.what] for fault in tally.faults],
                "peak": tally.peak,
                "slowest": tally.slowest,
            }
            print(json.dumps(record), file=log, flush=True)


def gathered(folder: Path) -> tuple[Tally, int, str]:
    """Return the tally of a log, the number of the last mutant begun and how it was made."""
    tally, begun, how = Tally(), -1, ""
    for line in (folder / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "begun" in record:
            begun, how = record["begun"], record["how"]
            continue
        tally.mutants += 1
        tally.commands += record["commands"]
        tally.codes.update({int(code): count for code, count in record["codes"].items()})
        tally.faults += [Fault(record["number"], record["how"], *one) for one in record["faults"]]
        tally.peak = max(tally.peak, record["peak"])
        tally.slowest = max(tally.slowest, record["slowest"])
    return tally, begun, how


def main() -> int:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; kept")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    folder = words.folder or Path(tempfile.mkdtemp(prefix="biograd-fuzz-"))
    if words.child:
        work(words.target, folder, *words.child, words.seed)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").touch()
    first, last, started = words.first, words.first + words.mutants, time.monotonic()
    crashes: list[Fault] = []
    while first < last:
        child = [sys.executable, "-m", __package__, words.target, "--folder", str(folder)]
        child += ["--seed", str(words.seed), "--child", str(first), str(last)]
        code = subprocess.run(
            child, check=False, env={**os.environ, "MPLBACKEND": "Agg"}
        ).returncode
        _, begun, how = gathered(folder)
        if code == 0:
            break
        crashes.append(Fault(begun, how, "?", f"the process ended with {code}"))
        first = max(begun, first) + 1
    tally, _, _ = gathered(folder)
    tally.faults += crashes
    for fault in tally.faults:
        print(fault)
    print(f"{tally}\n{time.monotonic() - started:.0f} s, in {folder}")
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
