"""Trainings in processes of this machine."""

from __future__ import annotations

from biograd.studies.engines.placement import Placement
from biograd.studies.pool import Processes, cuda_devices
from biograd.studies.tasks import Engine


def begin(placement: Placement, count: int) -> Engine:
    """Return the engine for so many tasks."""
    return Processes(min(placement.workers, count), cuda_devices(), placement.logs)
