"""A learning rule of another package: one class, and one line in its entry points."""

from __future__ import annotations

from torch import Tensor

from biograd.contracts import Round, Trace
from biograd.estimators import DirectFeedback


class SignedFeedback(DirectFeedback):
    """Send only the sign of every output's error to the hidden blocks: ``delta_h = sign(e) B / n``.

    ``n`` is the number of examples in the batch.
    """

    objective = "agreement of activities with the signs of the errors through random feedback"
    bias = "the size of the error is lost; direction of the random feedback"
    reference = "Frenkel, Lefebvre & Bol 2021, arXiv 1909.01311 (sDFA)"

    def signal(self, trace: Trace, round: Round) -> Tensor:
        """Return the signs of the errors by the batch's rows, in the shape of the errors."""
        return super().signal(trace, round).sign() / round.batch
