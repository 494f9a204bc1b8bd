"""Synthetic gradients: each block learns from a local model of the gradient above it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from biograd.contracts import Capability, Plan, Round, Trace, Transport
from biograd.contracts.plan import key_name, module_key
from biograd.errors import CapabilityError, nearest
from biograd.estimators.estimator import Estimator, arriving
from biograd.estimators.synthesisers import (
    SYNTHESISERS,
    Condition,
    Interface,
    Synthesiser,
    conspiring_signal,
    squared_distance,
)
from biograd.recipes import Count, Fraction, NotNegative, validate


@dataclasses.dataclass(frozen=True)
class Junction:
    """Where no credit passes, from block to block or from one window of time to the next.

    Attributes:
        synthesiser: predicts what would pass.
        below: what arrives from below or before, with its graph, ``[B, (T,) *U]``.
        above: the leaf that what follows started from, of the same shape.
        labels: ``[B, (1,) labels]``.
    """

    synthesiser: Synthesiser
    below: Tensor
    above: Tensor
    labels: Tensor

    @property
    def seen(self) -> Tensor:
        """The activity without a graph, its units flattened, ``[B, (T,) U]``."""
        return self.below.detach().flatten(self.labels.dim() - 1).to(self.labels.dtype)


class SyntheticGradient(Estimator):
    """Deliver at each interface between blocks what a synthesiser predicts for the gradient there.

    An interface is the output ``h`` of a block.  No credit flows through it; the block receives
    the prediction, the synthesiser is regressed on what arrives from the block above::

        signal at h_l = SG_l(h_l, y) + alpha d|SG_l - G_l|^2 / dh_l
        G_l = J_l' [(1 - lambda) SG_{l+1} + lambda G_{l+1}],    G_L = dL/dh_L

    with ``J_l`` the derivative of ``h_{l+1}`` by ``h_l``.  With ``lambda = 0`` the targets are
    bootstrapped, each from the next prediction (decoupled neural interfaces, DNI); with 1 they
    are the gradients of back-propagation; in between BP(lambda).  With ``alpha > 0`` the blocks
    and the synthesisers conspire (cDNI).  Synthesisers start from zero, so that before they have
    learned the lower blocks stay as they are.  They are trained by the network's optimiser.

    An activity over time has one synthesiser for all steps.  With ``window``, credit through time
    is cut every so many steps as well, and a synthesiser for each population predicts the gradient
    by the state (of rate units their activity; of spiking neurons synaptic current, potential and
    spikes) that leaves a window; the recursion then also runs from window to window.

    Args:
        synthesiser: "linear" ``hA + yB + C``, "sigmoid_linear" ``d sigmoid(hA + yB + C) + yD`` or
            "mlp" (``synthesisers``).  ``A`` has the square of the number of units as its size.
        condition: what the synthesiser sees: the "label", the "activity" or "both".
        hidden: widths of the hidden layers of "mlp".
        sites: interfaces behind "all" hidden sites, behind the "middle" one, or their names; an
            empty list leaves those between windows.
        window: number of steps after which credit through time is cut; None: never.
        back_propagated: ``lambda``, share of the back-propagated gradient in the targets.
        conspiring: ``alpha``, weight of the regression loss's derivative by the activity.
        prediction: whether the prediction itself is delivered; if not, the blocks learn from the
            conspiring signal alone.

    Raises:
        CapabilityError: no site of that name, or nothing to predict.
    """

    needs: frozenset[Capability] = frozenset(("loss", "cut", "local_vjp"))
    reach = "blocks"
    blockwise = True
    may_equal = True  # a synthesiser may be perfect
    divides = "examples"
    passes = "1 forward, 1 backward in each block"
    bias = "that of the synthesisers"
    closed_loop = "its synthesisers are shown targets, and there are none"
    reference = "Jaderberg et al. 2016, arXiv 1608.05343; Czarnecki et al. 2017, arXiv 1703.00522"
    builds = True

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others."""
        kind = given["synthesiser"]
        known = kind in ("linear", "sigmoid_linear")
        return {"hidden": f"with synthesiser = {kind!r}"} if known else {}

    def __init__(
        self,
        synthesiser: Annotated[str, SYNTHESISERS] = "linear",
        condition: Condition = "both",
        hidden: tuple[Count, ...] = (128,),
        sites: Literal["all", "middle"] | tuple[str, ...] = "all",
        window: Count | None = None,
        back_propagated: Fraction = 0.0,
        conspiring: NotNegative = 0.0,
        prediction: bool = True,
    ) -> None:
        validate(SyntheticGradient, locals())
        super().__init__()
        self.synthesiser, self.condition, self.hidden = synthesiser, condition, hidden
        self.sites, self.window, self.back_propagated = sites, window, back_propagated
        self.conspiring, self.prediction = conspiring, prediction
        self.synthesisers, self.state_synthesisers = nn.ModuleDict(), nn.ModuleDict()
        if sites != "all":
            self.needs = self.needs | {"vjp"}

    def chosen(self, round: Round) -> tuple[str, ...]:
        """Return the sites behind which there is an interface, in the order of the data flow.

        A site with a local loss of its own receives nothing from above and needs none.
        """
        free = tuple(name for name in round.blocks if name not in round.cells)
        if self.sites == "all":
            return free
        if self.sites == "middle":
            return free[(len(free) - 1) // 2 :][:1]
        for name in self.sites:
            if name not in free:
                raise CapabilityError(f"no hidden site {name!r} to predict: {nearest(name, free)}")
        return tuple(name for name in free if name in self.sites)

    def build(self, trace: Trace, round: Round) -> None:
        """Make a synthesiser for every interface and every population whose time is cut.

        Raises:
            CapabilityError: there is no interface, or no population over time.
        """
        for name in self.chosen(round):
            activity = trace.sites[name].output
            units = math.prod(activity.shape[2 if trace.sites[name].timed else 1 :])
            self.synthesisers[module_key(name)] = self._make(units, trace, round)
        for name in round.blocks if self.window else ():
            site = trace.sites[name]
            if site.variables:
                units = site.variables * math.prod(site.shape.units)
                self.state_synthesisers[module_key(name)] = self._make(units, trace, round)
        if self.window and not self.state_synthesisers:
            raise CapabilityError(
                f"window = {self.window}: no site has a population over time whose credit could "
                "be cut: take a recurrent or spiking network of biograd.build, or name biograd's "
                "populations in yours, sites=[biograd.Site(..., activity='the population')]"
            )
        if not self.synthesisers and not self.state_synthesisers:
            raise CapabilityError(
                "no hidden site without a local loss: nothing to predict: name what returns a "
                "hidden layer's current, attach(..., sites=[...]), or take biograd.Backpropagation"
            )

    def _make(self, units: int, trace: Trace, round: Round) -> Synthesiser:
        interface = Interface(units, labels(trace).shape[1], self.condition, self.hidden)
        return SYNTHESISERS[self.synthesiser](interface, round.generator, round.dtype)

    def synthesiser_of(self, site: str, state: bool = False) -> Synthesiser:
        """Return the synthesiser behind a site, for analyses such as ``implied_loss``.

        Args:
            site: its name.
            state: return that of the state between two windows instead.

        Raises:
            CapabilityError: no synthesiser there, or the engine has not seen a batch yet.
        """
        made = self.state_synthesisers if state else self.synthesisers
        if module_key(site) not in made:
            known = [key_name(key) for key in made]
            raise CapabilityError(f"no synthesiser at {site!r}: {nearest(site, known)}")
        found = made[module_key(site)]
        assert isinstance(found, Synthesiser)
        return found

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: no credit through the interfaces, a leaf behind each."""
        transport = Transport(window=self.window, slots=self.window is not None)
        boundaries = frozenset(self.chosen(round))
        return (Plan(boundaries=boundaries, slots=True, transport=transport),)

    def crossings(self, trace: Trace, round: Round) -> list[Junction]:
        """Return where credit is stopped; what one depends on stands before it."""
        found, names, given = [], self.chosen(round), labels(trace).to(round.dtype)
        for name in round.blocks:
            site = trace.sites[name]
            for ended, begun in site.states:
                found.append(Junction(self.synthesiser_of(name, True), ended, begun, given))
            if name in names:
                seen = given[:, None] if site.timed else given
                model = self.synthesiser_of(name)
                found.append(Junction(model, site.output, site.leaf, seen))
        return found

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every signal and every synthesiser's loss."""
        (trace,) = traces
        crossings = self.crossings(trace, round)
        predicted = [place.synthesiser(place.seen, place.labels) for place in crossings]
        targets = self.targets(trace, crossings, [values.detach() for values in predicted])
        for place, prediction, target in zip(crossings, predicted, targets, strict=True):
            loss = squared_distance(prediction, target).mean()
            yield loss, torch.ones_like(loss)
            yield place.below, self._signal(place, prediction, target).reshape(place.below.shape)

    def _signal(self, place: Junction, prediction: Tensor, target: Tensor) -> Tensor:
        """Return what is delivered: the derivative of the mean loss, ``[B, (T,) U]``."""
        signal = prediction.detach() / len(prediction)
        if not self.prediction:
            signal = torch.zeros_like(signal)
        if not self.conspiring:
            return signal
        extra = conspiring_signal(place.synthesiser, place.seen, place.labels, target)
        return signal + self.conspiring * extra

    def targets(
        self, trace: Trace, crossings: Sequence[Junction], predicted: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the targets ``G`` of the predictions, for each example, ``[B, (T,) U]``.

        Args:
            trace: of the plan with leaves behind the interfaces.
            crossings: as ``crossings`` returns them.
            predicted: ``SG`` for each example, one for each crossing.
        """
        batch = len(trace.targets)
        found: list[Tensor] = []
        above, messages = [trace.loss], [torch.ones_like(trace.loss)]
        for place, prediction in zip(reversed(crossings), reversed(predicted), strict=True):
            arrived = arriving(above, messages, place.above).to(prediction.dtype)
            if place.below.requires_grad:
                own = prediction.reshape(arrived.shape) / batch
                above.append(place.below)
                message = torch.lerp(own, arrived, self.back_propagated)
                messages.append(message.to(place.below.dtype))
            found.append((batch * arrived).reshape(prediction.shape))
        return found[::-1]


def labels(trace: Trace) -> Tensor:
    """Return what the synthesisers know of the targets, ``[B, labels]``; a class is one-hot."""
    found = trace.objective.vectors(trace.outputs, trace.targets)
    return found.unsqueeze(1) if found.dim() == 1 else found.flatten(1)
