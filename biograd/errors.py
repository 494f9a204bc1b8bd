"""Errors that a user can meet: each is one line and carries the exit code of the console.

This module imports the standard library alone: the console can name an error without loading torch.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterable, Iterator

WIDTH = 300
"""Characters of a text that a message shows."""


class BiogradError(Exception):
    """Something failed while running; the message says what, where and what to do."""

    exit_code = 1


class DataError(BiogradError):
    """A data set cannot be had, is altered, or holds values that cannot be learned from."""


class OutputError(BiogradError):
    """A file cannot be written; what was complete before is intact."""


class RecipeError(BiogradError):
    """A recipe, an option or an argument is not valid."""

    exit_code = 2


class CapabilityError(RecipeError):
    """A plan needs something that the substrate cannot do."""


class CheckFailed(BiogradError):
    """The work finished, but a check that was asked for did not pass."""

    exit_code = 3


class RunFileError(BiogradError):
    """A run file is missing, damaged, from a newer version, or not a run file."""

    exit_code = 4


class MissingExtraError(BiogradError):
    """An optional package is not installed; the message names the install command."""

    exit_code = 5


@contextlib.contextmanager
def fitting(what: str, lower: str) -> Iterator[None]:
    """Say in one line that something is too large for the memory, or for a number of the machine's.

    Args:
        what: is too large.
        lower: what helps.

    Raises:
        RecipeError: it is.
    """
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        known = isinstance(error, MemoryError | OverflowError)
        if not known and not re.search("memory|alloc|overflow", str(error), re.IGNORECASE):
            raise
        raise RecipeError(f"{what} for this machine's memory: lower {lower}") from error


def nearest(word: object, known: Iterable[str]) -> str:
    """Return the known words as a hint, the nearest first: ``did you mean 'weak'? (known: …)``."""
    words = sorted(known, key=natural)
    if not words:
        return "there is none to choose from"
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}(known: {', '.join(words)})"


def word(path: object) -> str:
    """Return a path as one word of a shell, which is no option.

    >>> word("-a b.h5")
    "'./-a b.h5'"
    """
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def check_text(path: object) -> None:
    """Refuse a path that is no text, or that no file has: run files are written in UTF-8.

    Raises:
        RecipeError: it is none.
    """
    if "\0" in str(path):
        raise RecipeError(f"{visible(brief(str(path), 80))}: holds a NUL character: no file has it")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{visible(str(path))}: is not in UTF-8: take another name") from error


def brief(text: str, width: int = WIDTH) -> str:
    """Return the beginning of a text, in one line."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= width else line[: width - 1] + "…"


SPACES = "\u00a0\u2002\u2003\u2007\u2009\u202f"
"""Spaces that are seen, though Python does not print them."""


def visible(text: str, kept: str = "") -> str:
    r"""Return a text with an escape for every character that is not seen: controls, directions.

    Args:
        kept: characters that stay, such as the ends of lines.

    >>> visible("a\x1b[2J\u202eb\n")
    'a\\x1b[2J\\u202eb\\n'
    """
    return "".join(
        sign if sign.isprintable() or sign in kept or sign in SPACES else repr(sign)[1:-1]
        for sign in text
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Return the key that sorts names by the size of the numbers in them.

    >>> sorted(["blocks.10", "blocks.2", "blocks.2.synapse"], key=natural)
    ['blocks.2', 'blocks.2.synapse', 'blocks.10']
    """
    parts = re.split(r"(\d+)", name)
    digits = [part.lstrip("0") if place % 2 else part for place, part in enumerate(parts)]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(digits)]
