"""What a first look tells of a network's currents: which layers share one, feed back, and vary.

Noise at two layers whose outputs add up to one current would be drawn twice and each regression
would take the other's for chance; so such layers are one site, with one noise and one credit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from biograd.contracts import Objective, Plan, SiteShape, SiteTrace, Trace
from biograd.engine.accounted import Accounted
from biograd.engine.foreign_neurons import ForeignNeurons
from biograd.errors import CapabilityError
from biograd.randomness import generator
from biograd.ranks import parallel
from biograd.substrate.network import Network

Losses = Callable[[Plan], Tensor]
"""A plan with one noisy copy to its losses ``[2, B]``."""
TIES = (_BatchNorm, _DropoutNd)
"""Modules by which, in training, an example's outputs depend on its place in the batch."""
ROUNDING = 1e-3
"""Share of the effect of noise that rounding may make or leave."""


def varying(trace: Trace, name: str) -> bool:
    """Return whether what a site's first layer receives differs between the steps of a trial."""
    visits = trace.sites[name].visits[0]
    steps = [part for visit in visits.inputs for part in visit.unbind(1)] if visits.time else []
    first, *others = steps or visits.inputs
    return any(not torch.equal(first, other) for other in others)


def shared(names: Sequence[str], trace: Trace, losses: Losses) -> list[list[str]]:
    """Return the sites whose layers feed one current, group by group.

    Noise does the same at each of them, and at one of them it takes away what its opposite does at
    another; so nothing need be differentiable.

    Args:
        names: of sites with one layer each.
        losses: what a plan finds.
    """
    groups: list[list[str]] = []
    for units, alike in _by_units(names, trace):
        steps = {name: trace.sites[name].shape.steps for name in alike}
        longest = SiteShape(units, max(steps.values()))
        noise = _noise(trace, max(alike, key=steps.__getitem__), longest)
        noise[:, :, : longest.steps - min(steps.values())] = 0  # where some are not called yet
        own = {name: noise[:, :, longest.steps - steps[name] :] for name in alike}
        changes = {name: _change(losses, {name: own[name]}, longest) for name in alike}
        for name, change in changes.items():
            group = next((g for g in groups if _equal(changes.get(g[0]), change)), None)
            if group is None:
                groups.append([name])
                continue
            both = {group[0]: own[group[0]], name: -own[name]}
            if _zero(_change(losses, both, longest), change):
                group.append(name)
    for group in groups:  # noise enters at a layer that is called in every step
        group.sort(key=lambda name: -trace.sites[name].shape.steps)
    return [group for group in groups if len(group) > 1]


def projected(outputs: Tensor, _targets: Tensor) -> Tensor:
    """Return one number for each row that tells outputs apart, ``[rows]``."""
    flat = outputs.flatten(1)
    stream = generator(0, "projection", device=flat.device)
    weights = torch.randn(flat.shape[1], generator=stream, device=flat.device)
    return flat @ weights.to(flat.dtype)


def looped(trace: Trace) -> bool:
    """Return whether a layer is called several times in a pass."""
    return any(len(v.outputs) > 1 for site in trace.sites.values() for v in site.visits)


def unlinked(layers: Iterable[str]) -> Plan:
    """Return the plan of a pass whose graph ends at every layer's input."""
    return Plan(detach=frozenset(layers), slots=True)


def recurrent(layers: Mapping[str, Sequence[str]], trace: Trace) -> dict[str, tuple[str, ...]]:
    """Return the layers that receive what their own site's current has become, site by site.

    Args:
        layers: of each site.
        trace: of the plan ``unlinked``, so that whatever passes another layer does not count.
    """
    found = {
        name: tuple(
            layer
            for layer, visits in zip(names, trace.sites[name].visits, strict=True)
            if _reached(visits.received, trace.sites[name])
        )
        for name, names in layers.items()
        if name in trace.sites
    }
    return {name: own for name, own in found.items() if own}


def _reached(values: Sequence[Tensor], site: SiteTrace) -> bool:
    """Return whether a derivative leads from values to a site's current."""
    live = [value.sum() for value in values if value.requires_grad]
    outputs = [o for visits in site.visits for o in visits.outputs if o.requires_grad]
    if not live or not outputs:
        return False
    found = torch.autograd.grad(
        torch.stack(live).sum(), outputs, retain_graph=True, allow_unused=True
    )
    return any(gradient is not None for gradient in found)


def _by_units(names: Sequence[str], trace: Trace) -> list[tuple[tuple[int, ...], list[str]]]:
    """Return the sites of units of each shape that occurs twice or more.

    One that is called once is not compared with one that is called in every step.
    """
    found: dict[tuple[tuple[int, ...], bool], list[str]] = {}
    for name in names:
        shape = trace.sites[name].shape
        found.setdefault((shape.units, shape.steps > 1), []).append(name)
    return [(units, alike) for (units, _), alike in found.items() if len(alike) > 1]


