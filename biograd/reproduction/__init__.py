"""Repeat a run from its file alone, and say whether what comes out is the same.

::

    run file -> configuration -> the same training, into another file -> both files side by side

Times, paths and what a machine has to do with them (memory, speed) are not compared.  On one
machine all bits agree; where something of the machine differs (processor, number of threads,
versions), sums are rounded differently, and the numbers are compared within ``Limits``.
"""

from biograd.reproduction.repeating import reproduce
from biograd.reproduction.side_by_side import contents, size
from biograd.reproduction.verdict import RATE, SPIKING, Change, Difference, Limits, Reproduction

__all__ = [
    "Change",
    "Difference",
    "Limits",
    "RATE",
    "Reproduction",
    "SPIKING",
    "contents",
    "reproduce",
    "size",
]
