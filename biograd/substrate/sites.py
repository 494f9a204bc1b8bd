"""Which layers of a module are sites, and which of them are one."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from biograd.contracts import Site, SiteShape
from biograd.errors import CapabilityError, nearest
from biograd.substrate.network import LAYERS, Network, SynapticLayer

Sites = Sequence[str] | Sequence[Site] | Mapping[str, Sequence[str]]
"""Names of layers, name -> layers that share a current, or sites in full."""


def before(sites: Sequence[Site]) -> dict[str, Site]:
    """Return the site before each whose activity is the input of the site's first layer."""
    return {site.name: one for one, site in pairwise(sites) if one.activity is None}


def find_sites(module: nn.Module, sites: Sites | None) -> tuple[Site, ...]:
    """Return the sites of a module (see ``TorchSubstrate``).

    Raises:
        CapabilityError: a name is not a submodule, or there is no synaptic layer.
    """
    if sites is None and isinstance(module, Network):
        return module.sites
    if sites is None:
        kinds = (*LAYERS, SynapticLayer)
        sites = [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
    if isinstance(sites, Mapping):
        found = [Site(name, tuple(ls), (False,) * len(ls)) for name, ls in sites.items()]
    else:
        found = [s if isinstance(s, Site) else Site(s, (s,), (False,)) for s in sites]
    known = dict(module.named_modules())
    for site in found:
        for name in filter(None, (*site.modules, site.activity, site.current, site.population)):
            if name not in known:
                raise CapabilityError(f"no layer {name!r}: {nearest(name, filter(None, known))}")
        if site.activity is not None and site.activity in site.modules:
            raise CapabilityError(
                f"sites: the activity of {site.name!r} is not what its layer {site.activity!r} "
                "returns, which is its current: name the module behind it, or none"
            )
    for names in ([site.name for site in found], [n for site in found for n in site.modules]):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise CapabilityError(f"sites: {', '.join(sorted(twice))} stands there twice")
    if not found:
        raise CapabilityError(
            f"{type(module).__name__} has no linear or convolutional layer: name its sites"
        )
    return tuple(found)


def check_called(sites: Sequence[Site], called: Container[str]) -> None:
    """Refuse a layer that the user has named and that a pass did not call.

    Raises:
        CapabilityError: with the layer.
    """
    for site in sites:
        for name in site.modules:
            if name not in called:
                raise CapabilityError(
                    f"sites: {name} is never called as a module, so that naming it has no effect: "
                    "leave it out"
                )


class Arranged:
    """The part of a substrate that takes other sites of the same layers than at first.

    Attributes:
        module: the network.
        sites: all, in the order of the data flow.
    """

    module: nn.Module
    sites: tuple[Site, ...]
    _hooks: list[Any]
    _before: dict[str, Site]
    _shapes: dict[str, SiteShape]
    _reached: dict[str, int]

    def time(self, steps: int) -> bool:
        """Take the first axis of a plain module's units as time, where linear layers have it.

        Returns:
            Whether some site is now another.
        """
        plain = () if isinstance(self.module, Network) else self.sites
        found = {s.name: dataclasses.replace(s, time=(True,) * len(s.time))
                 for s in plain if self._in_time(s, steps)}  # fmt: skip
        if found:
            self._now(tuple(found.get(site.name, site) for site in self.sites))
        return bool(found)

    def join(self, groups: Sequence[Sequence[str]]) -> None:
        """Make each group of sites one, which has the first's name and the layers of all."""
        found = {site.name: site for site in self.sites}
        for group in groups:
            layers = tuple(layer for name in group for layer in found[name].modules)
            times = tuple(time for name in group for time in found[name].time)
            joint = dataclasses.replace(found[group[0]], modules=layers, time=times)
            found = {n: joint if n == group[0] else s for n, s in found.items()
                     if n not in group[1:]}  # fmt: skip
        self._now(tuple(found.values()))

    def recur(self, inner: Mapping[str, Sequence[str]]) -> None:
        """Let layers of sites be those that their own block feeds; they stand behind the others."""
        found = []
        for site in self.sites:
            own = tuple(inner.get(site.name, ()))
            order = sorted(range(len(site.modules)), key=lambda at: site.modules[at] in own)
            found.append(
                dataclasses.replace(
                    site,
                    modules=tuple(site.modules[at] for at in order),
                    time=tuple(site.time[at] for at in order),
                    inner=own,
                )
            )
        self._now(tuple(found))

    def _now(self, sites: tuple[Site, ...]) -> None:
        """Take other sites of the same layers."""
        home = {layer: site for site in sites for layer in site.modules}
        for hook in self._hooks:
            layer = hook.site.modules[hook.place]
            if layer in home:
                hook.site, hook.place = home[layer], home[layer].modules.index(layer)
        self.sites = sites
        self._look_again()

    def _look_again(self) -> None:
        """Forget what passes have shown: the sites are others."""
        self._before, self._shapes, self._reached = before(self.sites), {}, {}

    def _in_time(self, site: Site, steps: int) -> bool:
        layers = [self.module.get_submodule(name) for name in site.modules]
        shape = self._shapes[site.name]
        linear = not any(site.time) and all(isinstance(layer, nn.Linear) for layer in layers)
        return linear and shape.steps == 1 < steps and shape.units[:-1] == (steps,)
