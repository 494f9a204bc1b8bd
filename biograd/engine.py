"""The engine: plan, run, credit, pullback.

::

    engine = biograd.attach(network, biograd.WeakGradient(copies=17))
    result = engine(inputs, targets)
    result.backward(); optimiser.step(); optimiser.zero_grad(); engine.update()

``result.surrogate`` is a scalar whose value is the clean loss and whose gradient is the
estimator's credit, ``loss + sum <z, delta> - <z, delta>.detach()``; so loss scaling, gradient
accumulation and every torch optimiser work on it unchanged.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from biograd import parallel, structure, tasks
from biograd.circuit.projections import Sparse
from biograd.contracts import Loss, Objective, ParameterNoise, Plan, Round, Site, SiteShape, Trace
from biograd.decorrelation import Decorrelation
from biograd.errors import BiogradError, CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, Estimator
from biograd.networks import Sites
from biograd.networks import substrate as make_substrate
from biograd.randomness import generator
from biograd.substrate.network import LAYERS
from biograd.tasks import Task

if TYPE_CHECKING:
    from biograd.local import LocalLosses

STREAMS = ("encoding", "noise", "dropout", "decorrelation")


@dataclasses.dataclass(frozen=True)
class Result:
    """What one step found.

    Attributes:
        surrogate: scalar whose value is the mean clean loss and whose gradient is the credit.
        outputs: clean outputs ``[B, ...]``.
        losses: ``[S, B]``, one loss per copy and example, copy 0 clean; of the copies and examples
            of this rank.
        passes: times that an example went forward, all plans together (``Plan.passes``).
    """

    surrogate: Tensor
    outputs: Tensor
    losses: Tensor
    passes: int

    @property
    def loss(self) -> Tensor:
        """The mean clean loss, without a graph."""
        return self.losses[0].mean()

    @property
    def informative(self) -> float:
        """Share of the noisy copies whose loss differs from the clean one; 1 without copies."""
        if len(self.losses) == 1:
            return 1.0
        return float((self.losses[1:] != self.losses[:1]).float().mean())

    def backward(self) -> None:
        """Add the credit to the ``.grad`` of every parameter."""
        self.surrogate.backward()


class Engine:
    """Runs an estimator on a network; made by ``attach``.

    Attributes:
        task: what the outputs are to be.
        timed: whether the task is one in time.
        differentiable: whether its loss has a graph; known when prepared.
        network: the network as it was given; class, keys and parameters stay as they are.
        substrate: who runs its forward passes.
        scales: root mean square of each hidden site's mean current, a running mean.
    """

    def __init__(
        self,
        network: nn.Module,
        estimator: Estimator,
        decorrelate: Decorrelation | None = None,
        local: LocalLosses | None = None,
        *,
        task: Task | None = None,
        loss: str | Loss | None = None,
        seed: int = 0,
        sites: Sites | None = None,
    ) -> None:
        if not isinstance(estimator, Estimator):
            raise CapabilityError(
                f"attach needs an estimator object, as in biograd.WeakGradient(), not {estimator!r}"
            )
        self.network, self.estimator = network, estimator
        self.decorrelate, self.local = decorrelate, local
        if task is not None and loss is not None:
            raise CapabilityError("attach: a task has its own loss: give task or loss, not both")
        self.task = tasks.of_loss(loss or "cross_entropy") if task is None else task
        self.objective = Objective(self.task.by_step)
        self.timed, self.differentiable = self.task.timed, self.task.differentiable
        self.seed, self.step = seed, 0
        self.scales: dict[str, float] = {}
        self.substrate = make_substrate(network, sites)
        try:
            self._check_capabilities()
            device = next(network.parameters()).device
            self.streams = {name: generator(seed, name, device=device) for name in STREAMS}
            if decorrelate is not None:
                decorrelate.attach(
                    self.substrate, self._decorrelated(), self.streams["decorrelation"]
                )
            estimator.to(device)
            if local is not None:
                local.to(device)
        except BaseException:
            self.detach()
            raise
        self._last: tuple[Sequence[Trace], Round] | None = None
        self._prepared = self._detached = False
        self._structure: dict[str, Any] = {}
        self._layers: dict[str, nn.Module] = {}
        self._kept: dict[str, Tensor] = {}

    def _check_capabilities(self) -> None:
        """Refuse at once, naming everything that is missing."""
        self.estimator.check([site.name for site in self.substrate.sites])
        missing = sorted(self.estimator.needs - self.substrate.capabilities)
        if missing:
            able = ", ".join(sorted(self.substrate.capabilities))
            raise CapabilityError(
                f"{type(self.estimator).__name__} needs {', '.join(missing)}, which the substrate "
                f"{self.substrate.name!r} cannot do (it can: {able})"
                + "".join(f": {reason}" for reason in self.substrate.limits[:1])
            )
        for name, layer in self.network.named_modules():
            if isinstance(layer, _BatchNorm) and not self.estimator.batch_norm:
                raise CapabilityError(
                    f"{type(self.estimator).__name__}: {name} ({type(layer).__name__}) ties the "
                    "examples of a batch together: use layer normalisation"
                )
        if self.estimator.one_to_one:
            self._check_mixing()
        if not self.differentiable:
            self._check_graphless()
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise CapabilityError(f"{type(self.network).__name__} has no trainable parameter")

    def _check_graphless(self) -> None:
        """Refuse a rule that needs the gradient of a loss without one."""
        if not self.estimator.graphless:
            able = ", ".join(
                sorted({kind.__name__ for kind in ESTIMATORS.values() if kind.graphless})
            )
            raise CapabilityError(
                f"{type(self.estimator).__name__} needs the gradient of the loss, and "
                f"{type(self.task).__name__} has none: take {able}"
            )

    def _check_mixing(self) -> None:
        """Refuse modules behind a hidden site that give other units than they take."""
        first, reached = self.substrate.sites[0].modules if self.hidden else (), False
        for name, layer in self.network.named_modules():
            reached |= name in first
            mixes = getattr(layer, "mixes", "")
            if reached and mixes:
                raise CapabilityError(
                    f"{type(self.estimator).__name__} needs an activity for each current: {name} "
                    f"{mixes}: take WeakGradient or NodePerturbation"
                )

    def check_ranks(self) -> None:
        """Refuse what several ranks cannot do together as one process would.

        Raises:
            CapabilityError: the rule, or a layer, needs the whole batch in one process.
        """
        rule, division = type(self.estimator).__name__, self.estimator.divides
        if not division:
            raise CapabilityError(
                f"{rule} does not say what several processes could divide: train it in one, "
                "without torchrun"
            )
        for name, layer in self.network.named_modules():
            if isinstance(layer, _BatchNorm) and division == "examples":
                raise CapabilityError(
                    f"{name} ({type(layer).__name__}) ties the examples of a batch together, which "
                    "several processes divide: use layer normalisation, or train in one process"
                )

    def _decorrelated(self) -> tuple[str, ...]:
        """Return the layers whose input is to be decorrelated; a sparse one, unless rates are
        given by layer, to be refused: its input would need a dense matrix."""
        whole = self.decorrelate is not None and not isinstance(self.decorrelate.rate, Mapping)
        kinds = (*LAYERS, Sparse) if whole else LAYERS
        layers = [name for site in self.substrate.sites for name in site.modules]
        return tuple(n for n in layers if isinstance(self.network.get_submodule(n), kinds))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the sites that can be perturbed and cut: all but the readout."""
        return tuple(site.name for site in self.substrate.sites[:-1])

    @property
    def _sides(self) -> frozenset[str]:
        return frozenset(site.name for site in self.substrate.sites if site.block is not None)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the optimiser trains: the network's parameters, then the estimator's.

        Raises:
            CapabilityError: the estimator, or a local loss, has parameters whose shapes are not
                known yet.
        """
        if not self._prepared and (self.estimator.builds or self.local is not None):
            raise CapabilityError(
                f"{type(self.local or self.estimator).__name__} keeps tensors of its own, made for "
                "the network's shapes: call engine.prepare(inputs, targets) with a batch first"
            )
        return self._parameters()

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self.network.parameters()
        yield from self.estimator.parameters()
        if self.local is not None:
            yield from self.local.parameters()

    def __call__(self, inputs: Tensor, targets: Tensor, index: Tensor | None = None) -> Result:
        """Run one step on a batch and return its result; nothing is updated yet.

        Args:
            inputs: ``[B, ...]``.
            targets: ``[B, ...]``.
            index: rows of the examples in the data set, for estimators that keep one state each.

        Raises:
            CapabilityError: the loss is not one number per example, a site does not exist, or the
                engine is detached.
            BiogradError: a loss or a current is not finite.
        """
        self.prepare(inputs, targets)
        encoded = self.substrate.encode(inputs, self.streams["encoding"])
        round = self._round(encoded, targets, index, self.streams["noise"])
        self._check_finite(())
        if self.decorrelate is not None:
            self.decorrelate.begin()
        traces, dropout = round.traces, self.streams["dropout"]
        begin = dropout.get_state()
        for plan in self.estimator.plans(round):
            dropout.set_state(begin)  # all passes of a step share their masks
            with self._counted_once() if traces else nullcontext():
                traces.append(self._run(plan, encoded, targets))
        self._check_finite(traces)
        pairs = list(self.estimator.credit(traces, round))
        self._last = (traces, round)
        self.step += 1
        trace = traces[0]
        passes = sum(trace.plan.passes for trace in traces)
        return Result(_surface(trace.loss, pairs), trace.outputs, trace.losses, passes)

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

    def _check_finite(self, traces: Sequence[Trace]) -> None:
        finite = all(math.isfinite(scale) for scale in self.scales.values())
        found = [losses for t in traces for losses in (t.losses, *t.means.values())]
        if finite and all(bool(torch.isfinite(losses).all()) for losses in found):
            return
        if not self.step:
            raise BiogradError(
                "the loss is not finite before the first update: lower the initial weights "
                "(network.gain), the input (encoding.gain) or the rule's noise (sigma), or see "
                "whether the data are finite"
            )
        raise BiogradError(
            f"the loss is not finite at step {self.step + 1}: lower the learning rate "
            "(training.learning_rate) or that of decorrelation (decorrelation.rate)"
        )

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
        return Round(
            batch=encoded.shape[0],
            step=self.step,
            hidden=self.hidden,
            shapes=self._shapes,
            scales=dict(self.scales),
            generator=stream,
            device=encoded.device,
            dtype=parameters[0].dtype,
            parameters=parameters,
            readout=sites[-1].name,
            layers=self._layers,
            site_layers={site.name: site.modules for site in sites},
            targets=targets,
            index=index,
            sides=self._sides,
            inner=_inner(sites),
            timed=self.timed,
            differentiable=self.differentiable,
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
                "the engine is detached from its network, as a copy of an engine always is: attach "
                "an estimator to the network again"
            )
        if self._prepared:
            return
        stream = generator(self.seed, "prepare", device=self.streams["noise"].device)
        kept = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        devices = [stream.device] if stream.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                self._look(inputs, targets, stream)
        finally:
            with torch.no_grad():
                for name, buffer in self.network.named_buffers():
                    if name in kept and buffer.shape == kept[name].shape:
                        buffer.copy_(kept[name])
            if self.decorrelate is not None:
                self.decorrelate.forget()
        self._prepared = True
        if self._kept:
            self._load_own(self._kept)
            self._kept = {}

    def _look(self, inputs: Tensor, targets: Tensor, stream: torch.Generator) -> None:
        encoded = self.substrate.encode(inputs, stream)
        trace = self.substrate.run(Plan(graph=False), encoded, targets, self.objective, stream)
        self._check_finite([trace])
        self._know_task(trace)
        if self.timed and self.substrate.time(trace.outputs.shape[1]):
            trace = self.substrate.run(Plan(graph=False), encoded, targets, self.objective, stream)
        self._shapes = {name: site.shape for name, site in trace.sites.items()}
        if not self.scales:
            readout = () if self.differentiable else (self.substrate.sites[-1].name,)
            self.scales = _scales(trace, (*self.hidden, *readout))
        if self.decorrelate is not None and not self.estimator.learns_hidden:
            # only now the order of a plain module's layers is known
            self.decorrelate.only = frozenset(self.substrate.sites[-1].modules)
        noisy = self.hidden if self.differentiable else self.substrate.sites
        if self.estimator.needs & {"perturb_site", "jvp_site"} and not noisy:
            raise CapabilityError("there is no hidden site to perturb: the network has one layer")
        plan = self._silent_copies(encoded)
        if plan is not None and self.network.training:
            self._check_common_randomness(plan, encoded, targets, stream)
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
            self._check_graphless()
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
        trace = self.substrate.run(Plan(), encoded, targets, self.objective, stream)
        if self.local is not None:
            own = generator(self.seed, "local", device=device)
            round = self._round(encoded, targets, None, own)
            self.local.choose(round.blocks, getattr(self.network, "ends", ()))
            self.local.build(trace, round, trace.outputs.shape[-1])
            self.local.to(device)
            self.objective = self.local.objective(self.objective.loss)
            trace = self.substrate.run(Plan(), encoded, targets, self.objective, stream)
            self._structure = self._find_structure(trace, round)
        round = self._round(encoded, targets, None, generator(self.seed, "build", device=device))
        if self.estimator.__dict__.get("built", False):
            raise CapabilityError(
                f"this {type(self.estimator).__name__} was made for another network's shapes: give "
                "every engine an estimator of its own"
            )
        self.estimator.build(trace, round)
        self.estimator.__dict__["built"] = self.estimator.builds
        self.estimator.to(device)

    def _find_structure(self, trace: Trace, round: Round) -> dict[str, Any]:
        assert self.local is not None
        of = self.objective.local
        with torch.enable_grad():
            activity = {name: trace.sites[name].activity for name in of}
            live = {n: of[n](a, trace.targets) for n, a in activity.items() if a is not None}
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
        plan = next(iter(self.estimator.plans(round)))
        boundaries = {*plan.boundaries, *plan.clamp, *self.objective.local} - self._sides
        if boundaries and "local_vjp" in self.substrate.capabilities:
            order = [name for name in self.hidden if name in boundaries]
            plan = Plan(boundaries=frozenset(order), detach=plan.detach)
            trace = self.substrate.run(plan, encoded, targets, self.objective, stream)
            structure.check_boundaries(trace, order)

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
        found = self.substrate.run(plan, encoded, targets, self.objective, stream).losses
        if not torch.allclose(found[1:], found[:1], rtol=1e-3, atol=1e-4):
            raise CapabilityError(
                "two copies without noise differ in their loss: the network draws random numbers "
                "outside of dropout modules, so noise cannot be told from chance"
            )

    def update(self, pace: float = 1.0) -> None:
        """Update what learns by itself: decorrelation and the estimator; after ``backward``.

        Args:
            pace: factor on decorrelation's rate; give it the learning rate's schedule, else the
                matrices go on moving when the weights behind them no longer follow.
        """
        if self._last is None:
            return
        traces, round = self._last
        known = traces[0].sites  # in their order, which is that of every rank
        seen = [s.name for s in self.substrate.sites if s.name in self.scales and s.name in known]
        for name, new in _scales(traces[0], seen).items():
            self.scales[name] = 0.9 * self.scales[name] + 0.1 * new
        if self.decorrelate is not None:
            self.decorrelate.update(pace)
        self.estimator.after(traces, round)
        self._last = None

    def state(self) -> dict[str, Tensor]:
        """Return all state beside the network's own, as a flat dictionary of tensors."""
        state = {f"estimator.{k}": v for k, v in self.estimator.state_dict().items()}
        if self.decorrelate is not None:
            state |= {f"decorrelation.{k}": v for k, v in self.decorrelate.state_dict().items()}
        if self.local is not None:
            state |= {f"local.{k}": v for k, v in self.local.state_dict().items()}
        for name in ("estimator.", "local."):  # loaded, but not in its place yet
            state |= {name + k: v for k, v in _part(self._kept, name).items()}
        state |= {f"stream.{name}": s.get_state() for name, s in self.streams.items()}
        state |= {
            f"scale.{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.scales.items()
        }
        state["step"] = torch.tensor(self.step)
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned.

        What the estimator or a local loss makes for the network's shapes is restored when they
        are known, in ``prepare`` or the first step.

        Raises:
            RecipeError: the state is of another estimator, or of a network of other shapes.
        """
        if self.decorrelate is not None:
            self.decorrelate.load_state_dict(_part(state, "decorrelation."))
        for name, value in _part(state, "stream.").items():
            self.streams[name].set_state(value.cpu())
        self.scales = {name: float(value) for name, value in _part(state, "scale.").items()}
        self.step = int(state["step"])
        if self._prepared or not (self.estimator.builds or self.local is not None):
            self._load_own(state)
        else:
            self._kept = dict(state)

    def _load_own(self, state: Mapping[str, Tensor]) -> None:
        try:
            self.estimator.load_state_dict(_part(state, "estimator."))
            if self.local is not None:
                self.local.load_state_dict(_part(state, "local."))
        except (KeyError, RuntimeError) as error:  # keys are missing, or shapes differ
            raise RecipeError(
                f"the state does not fit {type(self.estimator).__name__} on this network: load it "
                "into an engine with the estimator, local losses and layers that it was saved from"
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Return a detached copy: the hooks of a copied network lead nowhere."""
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        copied._detached = True
        return copied

    def detach(self) -> nn.Module:
        """Remove every hook and return the network, its parameters as they are now.

        The decorrelating matrices go with the hooks: call ``engine.decorrelate.fold()`` before, or
        the weights act without the transform that they were trained behind.
        """
        self._detached = True
        self.substrate.close()
        if self.decorrelate is not None:
            self.decorrelate.detach()
        return self.network


