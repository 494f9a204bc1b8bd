"""Tasks: what targets are, what is minimised and what is reported."""

from __future__ import annotations

from biograd.tasks.task import MISSING, Metrics, Task

__all__ = ["MISSING", "Metrics", "Task"]
