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

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.contracts import Loss, ParameterNoise, Plan, Round, Trace
from biograd.decorrelation import Decorrelation
from biograd.errors import BiogradError, CapabilityError, nearest
from biograd.estimators import Estimator
from biograd.networks import substrate as make_substrate
from biograd.networks.network import LAYERS
from biograd.randomness import generator


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``-log softmax(outputs)[target]`` for every row."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ``|outputs - one_hot(target)|^2 / 2`` for every row; targets may be vectors."""
    if targets.dim() < outputs.dim():
        targets = functional.one_hot(targets, outputs.shape[-1])
    return 0.5 * (outputs - targets.to(outputs.dtype)).square().flatten(1).sum(1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "squared_error": squared_error}

STREAMS = ("encoding", "noise", "dropout", "decorrelation")


@dataclasses.dataclass(frozen=True)
class Result:
    """What one step found.

    Attributes:
        surrogate: scalar whose value is the mean clean loss and whose gradient is the credit.
        outputs: clean outputs ``[B, ...]``.
        losses: ``[S, B]``, one loss per copy and example, copy 0 clean.
    """

    surrogate: Tensor
    outputs: Tensor
    losses: Tensor

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
        network: the network as it was given; class, keys and parameters stay as they are.
        substrate: who runs its forward passes.
        scales: root mean square of each hidden site's mean current, a running mean.
    """

    def __init__(
        self,
        network: nn.Module,
        estimator: Estimator,
        decorrelate: Decorrelation | None = None,
        *,
        loss: str | Loss = "cross_entropy",
        seed: int = 0,
        sites: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not isinstance(estimator, Estimator):
            raise CapabilityError(
                f"attach needs an estimator object, as in biograd.WeakGradient(), not {estimator!r}"
            )
        self.network, self.estimator, self.decorrelate = network, estimator, decorrelate
        self.loss = _checked(_loss(loss))
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
        except BaseException:
            self.detach()
            raise
        self._last: tuple[Sequence[Trace], Round] | None = None
        self._prepared = self._detached = False

    def _check_capabilities(self) -> None:
        """Refuse at once, naming everything that is missing."""
        self.estimator.check([site.name for site in self.substrate.sites])
        missing = sorted(self.estimator.needs - self.substrate.capabilities)
        if missing:
            able = ", ".join(sorted(self.substrate.capabilities))
            raise CapabilityError(
                f"{type(self.estimator).__name__} needs {', '.join(missing)}, which the substrate "
                f"{self.substrate.name!r} cannot do (it can: {able})"
            )
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            raise CapabilityError(f"{type(self.network).__name__} has no trainable parameter")

    def _decorrelated(self) -> tuple[str, ...]:
        layers = [name for site in self.substrate.sites for name in site.modules]
        return tuple(n for n in layers if isinstance(self.network.get_submodule(n), LAYERS))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the sites that can be perturbed and cut: all but the readout."""
        return tuple(site.name for site in self.substrate.sites[:-1])

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the optimiser trains: the network's parameters, then the estimator's."""
        yield from self.network.parameters()
        yield from self.estimator.parameters()

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
        if self._detached:
            raise CapabilityError("the engine is detached from its network: attach it again")
        self.prepare(inputs, targets)
        encoded = self.substrate.encode(inputs, self.streams["encoding"])
        round = self._round(encoded, index, self.streams["noise"])
        self._check_finite(())
        if self.decorrelate is not None:
            self.decorrelate.begin()
        traces = [self._run(plan, encoded, targets) for plan in self.estimator.plans(round)]
        self._check_finite(traces)
        pairs = list(self.estimator.credit(traces, round))
        self._last = (traces, round)
        self.step += 1
        trace = traces[0]
        return Result(_surface(trace.loss, pairs), trace.outputs, trace.losses)

    def _check_finite(self, traces: Sequence[Trace]) -> None:
        finite = all(math.isfinite(scale) for scale in self.scales.values())
        if not (finite and all(bool(torch.isfinite(t.losses).all()) for t in traces)):
            raise BiogradError(
                f"the loss is not finite at step {self.step + 1}: lower the learning rate "
                "(training.learning_rate) or that of decorrelation (decorrelation.rate)"
            )

    def _run(self, plan: Plan, encoded: Tensor, targets: Tensor) -> Trace:
        return self.substrate.run(plan, encoded, targets, self.loss, self.streams["dropout"])

    def _round(self, encoded: Tensor, index: Tensor | None, stream: torch.Generator) -> Round:
        parameters = tuple(p for p in self.network.parameters() if p.requires_grad)
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
            index=index,
        )

    @torch.no_grad()
    def prepare(self, inputs: Tensor, targets: Tensor) -> None:
        """Learn the sites' order, shapes and scales from a first pass that leaves no trace.

        The first step does so by itself; later calls do nothing.

        Raises:
            CapabilityError: the network, the loss and the estimator do not fit together.
            RecipeError: the estimator cannot work with these sites.
        """
        if self._prepared:
            return
        stream = generator(self.seed, "prepare", device=self.streams["noise"].device)
        kept = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        devices = [stream.device] if stream.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                self._look(inputs, targets, stream)
        finally:
            for name, buffer in self.network.named_buffers():
                if name in kept and buffer.shape == kept[name].shape:
                    buffer.copy_(kept[name])
            if self.decorrelate is not None:
                self.decorrelate.forget()
        self._prepared = True

    def _look(self, inputs: Tensor, targets: Tensor, stream: torch.Generator) -> None:
        encoded = self.substrate.encode(inputs, stream)
        trace = self.substrate.run(Plan(graph=False), encoded, targets, self.loss, stream)
        self._check_finite([trace])
        self._shapes = {name: site.shape for name, site in trace.sites.items()}
        if not self.scales:
            self.scales = {name: _scale(trace, name) for name in self.hidden}
        if self.decorrelate is not None and not self.estimator.learns_hidden:
            # only now the order of a plain module's layers is known
            self.decorrelate.only = frozenset(self.substrate.sites[-1].modules)
        if "perturb_site" in self.estimator.needs and not self.hidden:
            raise CapabilityError("there is no hidden site to perturb: the network has one layer")
        plan = self._silent_copies(encoded)
        if plan is not None and self.network.training:
            self._check_common_randomness(plan, encoded, targets, stream)
        self.estimator.plans(self._round(encoded, None, stream))

    def _silent_copies(self, encoded: Tensor) -> Plan | None:
        """Return a plan of two copies without noise; None if the estimator makes no copies."""
        if "perturb_site" in self.estimator.needs:
            name = self.hidden[0]
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
        losses = self.substrate.run(plan, encoded, targets, self.loss, stream).losses
        if not torch.allclose(losses[1:], losses[:1], rtol=1e-3, atol=1e-4):
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
        for name in self.scales:
            if name in traces[0].sites:
                new = _scale(traces[0], name)
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
        state |= {f"stream.{name}": s.get_state() for name, s in self.streams.items()}
        state |= {
            f"scale.{k}": torch.tensor(v, dtype=torch.float64) for k, v in self.scales.items()
        }
        state["step"] = torch.tensor(self.step)
        return {name: value.detach().clone() for name, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.estimator.load_state_dict(part("estimator."))
        if self.decorrelate is not None:
            self.decorrelate.load_state_dict(part("decorrelation."))
        for name, value in part("stream.").items():
            self.streams[name].set_state(value.cpu())
        self.scales = {name: float(value) for name, value in part("scale.").items()}
        self.step = int(state["step"])

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
    *,
    loss: str | Loss = "cross_entropy",
    seed: int = 0,
    sites: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
) -> Engine:
    """Attach an estimator to a network by forward hooks and return the engine.

    Args:
        network: any ``nn.Module``, or a network of ``biograd.build``.
        estimator: decides what is run and what credit follows.
        decorrelate: acts on every synaptic layer's input, with any estimator.
        loss: "cross_entropy", "squared_error", or a function of outputs and targets that returns
            one loss per row.
        seed: of the engine's own random streams.
        sites: names of layers, or name -> layers that share a current, the readout included; by
            default all linear and convolutional layers.  The one called last is the readout.

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
    return Engine(network, estimator, decorrelate, loss=loss, seed=seed, sites=sites)


def _surface(loss: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = loss
    for tensor, cotangent in pairs:
        if tensor.requires_grad:
            term = (tensor * cotangent.detach().to(tensor.dtype)).sum()
            total = total + (term - term.detach())
    return total


def _scale(trace: Trace, name: str) -> float:
    """Return the root mean square of a site's mean current over the trial; 1 without input."""
    value = float(trace.sites[name].trial_mean().square().mean().sqrt())
    return value if value > 0 else 1.0


def _loss(loss: str | Loss) -> Loss:
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise CapabilityError(f"no loss {loss!r}: {nearest(loss, LOSSES)}")
    return LOSSES[loss]


def _checked(loss: Loss) -> Loss:
    def per_example(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = loss(outputs, targets)
        if losses.shape != outputs.shape[:1]:
            raise CapabilityError(
                f"the loss must return one value per example, {tuple(outputs.shape[:1])}, not "
                f"{tuple(losses.shape)}: use reduction='none'"
            )
        return losses

    return per_example