def attach(
    network: nn.Module,
    estimator: Estimator,
    decorrelate: Decorrelation | None = None,
    local: LocalLosses | None = None,
    *,
    task: Task | None = None,
    loss: str | Loss | None = None,
    seed: int = 0,
    sites: Sites | None = None,
) -> Engine:
    """Attach an estimator to a network by forward hooks and return the engine.

    Args:
        network: any ``nn.Module``, or a network of ``biograd.build``.
        estimator: decides what is run and what credit follows.
        decorrelate: acts on every synaptic layer's input, with any estimator.
        local: losses at hidden sites, each of which trains its own block.
        task: what the outputs are to be; its losses are minimised.
        loss: in place of a task "cross_entropy" (the default) or "squared_error" of classes, or a
            function of outputs and targets that returns one loss per row, ``[B]``, or per step of
            outputs in time, ``[B, T]``.
        seed: of the engine's own random streams.
        sites: names of layers, or name -> layers that share a current, or ``Site`` objects, the
            readout included; by default all linear and convolutional layers.  The one called last
            is the readout.

    Raises:
        CapabilityError: lists everything that the substrate cannot do for this estimator.

    >>> import biograd, torch
    >>> network = biograd.build("ann", inputs=4, classes=3)
    >>> engine = biograd.attach(network, biograd.WeakGradient(copies=5))
    >>> result = engine(torch.randn(8, 4), torch.arange(8) % 3)
    >>> result.losses.shape
    torch.Size([5, 8])
    >>> result.backward(); network.blocks[0].synapse.weight.grad.shape
    torch.Size([30, 4])
    >>> engine.detach() is network
    True
    """
    return Engine(
        network, estimator, decorrelate, local, task=task, loss=loss, seed=seed, sites=sites
    )


