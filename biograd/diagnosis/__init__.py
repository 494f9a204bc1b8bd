"""Diagnosis: how good is the gradient that a network learns from, and why does it not learn?

::

    diagnosis = biograd.probe(engine, inputs, targets)
    print(diagnosis)                # a table of the layers, and advice
    diagnosis.layers["readout"].quality.cosine
"""

from __future__ import annotations

from biograd.diagnosis.probing import probe
from biograd.diagnosis.references import FiniteDifference, Reference
from biograd.diagnosis.report import Diagnosis

__all__ = ["Diagnosis", "FiniteDifference", "Reference", "probe"]
