"""The loss that a synthetic gradient implies: what function has it for a gradient?

Source: Czarnecki et al. 2017, arXiv 1703.00522, section 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biograd.errors import RecipeError

Array = NDArray[Any]


def loss_of_gradient(gradient: Array, loss: str) -> Array:
    """Return the loss whose gradient with respect to the output was given, ``[...]``.

    ``squared_error``: ``L = (p - y)^2`` has ``g = 2 (p - y)``, thus ``L = g^2 / 4``;
    ``cross_entropy`` of one logit: ``g = s(z) - y``, thus ``L = -log(1 - |g|)``, infinite where a
    synthesiser says more than any error can be.

    Raises:
        RecipeError: another loss.
    """
    values = np.asarray(gradient, float)
    if loss == "squared_error":
        return values**2 / 4
    if loss != "cross_entropy":
        raise RecipeError(f"loss = {loss!r}: squared_error or cross_entropy")
    with np.errstate(divide="ignore"):
        return -np.log(np.maximum(0.0, 1 - np.abs(values)))


class ImpliedSurface(NamedTuple):
    """The surface that fits a field of gradients best.

    Attributes:
        loss: its mean is 0, ``[row, column]``.
        unexplained: share of the field's squared length that is no gradient of any loss (curl).
    """

    loss: Array
    unexplained: float


def implied_surface(gradients: Array, steps: tuple[float, float]) -> ImpliedSurface:
    """Return the loss over a plane whose gradient is nearest to a field of synthetic gradients.

    Minimises ``sum (D_i L - g_i)^2`` over both directions, ``D`` the differences between
    neighbouring points of a regular grid and ``g`` the mean of the field at both.

    Args:
        gradients: ``[row, column, 2]``: along the rows, along the columns.
        steps: between neighbouring rows, and columns.

    Raises:
        RecipeError: the grid has fewer than two rows or columns.
    """
    field = np.asarray(gradients, float)
    rows, columns = field.shape[:2]
    if rows < 2 or columns < 2:
        raise RecipeError(f"a grid of {rows} x {columns} points: 2 x 2 or more are needed")
    from scipy.sparse import diags, eye, kron, vstack
    from scipy.sparse.linalg import lsqr

    def difference(number: int, step: float) -> Any:
        return diags([-1 / step, 1 / step], [0, 1], shape=(number - 1, number))

    along = kron(difference(rows, steps[0]), eye(columns))
    across = kron(eye(rows), difference(columns, steps[1]))
    down = (field[1:, :, 0] + field[:-1, :, 0]) / 2
    right = (field[:, 1:, 1] + field[:, :-1, 1]) / 2
    wanted = np.concatenate([down.ravel(), right.ravel()])
    design = vstack([along, across]).tocsr()
    found = lsqr(design, wanted, atol=1e-13, btol=1e-13, iter_lim=20 * rows * columns)[0]
    rest = float(((design @ found - wanted) ** 2).sum())
    whole = float((wanted**2).sum())
    surface = found.reshape(rows, columns)
    return ImpliedSurface(surface - surface.mean(), rest / whole if whole else 0.0)
