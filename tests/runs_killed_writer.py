"""A process that writes a run as fast as it can and says after each commit how far it is.

Usage: ``python runs_killed_writer.py RUN [checkpoints]``.
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from runs_synthetic import checkpoint, write_step, writer


def main(path: Path, checkpoints: bool) -> None:
    """Write until killed; print the number of committed steps after each commit."""
    if checkpoints:
        checkpoint(0)  # loads torch now, not at the first commit
    target = writer(path)
    for step in count():
        write_step(target, step)
        if step % 3 == 2:
            target.commit(step, checkpoint(step) if checkpoints and step % 2 == 0 else None)
            print(step + 1, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["checkpoints"])
