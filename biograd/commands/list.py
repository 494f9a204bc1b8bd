"""``biograd list``: the names that the other commands take."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any

import click

from biograd import recipes
from biograd.commands.options import Answer, Words, command
from biograd.display.columns import columns

Row = dict[str, Any]


def _models() -> list[Row]:
    found = {name: recipes.load_model(name) for name in recipes.names("models")}
    return [
        {
            "name": name,
            "substrate": recipe.network.substrate,
            "estimator": recipe.estimator,
            "description": recipe.description,
        }
        for name, recipe in found.items()
    ]


def datasets() -> list[Row]:
    """Return what there is to say of the shipped datasets."""
    found = {name: recipes.load_dataset(name) for name in recipes.names("datasets")}
    return [
        {
            "name": name,
            "shape": "x".join(map(str, recipe.shape)),
            "classes": recipe.classes,
            "files": len(recipe.files),
            "licence": recipe.licence,
            "description": recipe.description,
            "urls": list(recipe.urls),
        }
        for name, recipe in found.items()
    ]


def _estimators() -> list[Row]:
    from biograd.estimators import ESTIMATORS

    return [
        {
            "name": name,
            **{key: _fact(estimator, key) for key in ("needs", "passes", "bias", "caveat")},
            "description": _summary(estimator),
            "reference": _fact(estimator, "reference"),
        }
        for name, estimator in ESTIMATORS.items()
    ]


def _neurons() -> list[Row]:
    from biograd.neurons import NEURONS

    return _parts(NEURONS, lambda kind: kind, {"kind", "trainable"})


def _tasks() -> list[Row]:
    from biograd.tasks import TASKS

    return _parts(TASKS, lambda kind: kind)


def _encodings() -> list[Row]:
    from biograd.encoding import ENCODINGS

    return _parts(ENCODINGS, lambda kind: kind.Settings)


def _sources() -> list[Row]:
    from biograd.data import SOURCES

    return _parts(SOURCES, lambda read: getattr(read, "Settings", None))


def _formats() -> list[Row]:
    from biograd.data.formats import FORMATS

    return [
        {"name": name, "endings": list(part.endings), "description": _summary(part.read)}
        for name, part in FORMATS.items()
    ]


def _parts(
    parts: Mapping[str, Any], of: Callable[[Any], Any], hidden: Collection[str] = ()
) -> list[Row]:
    """Return a row for each part, with its keys: the fields of the dataclass ``of`` it."""
    rows = []
    for name, part in parts.items():
        made = of(part)
        fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
        keys = [field.name for field in fields if field.name not in hidden]
        rows.append({"name": name, "keys": keys, "description": _summary(part)})
    return rows


def _summary(part: Any) -> str:
    """Return the first line of what a part says of itself."""
    return (inspect.getdoc(part) or "").partition("\n")[0]


def _studies() -> list[Row]:
    found = {name: recipes.read(name, "cli")[0] for name in recipes.names("cli")}
    return [
        {
            "name": name,
            "kind": table.get("kind", "training"),
            "description": table.get("description", ""),
        }
        for name, table in found.items()
    ]


def _fact(estimator: type, name: str) -> Any:
    value = getattr(estimator, name, "")
    return sorted(value) if isinstance(value, frozenset | set) else value


KINDS: dict[str, Callable[[], list[Row]]] = {
    "models": _models,
    "datasets": datasets,
    "estimators": _estimators,
    "neurons": _neurons,
    "encodings": _encodings,
    "tasks": _tasks,
    "sources": _sources,
    "formats": _formats,
    "studies": _studies,
}
HIDDEN = {"files", "licence", "urls"}
"""Facts that only ``--json`` carries: they would crowd the description out of a line."""


@command("list")
@click.argument("kind", type=Words(list(KINDS)), required=False, metavar="[KIND]")
def listing(kind: str | None) -> Answer:
    """List what the other commands and the recipes take, with the parts of other packages.

    KIND is models, datasets, estimators, neurons, encodings, tasks, sources, formats or studies;
    without it all are listed.
    """
    found = {name: KINDS[name]() for name in ([kind] if kind else KINDS)}
    texts = {name: _text(name, rows) for name, rows in found.items()}
    together = "\n\n".join(f"{name}\n{textwrap.indent(text, '  ')}" for name, text in texts.items())
    return Answer(found, texts[kind] if kind else together)


def _text(kind: str, rows: list[Row]) -> str:
    if not rows:
        return "(none)"
    if kind == "estimators":
        return "\n".join(columns(_card(row)) for row in rows)
    keys = [key for key in rows[0] if key not in HIDDEN]
    cells = [[_cell(row[key]) for key in keys] for row in rows]
    return columns(cells, [key.upper() for key in keys])


def _card(row: Row) -> list[list[str]]:
    """Return the facts of an estimator, one under the other: a line has no room for them."""
    facts = {"rule": row["description"], **row}
    keys = ("rule", "passes", "needs", "bias", "caveat", "reference")
    return [[row["name"]], *(["", key, _cell(facts[key])] for key in keys if facts[key])]


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
