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

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from biograd import tasks
from biograd.contracts import ActivityBounds, Loss, Objective, Round, Trace
from biograd.contracts.precision import unmixed
from biograd.decorrelation import Decorrelation
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.estimators import Estimator
from biograd.networks import Sites
from biograd.networks import substrate as make_substrate
from biograd.process.memory import keep_memory
from biograd.randomness import generator
from biograd.substrate.kept import Reset, ResetBefore, graph_ended
from biograd.substrate.return_values import Outputs
from biograd.tasks import Task

if TYPE_CHECKING:
    from biograd.local import LocalLosses
from biograd.engine.accounting import Outside, trained
from biograd.engine.batch_checks import checked
from biograd.engine.capabilities import check_bounds, check_capabilities, check_ranks
from biograd.engine.currents import root_mean_squares
from biograd.engine.in_parts.part_checks import in_parts
from biograd.engine.outside import Withheld
from biograd.engine.preparation import Prepared, loading, part
from biograd.engine.step_result import Result, surface
from biograd.engine.verification import verify
from biograd.substrate.finiteness import Places, check_found, check_given, parameters_first

STREAMS = ("encoding", "noise", "dropout", "decorrelation")


class Engine(Prepared):
    """Runs an estimator on a network; made by ``attach``.

    Attributes:
        task: what the outputs are to be.
        timed: whether the task, or the outputs, are in time.
        varying: whether the inputs vary between the steps of a trial; known when prepared.
        differentiable: whether its loss has a graph; known when prepared.
        network: the network as it was given; class, keys and parameters stay as they are.
        substrate: who runs its forward passes.
        scales: root mean square of each hidden site's mean current, a running mean.
        account: who credits each parameter; None before ``prepare`` or the first step.
        leads: whether the outputs follow the readout's current by its exact gradient.
        withheld: the parameters that the rule does not credit.
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
        reset: Reset | None = None,
        outside: Outside = "refuse",
        outputs: Outputs | None = None,
        activity: ActivityBounds | None = None,
    ) -> None:
        if outside not in get_args(Outside):
            raise CapabilityError(
                f"attach: outside = {outside!r}: {nearest(outside, get_args(Outside))}"
            )
        if not isinstance(estimator, Estimator):
            raise CapabilityError(
                f"attach needs an estimator object, as in biograd.WeakGradient(), not {estimator!r}"
            )
        self.network, self.estimator = network, estimator
        self.decorrelate, self.local = decorrelate, local
        if task is not None and loss is not None:
            raise CapabilityError("attach: a task has its own loss: give task or loss, not both")
        self.task = tasks.of_loss(loss or "cross_entropy") if task is None else task
        mine = self.task
        alive = mine.alive if mine.closed_loop else None
        bounds = activity if activity is not None and activity.weight else None
        self.objective = Objective(mine.by_step, {}, mine.vectors, alive, mine.discount, bounds)
        self.timed, self.varying = self.task.timed, False
        self.differentiable = self.task.differentiable
        self.seed, self.step = seed, 0
        self.scales: dict[str, float] = {}
        self.account, self.leads, self.withheld = None, True, Withheld(outside)
        self.unrolled = False
        self._trained: list[int] = []
        self.keeps: tuple[str, ...] = ()
        self._writes: tuple[str, ...] = ()
        self.reset = None if reset is None else ResetBefore(network, reset)
        self._resetting: Any = self.reset and network.register_forward_pre_hook(self.reset)
        keep_memory()
        self.substrate = make_substrate(network, sites, outputs)
        try:
            check_capabilities(estimator, self.substrate, self.task)
            check_bounds(estimator, self.objective, local, self.substrate.sites)
            beside = {"decorrelation": decorrelate, "local losses": local, "activity": bounds}
            self.parts = in_parts(estimator, network, mine, self.substrate, beside, outside)
            device = next(network.parameters()).device
            self.streams = {name: generator(seed, name, device=device) for name in STREAMS}
            if decorrelate is not None:
                decorrelate.attach(self.substrate, self.streams["decorrelation"])
            estimator.to(device)
            if local is not None:
                local.to(device)
        except BaseException:
            self.detach()
            raise
        self._last: tuple[Sequence[Trace], Round] | None = None
        self._powers: dict[str, float] = {}
        self._dtype: torch.dtype | None = None
        self._prepared = self._detached = self._verified = False
        self._structure: dict[str, Any] = {}
        self._layers: dict[str, nn.Module] = {}
        self._outside: Places = []
        self._kept: dict[str, Tensor] = {}

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
        targets = checked(self.task, inputs, targets)
        self._follow()
        check_given(self.network, self._outside, inputs, self.step)
        encoded = self.substrate.encode(inputs, self.streams["encoding"])
        if trained(self.network) != self._trained:  # others are frozen than before
            with self._traceless(encoded.device), self._opening(encoded, targets) as first:
                self._settle(*first)
                with self.withheld.hidden():
                    self._check_forward_mode(*first, self.streams["dropout"])
        begin = self.streams["dropout"].get_state()
        reference = self._reference(encoded, targets, begin)
        with self.withheld.hidden(), graph_ended(self.network, self.keeps):
            round, pairs = self._credited(encoded, targets, index)
        traces = round.traces
        passes = sum(trace.plan.passes for trace in traces)
        if self.withheld.exact:
            pairs += self.withheld.credit(self._plain(encoded, targets, begin))
            passes += 1
        surrogate = surface(traces[0].loss, pairs)
        if not self._verified:
            assert self.account is not None
            known = (self.account, self.estimator, self.network)
            self.account = verify(*known, surrogate, reference)
            self._verified = True
        self._last = (traces, round)
        self.step += 1
        state = (self.network, self.keeps) if self.keeps else None
        return Result(surrogate, traces[0].outputs, traces[0].losses, passes, state)

    def _credited(
        self, encoded: Tensor, targets: Tensor, index: Tensor | None
    ) -> tuple[Round, list[tuple[Tensor, Tensor]]]:
        """Run the rule's passes and return what it makes of them."""
        round = self._round(encoded, targets, index, self.streams["noise"])
        if self.decorrelate is not None:
            self.decorrelate.begin()
        traces, dropout = round.traces, self.streams["dropout"]
        begin = dropout.get_state()
        if self.parts is not None:
            with unmixed(encoded.device):
                pairs = self.parts.step(round, encoded, targets, self.substrate, dropout)
            self._powers = root_mean_squares(traces[0])
            check_found(self.network, traces, self._powers, self.step)
            return round, pairs
        plans = iter(self.estimator.plans(round))
        while (plan := self._next(plans)) is not None:
            if self.keeps and self.reset is None and traces:
                self._refuse_state()
            dropout.set_state(begin)  # all passes of a step share their masks
            counted = self._counted_once() if traces else nullcontext()
            with counted, parameters_first(self.network, self.step):
                traces.append(self._run(plan, encoded, targets))
        self._powers = root_mean_squares(traces[0])
        check_found(self.network, traces, self._powers, self.step)
        with unmixed(encoded.device):
            credit = self.estimator.credit(traces, round)
            return round, [pair for pair in credit if pair[0].requires_grad]  # not the withheld

    def update(self, pace: float = 1.0) -> None:
        """Update what learns by itself: decorrelation and the estimator; after ``backward``.

        Args:
            pace: factor on decorrelation's rate; give it the learning rate's schedule, else the
                matrices go on moving when the weights behind them no longer follow.
        """
        if self._last is None:
            return
        traces, round = self._last
        for name, power in self._powers.items():
            if name in self.scales:
                self.scales[name] = 0.9 * self.scales[name] + 0.1 * (power or 1.0)
        with unmixed(self.streams["noise"].device):
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
            state |= {name + k: v for k, v in part(self._kept, name).items()}
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
        drawn = part(state, "stream.")
        if drawn.keys() != self.streams.keys() or "step" not in state:
            raise RecipeError(
                f"the state does not fit an engine: it must hold step, and the streams "
                f"{', '.join(STREAMS)}: load what engine.state() returned"
            )
        if self.decorrelate is not None:
            with loading(self.decorrelate):
                self.decorrelate.load_state_dict(part(state, "decorrelation."))
        for name, value in drawn.items():
            self.streams[name].set_state(value.cpu())
        self.scales = {name: float(value) for name, value in part(state, "scale.").items()}
        self.step = int(state["step"])
        if self._prepared or not (self.estimator.builds or self.local is not None):
            self._load_own(state)
        else:
            self._kept = dict(state)

    def detach(self) -> nn.Module:
        """Remove every hook and return the network, its parameters as they are now.

        The decorrelating matrices go with the hooks: call ``engine.decorrelate.fold()`` before, or
        the weights act without the transform that they were trained behind.
        """
        self._detached = True
        self.withheld.release()
        self.substrate.close()
        if self._resetting is not None:
            self._resetting.remove()
        if self.decorrelate is not None:
            self.decorrelate.detach()
        return self.network

    def check_ranks(self) -> None:
        """Refuse what several ranks cannot do together as one process would.

        Raises:
            CapabilityError: the rule, or a layer, needs the whole batch in one process.
        """
        check_ranks(self.estimator, self.network)


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
    reset: Reset | None = None,
    outside: Outside = "refuse",
    outputs: Outputs | None = None,
    activity: ActivityBounds | None = None,
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
        reset: how a network that keeps a state from pass to pass is put back before every one: a
            function of the network, or the name of its modules' method (snnTorch's "reset_mem",
            SpikingJelly's "reset").
        outside: what becomes of trainable parameters that the rule does not credit: "refuse" the
            network, "freeze" them, or give them the "exact" gradient of back-propagation.
        outputs: what of a module's return value its outputs are, where it returns more than they
            are or the steps first.
        activity: bounds of hidden units' activity, whose cost is a part of the loss.

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
    made = Engine(
        network,
        estimator,
        decorrelate,
        local,
        task=task,
        loss=loss,
        seed=seed,
        sites=sites,
        reset=reset,
        outside=outside,
        outputs=outputs,
        activity=activity,
    )
    if estimator.caveat:
        _tell(f"{type(estimator).__name__}: {estimator.caveat}")
    if decorrelate is not None and decorrelate.passed_over:
        _tell(decorrelate.passed_over)
    return made


@functools.cache
def _tell(line: str) -> None:
    """Log a line, once in a process."""
    logging.getLogger("biograd").warning(line)
