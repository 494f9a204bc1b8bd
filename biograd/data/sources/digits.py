"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

from __future__ import annotations

import torch

from biograd.checking import NoSettings
from biograd.data.choosing import stratified
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.disk.bundled_digits import bundled_digits
from biograd.randomness import generator

TEST_ROWS = 360


@with_settings(NoSettings)
def read(request: Request, _settings: NoSettings) -> Parts:
    """Return 1,437 training and 360 test digits, inputs ``[N, 1, 8, 8]`` from 0 to 1.

    Why one fixed split: the data have no official one, and a split that followed the run's seed
    would mix the spread between runs with the spread between splits.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """
    request.without_files()
    images, classes = bundled_digits()
    inputs = torch.from_numpy(images).float().div_(16).view(-1, 1, 8, 8)
    targets = torch.from_numpy(classes)
    kept, taken = stratified(targets, TEST_ROWS, generator(0, "digits", "split"))
    rows = Arrays(inputs, targets)
    return Parts({"train": rows.rows(kept), "test": rows.rows(taken)})
