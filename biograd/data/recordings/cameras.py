"""Event cameras and a tactile sensor: sets with a folder for each class.

To add one: a line in ``LAYOUTS``, one in ``data.SOURCES``, and a recipe that says where its files
are (``holds``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from biograd.checking import NoSettings
from biograd.data.files.archives import located
from biograd.data.files.fetch import lying, user_folders
from biograd.data.formats import FORMATS
from biograd.data.recordings.labelled import LabelledFile, absent, by_class, children
from biograd.data.recordings.packed import read_packed
from biograd.data.request import Parts, Request, with_settings
from biograd.errors import DataError

DIGITS = tuple("0123456789")
TESTED = 100
"""Recordings of each class of CIFAR10-DVS, the first ones, that are customarily for testing."""


@dataclasses.dataclass(frozen=True)
class FolderLayout:
    """How a published set is laid out.

    Attributes:
        kind: a name of ``FORMATS``.
        shape: of the sensor: polarity, rows, columns.
        classes: names of the folders, in the order of the labels.
        arranged: what the recipe's ``files`` name: a folder of each ``split``, which holds those of
            the classes; a folder of each ``class``; or ``one`` of the classes, beside the others.
        omitted: files whose names hold it are no examples.
        numbered: whether files end in ``_NUMBER`` and the first hundred are for testing.
    """

    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    arranged: str = "split"
    omitted: str = ""
    numbered: bool = False


LAYOUTS = {
    "nmnist": FolderLayout("atis", (2, 34, 34), DIGITS),
    "ncars": FolderLayout("prophesee", (2, 100, 120), ("background", "cars")),
    "stmnist": FolderLayout("taxels", (2, 10, 10), DIGITS, "one", omitted="LUT"),
    "cifar10_dvs": FolderLayout(
        "cifar10_dvs",
        (2, 128, 128),
        (
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        "class",
        numbered=True,
    ),
}


@with_settings(NoSettings)
def read(request: Request, _settings: NoSettings) -> Parts:
    """Return the events of N-MNIST, N-Cars, ST-MNIST or CIFAR10-DVS, ``[B, T, 2, rows, columns]``.

    N-MNIST and N-Cars have published splits.  The first hundred recordings of each class of
    CIFAR10-DVS are its test split; ST-MNIST has none.

    Raises:
        DataError: a folder is missing, or a file damaged.

    Source: G. Orchard et al., Frontiers in Neuroscience 9:437 (2015); A. Sironi et al., CVPR
    (2018); H. H. See et al., arXiv:2005.04319 (2020); H. Li et al., Frontiers in Neuroscience
    11:309 (2017).
    """
    layout = LAYOUTS[request.recipe.source]
    examples = list[LabelledFile]()
    endings = FORMATS[layout.kind].endings
    for split, folders in _folders(request, layout).items():
        try:
            found = by_class(folders, layout.classes, endings, split, omitted=layout.omitted)
        except DataError as error:
            raise DataError(f"{request.name}: {error}") from error
        examples += found
    if layout.numbered:
        examples = [dataclasses.replace(each, split=_numbered(each.path)) for each in examples]
    reader, count = FORMATS[layout.kind].read, len(layout.classes)
    parts = read_packed(request, examples, reader, layout.shape, layout.kind, count)
    return dataclasses.replace(parts, notes=absent(examples, layout.classes, request.name))


def _folders(request: Request, layout: FolderLayout) -> Mapping[str, Mapping[str, Path]]:
    """Return the folders of the classes by split and name."""
    if layout.arranged == "class":
        return {"": _mine(request, layout.classes) or located(request)}
    paths = located(request)
    tops = {"": next(iter(paths.values())).parent} if layout.arranged == "one" else paths
    return {split: {each.name: each for each in children(top)} for split, top in tops.items()}


def _mine(request: Request, names: Sequence[str]) -> dict[str, Path]:
    """Return the folders of classes that the user has; some of them are enough."""
    for folder in user_folders(request.name, request.data_dir):
        found = {name: there for name in names if (there := lying(folder, name))}
        if found:
            return found
    return {}


def _numbered(path: Path) -> str:
    found = re.search(r"_(\d+)$", path.stem)
    if found is None:
        raise DataError(f"{path}: must end in _NUMBER.aedat: the first {TESTED} are for testing")
    return "test" if int(found.group(1)) < TESTED else "train"
