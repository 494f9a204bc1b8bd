"""Pieces of a page: texts, tables, figures with their numbers, sections, the page itself."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from biograd.display.csv_text import as_csv, flattened
from biograd.errors import visible
from biograd.pages.style_sheet import STYLE
from biograd.plots.panel import Panel, svg

ROWS = 60
"""Rows of numbers that are shown under a figure; the CSV file has all."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html(text: object) -> str:
    """Return a text as HTML has it, all of it visible."""
    return escape(visible(str(text), "\n"))


def short(value: object) -> str:
    """Return a number of a table as text, what is missing as none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[object], rows: Iterable[Sequence[object]], name: str) -> str:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        name: of the region, for those who do not see it.
    """
    top = "".join(f'<th scope="col">{html(title)}</th>' for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html(v)}</td>' for v in row)}</tr>" for row in rows)
    return region(f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>", name)


def region(content: str, name: str) -> str:
    """Return a part that scrolls, which the keyboard reaches."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html(name)}">{content}</div>'
    )


def numbers(panel: Panel) -> str:
    """Return the numbers of a figure: a table, and the CSV file as a link."""
    rows = [flattened(row) for row in panel.rows]
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))[:24]
    shown = ([short(row.get(key)) for key in keys] for row in rows[:ROWS])
    data = base64.b64encode(as_csv(panel.rows).encode()).decode()
    rest = f"<p>The first {ROWS} of {len(rows)} rows.</p>" if len(rows) > ROWS else ""
    named = html(panel.title)
    return (
        f"<details><summary>Numbers of this figure ({len(rows)} rows)"
        f"</summary>{table(keys, shown, f'Numbers: {panel.title}')}{rest}"
        f'<p><a download="{html(panel.name)}.csv" href="data:text/csv;base64,{data}">'
        f"CSV of {named}</a></p></details>"
    )


class Figures:
    """Puts figures onto a page, each with ids of its own."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def grid(self, panels: Iterable[Panel]) -> str:
        """Return figures beside one another, the wide ones first."""
        given = list(panels)
        parts = []
        for wide in (True, False):
            drawn = "".join(self.one(panel) for panel in given if panel.wide is wide)
            kind = "figures pairs" if wide else "figures"
            parts.append(f'<div class="{kind}">{drawn}</div>' if drawn else "")
        return "".join(parts)

    def one(self, panel: Panel) -> str:
        """Return a figure with its caption and numbers."""
        drawn = svg(panel, f"f{next(self._count)}-")
        body = region(drawn, f"Figure: {panel.title}") if panel.wide else drawn
        return (
            f"<figure{' class=wide' if panel.wide else ''}>{body}"
            f"<figcaption>{html(panel.caption)}</figcaption>{numbers(panel)}</figure>"
        )


def section(title: str, *parts: str) -> tuple[str, str]:
    """Return the title and the content of a section; one without content is left out."""
    return title, "".join(parts)


def missing(text: object) -> str:
    """Return a line that says what is not there, and why."""
    return f'<p class="missing">{html(text)}</p>'


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """Return the numbers at the head of a page: name, number, what it is of."""
    each = (
        f"<div>{html(name)}<b>{html(number)}</b>{html(words)}</div>"
        for name, number, words in values
    )
    return f'<div class="tiles">{"".join(each)}</div>'


def listing(values: Mapping[str, Any], name: str) -> str:
    """Return settings as text."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    return f'<pre tabindex="0" role="region" aria-label="{html(name)}">{html(text)}</pre>'


def document(title: str, lead: str, head: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a page.

    Args:
        lead: a sentence under the title, as text.
        head: what stands above the sections, as HTML.
        sections: title and content as HTML; empty ones are left out.
    """
    there = [(name, content) for name, content in sections if content]
    marks = [f"part{place}" for place in range(len(there))]
    links = "".join(
        f'<a href="#{mark}">{html(name)}</a>' for mark, (name, _) in zip(marks, there, strict=True)
    )
    return "".join(_document(title, lead, head, links, zip(marks, there, strict=True)))


def _document(
    title: str, lead: str, head: str, links: str, parts: Iterable[tuple[str, tuple[str, str]]]
) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{html(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    yield '<a class="skip" href="#main">To the figures</a>\n<header>'
    yield f'<h1>{html(title)}</h1>\n<p class="lead">{html(lead)}</p>\n{head}</header>\n'
    yield f'<nav aria-label="Sections">{links}</nav>\n<main id="main">\n'
    for mark, (name, content) in parts:
        yield f'<section aria-labelledby="{mark}"><h2 id="{mark}">{html(name)}</h2>\n{content}'
        yield "</section>\n"
    yield "</main>\n</body>\n</html>\n"
