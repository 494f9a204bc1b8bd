"""Exchange of networks with other simulators by the Neuromorphic Intermediate Representation (NIR).

``nodes`` writes a network's graph as one of NIR; ``parse`` and ``build`` read one; ``nir_neuron``
is what a population is in the terms of NIR, which its neuron decides (``Neuron.nir``).
"""

from __future__ import annotations

from biograd.interchange.nir_files import export_nir, import_nir, to_nir

__all__ = ["export_nir", "import_nir", "to_nir"]
