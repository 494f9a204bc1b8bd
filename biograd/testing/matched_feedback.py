"""Fixed feedback made that of back-propagation, by which its sign can be told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from biograd.estimators import Estimator

Span = tuple[int, int]
"""Numbers of the first and the last of the layers through which feedback leads."""


@torch.no_grad()
def match_feedback(estimator: Estimator, weights: Sequence[Tensor]) -> set[Span]:
    """Give a rule's buffers the transport of the forward weights, and return where they lead.

    A buffer of the shape of a weight, or of the product ``W_k ... W_i`` of several in a row by
    which an activity acts on a later current, takes its values; also if it is transposed.

    Args:
        weights: of dense layers ``[outputs, inputs]``, from the first to the last.

    >>> from biograd.estimators import DirectFeedback
    >>> rule = DirectFeedback(); rule.matrices["hidden"] = torch.zeros(3, 8)
    >>> match_feedback(rule, [torch.ones(8, 6), torch.ones(3, 8)]), rule.matrices["hidden"].sum()
    ({(1, 1)}, tensor(24.))
    """
    ways: dict[tuple[int, ...], tuple[Span, Tensor]] = {}
    for first, product in enumerate(weights):
        for last in range(first, len(weights)):
            product = product if last == first else weights[last] @ product
            ways[tuple(product.shape)] = (first, last), product
            ways[tuple(product.shape[::-1])] = (first, last), product.mT
    matched = set()
    for buffer in estimator.buffers():
        if tuple(buffer.shape) in ways:
            span, way = ways[tuple(buffer.shape)]
            buffer.copy_(way)
            matched.add(span)
    return matched


def reaches(matched: set[Span], count: int) -> bool:
    """Return whether matched feedback leads from the last of ``count`` layers to the first.

    >>> reaches({(1, 2)}, 3), reaches({(1, 1), (2, 2)}, 3), reaches({(2, 2)}, 3)
    (True, True, False)
    """
    return (1, count - 1) in matched or matched >= {(k, k) for k in range(1, count)}
