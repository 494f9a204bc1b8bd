"""The engine: an estimator on a network; see ``attach``."""

from biograd.engine.accounting import Account, Outside
from biograd.engine.engine import Engine, attach
from biograd.engine.step_result import Result

__all__ = ["Account", "Engine", "Outside", "Result", "attach"]
