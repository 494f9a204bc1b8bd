"""What a linear reader finds in a representation: classes and inputs, against shuffled ones.

Source: Alain & Bengio 2016, arXiv 1610.01644.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biograd.errors import RecipeError

Array = NDArray[Any]
RIDGE = 1e-2
"""Penalty of the weights, by the number of stimuli that are learned from."""
CONSTANT = 1e-12
"""A unit with less deviation than this, by its largest value, is constant."""


class Decoded(NamedTuple):
    """How well a linear reader does on stimuli that it has not learned from.

    Attributes:
        score: accuracy of classes, share of the variance of inputs, ``[fold]``.
        shuffled: mean over the folds when the stimuli are told wrongly, ``[shuffle]``.
        p: share of the shuffles, itself counted in, that are as good as the mean score.
    """

    score: Array
    shuffled: Array
    p: float


def decode_classes(
    activity: Array, labels: Array, *, folds: int = 5, shuffles: int = 20, seed: int = 0
) -> Decoded:
    """Return the cross-validated accuracy of a linear classifier (ridge regression on one-hot).

    Folds hold the classes in equal shares; labels are shuffled within a fold, which keeps that.
    Units are standardised by the stimuli that are learned from.

    Args:
        activity: ``[stimulus, unit]``.
        labels: ``[stimulus]``.

    Raises:
        RecipeError: a class has fewer stimuli than there are folds, or there is one class.
    """
    known, codes = np.unique(labels, return_inverse=True)
    least = int(np.bincount(codes).min(initial=len(codes)))
    if len(known) < 2 or least < folds:
        raise RecipeError(
            f"{len(known)} classes, the smallest of {least} stimuli: decoding in {folds} folds "
            "needs two classes and as many stimuli of each as folds"
        )
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(codes, codes)
    splits = list(parts)
    told = np.stack([codes, *_shuffled(codes, splits, shuffles, seed)])
    hot = np.eye(len(known))[told]  # [1 + shuffle, stimulus, class]
    scores = np.empty((folds, len(told)))
    for place, (learn, test, predicted) in enumerate(_predictions(activity, hot, splits)):
        del learn
        scores[place] = (predicted.argmax(-1) == told[:, test]).mean(1)
    return _decoded(scores)


def decode_inputs(
    activity: Array, inputs: Array, *, folds: int = 5, shuffles: int = 5, seed: int = 0
) -> Decoded:
    """Return the share of the inputs' variance that is linear in the activity, cross-validated.

    ``1 - sum (x - x^)^2 / sum (x - mean x)^2`` over all stimuli of a fold and all inputs, the mean
    that of the stimuli that were learned from; below 0: worse than that mean.

    Args:
        activity: ``[stimulus, unit]``.
        inputs: ``[stimulus, ...]``.

    Raises:
        RecipeError: there are fewer than two stimuli for each fold.
    """
    if len(activity) < 2 * folds:
        raise RecipeError(f"{len(activity)} stimuli: {folds} folds need {2 * folds}")
    from sklearn.model_selection import KFold

    seen = np.asarray(inputs, float).reshape(len(inputs), -1)
    splits = list(KFold(folds, shuffle=True, random_state=seed).split(seen))
    order = np.arange(len(seen))
    told = np.stack([order, *_shuffled(order, splits, shuffles, seed)])
    scores = np.empty((folds, len(told)))
    for place, (learn, test, predicted) in enumerate(_predictions(activity, seen[told], splits)):
        for row, (rows, found) in enumerate(zip(told, predicted, strict=True)):
            truth, mean = seen[rows[test]], seen[rows[learn]].mean(0)
            whole = ((truth - mean) ** 2).sum()
            scores[place, row] = 1 - ((truth - found) ** 2).sum() / whole if whole else np.nan
    return _decoded(scores)


def _shuffled(
    values: Array, splits: list[tuple[Array, Array]], times: int, seed: int
) -> Iterator[Array]:
    """Yield the values in another order, exchanged within the folds alone."""
    stream = np.random.default_rng(seed)
    for _ in range(times):
        found = values.copy()
        for _, test in splits:
            found[test] = values[stream.permutation(test)]
        yield found


def _predictions(
    activity: Array, targets: Array, splits: list[tuple[Array, Array]]
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield the rows learned from, those tested, and predictions ``[told, stimulus, target]``."""
    from sklearn.linear_model import Ridge

    values = np.asarray(activity, float).reshape(len(activity), -1)
    told, _, width = targets.shape
    for learn, test in splits:
        mean, spread = values[learn].mean(0), values[learn].std(0)
        scale = np.abs(values[learn]).max(0, initial=0)
        scaled = (values - mean) / np.where(spread > CONSTANT * scale, spread, np.inf)
        wide = targets[:, learn].transpose(1, 0, 2).reshape(len(learn), -1)
        model = Ridge(RIDGE * len(learn), solver="cholesky").fit(scaled[learn], wide)
        found = model.predict(scaled[test]).reshape(len(test), told, width)
        yield learn, test, found.transpose(1, 0, 2)


def _decoded(scores: Array) -> Decoded:
    shuffled = scores[:, 1:].mean(0)
    reached = int((shuffled >= scores[:, 0].mean()).sum())
    return Decoded(scores[:, 0], shuffled, (1 + reached) / (1 + len(shuffled)))
