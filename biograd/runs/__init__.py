"""Run files: one training as one HDF5 file that anyone can analyse, resume and reproduce.

``RunWriter`` writes, ``open_run`` reads (a finished file or the folder of a run that still goes
or was killed), ``pack_run`` merges the folder of a killed run into its file, ``export_sonata``
hands the spikes to other tools.  The layout stands in :mod:`biograd.runs.layout`.

Names load on first use, so that importing this package loads neither h5py nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from biograd.errors import OutputError

if TYPE_CHECKING:
    from biograd.runs.layout import LayerInfo as LayerInfo
    from biograd.runs.layout import Probe as Probe
    from biograd.runs.parts.pack import pack_run as pack_run
    from biograd.runs.reader import Run as Run
    from biograd.runs.reader import open_run as open_run
    from biograd.runs.sonata import export_sonata as export_sonata
    from biograd.runs.views.recorded_spikes import Spikes as Spikes
    from biograd.runs.writer import RunWriter as RunWriter

_HOME = {
    "LayerInfo": "layout",
    "Probe": "layout",
    "Run": "reader",
    "RunWriter": "writer",
    "Spikes": "views.recorded_spikes",
    "export_sonata": "sonata",
    "open_run": "reader",
    "pack_run": "parts.pack",
}
"""Public names and the module of each."""

__all__ = [
    "LayerInfo",
    "OutputError",
    "Probe",
    "Run",
    "RunWriter",
    "Spikes",
    "export_sonata",
    "open_run",
    "pack_run",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
