"""Spatial learning through time (SLTT): credit within each step, none through time."""

from __future__ import annotations

from collections.abc import Sequence

from biograd.contracts import Plan, Round, Transport
from biograd.estimators.estimator import Estimator


class SpatialLearningThroughTime(Estimator):
    """Back-propagate within each step as if the state that it starts from were given.

    ``grad W = sum_t delta[t] x[t]^T`` with
    ``delta_l[t] = phi'(v_l[t]) (1 - beta) R W_{l+1}^T delta_{l+1}[t]``: as published nothing of
    the past need be stored; here autograd stores every step.  It is truncated back-propagation
    through time with a window of one step.
    """

    needs = frozenset(("loss", "vjp"))
    reach = "blocks"
    coincides = "in a network without time"
    divides = "examples"
    passes = "1 forward, 1 backward; every step is stored"
    bias = "all credit through time is missing"
    reference = "Meng et al. 2023, arXiv 2302.14311"

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass whose credit is cut before every step."""
        return (Plan(transport=Transport(window=1)),)
