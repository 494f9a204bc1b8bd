"""What a process does that was started for one job: ``python -m biograd.placement.child``.

Through its input come the work, later perhaps the request to stop, and the end of the input when
its parent is gone; through its output goes the answer.  The work itself has neither.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
from typing import BinaryIO

from biograd.placement.jobs import Outcome, attempt, line


def main() -> None:
    """Do the work and say how it went."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what is said goes where the errors go
    faulthandler.enable()  # a crash says where
    work = pickle.load(requests)  # written by the parent
    listener = threading.Thread(target=_obey, args=(requests, _signals()), daemon=True)
    listener.start()
    try:
        function, arguments = pickle.loads(work)
    except Exception as error:
        answer = Outcome(False, f"cannot be read in another process: {line(error)}")
    else:
        answer = attempt(function, arguments)
    sys.stdout.flush()
    with answers:
        pickle.dump(tuple(answer), answers)


def _signals() -> int | None:
    """Return a descriptor from which the numbers of arriving signals can be read."""
    if sys.platform == "win32":
        return None
    read, written = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    return read


def _obey(requests: BinaryIO, signals: int | None) -> None:
    """Stop when the parent says so, and die when it is gone.

    Why not a signal of the parent: whoever stops a whole group of processes has signalled this one
    already, and a second signal would not let it commit.
    """
    if requests.read(1) and not _signalled(signals):
        os.kill(os.getpid(), signal.SIGTERM)
    requests.read()  # until the other end is gone
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _signalled(signals: int | None) -> bool:
    """Return whether SIGTERM has arrived."""
    try:
        return signals is not None and signal.SIGTERM in os.read(signals, 4096)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main()
