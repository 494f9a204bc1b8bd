"""The part of an engine that finds who credits each parameter, and sees whether it is so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from biograd.contracts import Plan, Trace, Transport
from biograd.decorrelation import Decorrelation
from biograd.engine import structure
from biograd.engine.accounting import Account, Bookkeeper, check_outside, trained
from biograd.engine.foreign_neurons import ForeignNeurons, smooth
from biograd.engine.in_parts.trial_parts import TrialParts
from biograd.engine.outside import (
    Withheld,
    check_callers,
    check_one_readout,
    check_registered,
    taken_apart,
)
from biograd.engine.repeating_passes import Repeated
from biograd.engine.verification import comparable
from biograd.errors import CapabilityError
from biograd.estimators.weight_perturbation import gradients
from biograd.randomness import generator
from biograd.substrate.calling import callers
from biograd.substrate.kept import Keepsake
from biograd.substrate.network import Network

if TYPE_CHECKING:
    from biograd.local import LocalLosses


class Accounted(Repeated):
    """Keeps the account of an engine.

    Attributes:
        account: who credits each parameter; None before ``prepare`` or the first step.
        leads: whether the outputs follow the readout's current by its exact gradient.
        withheld: the parameters that the rule does not credit.
        unrolled: whether the network runs through time by itself, and the rule divides its steps.
        parts: who runs trials in parts; None: the rule runs whole ones.
    """

    decorrelate: Decorrelation | None
    local: LocalLosses | None
    differentiable: bool
    streams: dict[str, torch.Generator]
    seed: int
    account: Account | None
    leads: bool
    unrolled: bool
    withheld: Withheld
    parts: TrialParts | None = None
    _trained: list[int]
    _verified: bool

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the sites that can be perturbed and cut: all but the readout."""
        return tuple(site.name for site in self.substrate.sites[:-1])

    def __repr__(self) -> str:
        """Return the network's class, the rule, and who credits each parameter."""
        told = f"not known before engine.prepare(inputs, targets); outside: {self.withheld.mode}"
        lines = [told] if self.account is None else self.account.lines()
        rule = f"{type(self.estimator).__name__}({self.estimator.extra_repr()})"
        head = f"Engine: {rule} on {type(self.network).__name__}"
        return "\n".join([head, *(f"  {line}" for line in lines)])

    @contextmanager
    def _traceless(self, device: torch.device) -> Iterator[None]:
        """Give what the network keeps, and all random states, back as they were."""
        self._before = Keepsake(self.network)
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield
        finally:
            self._before.restore()
            if self.decorrelate is not None:
                self.decorrelate.forget()
            del self._before

    @contextmanager
    def _opening(self, encoded: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Let passes run what a rule runs at once: a rule that runs parts the first."""
        if self.parts is None:
            yield encoded, targets
            return
        with self.parts.opening():
            yield self.parts.first(encoded, targets)

    def _settle(self, encoded: Tensor, targets: Tensor) -> None:
        """Find who credits each parameter; withhold those that the rule does not credit."""
        self.withheld.release()
        stream = generator(self.seed, "account", device=self.streams["noise"].device)
        sites = self.substrate.sites
        run = self._runner(encoded, targets, stream)
        with callers(self.network) as found, taken_apart(self.network):
            trace = run(structure.dissected(sites))
        check_callers(self.estimator, found)
        if not isinstance(self.network, Network):
            check_registered(self.network, trace, encoded)
        one = self.estimator.reach == "readout" or "local_vjp" in self.estimator.needs
        looks = one and "vjp" in self.substrate.capabilities
        if looks and self.differentiable and not isinstance(self.network, Network):
            check_one_readout(self.estimator, structure.heads(run(Plan(slots=True))), sites)
        names = tuple(site.name for site in sites if site.name in trace.sites)
        named, local = getattr(self.substrate, "named", False), self.local is not None
        book = Bookkeeper(self.network, self.estimator, names, local, named, trace, self.unrolled)
        self.leads = not book.behind and self._smooth(trace, encoded, targets, stream)
        self.account = book.account(self.leads, self.substrate.limits, self.withheld.mode)
        known = (self.account, self.estimator, self.withheld.mode, self.substrate.limits)
        check_outside(*known, self.unrolled)
        self._check_steady(trace)
        parameters = dict(self.network.named_parameters())
        self.withheld.take([parameters[entry.name] for entry in self.account.of("outside")])
        self._trained = trained(self.network)

    def _check_steady(self, trace: Trace) -> None:
        """Refuse a rule that keeps a state for each example where what comes first would learn.

        Raises:
            CapabilityError: with the layer whose inputs would change.
        """
        name = self.hidden[0] if self.hidden else ""
        learns = self.withheld.mode == "exact" and name and trace.sites[name].visits[0].credited
        if learns and self.estimator.steady:
            raise CapabilityError(
                f"{type(self.estimator).__name__} keeps targets for each example, and with outside "
                f"= 'exact' what {name} receives would change as it learns: take outside = "
                "'freeze', or biograd.PredictiveCoding"
            )

    def _smooth(
        self, first: Trace, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> bool:
        """Return whether the loss follows the readout's current as its derivative says.

        Neurons behind the last layer (a threshold with a surrogate, a simulator) do not.
        """
        rule, name = self.estimator, self.substrate.sites[-1].name
        asked = rule.reach == "currents" and rule.graphless and self.differentiable
        if not asked or isinstance(self.network, Network):
            return True
        with self._constant_norms():
            return smooth(self._runner(encoded, targets, stream), first, (name,), stream)

    @contextmanager
    def _constant_norms(self) -> Iterator[None]:
        """Let batch normalisation take its statistics from nothing that is differentiated."""
        norms = [m for m in self.network.modules() if isinstance(m, _BatchNorm) and m.training]
        try:
            for norm in norms:
                norm.training = False
            yield
        finally:
            for norm in norms:
                norm.training = True

    def _runner(
        self, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> Callable[[Plan], Trace]:
        objective = dataclasses.replace(self.objective, local={})

        def run(plan: Plan) -> Trace:
            if self.keeps:
                self._before.restore()
            return self.substrate.run(plan, encoded, targets, objective, stream)

        return run

    def _foreign(self, encoded: Tensor, targets: Tensor, stream: torch.Generator) -> ForeignNeurons:
        """Return what looks at neurons that are not biograd's."""
        run = self._runner(encoded, targets, stream)
        noise = generator(self.seed, "foreign neurons", device=stream.device)
        cut = Transport(window=1 if self.substrate.populations else None)
        return ForeignNeurons(self.network, run, stream, noise, cut)

    def _check_transport(
        self, plan: Plan, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> None:
        """Refuse another transport through neurons that nobody but biograd's own populations has.

        Raises:
            CapabilityError: the credit would be back-propagation's, in all blocks or in some.
        """
        timed = plan.transport.window is not None or plan.transport.traces
        if isinstance(self.network, Network) or not (timed or plan.transport.derivative):
            return
        sites, what, where = self.substrate.sites, "", ""
        own, looked = list(self.substrate.populations), self._foreign(encoded, targets, stream)
        layers = [name for site in sites[:-1] for name in site.modules]
        with self._constant_norms():
            if timed and (where := next(looked.memories(layers + own), "")):
                what = "runs through time by itself"
            elif plan.transport.derivative:
                layers += sites[-1].modules
                where = next(looked.thresholds(layers + own), "")
                what = "has thresholds of its own" if where else ""
        if what:
            name = type(self.network).__name__
            part = f"{name}, behind {where!r}," if own else name
            raise CapabilityError(
                f"{part} {what}, and {type(self.estimator).__name__} acts "
                "in biograd's own neurons alone, so that it would be back-propagation under "
                "another name: take a network of biograd.build, biograd.Brian2Layer for the "
                "neurons, or biograd.Backpropagation"
            )
        if plan.transport.traces and own:
            self._runner(encoded, targets, stream)(
                plan
            )  # which refuses currents that cannot be split

    def _reference(self, encoded: Tensor, targets: Tensor, begin: Tensor) -> dict[str, Tensor]:
        """Return the gradients that the first step must not have; later nothing is compared."""
        able = "vjp" in self.substrate.capabilities and self.differentiable
        alone = self.local is not None or self.keeps  # its gradient is another in the next pass
        if self._verified or not able or not comparable(self.estimator) or alone:
            return {}
        if self.parts is not None:  # a circuit of biograd's, which obeys every plan
            return {}
        loss = self._plain(encoded, targets, begin).loss
        known = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        found = zip(known, gradients(loss, list(known.values())), strict=True)
        return {name: gradient for name, gradient in found if gradient is not None}

    def _plain(self, encoded: Tensor, targets: Tensor, begin: Tensor) -> Trace:
        """Return the trace of a pass that is differentiated as it is, and that nobody counts."""
        stream = generator(0, "dropout", device=self.streams["dropout"].device)
        stream.set_state(begin)
        pause = nullcontext() if self.decorrelate is None else self.decorrelate.paused()
        with self._counted_once(), pause:
            return self.substrate.run(Plan(), encoded, targets, self.objective, stream)

    @contextmanager
    def _counted_once(self) -> Iterator[None]:
        """Keep batch normalisation's running statistics: those of a step's first plan count."""
        layers = [
            layer
            for layer in self.network.modules()
            if isinstance(layer, _BatchNorm) and layer.track_running_stats
        ]
        try:
            for layer in layers:
                layer.track_running_stats = False
            yield
        finally:
            for layer in layers:
                layer.track_running_stats = True
