"""Online training through time (OTTT): credit at once, memory in presynaptic traces."""

from __future__ import annotations

from collections.abc import Sequence

from biograd.contracts import Plan, Round, Transport
from biograd.estimators.estimator import Estimator
from biograd.recipes import Count, validate


class OnlineTrainingThroughTime(Estimator):
    """Pass credit down the layers within a step, and to the weights through the membrane's past.

    ``grad W = sum_t delta[t] a[t]^T`` with the instantaneous credit
    ``delta_l[t] = phi'(v_l[t]) (1 - beta) R W_{l+1}^T delta_{l+1}[t]`` and the presynaptic trace
    ``a[t] = beta a[t-1] + x[t]``; the reset is held constant.  A bias has no trace, ``grad b =
    sum_t delta[t]``, as in the authors' code.  As published nothing of the past need be stored;
    here autograd stores every step.  With a reset to zero the trace ends at the neuron's own
    spikes, where the authors, whose neurons are reset by subtraction, let it run on; with a
    synaptic filter it passes through both memories.  Rate units have no memory of their own:
    without a membrane the credit is that of each step alone.

    Args:
        window: number of steps in which credit to the layers below passes through time; 1: none.
    """

    needs = frozenset(("loss", "vjp"))
    reach = "blocks"
    coincides = "in a network without time"
    divides = "examples"
    passes = "1 forward, 1 backward; every step is stored"
    bias = (
        "credit through time between layers and through recurrent weights is missing; a reset to "
        "zero ends a trace"
    )
    reference = "Xiao et al. 2022, arXiv 2210.04195"

    def __init__(self, window: Count = 1) -> None:
        validate(OnlineTrainingThroughTime, locals())
        super().__init__()
        self.window = window

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass whose credit takes two ways."""
        return (Plan(transport=Transport(window=self.window, traces=True)),)
