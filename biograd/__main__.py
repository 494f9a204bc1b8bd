"""The console's entry: signals are heard before anything else is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from biograd import signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console and return its exit code, see ``biograd.commands.boundary``."""
    with signals.ending(keep=arguments is not None) as heard:
        try:
            from biograd.commands import boundary

            return boundary.run(arguments, heard)
        except (KeyboardInterrupt, signals.Terminated):  # before the boundary, or after it
            signals.end_now(heard.number)


if __name__ == "__main__":
    sys.exit(main())
