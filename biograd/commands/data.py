"""``biograd data``: what datasets there are, and whether their files are what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from biograd import recipes
from biograd.commands.list import datasets
from biograd.commands.options import (
    CONTEXT,
    Answer,
    command,
    data_dir_option,
    debug_option,
)
from biograd.display.columns import columns

dataset_argument = click.argument("dataset", metavar="DATASET")


@click.group("data", context_settings=CONTEXT)
def data() -> None:
    """Fetch and verify datasets."""


data.params.append(debug_option())


@command("list", data)
def list_data() -> Answer:
    """List the datasets: where they come from and what may be done with them."""
    rows = datasets()
    shown = ["name", "shape", "classes", "files", "licence", "description"]
    cells = [[str(row[key]) for key in shown] for row in rows]
    return Answer({"datasets": rows}, columns(cells, [key.upper() for key in shown]))


@command("fetch", data)
@dataset_argument
@data_dir_option
@click.option("--offline", is_flag=True, help="Do not download; only look in the data folder.")
def fetch(dataset: str, data_dir: Path | None, offline: bool) -> Answer:
    """Download the files of DATASET that are not there yet, check each, and unpack archives.

    DATASET is a name that `biograd data list` shows, or a TOML file.
    """
    recipe = recipes.load_dataset(dataset)
    name = Path(dataset).stem
    from biograd.data.files.archives import located
    from biograd.data.request import Request

    paths = list(located(Request(recipe, name, data_dir, offline)).values())
    text = "\n".join(map(str, paths)) or f"{name} is made on the spot: there is nothing to fetch"
    return Answer({"dataset": name, "files": paths}, text)


@command("verify", data)
@dataset_argument
@data_dir_option
def verify(dataset: str, data_dir: Path | None) -> Answer:
    """Compare the files of DATASET with their digests; exit code 3 if one differs or is missing.

    DATASET is a name that `biograd data list` shows, or a TOML file.
    """
    recipe = recipes.load_dataset(dataset)
    name = Path(dataset).stem
    from biograd.data.files.fetch import verify as verify_files

    files = verify_files(recipe, name, data_dir)
    bad = [str(row["file"]) for row in files if row["status"] not in ("ok", "unpacked")]
    text = columns([_row(row) for row in files]) or f"{name} is made on the spot: it has no files"
    failure = (
        f"{name}: {len(bad)} of {len(files)} files missing or altered; "
        f"run biograd data fetch {dataset}"
    )
    return Answer(
        {"dataset": name, "files": files, "ok": not bad},
        text,
        failure if bad else "",
    )


def _row(row: dict[str, Any]) -> list[str]:
    return [str(row["status"]), str(row["file"]), str(row["path"])]
