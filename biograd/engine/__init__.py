"""The engine: an estimator on a network; see ``attach``."""

from biograd.engine.engine import Engine, Result, attach

__all__ = ["Engine", "Result", "attach"]
