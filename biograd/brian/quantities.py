"""Quantities with units as text, ``"-70*mV"``: read over an allow-list, never evaluated."""

from __future__ import annotations

import ast
import difflib
import math
import re
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.language import BINARY, parse
from biograd.errors import RecipeError

SIGNS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
LONGEST = 200
"""Characters of a quantity; a longer text is no quantity."""


def quantity(text: str | float, where: str) -> Any:
    """Return the Brian2 quantity, or the number, that a text like ``"10*ms"`` denotes.

    Numbers, names of Brian2's units, ``+ - * / **`` and brackets are understood.

    Args:
        where: stands at the head of every message.

    Raises:
        RecipeError: the text is no quantity, or its dimensions do not fit together.

    >>> quantity("2/(5*ms)", "rate")
    0.4 * khertz
    """
    if not isinstance(text, str):
        return float(text)
    brian2 = import_brian2()
    try:
        value = _walk(parse(text, LONGEST), text, where)
        if not math.isfinite(float(np.asarray(value))):
            raise RecipeError(f"{where} = {text!r}: must be finite")
        return value
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RecipeError(f"{where} = {text[:LONGEST]!r}: write a quantity like '10*ms'") from None
    except (brian2.DimensionMismatchError, ZeroDivisionError, OverflowError) as error:
        raise RecipeError(f"{where} = {text!r}: {' '.join(str(error).split())}") from None


def distribution(given: object, where: str) -> tuple[str, str, str] | None:
    """Return name and quantities of ``uniform(low, high)`` or ``normal(mean, deviation)``, if any.

    Args:
        given: None is returned for what is no such text.

    Raises:
        RecipeError: another number of quantities than two.

    >>> distribution("uniform(-70*mV, -50*mV)", "v")
    ('uniform', '-70*mV', '-50*mV')
    """
    found = re.fullmatch(r"\s*(uniform|normal)\s*\((.*)\)\s*", str(given)[:LONGEST])
    if found is None or not isinstance(given, str):
        return None
    parts = [part.strip() for part in found[2].split(",")]
    if len(parts) != 2:
        raise RecipeError(
            f"{where} = {given!r}: write 'uniform(low, high)' or 'normal(mean, deviation)'"
        )
    return found[1], parts[0], parts[1]


def _walk(node: ast.expr, text: str, where: str) -> Any:
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise SyntaxError
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _walk(node.operand, text, where)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, SIGNS):
        left, right = _walk(node.left, text, where), _walk(node.right, text, where)
        if isinstance(node.op, ast.Pow) and not (isinstance(right, float) and abs(right) <= 16):
            raise RecipeError(f"{where} = {text!r}: an exponent must be a small plain number")
        return BINARY[type(node.op)](left, right)
    if isinstance(node, ast.Name):
        units = import_brian2().core.namespace.DEFAULT_UNITS
        if node.id in units:
            return units[node.id]
        close = difflib.get_close_matches(node.id, units, n=1, cutoff=0.5)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"{where} = {text!r}: Brian2 has no unit {node.id!r}{hint}")
    raise SyntaxError
