"""One forward pass under way: what the hooks of a network record, perturb, cut and bend.

A hook before each of a site's layers sees the layer's input, one behind it the site's current, one
behind the site's activity module (or before the next site's first layer) the block's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from biograd.contracts import (
    ActivityBounds,
    Plan,
    Site,
    SiteShape,
    SiteTrace,
    Trace,
    Visits,
    bin_lengths,
)
from biograd.contracts.credit_paths import split
from biograd.contracts.precision import widened
from biograd.errors import CapabilityError
from biograd.substrate.effective import of_bias, through, with_feedback


@dataclasses.dataclass
class Pass:
    """What one pass does and what it has seen so far.

    Attributes:
        kind: "clean", "noisy" (rows of all noisy copies) or "tangent" (forward-mode).
        copies: number of copies of the batch in the rows.
        shared: the encoded inputs of all copies and those of one; a layer that receives them makes
            the same output in every copy, and makes it once.
        boundaries: sites behind whose activity no credit flows.
        watched: sites whose activity is kept.
        temporal: sites whose activity is that of a population over time.
        untouched: those of them behind which nothing works in place.
        readout: name of the last site.
        sites: all.
        visits: outputs and inputs of each site's layers.
        activities: outputs of each block, one a call.
        slots: what followed saw in their place, if the plan asks for leaves.
        states: name of a population to the states that it handed from window to window.
        variables: name of a population to the number of variables of its state.
        order: names of the layers in the order of their calls.
        known: how often each block's output is reached in a pass, where one has been seen.
        reached: the same in this pass.
    """

    plan: Plan
    kind: Literal["clean", "noisy", "tangent"]
    shapes: Mapping[str, SiteShape]
    copies: int = 1
    shared: tuple[Tensor, Tensor] | None = None
    boundaries: frozenset[str] = frozenset()
    watched: frozenset[str] = frozenset()
    temporal: frozenset[str] = frozenset()
    untouched: frozenset[str] = frozenset()
    readout: str = ""
    sites: tuple[Site, ...] = ()
    visits: dict[str, list[Visits]] = dataclasses.field(default_factory=dict)
    activities: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    slots: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    states: dict[str, list[tuple[Tensor, Tensor]]] = dataclasses.field(default_factory=dict)
    variables: dict[str, int] = dataclasses.field(default_factory=dict)
    order: list[str] = dataclasses.field(default_factory=list)
    known: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reached: dict[str, int] = dataclasses.field(default_factory=dict)
    _passed: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    _leaves: dict[str, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)
    _calls: dict[str, int] = dataclasses.field(default_factory=dict)
    _live: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    _once: set[str] = dataclasses.field(default_factory=set)

    def begin(self, encoded: Tensor) -> Tensor:
        """Return the encoded inputs of all copies, from those of one."""
        self.shared = repeat(encoded, self.copies), encoded
        return self.shared[0]

    def enter(self, site: Site, place: int, inputs: Tensor) -> Tensor:
        """Return what a site's layer shall receive.

        Raises:
            CapabilityError: the site was not met before, so that the rule does not know it.
        """
        layer = site.modules[place]
        if site.name not in self.visits:
            raise CapabilityError(
                f"layer {layer} is called in this pass, and was not in the first, so that the rule "
                "does not know it: call engine.prepare(inputs, targets) with a batch that meets "
                "every layer"
            )
        if self.shared and inputs is self.shared[0]:
            self._once.add(layer)
            return self.shared[1]
        if self.kind == "noisy" and self.plan.observe_inputs:
            self.visits[site.name][place].inputs.append(inputs)
        if self.kind != "clean":
            return inputs
        visits = self.visits[site.name][place]
        visits.inputs.append(inputs.detach())
        visits.credited |= inputs.requires_grad
        if self.plan.slots:
            visits.received.append(inputs)
        if layer in self.plan.transport.feedback or self._divides(site):
            self._live[layer] = inputs.detach() if layer in self.plan.detach else inputs
            return inputs.detach()
        return inputs.detach() if layer in self.plan.detach else inputs

    def takes_whole(self, site: Site, place: int) -> bool:
        """Return whether a layer may be called once with all steps, and not step by step."""
        plan, layer = self.plan, site.modules[place]
        special = plan.slots or layer in plan.detach or layer in plan.transport.feedback
        return place > 0 and not special and not plan.transport.traces

    def expect_whole(self, site: Site, place: int, credited: bool) -> None:
        """Take the next call of a layer for all steps of the trial."""
        visits = self.visits[site.name][place]
        visits.time, visits.credited = True, visits.credited or credited

    def _divides(self, site: Site) -> bool:
        return self.plan.transport.traces and site.name in self.temporal

    def bend(self, site: Site, place: int, module: nn.Module, output: Tensor) -> Tensor:
        """Return a layer's output with another way back to its input, if the plan asks for one."""
        layer = site.modules[place]
        if layer in self._once:
            self._once.remove(layer)
            return repeat(output, self.copies)
        if layer not in self._live:
            return output
        feedback = self.plan.transport.feedback.get(layer)
        own = module._parameters["weight"]  # also while an input transform covers it
        assert own is not None
        weight = own.detach() if feedback is None else feedback.to(own.dtype)
        live = self._live.pop(layer)
        if self._divides(site):  # a bias has no presynaptic trace: it takes the input's way
            via, bias = through(module, weight, live), of_bias(module, live)
            return split(output - bias, via + bias) if bias is not None else split(output, via)
        return with_feedback(module, weight, output, live)

    def leave(self, site: Site, place: int, output: Any) -> Tensor:
        """Return the current that goes on from a site's layer."""
        if not isinstance(output, Tensor):
            raise CapabilityError(f"site {site.name}: its layer must return one tensor")
        layer = site.modules[place]
        count = self._calls.get(layer, 0)
        self._calls[layer] = count + 1
        self.order.append(layer)
        if self.kind != "clean":
            if place == 0:
                output = self._perturbed(site, output, count)
            if self.plan.observe and self.kind == "noisy":
                self.visits[site.name][place].outputs.append(output.clone())
            return output
        if self.plan.graph and site.name == self.readout and not output.requires_grad:
            output = output.detach().requires_grad_()  # errors arrive also where all is frozen
        self.visits[site.name][place].outputs.append(output)
        if self._divides(site) or (site.name in self.untouched and site.name not in self.plan.cut):
            return output
        # a copy goes on, so that an operation in place (ReLU) cannot alter what was recorded
        return (output.detach() if site.name in self.plan.cut else output).clone()

    def _perturbed(self, site: Site, output: Tensor, count: int) -> Tensor:
        if self.kind == "noisy":
            given = self.plan.noise
            if not _has(given, site):
                return output
            return (output + self._offset(site, given, count)).to(output.dtype)
        given = self.plan.tangents
        if not _has(given, site):
            return output
        tangent = self._offset(site, given, count).to(output.dtype)
        return output + forward_ad.make_dual(torch.zeros_like(tangent), tangent)

    def _offset(self, site: Site, given: Mapping[str, Tensor] | None, count: int) -> Tensor:
        """Return what is added to a current in this call: ``[m B, *U]`` or ``[m B, time, *U]``."""
        assert given
        noise = given[site.name].flatten(0, 1)  # [m B, K, *U]
        lengths = bin_lengths(self.shapes[site.name].steps, self.plan.time_bin)
        if not site.time[0]:
            return noise[:, min(count // lengths[0], len(lengths) - 1)]
        if len(lengths) > 1:
            noise = noise.repeat_interleave(torch.tensor(lengths, device=noise.device), dim=1)
        return noise

    def reach(self, site: Site, activity: Tensor) -> Tensor:
        """Keep a block's output and return what the following block sees."""
        name = site.name
        self.reached[name] = self.reached.get(name, 0) + 1
        if name not in self.watched and name not in self.boundaries:
            return activity
        if not isinstance(activity, Tensor):
            raise CapabilityError(f"site {name}: its activity must be one tensor")
        calls = self.activities.setdefault(name, [])
        calls.append(activity)
        if name not in self.boundaries:
            return activity
        if self.kind != "clean":
            return activity.detach()
        if self.known.get(name, 1) > 1:
            return self._step(site, activity, len(calls) - 1)
        if len(calls) > 1 and (self.plan.slots or self.plan.clamp):
            raise _of_other_length(name, 1, len(calls))
        passed = self.plan.clamp.get(name, activity).detach().to(activity.dtype, copy=True)
        if self.plan.slots:
            passed.requires_grad_()
            self.slots.setdefault(name, []).append(passed)
            return passed.clone()
        return passed

    def _step(self, site: Site, activity: Tensor, index: int) -> Tensor:
        """Return what follows a block sees in a step; ``index`` is its number."""
        name, steps = site.name, self.known[site.name]
        if index >= steps and (self.plan.slots or self.plan.clamp):
            raise _of_other_length(name, steps, index + 1)
        clamped = self.plan.clamp.get(name)
        passed = (activity if clamped is None else clamped[:, index]).detach()
        passed = passed.to(activity.dtype, copy=True)
        if not self.plan.slots:
            return passed
        if not index:
            # one leaf for all steps: it adds zero, and gets the values in the end
            leaf = activity.new_zeros(len(activity), steps, *activity.shape[1:])
            self.slots[name] = [leaf.requires_grad_()]
            self._leaves[name] = leaf.unbind(1)
        self._passed.setdefault(name, []).append(passed)
        return passed + self._leaves[name][index]

    def _slot(self, name: str) -> Tensor | None:
        """Return the leaf that followed a block, with the values that were seen."""
        slots = self.slots.get(name, [])
        if name in self._passed:
            if len(self._passed[name]) != self.known[name]:
                raise _of_other_length(name, self.known[name], len(self._passed[name]))
            slots[0].data.copy_(torch.stack(self._passed.pop(name), 1))
        return slots[0] if slots else None

    def trace(self, site: Site, shape: SiteShape) -> SiteTrace:
        """Return what the pass left behind at a site."""
        block = site.block or site.name
        return SiteTrace(
            shape,
            self.visits[site.name],
            self.plan.time_bin,
            activity=self.activity(block),
            stacked=self.reached.get(block, 0) > 1,
            slot=self._slot(block),
            states=self.states.get(site.neurons or "", []),
            variables=self.variables.get(site.neurons or "", 0),
        )

    def note(self, trace: Trace, copies: int) -> None:
        """Keep in a trace what the plan asks for of the noisy copies."""
        plan = self.plan
        for name, noise in (plan.noise or {}).items():
            trace.sites[name].noise = noise
        for name, site in trace.sites.items():
            if plan.observe_inputs:
                site.received = [visits.inputs for visits in self.visits[name]]
            if plan.observe:
                seen = SiteTrace(site.shape, self.visits[name], plan.time_bin).current()
                site.observed = seen.unflatten(0, (copies, -1))
        for one in self.sites if plan.observe_activity else ():
            activity = self.activity(one.block or one.name)
            if activity is not None and one.name in trace.sites:
                trace.sites[one.name].observed_activity = activity.unflatten(0, (copies, -1))

    def bounded(self, bounds: ActivityBounds) -> dict[str, Tensor]:
        """Return the activity of the blocks that have bounds, ``[rows, T, *U]``."""
        found = {}
        for name in bounds.watched(self.sites):
            activity = self.activity(name)
            if activity is not None:
                stacked = self.reached.get(name, 0) > 1
                site = SiteTrace(
                    self.shapes[name], self.visits[name], activity=activity, stacked=stacked
                )
                found[name] = widened(activity if site.timed else activity.unsqueeze(1))
        return found

    def activity(self, name: str) -> Tensor | None:
        """Return a block's output, several calls stacked, ``[rows, time, ...]``."""
        calls = self.activities.get(name, [])
        if not calls:
            return None
        return calls[0] if len(calls) == 1 else torch.stack(calls, 1)


def _of_other_length(name: str, known: int, found: int) -> CapabilityError:
    return CapabilityError(
        f"site {name}: its activity is reached {found} times in a pass, and was {known} times in "
        "the first: what stands in for it needs trials of one length: pad the inputs"
    )


def repeat(values: Tensor, copies: int) -> Tensor:
    """Return ``[copies B, ...]``, copy-major: all examples of the first copy, then the next."""
    return values.expand(copies, *values.shape).flatten(0, 1)


def _has(given: Mapping[str, Tensor] | None, site: Site) -> bool:
    return given is not None and site.name in given
