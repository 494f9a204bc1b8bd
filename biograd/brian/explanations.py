"""What Brian2 says about a model, in one line; and what it does before a run, made short."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from biograd.brian.import_brian2 import one_line
from biograd.brian.language import TOO_LONG
from biograd.errors import RecipeError, brief
from biograd.process.threads import Turn

PREPARING = Turn()
"""Brian2 checks models and makes code for one thread at a time."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep what exists from garbage collection: Brian2 collects before a run, which takes longest.

    A user who has frozen objects keeps them so.
    """
    mine = not gc.get_freeze_count()
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


@contextmanager
def explained(where: str, text: str) -> Iterator[None]:
    """Turn what Brian2 says about a model into one line with the equations."""
    try:
        with PREPARING, one_line(where):
            yield
    except (RecipeError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = cause.args[0] if isinstance(cause, KeyError) and cause.args else cause
        if isinstance(cause, RecursionError):
            said = TOO_LONG
        message = " ".join(str(said).split()).rstrip(".")
        raise RecipeError(f"{where}: {brief(message)} (in: {text})") from error
