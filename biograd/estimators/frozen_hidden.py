"""The control: hidden layers stay as they were drawn, only the readout learns."""

from __future__ import annotations

from collections.abc import Sequence

from biograd.contracts import Plan, Round
from biograd.estimators.estimator import Estimator


class FrozenHidden(Estimator):
    """Train only the readout, exactly, on random hidden features.

    What a learning rule adds is the difference to this control.  Decorrelation then acts on the
    readout's input alone, since it would otherwise be a way for hidden layers to learn.
    """

    needs = frozenset(("loss", "observe", "cut"))
    divides = "examples"
    learns_hidden = False
    reach = "readout"
    passes = "1 forward"
    bias = "hidden gradients are zero"
    unbounded = "they do not learn"
    reference = "Rahimi & Recht 2007 (random features)"

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan that cuts behind every hidden site and in front of the readout."""
        readout = round.site_layers.get(round.readout, ())
        return (Plan(cut=frozenset(round.hidden), detach=frozenset(readout)),)
