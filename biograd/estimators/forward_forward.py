"""Forward-forward: layers tell inputs with right labels from inputs with wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from biograd.contracts import Plan, Round, SiteTrace, Trace
from biograd.errors import CapabilityError
from biograd.estimators.estimator import Estimator
from biograd.ranks import parallel
from biograd.recipes import Positive, validate


class ForwardForward(Estimator):
    """Train each block to be active for a right label laid over the input, silent for a wrong one.

    With the goodness ``G = sum over j of h_j^2 - theta n`` of a block of ``n`` units, its loss is
    ``softplus(-G)`` for the right label and ``softplus(G)`` for the wrong one; no credit passes
    between blocks.  The label is laid over the first ``C`` features (of every step), one for each
    class: of inputs of their own if the network has them (``network.label_inputs``), else of the
    datum.  A block should not learn how active the one before it was: take a network that
    normalises lengths in between (``network.normalisation = "length"``).  The outputs are read
    from inputs without a label; the readout's gradient is exact.

    Args:
        threshold: ``theta``, the mean square above which a unit counts as active.
        negatives: wrong labels drawn evenly ("random") or by the outputs ("hard").
        strength: value of the label's feature; the other classes' are zero.

    Raises:
        CapabilityError: an example has fewer features than there are classes, or targets are no
            classes.
    """

    objective = "the goodness of every block"
    passes = "3 forward"
    bias = "none for its own objective, which is not the loss of the outputs"
    unbounded = "hidden layers contrast two passes, in which activity itself is the objective"
    closed_loop = "there are no classes to lay over the inputs"
    reference = "Hinton 2022, arXiv 2212.13345"
    needs = frozenset(("loss", "cut", "local_vjp"))
    reach = "blocks"
    blockwise = True
    divides = "examples"

    def __init__(
        self,
        threshold: Positive = 1.0,
        negatives: Literal["random", "hard"] = "random",
        strength: Positive = 1.0,
    ) -> None:
        validate(ForwardForward, locals())
        super().__init__()
        self.threshold, self.negatives, self.strength = threshold, negatives, strength

    def plans(self, round: Round) -> Iterable[Plan]:
        """Yield a plan for the readout, one with right labels and one with wrong labels."""
        hidden = frozenset(round.hidden)
        if round.targets is None or round.targets.is_floating_point() or round.targets.dim() > 1:
            raise CapabilityError("forward_forward: targets must be the numbers of classes")
        yield Plan(cut=hidden, detach=frozenset(round.site_layers[round.readout]))
        outputs = round.traces[0].outputs
        wrong = self.wrong(round.targets, outputs, round.generator)
        temporal = any(visits.time for visits in _first(round).visits)
        for labels in (round.targets, wrong):
            overlay = self.overlay(labels, outputs.shape[1], temporal)
            yield Plan(boundaries=hidden, inputs=overlay)

    def wrong(self, targets: Tensor, outputs: Tensor, stream: torch.Generator) -> Tensor:
        """Return a wrong label for each row."""
        chances = outputs.softmax(1) if self.negatives == "hard" else torch.ones_like(outputs)
        chances = chances + 1e-6  # so that there is always one to draw
        right = functional.one_hot(targets, outputs.shape[1]).bool()
        chances = chances.masked_fill(right, 0.0)
        # the race that torch.multinomial runs, row by row: the earliest of exponential times wins
        times = parallel.rows(
            lambda count: chances.new_empty(count, chances.shape[1]).exponential_(generator=stream),
            len(chances),
        )
        return (chances / times).argmax(1)

    def overlay(self, labels: Tensor, classes: int, temporal: bool) -> Callable[[Tensor], Tensor]:
        """Return what lays the labels over inputs ``[B, ...]``, in time ``[B, steps, units]``."""

        def laid(encoded: Tensor) -> Tensor:
            values = encoded.flatten(2 if temporal else 1).clone()
            if values.shape[-1] < classes:
                raise CapabilityError(
                    f"forward_forward: inputs of {values.shape[-1]} features have no room for the "
                    f"labels of {classes} classes"
                )
            marks = self.strength * functional.one_hot(labels, classes).to(values)
            values[..., :classes] = marks.unsqueeze(1) if temporal else marks
            return values.view_as(encoded)

        return laid

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the two losses of every block, which train its layers."""
        for loss in self.losses(traces, round):
            yield loss, torch.ones_like(loss)

    def losses(self, traces: Sequence[Trace], round: Round) -> Iterator[Tensor]:
        """Yield the loss of every block for right labels, then those for wrong ones."""
        for trace, sign in zip(traces[1:], (1, -1), strict=True):
            for name in round.blocks:
                yield functional.softplus(-sign * self.goodness(trace.sites[name])).mean()

    def followed(self, traces: Sequence[Trace], round: Round) -> Tensor:
        """Return the sum of the blocks' losses."""
        return torch.stack(list(self.losses(traces, round))).sum().detach()

    def goodness(self, site: SiteTrace) -> Tensor:
        """Return ``G [B]``; activities in time are averaged over it first."""
        activity = site.output
        if site.timed:
            activity = activity.mean(1)
        return (activity.square() - self.threshold).flatten(1).sum(1)


def _first(round: Round) -> SiteTrace:
    names = round.hidden or (round.readout,)
    return round.traces[0].sites[names[0]]
