"""Who is told how a run or a study goes on; it knows neither the terminal nor ``--quiet``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Key = tuple[str, int]
"""Of a training: the name of its cell, and its seed."""


class Progress:
    """Whoever shows how things go on; this one shows nothing."""

    def begin(self, total_steps: int, title: str) -> None:
        """Start; ``total_steps``, or what the budget counts instead, are still to do."""

    def step(self, record: dict[str, Any]) -> None:
        """Show one step; ``spent`` is what it took of the budget."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show one epoch."""

    def note(self, text: str) -> None:
        """Show a line of text."""

    def trainings(self, order: Sequence[Key], known: Mapping[Key, Mapping[str, Any]]) -> None:
        """Show what is to be trained; of some the summaries are ``known`` already."""

    def event(
        self, training: Key, state: str, reason: str, summary: Mapping[str, Any] | None
    ) -> None:
        """Show that a training has been "started", "retried", "done" or has "failed"."""
