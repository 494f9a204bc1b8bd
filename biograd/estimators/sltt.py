"""Spatial learning through time (SLTT): credit within each step, none through time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from biograd.contracts import Plan, Round, Trace, Transport
from biograd.estimators.estimator import Estimator, check_chunk
from biograd.estimators.within_steps import by_step, divided
from biograd.recipes import Count, validate


class SpatialLearningThroughTime(Estimator):
    """Back-propagate within each step as if the state that it starts from were given.

    ``grad W = sum_t delta[t] x[t]^T`` with
    ``delta_l[t] = phi'(v_l[t]) (1 - beta) R W_{l+1}^T delta_{l+1}[t]``: as published nothing of
    the past need be stored; here autograd stores every step.  It is truncated back-propagation
    through time with a window of one step.  Neurons of other libraries are not looked into:
    ``phi'(v_l[t]) (1 - beta) R`` is then the derivative of what a block returns in a step by its
    current in the same step, and constants of such neurons have no credit.

    Args:
        online: take credit while the trial runs and forget each part behind it: the same gradient,
            with memory for a trace of every synapse, example and output but not for the steps.
        chunk: number of steps of a part; None: 25.
    """

    needs = frozenset(("loss", "vjp"))
    reach = "blocks"
    blockwise = True
    divides_steps = True
    coincides = "in a network without time"
    divides = "examples"
    passes = "1 forward, 1 backward; every step is stored, online none"
    bias = "all credit through time is missing"
    reference = "Meng et al. 2023, arXiv 2302.14311"

    def __init__(self, online: bool = False, chunk: Count | None = None) -> None:
        validate(SpatialLearningThroughTime, locals())
        super().__init__()
        self.online, self.chunk = online, chunk
        check_chunk(self)

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others, each with the reason."""
        return {} if given.get("online") else {"chunk": "with online = false"}

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass whose credit is cut before every step."""
        return (divided(round) if round.unrolled else Plan(transport=Transport(window=1)),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the currents of neurons that are not looked into; else autograd has done it."""
        if round.unrolled:
            for _, _, pairs in by_step(traces[0], round, window=1):
                yield from pairs
