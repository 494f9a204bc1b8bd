"""The recipe of a dataset: where the data come from and what shape they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from biograd.checking import Checked, Count, NotNegative, Range, Table, construct
from biograd.errors import RecipeError
from biograd.recipes.toml import merge, names, override, read
from biograd.user_code import NAMED


@dataclasses.dataclass(frozen=True)
class DataFile(Checked):
    """One file of a dataset: its name and the digest of its bytes, SHA-256 or MD5.

    A published MD5 stands where no SHA-256 is published; without either, the file is taken where
    the user has it and never downloaded.
    """

    name: str
    sha256: str = ""
    sha256_raw: str = ""
    """Digest of the decompressed content, by which an unpacked copy is known."""
    md5: str = ""
    holds: str = ""
    """Of an archive: a file or folder that it unpacks to, by which an unpacked copy is found."""
    at: str = ""
    """Its name in the addresses, where that is another."""


@dataclasses.dataclass(frozen=True)
class DatasetRecipe(Checked):
    """A dataset file: where the data come from and what shape they have."""

    source: str
    """A name of ``data.SOURCES``."""
    description: str = ""
    licence: str = ""
    shape: tuple[Count, ...] = ()
    classes: Annotated[int, Range(0)] = 0
    """Of a task of classes; 0: as many as the training labels show."""
    urls: tuple[str, ...] = ()
    """Folders that hold the files, the canonical one first, mirrors after it."""
    files: Table = dataclasses.field(default_factory=dict)
    """By key, each a :class:`DataFile`; ``idx``: train_images, train_labels, test_images,
    test_labels."""
    validation: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of the training split held out; with it, the test split is not looked at."""
    training_examples: Annotated[int, Range(0)] = 0
    """Rows to learn from, every class in proportion; 0: all."""
    test_examples: Annotated[int, Range(0)] = 0
    """Rows to evaluate on, every class in proportion; 0: all."""
    settings: Table = dataclasses.field(default_factory=dict)
    """Arguments of a generated source (sizes, seeds)."""
    task: Table = dataclasses.field(default_factory=dict)
    """Name of the task and its own settings; without a name: the one that the targets ask for."""
    path: str = ""
    """One's own file or folder, or the name of a function."""
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """A file for each split, in place of ``path``: train, validation, test."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Which array of a file is what, where names do not tell: ``{ x = "stim", y = "choice" }``."""
    timed: bool = False
    """Whether inputs have a time axis, ``[N, T, channels]``; the encoding "given" says so too."""
    split: tuple[NotNegative, NotNegative, NotNegative] = (0.7, 0.15, 0.15)
    """Shares of train, validation and test, of data that come without splits."""
    time_unit: Literal["", "s", "ms", "us"] = ""
    """Of the times of events, where the file does not say it."""
    units: Annotated[int, Range(0)] = 0
    """Channels of events; 0: as the file says, or as occur."""
    steps: Annotated[int, Range(0)] = 0
    """Most steps of a trial of events; 0: those of the longest."""
    binning: Table = dataclasses.field(default_factory=dict)
    """Which events count, and how: ``data.rows.binning.Binning``."""
    augmentation: Table = dataclasses.field(default_factory=dict)
    """What changes in events that are learned from: ``data.rows.augmentation.Augmentation``."""
    epoch_rows: Annotated[int, Range(0)] = 0
    """Examples of a stream that count as an epoch."""
    workers: Annotated[int, Range(0)] = 0
    """Processes that read a torch Dataset or a folder ahead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.split) != 3 or not self.split[0]:
            raise ValueError(f"split = {list(self.split)}: give shares of train, validation, test")
        if self.path and self.paths:
            raise ValueError("path and paths: give one of them")


FUNCTION = NAMED
"""How a function is named: ``package.module:function`` or ``FILE.py:function``."""
ENDINGS = {
    ".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5",
    ".nwb": "nwb", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip


def of_path(text: str) -> tuple[str, Table]:
    """Return the name and the table of data that one's own file, folder or function holds.

    Raises:
        RecipeError: there is no such file, and it is no function's name.
    """
    path = Path(text).expanduser()
    source = ENDINGS.get(path.suffix.lower())
    if source or path.is_dir():
        if not path.exists():
            raise RecipeError(f"no dataset {text!r}: there is no such file")
        whole = path.resolve()
        return whole.stem, {"source": source or "folder", "path": str(whole)}
    if FUNCTION.fullmatch(text):
        return title(text), {"source": "python", "path": text}
    if text.endswith(".py"):
        raise RecipeError(f"{text}: say which function: {text}:FUNCTION")
    try:
        read(text, "datasets")
    except RecipeError as error:
        own = "or FILE.npz, FILE.h5, FILE.nwb, FILE.csv, FOLDER, package.module:function"
        raise RecipeError(f"{error}; {own}") from error
    raise RecipeError(f"{text}: is a recipe, not a file of data")


def is_function(given: object) -> bool:
    """Return whether ``given`` is text that names a function."""
    return isinstance(given, str) and FUNCTION.fullmatch(given) is not None


OWN = "own:"
"""Begins what a study calls data that were given to a call and are in no file."""


def title(name: str) -> str:
    """Return what a dataset is called for short: of a file its stem, of a function its name."""
    if name.startswith(OWN) or FUNCTION.fullmatch(name):
        return name.rpartition(":")[2]
    return Path(name).stem


def dataset_table(name: str) -> tuple[Table, Path | str, str]:
    """Return the table of a dataset, where it stands, and what the data are called.

    ``name`` is a shipped name, a TOML file, a file or folder of data, or a function's name.

    Raises:
        RecipeError: there is no such dataset, or a file names code.
    """
    if name in names("datasets") or Path(name).suffix == ".toml":
        table, path = read(name, "datasets")
        if table.get("source") == "python":
            raise RecipeError(
                f"{path}: source = 'python': a file cannot name code: give the function to the "
                "call, --dataset package.module:function"
            )
        return table, path, title(name)
    called, table = of_path(name)
    return table, name, called


def load_dataset(
    name: str | Path, assignments: Iterable[str] = (), over: Mapping[str, Any] | None = None
) -> DatasetRecipe:
    """Return the dataset recipe ``name``; ``assignments``, then ``over``, override keys.

    Raises:
        RecipeError: see ``dataset_table``; unknown key, wrong type, value out of range.
    """
    table, where, _title = dataset_table(str(name))
    if isinstance(where, Path):  # files beside the recipe are named as they stand there
        beside = where.parent
        if isinstance(table.get("path"), str):
            table["path"] = str((beside / Path(table["path"]).expanduser()).resolve())
        if isinstance(table.get("paths"), dict):
            table["paths"] = {
                k: str((beside / str(v)).resolve()) for k, v in table["paths"].items()
            }
    return construct(DatasetRecipe, merge(override(table, assignments), over or {}), where)
