"""Passes on one batch again: a network that keeps a state from pass to pass gives itself away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from biograd.contracts import Objective, Plan, SiteShape, Substrate, Trace
from biograd.contracts.precision import computing, unmixed
from biograd.decorrelation import Decorrelation
from biograd.engine.accounting import named
from biograd.engine.batch_checks import check_device, check_layers
from biograd.engine.capabilities import check_norms
from biograd.engine.outside import Withheld
from biograd.errors import CapabilityError
from biograd.estimators import Estimator
from biograd.ranks import parallel
from biograd.substrate.kept import UNSEEN, Keepsake, ResetBefore, way_out
from biograd.tasks import Task

if TYPE_CHECKING:
    from biograd.local import LocalLosses

REPEATS = 3
"""Passes beside the first in which a state must show itself."""


class Repeated:
    """The part of an engine that runs its network several times on one batch.

    Attributes:
        reset: what puts a network back before every pass, if it was given.
        keeps: dotted names of the attributes in which the network keeps a state; ``UNSEEN``: some-
            where else.
    """

    network: nn.Module
    estimator: Estimator
    objective: Objective
    substrate: Substrate
    reset: ResetBefore | None
    keeps: tuple[str, ...]
    withheld: Withheld
    _writes: tuple[str, ...]
    _before: Keepsake
    streams: dict[str, torch.Generator]
    decorrelate: Decorrelation | None
    local: LocalLosses | None
    _layers: dict[str, nn.Module]
    _dtype: torch.dtype | None
    task: Task
    scales: dict[str, float]
    _shapes: dict[str, SiteShape]

    def _follow(self) -> None:
        """Take on the type of a network that has another since; refuse other layers, devices."""
        check_layers(self.network, self._layers)
        check_device(self.network, self.streams["noise"].device)
        check_norms(self.estimator, self.network)
        dtype = computing(next(self.network.parameters()).dtype)
        if dtype != self._dtype:
            for part in filter(None, (self.estimator, self.local, self.decorrelate)):
                part.to(dtype if self._dtype else None)
            self._dtype = dtype

    def _next(self, plans: Iterator[Plan]) -> Plan | None:
        with unmixed(self.streams["noise"].device):
            return next(plans, None)

    def _run(self, plan: Plan, encoded: Tensor, targets: Tensor) -> Trace:
        noise, stream = plan.parameter_noise, self.streams["dropout"]
        own = None if noise is None else parallel.dealt(len(noise.seeds))
        if noise is None or own is None:
            return self.substrate.run(plan, encoded, targets, self.objective, stream)
        part = dataclasses.replace(noise, seeds=noise.seeds[own], scales=noise.scales[own])
        given = dataclasses.replace(plan, parameter_noise=part)
        trace = self.substrate.run(given, encoded, targets, self.objective, stream)
        kinds = {"": trace.losses, **trace.local}
        means = torch.stack([values[1:].flatten(1).mean(1) for values in kinds.values()], 1)
        found = parallel.exchange(own, len(noise.seeds), means)
        trace.plan, trace.means = plan, dict(zip(kinds, found.unbind(1), strict=True))
        return trace

    def _tried(
        self, plan: Plan, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> Trace:
        """Run a plan on a network whose modules keep nothing from the pass before."""
        if self.keeps:
            self._before.restore()
        return self.substrate.run(plan, encoded, targets, self.objective, stream)

    def _find_state(
        self, trace: Trace, encoded: Tensor, begun: Tensor, stream: torch.Generator
    ) -> None:
        """See whether the network's outputs depend on the passes before.

        Some states act later than in the next pass; so there are more, if anything changes.

        Raises:
            CapabilityError: they do, although it is reset, or the rule runs it several times.
        """
        drawn, before = stream.get_state(), self._before

        def same() -> bool:
            before.rewind()
            stream.set_state(begun)
            found = self._tried(Plan(graph=False), encoded, trace.targets, stream).outputs
            size = float(trace.outputs.abs().max())
            return torch.allclose(found, trace.outputs, rtol=1e-4, atol=1e-5 * size)

        for _ in range(REPEATS):
            if not same():
                changed = before.changed()
                before.restore()
                self.keeps = tuple(changed) if same() else (UNSEEN,)
                break
            if not before.changed():
                break
        owned = {name for name, _ in self.network.named_parameters()}
        self._writes = tuple(name for name in before.changed() if name in owned)
        stream.set_state(drawn)
        several = ("perturb_site", "perturb_parameter", "jvp_site", "jvp_parameter")
        if self.keeps and (self.reset is not None or self.estimator.needs & set(several)):
            self._refuse_state()

    def _check_written(self, plan: Plan) -> None:
        """Refuse weights that a later pass changes while credit still needs those of an earlier.

        Raises:
            CapabilityError: the network writes to its parameters in its forward pass.
        """
        later = plan.slots and plan.passes > 1
        if self._writes and (later or self.withheld.exact):
            raise CapabilityError(
                f"{type(self.network).__name__} changes {named(self._writes)} in place in every "
                f"forward pass, and {type(self.estimator).__name__} differentiates one while "
                "others run: clip weights after the optimiser's step, or by torch.nn.utils."
                "parametrize"
            )

    def _refuse_state(self) -> None:
        """Refuse a rule of several passes on a network that keeps a state.

        Raises:
            CapabilityError: with the state's names, and how it can be reset.
        """
        names = ", ".join(self.keeps[:3]) + (", ..." if len(self.keeps) > 3 else "")
        if self.reset is not None:
            raise CapabilityError(
                f"the network keeps a state from pass to pass ({names}), which reset = "
                f"{self.reset.reset!r} does not put back"
            )
        raise CapabilityError(
            f"{type(self.estimator).__name__} runs the network several times a step, which keeps a "
            f"state from pass to pass ({names}): {way_out(self.network, self.keeps)}"
        )

    def _check_apart(self, encoded: Tensor, targets: Tensor, stream: torch.Generator) -> None:
        """Noise at one example must not move the losses of others: each is its own experiment."""
        first, rule = self.substrate.sites[0].name, self.estimator
        norms = any(isinstance(m, _BatchNorm) and m.training for m in self.network.modules())
        if not rule.needs & {"perturb_site", "jvp_site"} or len(encoded) < 2 or norms:
            return
        dtype = next(self.network.parameters()).dtype
        shape = (1, encoded.shape[0], 1, *self._shapes[first].units)
        noise = encoded.new_zeros(shape, dtype=dtype)
        noise[:, 0] = self.scales.get(first) or 1.0
        found = self._tried(Plan(noise={first: noise}, graph=False), encoded, targets, stream)
        apart = torch.allclose(found.losses[1, 1:], found.losses[0, 1:], rtol=1e-3, atol=1e-4)
        if apart:
            return
        still = self._tried(Plan(noise={first: noise * 0}, graph=False), encoded, targets, stream)
        alike = torch.allclose(still.losses[1], still.losses[0], rtol=1e-3, atol=1e-4)
        if alike and self._loss_apart(found):
            raise CapabilityError(
                f"noise at one example, in {first}, moves the losses of others: the network looks "
                f"at several rows at once, and to {type(rule).__name__} each example is an "
                "experiment of its own: keep the rows apart, or take biograd.WeightPerturbation"
            )

    def _loss_apart(self, trace: Trace) -> bool:
        """Return whether the loss of an example is its own; one reward may be that of all."""
        moved = trace.outputs.clone()
        moved[0] += 1 + moved[0].abs()
        before, after = (self.task.losses(o, trace.targets) for o in (trace.outputs, moved))
        return torch.allclose(before[1:], after[1:], rtol=1e-3, atol=1e-4)
