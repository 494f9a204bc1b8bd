"""Feedback weights that learn to be the forward weights: weight mirror, Kolen-Pollack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from biograd.contracts import Round, Trace
from biograd.contracts.plan import module_key
from biograd.estimators.feedback import Feedback, normal, size_of
from biograd.estimators.feedback_alignment import FeedbackAlignment
from biograd.recipes import Count, NotNegative, Positive, Range, validate
from biograd.substrate.effective import respond


class WeightMirror(FeedbackAlignment):
    """Let feedback weights follow the correlation of noise with a layer's response to it.

    After every step each layer receives white noise ``x`` and answers ``y = W x``.  The gradient
    of ``<W x, B x>`` by ``B`` is the correlation of ``y`` with ``x``, whatever the kind of layer;
    over the number of products in each entry, ``n``, its mean is ``W``::

        B <- B + rate (corr(y, x) / n - B)

    The noise enters behind a decorrelating matrix, so that ``B`` mirrors ``W`` and not ``W R``.

    Args:
        rate: of the mirror; its memory is ``1 / rate`` steps.
        samples: number of noise patterns for each layer and step.
        scale: root mean square of ``B`` relative to that of ``W`` at the start.
    """

    passes = "1 forward, 1 backward, 1 forward of noise through each layer"
    bias = "noise of the mirrored weights, and their lag"
    reference = "Akrout et al. 2019, arXiv 1904.05391"

    def __init__(
        self,
        rate: Annotated[float, Range(0, 1, above=True)] = 0.02,
        samples: Count = 32,
        scale: Positive = 1.0,
    ) -> None:
        validate(WeightMirror, locals())
        super().__init__(scale)
        self.rate, self.samples = rate, samples

    def after(self, traces: Sequence[Trace], round: Round) -> None:
        """Send noise through every layer and let ``B`` follow."""
        for name, weight in self.kept(round):
            noise = normal(self._shape(name, traces[0], round), round)
            found = mirrored(round.layers[name], weight.detach().to(noise.dtype), noise)
            self.weights[name].lerp_(found, self.rate)

    def _shape(self, name: str, trace: Trace, round: Round) -> tuple[int, ...]:
        """Return the shape of the noise: of the layer's input without batch and time."""
        for site, layers in round.site_layers.items():
            if name in layers:
                visits = trace.sites[site].visits[layers.index(name)]
                return (self.samples, *visits.inputs[0].shape[2 if visits.time else 1 :])
        raise KeyError(name)


class KolenPollack(Feedback):
    """Give the feedback weight the forward weight's updates; equal decay makes them one.

    ``W <- W - rate (G + decay W)``, ``B <- B - rate (G + decay B)`` with the same gradient ``G``:
    the difference shrinks by ``1 - rate decay`` in every step of plain gradient descent, so that it
    fades within ``1 / (rate decay)`` steps and not before: on digits, 15 epochs of Adam, from 12 to
    8 at decay 1e-3 and to 2 at 1e-2.  ``B`` is a parameter, trained by the same optimiser, whose
    own weight decay acts on both as well.

    Args:
        decay: strength of the decay, added to both gradients.
        scale: root mean square of ``B`` relative to that of ``W`` at the start.
    """

    bias = "the difference of the two weights: it fades by rate x decay in a step, if decay > 0"
    reference = "Kolen & Pollack 1994; Akrout et al. 2019, arXiv 1904.05391"

    def __init__(self, decay: NotNegative = 1e-3, scale: Positive = 1.0) -> None:
        validate(KolenPollack, locals())
        super().__init__()
        self.decay, self.scale = decay, scale
        if decay:
            self.at_readout += ", and the decay"
        self.weights = nn.ParameterDict()

    def make(self, name: str, weight: Tensor, round: Round) -> None:
        """Draw ``B``, normal, as large as the weight is now."""
        draw = normal(weight.shape, round) * (self.scale * size_of(weight))
        self.weights[module_key(name)] = nn.Parameter(draw)

    def feedback(self, name: str, weight: Tensor, round: Round) -> Tensor:
        """Return the parameter ``B``."""
        return self.weights[module_key(name)]

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the decay of both weights; the rest is in the graph of the loss."""
        if not self.decay:
            return
        for name, weight in self.kept(round):
            for one in (weight, self.weights[module_key(name)]):
                yield one, self.decay * one.detach()


def mirrored(layer: nn.Module, weight: Tensor, noise: Tensor) -> Tensor:
    """Return the correlation of a layer's noise and response, whose mean is ``weight``.

    Args:
        layer: linear in its input.
        weight: of the layer.
        noise: white, of unit variance, ``[samples, ...]``.
    """
    with torch.enable_grad():
        mirror = torch.ones_like(weight).requires_grad_()  # |W| has no slope at zero
        response, answer = respond(layer, mirror, noise), respond(layer, weight, noise)
        (correlation,) = torch.autograd.grad(response, mirror, answer)
        # an input of ones counts the products in each entry: fewer where a patch leaves the image
        response = respond(layer, mirror, torch.ones_like(noise[:1]))
        (count,) = torch.autograd.grad(response, mirror, torch.ones_like(response))
    return correlation / (len(noise) * count.clamp_min(1))
