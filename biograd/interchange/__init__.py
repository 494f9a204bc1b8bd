"""Exchange of networks with other simulators by the Neuromorphic Intermediate Representation (NIR).

``network -> sketch -> graph -> file`` and back: ``describe`` and ``nodes`` write, ``parse`` and
``build`` read; ``cells`` says what a population is in the terms of NIR.
"""

from __future__ import annotations

from biograd.interchange.files import export_nir, import_nir, to_nir

__all__ = ["export_nir", "import_nir", "to_nir"]
