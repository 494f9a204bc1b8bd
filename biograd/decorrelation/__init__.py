"""Decorrelation: matrices before the synaptic layers, and the rules by which they learn."""

from biograd.decorrelation.matrices import MOST_PASSES, Decorrelation, make

__all__ = ["MOST_PASSES", "Decorrelation", "make"]
