"""Checks that parts of biograd, and of other packages, must pass."""

from __future__ import annotations

from biograd.testing.encodings import check_encoding
from biograd.testing.estimators import check_estimator
from biograd.testing.neurons import check_neuron
from biograd.testing.sources import check_source
from biograd.testing.tasks import check_task

__all__ = ["check_encoding", "check_estimator", "check_neuron", "check_source", "check_task"]
