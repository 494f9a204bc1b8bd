"""Training: many steps of an engine, their rate, when they end, and what came of them."""

from biograd.training.evaluation import evaluate, placed
from biograd.training.optimisers import make_optimiser
from biograd.training.step_record import StepRecord
from biograd.training.trainer import Trainer

__all__ = ["StepRecord", "Trainer", "evaluate", "make_optimiser", "placed"]
