"""Who is told how a run goes on; it knows neither the terminal nor ``--quiet``."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """Whoever shows how a run goes on."""

    def begin(self, total_steps: int, title: str) -> None:
        """Start; ``total_steps``, or what the budget counts instead, are still to do."""

    def step(self, record: dict[str, Any]) -> None:
        """Show one step; ``spent`` is what it took of the budget."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show one epoch."""

    def note(self, text: str) -> None:
        """Show a line of text."""


class Silent:
    """Shows nothing."""

    def begin(self, total_steps: int, title: str) -> None:
        """Show nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""
