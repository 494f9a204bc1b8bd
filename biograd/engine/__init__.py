"""The engine: an estimator on a network; see ``attach``."""

from biograd.engine.engine import Engine, attach
from biograd.engine.step_result import Result

__all__ = ["Engine", "Result", "attach"]
