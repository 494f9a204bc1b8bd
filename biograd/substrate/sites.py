"""Which layers of a module are sites."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import pairwise

from torch import nn

from biograd.contracts import Site
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
