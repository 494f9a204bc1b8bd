"""Brian2, imported late (it takes a second) and quietly."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType


@functools.cache
def import_brian2() -> ModuleType:
    """Return Brian2, without the deprecation warnings of its own dependencies.

    It also says which integration method it chose, and that a group was thrown away, when a model
    is only checked; neither is news to the user of a population.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import brian2
    for name in ("method_choice", "unused_brian_object"):
        brian2.BrianLogger.suppress_name(name)
    return brian2
