"""The torch substrate: any ``nn.Module`` is run, observed, perturbed and cut by forward hooks.

The class, keys, parameters and modules of the network stay as they are; ``close()`` removes the
hooks.  The clean copy runs first and alone, so that the noisy ones need no graph and can change
nothing in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from biograd.contracts import (
    Capability,
    Loss,
    ParameterNoise,
    Plan,
    Site,
    SiteShape,
    SiteTrace,
    Trace,
    Visits,
    bin_lengths,
)
from biograd.errors import CapabilityError, nearest
from biograd.networks.copies import SharedRandomness
from biograd.networks.network import LAYERS, Network


@dataclasses.dataclass
class _Pass:
    """One forward pass under way: what its hooks do."""

    plan: Plan
    noisy: bool
    sites: dict[str, list[Visits]]
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    order: list[str] = dataclasses.field(default_factory=list)


class TorchSubstrate:
    """Runs plans on an ``nn.Module``.

    Args:
        module: the network; inputs ``[B, ...]`` to outputs ``[B, ...]``.
        sites: names of layers, or name -> layers that share a current; by default the network's
            own sites, or every linear and convolutional layer in the order of the first call.

    Raises:
        CapabilityError: no such layer, or no layer at all.
    """

    name = "torch"
    capabilities: frozenset[Capability] = frozenset(
        ("loss", "perturb_parameter", "perturb_site", "observe", "cut", "vjp")
    )

    def __init__(
        self,
        module: nn.Module,
        sites: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.module = module
        self.sites = find_sites(module, sites)
        self.shared = SharedRandomness(module)
        self._pass: _Pass | None = None
        self._shapes: dict[str, SiteShape] = {}
        self._handles = [
            module.get_submodule(layer).register_forward_hook(_SiteHook(self, site, place))
            for site in self.sites
            for place, layer in enumerate(site.modules)
        ]

    @property
    def recording(self) -> bool:
        """Whether the clean copy of a round is under way."""
        return self._pass is not None and not self._pass.noisy

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

    def _forward(self, encoded: Tensor) -> Tensor:
        run = self.module.simulate if isinstance(self.module, Network) else self.module
        outputs = run(encoded)
        if not isinstance(outputs, Tensor):
            raise CapabilityError(
                f"{type(self.module).__name__} returned {type(outputs).__name__}: "
                "a network must return one tensor of outputs"
            )
        return outputs

    def run(
        self,
        plan: Plan,
        encoded: Tensor,
        targets: Tensor,
        loss: Loss,
        stream: torch.Generator | None = None,
    ) -> Trace:
        """Run the clean copy, then the noisy copies of ``plan``; dropout draws from ``stream``."""
        batch, self.shared.stream = encoded.shape[0], stream
        now = _Pass(plan, False, {site.name: [Visits(t) for t in site.time] for site in self.sites})
        with torch.enable_grad() if plan.graph else torch.no_grad():
            with self._running(now), self.shared.clean():
                outputs = self._forward(encoded)
            clean = loss(outputs, targets)
            mean = clean.mean()
        self._learn_shapes(now)
        traces = {
            site.name: SiteTrace(self._shape(site, now), now.sites[site.name], plan.time_bin)
            for site in self.sites
            if now.sites[site.name][0].outputs
        }
        losses = [clean.detach()[None]]
        if plan.noise:
            losses.append(self._run_noisy(plan, encoded, targets, loss, traces))
        if plan.parameter_noise:
            losses.append(self._run_parameters(plan, encoded, targets, loss))
        return Trace(plan, torch.cat(losses).view(-1, batch), mean, outputs.detach(), traces)

    @contextmanager
    def _running(self, now: _Pass) -> Iterator[None]:
        self._pass = now
        try:
            yield
        finally:
            self._pass = None

    def _learn_shapes(self, now: _Pass) -> None:
        """Note each site's units and steps; a plain module's sites take the order of the calls."""
        if not self._shapes and not isinstance(self.module, Network):
            last = {name: place for place, name in enumerate(now.order)}
            called = [site for site in self.sites if site.modules[0] in last]
            self.sites = tuple(sorted(called, key=lambda site: last[site.modules[0]]))
        steps = self.module.steps if isinstance(self.module, Network) else None
        for site in self.sites:
            outputs = now.sites[site.name][0].outputs
            if outputs and site.name not in self._shapes:
                units = tuple(outputs[0].shape[2 if site.time[0] else 1 :])
                count = steps if site.time[0] and steps else len(outputs)
                self._shapes[site.name] = SiteShape(units, count)

    def _shape(self, site: Site, now: _Pass) -> SiteShape:
        """Return the shape of a site in this pass: a trial may have another length."""
        shape, visits = self._shapes[site.name], len(now.sites[site.name][0].outputs)
        if site.time[0] or visits == shape.steps:
            return shape
        if now.plan.time_bin is not None:
            raise CapabilityError(
                f"site {site.name}: {visits} steps instead of {shape.steps}: noise in time bins "
                "needs trials of one length"
            )
        return dataclasses.replace(shape, steps=visits)

    @torch.no_grad()
    def _run_noisy(
        self,
        plan: Plan,
        encoded: Tensor,
        targets: Tensor,
        loss: Loss,
        traces: dict[str, SiteTrace],
    ) -> Tensor:
        assert plan.noise
        copies, batch = plan.copies - 1, encoded.shape[0]
        now = _Pass(plan, True, {site.name: [Visits(t) for t in site.time] for site in self.sites})
        with self._running(now), self.shared.noisy():
            outputs = self._forward(repeat(encoded, copies))
        for name, noise in plan.noise.items():
            traces[name].noise = noise
        if plan.observe:
            for name, trace in traces.items():
                seen = SiteTrace(trace.shape, now.sites[name], plan.time_bin).current()
                trace.observed = seen.view(copies, batch, *seen.shape[1:])
        return loss(outputs, repeat(targets, copies)).view(copies, batch)

    def _run_parameters(self, plan: Plan, encoded: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        assert plan.parameter_noise
        now = _Pass(Plan(), True, {})

        def losses() -> Tensor:
            now.calls = {}
            with self._running(now), self.shared.noisy():
                return loss(self._forward(encoded), targets)

        return perturbed_losses(self.module, plan.parameter_noise, losses)

    def visit(self, site: Site, place: int, output: Any) -> Tensor | None:
        """Record, perturb or cut one output of a site's layer; called by its hook."""
        now = self._pass
        if now is None:
            return None
        if not isinstance(output, Tensor):
            raise CapabilityError(f"site {site.name}: its layer must return one tensor")
        count = now.calls.get(site.modules[place], 0)
        now.calls[site.modules[place]] = count + 1
        now.order.append(site.modules[place])
        if now.noisy:
            if place == 0 and now.plan.noise and site.name in now.plan.noise:
                output = output + self._noise(now, site, output, count)
            if now.plan.observe:
                now.sites[site.name][place].outputs.append(output.clone())
            return output
        now.sites[site.name][place].outputs.append(output)
        # a copy goes on, so that an operation in place (ReLU) cannot alter what was recorded
        return (output.detach() if site.name in now.plan.cut else output).clone()

    def _noise(self, now: _Pass, site: Site, output: Tensor, count: int) -> Tensor:
        assert now.plan.noise
        noise = now.plan.noise[site.name].flatten(0, 1)  # [m B, K, *U]
        steps = self._shapes[site.name].steps
        lengths = bin_lengths(steps, now.plan.time_bin)
        if not site.time[0]:
            return noise[:, min(count // lengths[0], len(lengths) - 1)]
        if len(lengths) > 1:
            noise = noise.repeat_interleave(torch.tensor(lengths, device=noise.device), dim=1)
        return noise


class _SiteHook:
    """A forward hook that leads back to its substrate; a copy of the network runs without it."""

    def __init__(self, substrate: TorchSubstrate, site: Site, place: int) -> None:
        self.substrate: TorchSubstrate | None = substrate
        self.site, self.place = site, place

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> Tensor | None:
        return self.substrate.visit(self.site, self.place, output) if self.substrate else None

    def __deepcopy__(self, _memo: object) -> _SiteHook:
        copy = object.__new__(_SiteHook)
        copy.substrate, copy.site, copy.place = None, self.site, self.place
        return copy


@torch.no_grad()
def perturbed_losses(
    module: nn.Module, noise: ParameterNoise, losses: Callable[[], Tensor]
) -> Tensor:
    """Return the losses ``[copies, B]`` under the parameter noise of each copy.

    The parameters are restored from what they were, not by subtraction, so that they keep their
    bits; also when a copy fails.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    kept = [parameter.detach().clone() for parameter in parameters]
    found = []
    try:
        for copy, scale in enumerate(noise.scales):
            draws = noise.draw(copy, parameters)
            for parameter, value, draw in zip(parameters, kept, draws, strict=True):
                parameter.copy_(value + scale * draw)
            found.append(losses())
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return torch.stack(found)


def repeat(values: Tensor, copies: int) -> Tensor:
    """Return ``[copies B, ...]``, copy-major: all examples of the first copy, then the next."""
    return values.expand(copies, *values.shape).flatten(0, 1)


def find_sites(
    module: nn.Module, sites: Sequence[str] | Mapping[str, Sequence[str]] | None
) -> tuple[Site, ...]:
    """Return the sites of a module (see ``TorchSubstrate``).

    Raises:
        CapabilityError: a name is not a submodule, or there is no synaptic layer.
    """
    if sites is None and isinstance(module, Network):
        return module.sites
    if sites is None:
        sites = [name for name, layer in module.named_modules() if isinstance(layer, LAYERS)]
    groups = sites if isinstance(sites, Mapping) else {name: (name,) for name in sites}
    known = dict(module.named_modules())
    for layers in groups.values():
        for name in layers:
            if name not in known:
                raise CapabilityError(f"no layer {name!r}: {nearest(name, filter(None, known))}")
    if not groups:
        raise CapabilityError(
            f"{type(module).__name__} has no linear or convolutional layer: name its sites"
        )
    return tuple(Site(n, tuple(ls), (False,) * len(ls)) for n, ls in groups.items())
