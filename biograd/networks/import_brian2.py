"""Brian2, imported late (it takes a second) and quietly."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from types import ModuleType

log = logging.getLogger(__name__)


@functools.cache
def import_brian2() -> ModuleType:
    """Return Brian2, without the deprecation warnings of its own dependencies.

    It also says which integration method it chose, and that a group was thrown away, when a model
    is only checked; neither is news to the user of a population.  And it would ask for a report of
    every error that ends a script, as if that were its own.
    """
    hook = None if "brian2" in sys.modules else sys.excepthook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import brian2
    sys.excepthook = hook or sys.excepthook
    for name in ("method_choice", "unused_brian_object"):
        brian2.BrianLogger.suppress_name(name)
    return brian2


def choose_target() -> None:
    """Let Brian2 choose how its code runs; where it cannot compile, one line says so, once."""
    if import_brian2().prefs.codegen.target == "auto":
        _compiles()


@functools.cache
def _compiles() -> bool:
    from brian2.devices.device import auto_target
    from brian2.utils.logger import catch_logs

    with catch_logs(logging.INFO):  # ten lines, if there is no compiler
        compiles: bool = auto_target().class_name != "numpy"
    if not compiles:
        log.warning(
            "Brian2 finds no C++ compiler that works: its populations run on NumPy, which is "
            "slower (see `biograd doctor`)"
        )
    return compiles
