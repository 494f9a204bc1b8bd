"""Plain text in columns, for tables that people read and programs may cut."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from biograd.errors import visible


def width() -> int:
    """Return the number of columns to fill: the terminal's, or no limit where output is piped."""
    return shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else 1000


def columns(
    rows: Sequence[Sequence[str]], header: Sequence[str] = (), limit: int | None = None
) -> str:
    """Align ``rows`` in columns; the last column wraps at ``limit`` characters.

    A row of one cell is a heading: it stands alone and shapes no column.

    >>> print(columns([["rate", "two layers"], ["spiking", "one"]], ["NAME", "WHAT"]))
    NAME     WHAT
    rate     two layers
    spiking  one
    """
    lines = [[*map(visible, line)] for line in ([header] if header else []) + list(rows)]
    table = [line for line in lines if len(line) > 1]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    space = max((limit or width()) - indent, 24)
    return "\n".join(_line(line, widths, indent, space) for line in lines)


def _line(line: list[str], widths: list[int], indent: int, space: int) -> str:
    if len(line) == 1:
        return line[0]
    cells = [cell.ljust(size) for cell, size in zip(line, widths, strict=False)]
    first, *rest = textwrap.wrap(line[-1], space) or [""]
    wrapped = "".join(f"\n{' ' * indent}{part}" for part in rest)
    return "  ".join([*cells, first]).rstrip() + wrapped


def percent(value: float) -> str:
    """Write a share as a percentage.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Write a time span in the unit that suits it.

    >>> duration(0.42), duration(75), duration(7325)
    ('0.4 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Write a number of bytes in the unit that suits it.

    >>> size(0), size(1500), size(2_500_000)
    ('0 B', '1.5 kB', '2.5 MB')
    """
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def large(value: float) -> str:
    """Write a number of which three digits matter.

    >>> large(950), large(1411.9), large(958_720), large(2_500_000)
    ('950', '1.41 k', '959 k', '2.5 M')
    """
    unit = ""
    for larger in ("k", "M", "G", "T"):
        if round(abs(value)) < 1000:
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}"


def costs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return time, memory and operations of a run's summary, a row each; empty where unknown."""
    rate, memory = summary.get("steps_per_second"), summary.get("peak_memory_bytes")
    passes, counts = summary.get("forward_passes"), []
    for kind in ("multiply_accumulates", "synaptic_operations"):
        if summary.get(kind):
            word = "synaptic" if kind.startswith("synaptic") else "multiply-accumulates"
            counts.append(f"{large(summary[kind])} {word}")
    time = [duration(summary.get("seconds") or 0), f"{rate:.0f} steps/s" if rate else ""]
    return [
        ("time", ", ".join(filter(None, time))),
        ("forward passes", large(passes) if passes else ""),
        ("memory", size(memory) if memory else ""),
        ("operations", f"{', '.join(counts)}, for an example" if counts else ""),
    ]
