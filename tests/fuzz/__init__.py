"""Fuzzing: damaged files are given to the commands, which must refuse or read them cleanly.

A :class:`~fuzz.harness.Target` says what good files are, how a seeded stream damages them and
which commands read them.  For every mutant and command the harness asks that it ends in time, with
an exit code of the console's own and at most one line of error, that no file is changed or left
behind, and that memory stays bounded.

    python -m tests.fuzz runs --mutants 5000 --seed 1

Targets stand in ``TARGETS``: to add one, write a module with a ``Target`` and name it there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harness import Target

TARGETS = {
    "data": "data_files", "nir": "nir_graphs", "recipes": "recipes", "recordings": "recordings",
    "runs": "run_files",
}  # fmt: skip
"""Names of targets, and the modules that have them as ``TARGET``."""


def target(name: str) -> Target:
    """Return a target by name."""
    module: Any = importlib.import_module(f"{__name__}.{TARGETS[name]}")
    found: Target = module.TARGET
    return found
