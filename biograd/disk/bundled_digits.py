"""The digits that come with scikit-learn, read from its file: its import is as slow as torch's."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from biograd.errors import DataError

FILE = Path("datasets", "data", "digits.csv.gz")


@cache
def bundled_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images ``[1797, 64]``, from 0 to 16, and their classes ``[1797]``.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).

    Raises:
        DataError: scikit-learn is not installed, or keeps the digits elsewhere.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        if (path := Path(folder) / FILE).is_file():
            with gzip.open(path) as text:
                table = np.loadtxt(text, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    raise DataError(
        f"digits: scikit-learn has no {FILE}: pip install --force-reinstall scikit-learn"
    )
