"""The torch substrate: any ``nn.Module`` is run, observed, perturbed and cut by forward hooks.

The class, keys, parameters and modules of the network stay as they are; ``close()`` removes the
hooks.  The clean copy runs first and alone, so that the noisy ones need no graph and can change
nothing in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from biograd.contracts import (
    Capability,
    Objective,
    Plan,
    Site,
    SiteShape,
    Trace,
    Transport,
    Visits,
)
from biograd.contracts.parameter_noise import along
from biograd.contracts.precision import forget_casts
from biograd.errors import CapabilityError
from biograd.substrate.calling import called
from biograd.substrate.copies import SharedRandomness
from biograd.substrate.foreign_functions import thresholds
from biograd.substrate.hooks import Bend, Enter, Hook, Leave, Reach, Through
from biograd.substrate.losses import (
    Losses,
    add_slopes,
    eager,
    extend,
    forward_mode,
    losses_of,
    perturbed,
    priced,
)
from biograd.substrate.network import Network
from biograd.substrate.passes import Pass, repeat
from biograd.substrate.return_values import Outputs
from biograd.substrate.sites import Arranged, Sites, before, check_called, find_sites


class TorchSubstrate(Arranged):
    """Runs plans on an ``nn.Module``.

    Args:
        module: the network; inputs ``[B, ...]`` to outputs ``[B, ...]``.
        sites: names of layers, or name -> layers that share a current, or sites; by default the
            network's own sites, or every linear and convolutional layer in the order of the first
            call.
        outputs: what of the module's value the outputs are; None: the value itself.

    Raises:
        CapabilityError: no such layer, or no layer at all.
    """

    capabilities: frozenset[Capability] = frozenset(get_args(Capability))

    def __init__(
        self, module: nn.Module, sites: Sites | None = None, outputs: Outputs | None = None
    ) -> None:
        self.module, self.outputs = module, outputs
        self.sites = find_sites(module, sites)
        self.named = sites is not None
        self.joinable = not isinstance(module, Network) and (
            sites is None
            or (not isinstance(sites, Mapping) and all(isinstance(one, str) for one in sites))
        )
        self.name = getattr(module, "simulator", "torch")
        reasons = (getattr(part, "forward_only", "") for part in module.modules())
        self.limits = tuple(str(reason) for reason in reasons if reason)
        if self.limits:
            self.capabilities -= DIFFERENTIAL
        self.shared = SharedRandomness(module)
        self._pass: Pass | None = None
        self._shapes: dict[str, SiteShape] = {}
        self._reached: dict[str, int] = {}
        self._before = before(self.sites)
        self.populations: Mapping[str, nn.Module] = {
            name: part
            for name, part in module.named_modules()
            if isinstance(getattr(part, "transport", None), Transport)
        }
        self._temporal = frozenset(s.name for s in self.sites if s.neurons in self.populations)
        self._handles: list[Any] = []
        self._hooks: list[Hook] = []
        for site in self.sites:
            for place, name in enumerate(site.modules):
                layer = module.get_submodule(name)
                behind = layer if site.current is None else module.get_submodule(site.current)
                enter = self._hook(Enter(self, site, place))
                self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
                if behind is layer:
                    through = self._hook(Through(self, site, place))
                    self._handles.append(layer.register_forward_hook(through))
                    continue
                self._handles += [
                    layer.register_forward_hook(self._hook(Bend(self, site, place))),
                    behind.register_forward_hook(self._hook(Leave(self, site, place))),
                ]
            if site.activity is not None and site.block is None:
                part = module.get_submodule(site.activity)
                self._handles.append(part.register_forward_hook(self._hook(Reach(self, site))))

    def _hook(self, hook: Any) -> Any:
        self._hooks.append(hook)
        return hook

    @property
    def recording(self) -> bool:
        """Whether the clean copy of a round is under way."""
        return self._pass is not None and self._pass.kind == "clean"

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self.shared.close()

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return what all copies share; a plain module takes its inputs as they are."""
        if isinstance(self.module, Network):
            return self.module.encode(inputs, generator)
        return inputs

    def forward(self, encoded: Tensor) -> Tensor:
        """Return the outputs ``[rows, ...]`` for encoded inputs."""
        return called(self.module, encoded, self.outputs)

    @eager()
    def run(
        self,
        plan: Plan,
        encoded: Tensor,
        targets: Tensor,
        objective: Objective,
        stream: torch.Generator | None = None,
    ) -> Trace:
        """Run the clean copy, then the other copies of ``plan``; dropout draws from ``stream``."""
        self.shared.stream = stream
        forget_casts(encoded.device)
        encoded = encoded if plan.inputs is None else plan.inputs(encoded)
        trace = self._run_clean(plan, encoded, targets, objective)
        if plan.noise:
            self._run_noisy(trace, encoded)
        if plan.parameter_noise:
            self._run_parameters(trace, encoded)
        if plan.tangents:
            self._run_tangents(trace, encoded)
        if plan.parameter_tangents:
            self._run_parameter_tangents(trace, encoded)
        return trace

    def _run_clean(
        self, plan: Plan, encoded: Tensor, targets: Tensor, objective: Objective
    ) -> Trace:
        now = self._begin(plan, "clean", objective)
        with torch.enable_grad() if plan.graph else torch.no_grad():
            with self._running(now), self.shared.clean(alone=plan.passes == 1):
                outputs = self.forward(encoded)
            self._learn_shapes(now)
            price = priced(now, objective)
            losses, local, steps = losses_of(now, outputs, targets, objective, price)
            total = losses.mean()
            for values in local.values():
                total = total + values.reshape(len(values), -1).sum(1).mean()
        sites = {
            site.name: now.trace(site, self._shape(site, now))
            for site in self.sites
            if now.visits[site.name][0].outputs
        }
        self._check_met({*(plan.noise or ()), *(plan.tangents or ()), *now.boundaries} - {*sites})
        return Trace(
            plan,
            losses.detach()[None],
            total,
            outputs.detach(),
            sites,
            targets,
            objective,
            {name: values.detach()[None] for name, values in local.items()},
            step_losses=None if steps is None else steps.detach()[None],
            alive=None if objective.alive is None else objective.alive(outputs.detach())[None],
            price=price,
        )

    def _check_met(self, missing: set[str]) -> None:
        """Refuse sites that a plan acts on and that a pass did not call.

        Raises:
            CapabilityError: with the site.
        """
        if missing:
            raise CapabilityError(
                f"layer {min(missing)} is not called in this pass, and was in the first: this rule "
                "needs every layer in every pass: call it always, or take biograd.Backpropagation "
                "or biograd.FeedbackAlignment"
            )

    def _begin(self, plan: Plan, kind: Any, objective: Objective, copies: int = 1) -> Pass:
        watch = plan.graph if kind == "clean" else plan.observe_activity and kind == "noisy"
        names = [site.name for site in self.sites[:-1]] if watch else []
        if objective.bounds is not None:
            names += objective.bounds.watched(self.sites)
        return Pass(
            plan,
            kind,
            self._shapes,
            copies,
            boundaries=frozenset((*plan.boundaries, *plan.clamp, *objective.local)),
            watched=frozenset((*names, *objective.local)),
            temporal=self._temporal,
            untouched=self._temporal if isinstance(self.module, Network) else frozenset(),
            readout=self.sites[-1].name,
            sites=self.sites,
            visits={site.name: [Visits(time) for time in site.time] for site in self.sites},
            known=self._reached,
        )

    @contextmanager
    def _running(self, now: Pass) -> Iterator[None]:
        transport = now.plan.transport
        timed = transport.window is not None and any(s.steps > 1 for s in self._shapes.values())
        if timed and not self.populations:
            raise CapabilityError(
                f"{type(self.module).__name__} runs through time by itself, where credit cannot be "
                "cut: take a recurrent or spiking network of biograd.build"
            )
        self._pass = now
        for name, population in self.populations.items():
            population.__dict__["transport"] = transport
            population.__dict__["handed"] = now.states.setdefault(name, [])
            now.variables[name] = getattr(population, "variables", 0)
        own = (
            transport.derivative
            if now.kind == "clean" and not (isinstance(self.module, Network) or self.populations)
            else None
        )
        try:
            with thresholds(own):
                yield
        finally:
            self._pass = None
            for population in self.populations.values():
                population.__dict__.pop("transport", None)
                population.__dict__.pop("handed", None)

    def _learn_shapes(self, now: Pass) -> None:
        """Note each site's units and steps; a plain module's sites take the order of the calls."""
        if not self._shapes and not isinstance(self.module, Network):
            last = {name: place for place, name in enumerate(now.order)}
            if self.named:
                check_called(self.sites, last)
            called = [site for site in self.sites if site.modules[0] in last]
            self.sites = tuple(sorted(called, key=lambda site: last[site.modules[0]]))
            self._before = before(self.sites)
            now.reached.clear()  # in another order, another layer may follow
        if not self._reached and now.reached:
            self._reached = dict(now.reached)
        steps = self.module.steps if isinstance(self.module, Network) else None
        for site in self.sites:
            outputs = now.visits[site.name][0].outputs
            if outputs and site.name not in self._shapes:
                units = tuple(outputs[0].shape[2 if site.time[0] else 1 :])
                count = (steps or outputs[0].shape[1]) if site.time[0] else len(outputs)
                self._shapes[site.name] = SiteShape(units, count)

    def _shape(self, site: Site, now: Pass) -> SiteShape:
        """Return the shape of a site in this pass: a trial may have another length."""
        shape, outputs = self._shapes[site.name], now.visits[site.name][0].outputs
        visits = outputs[0].shape[1] if site.time[0] else len(outputs)
        part = getattr(self.module, "part", None)
        if part is not None:
            return dataclasses.replace(shape, steps=part.steps)
        if (isinstance(self.module, Network) and site.time[0]) or visits == shape.steps:
            return shape
        if now.plan.time_bin is not None:
            raise CapabilityError(
                f"site {site.name}: {visits} steps instead of {shape.steps}: noise in time bins "
                "needs trials of one length: pad the inputs"
            )
        return dataclasses.replace(shape, steps=visits)

    @torch.no_grad()
    def _run_noisy(self, trace: Trace, encoded: Tensor) -> None:
        plan = trace.plan
        assert plan.noise
        copies, batch = plan.copies - 1, encoded.shape[0]
        now = self._begin(plan, "noisy", trace.objective, copies)
        with self._running(now), self.shared.noisy():
            outputs = self.forward(now.begin(encoded))
        targets = repeat(trace.targets, copies)
        extend(trace, *losses_of(now, outputs, targets, trace.objective, trace.price))
        if trace.alive is not None and trace.objective.alive is not None:
            lasted = trace.objective.alive(outputs).unflatten(0, (copies, batch))
            trace.alive = torch.cat((trace.alive, lasted))
        now.note(trace, copies)

    def _run_parameters(self, trace: Trace, encoded: Tensor) -> None:
        assert trace.plan.parameter_noise

        def losses() -> Losses:
            now = self._begin(Plan(), "noisy", trace.objective)
            with self._running(now), self.shared.noisy():
                outputs = self.forward(encoded)
            return losses_of(now, outputs, trace.targets, trace.objective, trace.price)

        for found in perturbed(self.module, trace.plan.parameter_noise, losses):
            extend(trace, *found)

    @torch.no_grad()
    def _run_tangents(self, trace: Trace, encoded: Tensor) -> None:
        """Differentiate forward along the sites' tangents: one pass whose rows are all copies."""
        tangents = trace.plan.tangents
        assert tangents
        copies = next(iter(tangents.values())).shape[0]
        now = self._begin(trace.plan, "tangent", trace.objective, copies)
        with forward_mode():
            with self._running(now), self.shared.noisy():
                outputs = self.forward(now.begin(encoded))
            targets = repeat(trace.targets, copies)
            found = losses_of(now, outputs, targets, trace.objective, trace.price)
            add_slopes(trace, *found[:2])

    @torch.no_grad()
    def _run_parameter_tangents(self, trace: Trace, encoded: Tensor) -> None:
        """Differentiate forward along directions in the space of the parameters, one by one."""
        noise = trace.plan.parameter_tangents
        assert noise
        runner = _Runner(self)
        named = {f"module.{n}": p for n, p in self.module.named_parameters() if p.requires_grad}
        for copy, scale in enumerate(noise.scales):
            now = self._begin(trace.plan, "tangent", trace.objective)
            with forward_mode(), self._running(now), self.shared.noisy():
                draws = noise.draw(copy, [*named.values()])
                dual = {
                    name: forward_ad.make_dual(parameter.detach(), along(parameter, draw, scale))
                    for (name, parameter), draw in zip(named.items(), draws, strict=True)
                }
                outputs = torch.func.functional_call(runner, dual, (encoded,))
                found = losses_of(now, outputs, trace.targets, trace.objective, trace.price)
                add_slopes(trace, *found[:2])

    def enter(self, site: Site, place: int, inputs: Any) -> Any:
        """Look at the input of a site's layer; called by its hook."""
        now = self._pass
        if now is None or not inputs or not isinstance(inputs[0], Tensor):
            return None
        value = inputs[0]
        before = self._before.get(site.name) if place == 0 else None
        if before is not None:
            value = now.reach(before, value)
        value = now.enter(site, place, value)
        return None if value is inputs[0] else (value, *inputs[1:])

    def bend(self, site: Site, place: int, module: nn.Module, output: Any) -> Tensor | None:
        """Change the way back through a site's layer; called by its hook."""
        return None if self._pass is None else self._pass.bend(site, place, module, output)

    def leave(self, site: Site, place: int, output: Any) -> Tensor | None:
        """Record, perturb or cut a site's current; called by its hook."""
        return None if self._pass is None else self._pass.leave(site, place, output)

    def reach(self, site: Site, output: Any) -> Any:
        """Record or cut a block's output, the first of several; called by its hook."""
        if self._pass is None:
            return None
        if isinstance(output, tuple) and output:  # what else neurons return is their state
            return (self._pass.reach(site, output[0]), *output[1:])
        return self._pass.reach(site, output)


DIFFERENTIAL: frozenset[Capability] = frozenset(("vjp", "local_vjp", "jvp_site", "jvp_parameter"))
"""What needs a derivative of every population."""


class _Runner(nn.Module):
    """Holds a network as a submodule, so that its parameters can be swapped for a call."""

    def __init__(self, substrate: TorchSubstrate) -> None:
        super().__init__()
        self.module = substrate.module
        self.__dict__["substrate"] = substrate

    def forward(self, encoded: Tensor) -> Tensor:
        return self.__dict__["substrate"].forward(encoded)
