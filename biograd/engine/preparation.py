"""What an engine learns of its network, its task and its rule before the first step."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biograd.contracts import ParameterNoise, Plan, Round, Site, SiteShape, Trace
from biograd.contracts.precision import computing, unmixed, widened
from biograd.engine import structure
from biograd.errors import CapabilityError, RecipeError
from biograd.randomness import generator
from biograd.substrate.kept import graph_held
from biograd.substrate.network import Network
from biograd.tasks import Task

if TYPE_CHECKING:
    from biograd.local import LocalLosses
from biograd.engine.batch_checks import (
    check_device,
    checked,
    forward_differentiated,
    inputs_left_alone,
    refused,
)
from biograd.engine.capabilities import check_graphless
from biograd.engine.currents import Structured, root_mean_squares
from biograd.engine.outside import check_callers
from biograd.engine.settings import check_read
from biograd.substrate.calling import callers
from biograd.substrate.finiteness import Places, check_found, check_given, outside, parameters_first


class Prepared(Structured):
    """The part of an engine that looks at the network by passes that leave no trace.

    Attributes:
        scales: root mean square of each hidden site's mean current, a running mean.
    """

    task: Task
    timed: bool
    _prepared: bool
    _detached: bool
    _structure: dict[str, Any]
    _layers: dict[str, nn.Module]
    _outside: Places
    _kept: dict[str, Tensor]

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the last step, which holds its graph."""
        return self.__dict__ | {"_last": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        """Return an engine of its own on a copy of the network, which trains on as this one.

        Raises:
            CapabilityError: a module holds a tensor of the last step's graph.
        """
        copied = memo[id(self)] = object.__new__(type(self))
        # the hooks of the copied network lead to the copied substrate
        memo[id(self.substrate)] = twin = object.__new__(type(self.substrate))
        try:
            twin.__dict__.update(copy.deepcopy(vars(self.substrate), memo))
            copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        except RuntimeError as error:
            raise CapabilityError(
                f"the engine cannot be copied: {', '.join(graph_held(self.network)) or 'a module'} "
                "holds a tensor of the last step's graph: reset or detach it first"
            ) from error
        return copied

    @property
    def _sides(self) -> frozenset[str]:
        return frozenset(site.name for site in self.substrate.sites if site.block is not None)

    def _round(
        self,
        encoded: Tensor,
        targets: Tensor,
        index: Tensor | None,
        stream: torch.Generator,
    ) -> Round:
        sites = self.substrate.sites
        parameters = tuple(p for p in self.network.parameters() if p.requires_grad)
        names = [name for site in sites for name in site.modules]
        if list(self._layers) != names:  # at first, and when their order is known
            self._layers = {name: self.network.get_submodule(name) for name in names}
            self._outside = outside(self.network, self._layers.values())
        return Round(
            batch=encoded.shape[0],
            step=self.step,
            hidden=self.hidden,
            shapes=self._shapes,
            scales=dict(self.scales),
            generator=stream,
            device=encoded.device,
            dtype=computing(parameters[0].dtype),
            parameters=parameters,
            readout=sites[-1].name,
            layers=self._layers,
            site_layers={site.name: site.modules for site in sites},
            targets=targets,
            index=index,
            sides=self._sides,
            inner=_inner(sites),
            timed=self.timed,
            varying=self.varying,
            differentiable=self.differentiable and self.leads,
            unrolled=self.unrolled,
            closed_loop=self.task.closed_loop,
            **self._structure,
        )

    def prepare(self, inputs: Tensor, targets: Tensor) -> None:
        """Learn the sites' order, shapes and scales from first passes that leave no trace.

        Feedback, heads and synthesisers are made then.  The first step does so by itself; later
        calls do nothing.

        Raises:
            CapabilityError: the network, the loss and the estimator do not fit together, or the
                engine is detached.
            RecipeError: the estimator cannot work with these sites.
        """
        if self._detached:
            raise CapabilityError(
                "the engine is detached from its network: attach an estimator to the network again"
            )
        if self._prepared:
            return
        targets = checked(self.task, inputs, targets)
        check_device(self.network, self.streams["noise"].device)
        check_given(self.network, outside(self.network, ()), inputs, self.step)
        stream = generator(self.seed, "prepare", device=self.streams["noise"].device)
        looked = refused(self.network, inputs, targets, self.estimator)
        with self._traceless(stream.device), parameters_first(self.network, self.step), looked:
            self._look(inputs, targets, stream)
        self._prepared = True
        if self._kept:
            self._load_own(self._kept)
            self._kept = {}

    def _look(self, inputs: Tensor, targets: Tensor, stream: torch.Generator) -> None:
        encoded, begun = self.substrate.encode(inputs, stream), stream.get_state()
        with self._opening(encoded, targets) as (encoded, targets):
            self._look_at(encoded, targets, begun, stream)

    def _look_at(
        self, encoded: Tensor, targets: Tensor, begun: Tensor, stream: torch.Generator
    ) -> None:
        with callers(self.network) as inside, inputs_left_alone(self.network, encoded) as shown:
            trace = self._tried(Plan(graph=False), shown, targets, stream)
        check_callers(self.estimator, inside)
        check_found(self.network, [trace], root_mean_squares(trace), self.step)
        self._know_task(trace)
        if not isinstance(self.network, Network):
            self._find_state(trace, encoded, begun, stream)
            self._check_rows(trace, encoded, targets, stream)
            self.timed = self.timed or self._has_steps(trace, encoded, targets, stream)
        if self.timed and self.substrate.time(trace.outputs.shape[1]):
            trace = self._tried(Plan(graph=False), encoded, targets, stream)
        self._shapes = {name: site.shape for name, site in trace.sites.items()}
        if not self.scales:
            found = root_mean_squares(trace)
            self.scales = {name: found[name] or 1.0 for name in self.hidden}
        plan = self._silent_copies(encoded)
        if plan is not None and self.network.training:
            self._check_common_randomness(plan, encoded, targets, stream)
        if not isinstance(self.network, Network):
            self._check_apart(encoded, targets, stream)
        self.estimator.check_trace(trace)
        trace = self._know_currents(trace, encoded, targets, stream)
        steps = max(shape.steps for shape in self._shapes.values())
        divided = self.unrolled or bool(self.substrate.populations)
        check_read(self.estimator, self.substrate.sites, steps, divided)
        self._settle(encoded, targets)
        readout, exact = self.substrate.sites[-1].name, self.differentiable and self.leads
        if not exact and readout not in self.scales:
            self.scales[readout] = root_mean_squares(trace)[readout] or 1.0
        if self.decorrelate is not None and not self.estimator.learns_hidden:
            # only now the order of a plain module's layers is known
            self.decorrelate.only = frozenset(self.substrate.sites[-1].modules)
        noisy = self.hidden if exact else self.substrate.sites
        if self.estimator.needs & {"perturb_site", "jvp_site"} and not noisy:
            raise CapabilityError(
                "there is no hidden site to perturb: the only layer that is called as a module, "
                f"{readout!r}, is the readout: name what else returns a current, "
                "attach(..., sites=[...])"
            )
        with self.withheld.hidden():
            self._check_forward_mode(encoded, targets, stream)
            if self.local is not None or self.estimator.builds:
                self._build(encoded, targets, stream)
            self._check_plans(encoded, targets, stream)

    def _know_task(self, trace: Trace) -> None:
        """See what the outputs tell of the task: shape, steps, and whether there is a graph."""
        self.task.check_outputs(trace.outputs)
        self.timed = self.timed or trace.step_losses is not None
        with torch.enable_grad():
            outputs = trace.outputs.clone().requires_grad_()
            self.differentiable = self.task.losses(outputs, trace.targets).requires_grad
        if not self.differentiable:
            check_graphless(self.estimator, self.task)
        if self.local is not None and (
            trace.targets.is_floating_point() or trace.targets.dim() > 1
        ):
            raise CapabilityError(
                f"local losses need one class for each example, not the targets of "
                f"{type(self.task).__name__}: leave local out"
            )

    def _build(self, encoded: Tensor, targets: Tensor, stream: torch.Generator) -> None:
        """Make local heads, find what they depend on, then make what the estimator keeps."""
        device = self.streams["noise"].device
        trace = self._tried(Plan(), encoded, targets, stream)
        if self.local is not None:
            own = generator(self.seed, "local", device=device)
            round = self._round(encoded, targets, None, own)
            self.local.choose(round.blocks, getattr(self.network, "ends", ()))
            with unmixed(device):
                self.local.build(trace, round, trace.outputs.shape[-1])
            self.local.to(device)
            self.objective = self.local.objective(self.objective)
            trace = self._tried(Plan(), encoded, targets, stream)
            self._structure = self._find_structure(trace, round)
        round = self._round(encoded, targets, None, generator(self.seed, "build", device=device))
        if self.estimator.__dict__.get("built", False):
            raise CapabilityError(
                f"this {type(self.estimator).__name__} was made for another network's shapes: give "
                "every engine an estimator of its own"
            )
        with unmixed(device):
            versions = [parameter._version for parameter in self.network.parameters()]
            self.estimator.build(trace, round)
            if versions != [parameter._version for parameter in self.network.parameters()]:
                self._before.keep_weights(self.network)  # a rule's doing is not hidden
        self.estimator.__dict__["built"] = self.estimator.builds
        self.estimator.to(device)

    def _find_structure(self, trace: Trace, round: Round) -> dict[str, Any]:
        assert self.local is not None
        of = self.objective.local
        with torch.enable_grad(), unmixed(self.streams["noise"].device):
            activity = {name: trace.sites[name].activity for name in of}
            live = {
                n: of[n](widened(a), trace.targets) for n, a in activity.items() if a is not None
            }
        owners = structure.owners(self.hidden, list(of))
        levels = structure.levels(trace, live, owners, self.local.exclusive)
        return {
            "owners": owners,
            "cells": {name: tuple(values.shape[1:]) for name, values in live.items()},
            "levels": levels,
            "parameter_owners": self._parameter_owners(live, owners, round),
            "spread": _Spread(self.local, self._shapes, levels),
        }

    def _parameter_owners(
        self, live: Mapping[str, Tensor], owners: Mapping[str, str], round: Round
    ) -> tuple[str, ...]:
        if "local_vjp" in self.substrate.capabilities:
            return structure.parameter_owners(live, round.parameters)
        # no graph tells: a layer's parameters belong to its site
        of = {
            id(parameter): owners.get(site, "")
            for site, names in round.site_layers.items()
            for name in names
            for parameter in round.layers[name].parameters()
        }
        return tuple(of.get(id(parameter), "") for parameter in round.parameters)

    def _check_plans(self, encoded: Tensor, targets: Tensor, stream: torch.Generator) -> None:
        """Ask for the first plan and see whether its boundaries are tight."""
        round = self._round(encoded, targets, torch.arange(len(encoded)), stream)
        with unmixed(stream.device):
            plan = next(iter(self.estimator.plans(round)))
        if self.keeps and (plan.passes > 1 or self.withheld.exact):
            self._refuse_state()
        self._check_written(plan)
        self._check_transport(plan, encoded, targets, stream)
        if plan.transport.window is not None:  # credit that cannot be cut is refused now
            self._tried(plan, encoded, targets, stream)
        if self.unrolled:  # what cannot be divided by step is refused now, not in the first step
            list(self.estimator.credit([self._tried(plan, encoded, targets, stream)], round))
        boundaries = {*plan.boundaries, *plan.clamp, *self.objective.local} - self._sides
        if not boundaries and "local_vjp" in self.estimator.needs:  # of a later plan
            blocks = Plan(boundaries=frozenset(round.blocks))
            self._tried(blocks, encoded, targets, stream)
        if boundaries and "local_vjp" in self.substrate.capabilities:
            order = [name for name in self.hidden if name in boundaries]
            plan = Plan(boundaries=frozenset(order), detach=plan.detach)
            trace = self._tried(plan, encoded, targets, stream)
            structure.check_boundaries(trace, order)

    def _check_forward_mode(
        self, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> None:
        """Differentiate forward along nothing, to see whether every module can be."""
        needs, drawn = self.estimator.needs, stream.get_state()
        dtype = computing(next(self.network.parameters()).dtype)
        zeros = {
            name: encoded.new_zeros(1, len(encoded), 1, *self._shapes[name].units, dtype=dtype)
            for name in self.hidden
        }
        plan = Plan(tangents=zeros, graph=False)
        if "jvp_parameter" in needs:
            plan = Plan(parameter_tangents=ParameterNoise((0,), (0.0,)), graph=False)
        elif "jvp_site" not in needs:
            return
        with forward_differentiated(self.network, type(self.estimator).__name__):
            self._tried(plan, encoded, targets, stream)
        stream.set_state(drawn)

    def _silent_copies(self, encoded: Tensor) -> Plan | None:
        """Return a plan of two copies without noise; None if the estimator makes no copies."""
        if "perturb_site" in self.estimator.needs:
            name = self.substrate.sites[0].name
            shape = (2, encoded.shape[0], 1, *self._shapes[name].units)
            noise = encoded.new_zeros(shape, dtype=next(self.network.parameters()).dtype)
            return Plan(noise={name: noise}, graph=False)
        if "perturb_parameter" in self.estimator.needs:
            return Plan(parameter_noise=ParameterNoise((0, 0), (0.0, 0.0)), graph=False)
        return None

    def _check_common_randomness(
        self, plan: Plan, encoded: Tensor, targets: Tensor, stream: torch.Generator
    ) -> None:
        """Copies without noise must have the loss of the clean one."""
        found = self._tried(plan, encoded, targets, stream).losses
        if not torch.allclose(found[1:], found[:1], rtol=1e-3, atol=1e-4):
            raise CapabilityError(
                "two copies without noise differ in their loss: the network draws random numbers "
                "outside of dropout modules, or looks at several rows at once, so noise cannot be "
                "told from chance"
            )

    def _load_own(self, state: Mapping[str, Tensor]) -> None:
        with loading(self.estimator):
            self.estimator.load_state_dict(part(state, "estimator."))
            if self.local is not None:
                self.local.load_state_dict(part(state, "local."))


@contextlib.contextmanager
def loading(owner: nn.Module) -> Iterator[None]:
    """Refuse a state of which keys are missing, or shapes differ, by the name of who loads it.

    Raises:
        RecipeError: it does not fit.
    """
    try:
        yield
    except (KeyError, RuntimeError) as error:
        raise RecipeError(
            f"the state does not fit {type(owner).__name__} on this network: load it into an "
            "engine with the estimator, local losses, decorrelation and layers of then"
        ) from error


def _inner(sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
    """Return for each block the layers, of whatever site, that its own activity feeds."""
    found: dict[str, tuple[str, ...]] = {}
    for site in sites:
        own = site.modules[1:] if site.inner is None else site.inner
        found[site.block or site.name] = found.get(site.block or site.name, ()) + own
    return found


@dataclasses.dataclass(frozen=True)
class _Spread:
    """Gives each unit of a site the values of the cells that it acts on (``Round.spread``)."""

    local: LocalLosses
    shapes: Mapping[str, SiteShape]
    levels: Mapping[str, int]

    def __call__(self, name: str, values: Tensor) -> Tensor:
        return self.local.spread(values, self.shapes[name].units, self.levels[name])


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what stands under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
