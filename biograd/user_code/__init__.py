"""Code of the user's own: named in a line that was typed, kept as text, compared by digest.

::

    net.py:Net | package.module:Net  ->  found (files and digests)  ->  loaded (the object itself)

``find`` executes nothing of a file that it is given; ``load`` does, and is called only with what
was typed in this very command or call.  A run file keeps what ``find`` says, as text.
"""

from biograd.user_code.finding import (
    NAMED,
    Located,
    UserCode,
    find,
    is_named,
    named_metrics,
    of_object,
    short,
    whole,
    words,
)
from biograd.user_code.loading import Loaded, called, load, named, where

__all__ = [
    "NAMED",
    "Located",
    "Loaded",
    "UserCode",
    "called",
    "find",
    "is_named",
    "load",
    "named",
    "named_metrics",
    "of_object",
    "short",
    "where",
    "whole",
    "words",
]