def _inner(sites: Sequence[Site]) -> dict[str, tuple[str, ...]]:
    """Return for each block the layers, of whatever site, that its own activity feeds."""
    found: dict[str, tuple[str, ...]] = {}
    for site in sites:
        own = site.modules[1:] if site.inner is None else site.inner
        found[site.block or site.name] = found.get(site.block or site.name, ()) + own
    return found


def _surface(loss: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = loss
    for tensor, cotangent in pairs:
        if tensor.requires_grad:
            term = (tensor * cotangent.detach().to(tensor.dtype)).sum()
            total = total + (term - term.detach())
    return total


@dataclasses.dataclass(frozen=True)
class _Spread:
    """Gives each unit of a site the values of the cells that it acts on (``Round.spread``)."""

    local: LocalLosses
    shapes: Mapping[str, SiteShape]
    levels: Mapping[str, int]

    def __call__(self, name: str, values: Tensor) -> Tensor:
        return self.local.spread(values, self.shapes[name].units, self.levels[name])


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _scales(trace: Trace, names: Sequence[str]) -> dict[str, float]:
    """Return the root mean square of each site's mean current over the trial; 1 without input."""
    if not names:
        return {}
    powers = [trace.sites[name].trial_mean().square().mean() for name in names]
    found = parallel.average(torch.stack(powers)).sqrt().tolist()
    return {name: scale if scale > 0 else 1.0 for name, scale in zip(names, found, strict=True)}