def _noise(trace: Trace, name: str, shape: SiteShape) -> Tensor:
    """Return noise for one copy, another in every step, as large as the site's currents."""
    current = trace.sites[name].trial_mean()
    size = (len(current), shape.steps, *shape.units)
    stream = generator(0, "shared currents", device=current.device)
    draw = torch.randn(1, *size, generator=stream, device=current.device, dtype=current.dtype)
    return draw * current.square().mean().sqrt().clamp_min(1e-3)


def _change(losses: Losses, noise: dict[str, Tensor], shape: SiteShape) -> Tensor:
    """Return what noise does to the loss of each example."""
    found = losses(Plan(noise=noise, time_bin=1 if shape.steps > 1 else None, graph=False))
    return found[1] - found[0]


def _zero(values: Tensor, beside: Tensor) -> bool:
    """Return whether values are zero beside others that are not."""
    return bool(values.abs().max() <= ROUNDING * beside.abs().max()) and bool(beside.any())


def _equal(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and _zero(one - other, other)


class Structured(Accounted):
    """Makes layers that feed one current one site, and tells those that feed back.

    Attributes:
        scales: root mean square of each hidden site's mean current, a running mean.
        varying: whether the inputs vary between the steps of a trial.
    """

    varying: bool
    step: int
    scales: dict[str, float]
    _shapes: dict[str, SiteShape]

    def _check_rows(
        self, trace: Trace, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> None:
        """Refuse rows that are no examples: of a layer, or of outputs with the steps first.

        Raises:
            CapabilityError: a layer whose credit the rule delivers has other rows; or there are as
                many steps as examples, and the examples' order changes that of the second axis.
        """
        self._check_layers_rows(trace, len(encoded))
        outputs, formed = trace.outputs, getattr(self.substrate, "outputs", None) is not None
        if len(encoded) < 2 or not (formed or (outputs.dim() > 2 and looped(trace))):
            return
        drawn = stream.get_state()
        turned = self._tried(Plan(graph=False), encoded.roll(1, 0), targets.roll(1, 0), stream)
        stream.set_state(drawn)
        again = self._tried(Plan(graph=False), encoded, targets, stream)
        stream.set_state(drawn)
        size = 1e-5 * float(outputs.abs().max())

        def alike(expected: Tensor) -> bool:
            return torch.allclose(turned.outputs, expected, rtol=1e-4, atol=size)

        if alike(outputs.roll(1, 0)):
            return
        name = f"{type(self.network).__name__} returned outputs {list(outputs.shape)}"
        if outputs.dim() > 2 and alike(outputs.roll(1, 1)):
            raise CapabilityError(
                f"{name} whose second axis are the examples: outputs=biograd.Outputs("
                "time_first=...) must say whether its first axis are the steps"
            )
        fixed = torch.allclose(again.outputs, outputs, rtol=1e-4, atol=size)
        if fixed and not any(m.training for m in self.network.modules() if isinstance(m, TIES)):
            raise CapabilityError(
                f"{name} that do not follow the order of the examples: their first axis are none, "
                "or an example acts on another; a module that takes the steps first, [T, B, ...], "
                "needs one around it that gives it inputs.transpose(0, 1)"
            )

    def _check_layers_rows(self, trace: Trace, rows: int) -> None:
        """Refuse a layer that receives examples and steps in one axis."""
        needs = self.estimator.needs & {"perturb_site", "jvp_site"}
        if not needs and not self.estimator.blockwise and self.local is None:
            return
        for name, site in trace.sites.items():
            found = {len(output) for visits in site.visits for output in visits.outputs}
            if found != {rows}:
                raise CapabilityError(
                    f"site {name!r}: its layer receives {max(found)} rows for {rows} examples, and "
                    f"noise and credit of {type(self.estimator).__name__} are an example's own: "
                    "apply what takes one step to every step, biograd.Steps(...), on [B, T, ...]"
                )

    def _has_steps(
        self, trace: Trace, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> bool:
        """Return whether outputs ``[B, T, K]`` are those of the calls of the readout, in turn."""
        name, shape = self.substrate.sites[-1].name, trace.outputs.shape
        count = len(trace.sites[name].visits[0].outputs)
        if len(shape) != 3 or shape[1] != count or count < 2:
            return False

        def first(outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs[:, : count // 2].flatten(1).sum(1)

        if self.keeps:
            self._before.restore()
        seen = self.substrate.run(Plan(), encoded, targets, Objective(first), stream)
        if not seen.loss.requires_grad:
            return False
        calls = seen.sites[name].visits[0].outputs
        found = torch.autograd.grad(seen.loss, calls, allow_unused=True)
        acting = [gradient is not None and bool(gradient.any()) for gradient in found]
        return acting[0] and not any(acting[count // 2 :])

    def _know_currents(
        self, trace: Trace, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> Trace:
        """See whether the inputs vary in time, and make layers that feed one current one site."""
        if isinstance(self.network, Network):
            encoding = self.network.encoding if self.network.steps > 1 else None
            steps = encoded.unbind(1) if encoding is not None and encoding.varying else ()
            varies = any(not torch.equal(steps[0], step) for step in steps[1:])
        else:
            varies = bool(self.hidden) and varying(trace, self.hidden[0])
        self.varying = bool(parallel.average(torch.tensor(float(varies))) > 0)
        if self.estimator.divides_steps and not self._own_neurons:
            trace = self._find_time(trace, encoded, targets, stream)
        if not getattr(self.substrate, "joinable", False):
            return trace
        if self._shares_currents():

            def losses(plan: Plan) -> Tensor:
                if self.differentiable:
                    return self._tried(plan, encoded, targets, stream).losses
                if self.keeps:
                    self._before.restore()
                run = self.substrate.run  # rewards in steps could not tell currents apart
                return run(plan, encoded, targets, Objective(projected), stream).losses

            groups = shared(self.hidden, trace, losses)
            if groups:
                self.substrate.join(groups)
                trace = self._look_again(groups, encoded, targets, stream)
        if self._blockwise and looped(trace):
            layers = {site.name: site.modules for site in self.substrate.sites}
            plan = unlinked(name for names in layers.values() for name in names)
            found = recurrent(layers, self._tried(plan, encoded, targets, stream))
            if found:
                self.substrate.recur(found)
                trace = self._look_again([], encoded, targets, stream)
        return trace

    @property
    def _blockwise(self) -> bool:
        """Whether credit is stopped behind blocks."""
        own = self.estimator.blockwise and (self.unrolled or not self.estimator.divides_steps)
        return own or self.local is not None

    @property
    def _own_neurons(self) -> bool:
        """Whether the network is biograd's, or holds populations of biograd's."""
        return isinstance(self.network, Network) or bool(self.substrate.populations)

    def _find_time(
        self, trace: Trace, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> Trace:
        """See whether the network runs through time by itself."""
        layers = [layer for site in self.substrate.sites[:-1] for layer in site.modules]
        looked = self._foreign(encoded, targets, stream)
        remembering = list(looked.memories(layers))
        self.unrolled = bool(remembering)
        self._check_steps(looked, remembering)
        if self.unrolled and self.local is not None:
            raise CapabilityError(
                f"{type(self.network).__name__} runs through time by itself, where "
                f"{type(self.estimator).__name__} divides the loss of the outputs alone by step: "
                "leave local losses out, or take a network of biograd.build"
            )
        once = [site for site in trace.sites.values() if len(site.visits[0].outputs) == 1]
        counts = {s.visits[0].outputs[0].shape[1] for s in once if s.visits[0].outputs[0].dim() > 2}
        if self.unrolled and any(self.substrate.time(count) for count in sorted(counts)):
            return self._look_again([], encoded, targets, stream)
        return trace

    def _check_steps(self, looked: ForeignNeurons, remembering: Sequence[str]) -> None:
        """Refuse layers that are called once for all steps and whose axes do not tell them.

        Raises:
            CapabilityError: with the layer's name.
        """
        rule = type(self.estimator).__name__
        for name in remembering:
            if not looked.divisible(name):
                raise CapabilityError(
                    f"{type(self.network).__name__}, behind {name!r}, runs through time by itself, "
                    f"and its steps cannot be told apart, so that {rule} would be back-propagation "
                    "under another name: let the layer return [rows, steps, units], or call it "
                    "once a step, and name the neurons, sites=[biograd.Site(..., activity=...)]"
                )

    def _shares_currents(self) -> bool:
        """Return whether layers that feed one current must be one site for this rule."""
        needs, sites = self.estimator.needs, getattr(self.estimator, "sites", "all")
        noisy = bool(needs & {"perturb_site", "jvp_site"})
        return (noisy or self._blockwise) and isinstance(sites, str)

    def _look_again(
        self,
        groups: Sequence[Sequence[str]],
        encoded: Tensor,
        targets: Tensor,
        stream: torch.Generator,
    ) -> Trace:
        """Return what a pass shows of sites that are others than before.

        Args:
            groups: names of sites that are now one.
        """
        trace = self._tried(Plan(graph=False), encoded, targets, stream)
        self._shapes = {name: site.shape for name, site in trace.sites.items()}
        known = {name: size for name, size in self.scales.items() if name in self._shapes}
        fresh = [] if self.step else [names[0] for names in groups]  # else of a checkpoint
        found = root_mean_squares(trace)
        self.scales = known | {name: found[name] or 1.0 for name in fresh}
        return trace


def root_mean_squares(trace: Trace) -> dict[str, float]:
    """Return the root mean square of each site's mean current over the trial; 0 without input."""
    powers = [_power(site) for site in trace.sites.values()]
    found = parallel.average(torch.stack(powers)).sqrt().tolist()
    return dict(zip(trace.sites, found, strict=True))


def _power(site: SiteTrace) -> Tensor:
    mean = site.trial_mean()
    if not all(output.numel() for visits in site.visits for output in visits.outputs):
        return mean.new_zeros(())  # no event arrived
    # squares of 16 bits would be infinite from 256 on
    return (mean if mean.itemsize > 2 else mean.float()).square().mean()
