"""A few lines in a notebook that are written anew in their place, without widgets."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel; IPython is not imported to learn it."""
    ipython = sys.modules.get("IPython")
    with contextlib.suppress(Exception):
        return getattr(ipython.get_ipython(), "kernel", None) is not None  # type: ignore[union-attr]
    return False


class NotebookLines:
    """The last lines of what goes on, under a cell of a notebook."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._lines: list[str] = []

    def add(self, text: str) -> None:
        """Show one more line; of many the first ones go."""
        self._lines = [*self._lines, text][-KEPT_LINES:]
        self.write("")

    def write(self, text: str) -> None:
        """Show a last line, which the next one replaces."""
        from IPython.display import display

        shown = {"text/plain": "\n".join([*self._lines, text] if text else self._lines)}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


KEPT_LINES = 12
