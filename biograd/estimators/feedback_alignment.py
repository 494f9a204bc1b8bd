"""Feedback alignment (FA): credit passes back through fixed random weights."""

from __future__ import annotations

from torch import Tensor

from biograd.contracts import Round
from biograd.estimators.feedback import Buffers, Feedback, normal, size_of
from biograd.recipes import Positive, validate


class FeedbackAlignment(Feedback):
    """Send credit back through fixed random weights; the forward weights come to agree with them.

    ``delta_l = phi'(z_l) * B_{l+1}^T delta_{l+1}`` with ``B`` drawn once, of the shape of ``W``.
    With ``B = W`` it is back-propagation.  Decorrelating matrices stay: then it is ``R^T B^T``.

    Args:
        scale: root mean square of ``B`` relative to that of ``W`` at the start.
    """

    bias = "direction of the random feedback, to which the weights align"
    reference = "Lillicrap, Cownden, Tweed & Akerman 2016"

    def __init__(self, scale: Positive = 1.0) -> None:
        validate(FeedbackAlignment, locals())
        super().__init__()
        self.scale = scale
        self.weights = Buffers()

    def make(self, name: str, weight: Tensor, round: Round) -> None:
        """Draw ``B``, normal, as large as the weight is now."""
        self.weights[name] = normal(weight.shape, round) * (self.scale * size_of(weight))

    def feedback(self, name: str, weight: Tensor, round: Round) -> Tensor:
        """Return ``B``."""
        return self.weights[name]
