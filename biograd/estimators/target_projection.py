"""Direct random target projection (DRTP): the target itself takes the place of the error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from biograd.contracts import Round, Trace
from biograd.errors import CapabilityError
from biograd.estimators.direct_feedback import DirectFeedback
from biograd.recipes import Positive, validate


class TargetProjection(DirectFeedback):
    """Send the target to every hidden block through fixed random matrices.

    ``delta_h = -y B / batch`` with ``y`` the one-hot label (or the target vector): for a class the
    sign of the error is known before the outputs are, so that a block can be updated as soon as it
    has been computed.  Nothing ends the growth of the activities but a saturating activation or
    the budget.  Otherwise as in direct feedback alignment.

    Args:
        shared: one matrix serves all blocks, each with its leading part.
        scale: norm of the credit of a block for one example, before the mean over the batch.
        through_time: credit also passes through a block's recurrent weights, transported.
        sites: "all" hidden sites, or the names of those that end a block.
    """

    objective = "agreement of activities with the random projection of the targets"
    passes = "1 forward"
    bias = "the size of the error is lost; direction of the random feedback"
    caveat = (
        "ReLU units without decorrelation end below frozen hidden layers (digits, ann, 10 epochs: "
        "62 against 74 %; with kappa 92 against 72)"
    )
    closed_loop = "nobody knows what the outputs should have been"
    reference = "Frenkel, Lefebvre & Bol 2021, arXiv 1909.01311"

    def __init__(
        self,
        shared: bool = False,
        scale: Positive = 1.0,
        through_time: bool = False,
        sites: Literal["all"] | tuple[str, ...] = "all",
    ) -> None:
        validate(TargetProjection, locals())
        super().__init__(shared, scale, through_time, sites)

    def width(self, trace: Trace, round: Round) -> int:
        """Return the number of values of a target, which need not be that of the readout."""
        return self.signal(trace, round).shape[-1]

    def signal(self, trace: Trace, round: Round) -> Tensor:
        """Return ``-y / batch``, ``[B, T|1, outputs]``, in a task in time over the steps, too.

        A missing target is 0.

        Raises:
            CapabilityError: the targets are neither classes nor of the outputs' shape.
        """
        outputs, targets = trace.outputs, trace.targets
        course = -trace.objective.vectors(outputs, targets) / len(outputs)
        if course.shape != outputs.shape:
            raise CapabilityError(
                f"target projection needs targets of the outputs' shape {tuple(outputs.shape)} or "
                f"one class for each example, not {tuple(targets.shape)} of {targets.dtype}"
            )
        return course / outputs.shape[1] if round.timed else course.flatten(1).unsqueeze(1)

    def followed(self, traces: Sequence[Trace], round: Round) -> Tensor:
        """Return the sum of ``-y B h``, the mean over the examples."""
        pairs = [(tensor.detach(), delta) for tensor, delta in self.credit(traces, round)]
        return torch.stack([(tensor * delta).sum() for tensor, delta in pairs]).sum()
