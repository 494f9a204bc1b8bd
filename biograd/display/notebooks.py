"""Lines in a notebook, the last of which is written anew in its place, without widgets."""

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
    """Lines under a cell of a notebook; why not on stderr: notebooks paint that as an error."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._handle: Any = None

    def keep(self, text: str) -> None:
        """Show a line that stays."""
        self._kept.append(text)
        self.write("")

    def write(self, text: str) -> None:
        """Show a line below those that stay, in place of the one before."""
        from IPython.display import display

        shown = {"text/plain": "\n".join([*self._kept, *([text] if text else [])])}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
