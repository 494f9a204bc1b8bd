"""Back-propagation: the exact gradient, through spikes the surrogate gradient."""

from __future__ import annotations

from collections.abc import Sequence

from biograd.contracts import Plan, Round
from biograd.estimators.estimator import Estimator


class Backpropagation(Estimator):
    """Reverse-mode differentiation; through spikes and time with a surrogate derivative.

    ``delta_l = phi'(z_l) * W_{l+1}^T delta_{l+1}``, with ``phi'`` the recipe's surrogate at a
    threshold.  The reference that every other rule is measured against.
    """

    needs = frozenset(("loss", "vjp"))
    passes = "1 forward, 1 backward"
    bias = "none; the surrogate's through spikes"
    reference = "Rumelhart, Hinton & Williams 1986; Neftci, Mostafa & Zenke 2019"

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass with its graph."""
        return (Plan(),)
