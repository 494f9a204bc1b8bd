"""Train rate and spiking networks with backpropagation and its biological alternatives.

The public names stand, each with its home, in ``__init__.pyi``::

    network = biograd.build("ann", inputs=64, classes=10)
    engine = biograd.attach(network, biograd.WeakGradient(copies=33, sigma=0.1))
    run = biograd.train("ann", "digits", estimator="weak", seed=0)

Why lazy: torch, snnTorch, Brian2 and h5py take seconds to import, and a line of help or a wrong
option needs none of them.  A name's module is imported when the name is first used.
"""

from __future__ import annotations

import ast as _ast
import importlib as _importlib
from pathlib import Path as _Path

__version__ = "0.1.0"

_HOMES = {
    alias.name: node.module
    for node in _ast.parse(_Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, _ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = sorted((*_HOMES, "__version__"))


def __getattr__(name: str) -> object:
    """Import the home of a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'biograd' has no attribute {name!r}")
    value = globals()[name] = getattr(_importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
