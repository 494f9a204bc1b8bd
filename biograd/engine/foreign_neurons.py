"""Neurons of a user's own modules: memories and thresholds in which no plan's transport acts.

Why by trying: a rule that passes credit in another way than back-propagation does so in biograd's
populations alone, and a module does not say what it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from biograd.contracts import Plan, SiteTrace, Trace, Transport
from biograd.errors import CapabilityError
from biograd.estimators.tangents import gathered

SIZE = 1e-2
"""Noise by which it is looked whether losses follow, relative to the current."""
DRAWS = 3


Found = tuple[list[Tensor], Sequence[Tensor]]
"""Outputs of a module, call by call, and what follows with their derivatives."""


@dataclasses.dataclass(frozen=True)
class ForeignNeurons:
    """Looks at what follows some modules of a network.

    Attributes:
        run: runs a plan on a batch.
        passes: stream of random numbers of the passes, which all draw the same.
        stream: of the noise.
        cut: transport that cuts credit before every step in biograd's populations, if any.
    """

    network: nn.Module
    run: Callable[[Plan], Trace]
    passes: torch.Generator
    stream: torch.Generator
    cut: Transport

    def memories(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the modules whose outputs act on later steps, though every step is cut."""
        for name in names:
            outputs, values = self._look(Plan(slots=True, transport=self.cut), name)
            nearest = _nearest(outputs, values)
            if nearest is not None and self._remembers(name, nearest, outputs, values[nearest]):
                yield name

    def _remembers(self, name: str, nearest: int, outputs: list[Tensor], values: Tensor) -> bool:
        current = _by_rows(values, outputs[0])
        several = len(outputs) > 1 and (values.dim() < 2 or values.shape[1] != len(outputs))
        standing = len(outputs) == 1 and values.dim() == outputs[0].dim() + 1
        summed = len(outputs) == 1 and outputs[0].dim() > 2 and not _has_steps(current, outputs[0])
        if several or standing or summed:
            uncut, later = self._look(Plan(slots=True), name)
            found = _gradients(values.sum(), outputs), _gradients(later[nearest].sum(), uncut)
            foreign = _alike(*found)
            if several:  # no axis tells the calls apart
                return foreign
            if foreign and standing and _standing(values, outputs[0]):
                return True
            if summed:
                return foreign and self._interplay(name, nearest, outputs[0], values)
        return _through_time(values, outputs)

    def _interplay(self, name: str, nearest: int, current: Tensor, values: Tensor) -> bool:
        """Return whether what came before changes how a sum over steps follows later ones."""
        weights, middle = self._signs(values), current.shape[1] // 2
        noise = self._small(current) / SIZE
        noise[:, middle:] = 0
        (other,), moved = self._look(Plan(slots=True, transport=self.cut), name, [noise])
        before = _gradients((values * weights).sum(), [current])
        after = _gradients((moved[nearest] * weights).sum(), [other])
        late = [g[:, middle:] for g in (*before, *after) if g is not None]
        return len(late) == 2 and not torch.allclose(late[0], late[1], 1e-4, 1e-7)

    def divisible(self, name: str) -> bool:
        """Return whether a module's steps can be told: calls, or the second axis of its output."""
        outputs, values = self._look(Plan(slots=True, transport=self.cut), name)
        nearest = _nearest(outputs, values)
        if nearest is None or len(outputs) > 1:
            return True
        current, value = outputs[0], values[nearest]
        examples = len(values[-2]) if len(values) > 1 else len(current)
        return len(current) == examples == len(value) and _along(1, value, current)

    def thresholds(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the modules whose outputs pass a threshold with a derivative of its own.

        That derivative is the same whatever a plan's derivative of spikes, and what follows the
        threshold does not follow it: central differences tell.
        """
        kinds = (torch.zeros_like, torch.ones_like)
        plans = [Plan(slots=True, transport=Transport(derivative=kind)) for kind in kinds]
        for name in names:
            (outputs, values), (others, changed) = (self._look(plan, name) for plan in plans)
            nearest = _nearest(outputs, values)
            if nearest is None:
                continue
            weights = self._signs(values[nearest])
            slopes = _gradients((values[nearest] * weights).sum(), outputs)
            foreign = _alike(slopes, _gradients((changed[nearest] * weights).sum(), others))
            if foreign and not self._follows(name, nearest, weights, outputs, slopes):
                yield name

    def _follows(
        self,
        name: str,
        nearest: int,
        weights: Tensor,
        outputs: list[Tensor],
        slopes: Sequence[Tensor | None],
    ) -> bool:
        """Return whether weighted values follow a module's outputs as their derivative says."""

        def value(noise: Sequence[Tensor] = ()) -> Tensor:
            return (self._look(Plan(slots=True), name, noise)[1][nearest].detach() * weights).sum()

        clean, again = value(), value()
        if not torch.allclose(clean, again, 1e-5, 1e-6):
            return True  # chance, which noise cannot be told from
        errors, products = [], []
        for _ in range(DRAWS):
            noise = [self._small(output) for output in outputs]
            pairs = zip(slopes, noise, strict=True)
            products.append(torch.stack([(s * n).sum() for s, n in pairs if s is not None]).sum())
            errors.append((value(noise) - value([-one for one in noise])) / 2 - products[-1])
        size = torch.stack(products).norm()
        return bool(torch.stack(errors).norm() <= 0.3 * size + 1e-6 * clean.abs())

    def _look(self, plan: Plan, name: str, noise: Sequence[Tensor] = ()) -> Found:
        """Run a plan, with noise on a module's outputs."""
        outputs: list[Tensor] = []

        def watch(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            outputs.append(output + noise[len(outputs)] if noise else output)
            return outputs[-1].clone()  # operations in place shall not alter what is kept

        handle = self.network.get_submodule(name).register_forward_hook(watch)
        begun = self.passes.get_state()
        try:
            return outputs, list(_values(self.run(plan)))
        finally:
            self.passes.set_state(begun)
            handle.remove()

    def _signs(self, values: Tensor) -> Tensor:
        drawn = torch.rand(values.shape, generator=self.stream, device=self.stream.device)
        return (2 * (drawn < 0.5).float() - 1).to(values)

    def _small(self, output: Tensor) -> Tensor:
        coarse = torch.finfo(output.dtype).eps > 1e-4  # rounding must be less
        size = (10 * SIZE if coarse else SIZE) * output.detach().float().square().mean().sqrt()
        drawn = torch.randn(output.shape, generator=self.stream, device=self.stream.device)
        return (size.to(drawn.device) * drawn).to(output)


def _values(trace: Trace) -> Iterator[Tensor]:
    """Yield what a pass computed, in the order of its sites: inputs of layers, activities, loss."""
    for site in trace.sites.values():
        for calls in (visits.received for visits in site.visits):
            alike = all(one.shape == calls[0].shape for one in calls)
            yield from [torch.stack(calls, 1)] if alike and len(calls) > 1 else calls
        if site.activity is not None:
            yield site.activity
    yield trace.loss


def _nearest(outputs: Sequence[Tensor], values: Sequence[Tensor]) -> int | None:
    """Return the place of the first value that depends on outputs which require a gradient."""
    if not outputs or not outputs[0].requires_grad:
        return None
    for place, value in enumerate(values):
        if any(gradient is not None for gradient in _gradients(value.sum(), outputs)):
            return place
    return None


def _standing(values: Tensor, current: Tensor) -> bool:
    """Return whether what follows a current that stands still goes on: a memory.

    The same units act on several steps, which differ all the same.
    """
    axis = 1 if values.shape[0] == len(current) else 0
    if values.shape[axis] < 2 or torch.equal(values, values.narrow(axis, 0, 1).expand_as(values)):
        return False
    steps = [_gradients(one.sum(), [current])[0] for one in values.unbind(axis)]
    acting = [gradient != 0 for gradient in steps if gradient is not None]
    return bool((torch.stack(acting).sum(0) > 1).any()) if acting else False


def _through_time(values: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Return whether values depend on a current as it was in earlier steps, but not later ones.

    Steps follow one another from call to call, or along the second axis, or, of rows of all steps
    and with steps in front, along the first one.
    """
    if len(outputs) == 1:
        values = _by_rows(values, outputs[0])
        return any(_along(axis, values, outputs[0]) for axis in (0, 1))
    middle = len(outputs) // 2
    past = _leads(values[:, middle:], outputs[:middle])
    return past and not _leads(values[:, :middle], outputs[middle:])


def _by_rows(values: Tensor, current: Tensor) -> Tensor:
    """Return values of all steps in rows if the current is, and the other way round."""
    if values.dim() > 2 and values.shape[0] * values.shape[1] == len(current) != len(values):
        return values.flatten(0, 1)
    if current.dim() > 2 and current.shape[0] * current.shape[1] == len(values) != len(current):
        return values.unflatten(0, current.shape[:2])
    return values


def _has_steps(values: Tensor, current: Tensor) -> bool:
    """Return whether values have the first or second axis of a current as theirs."""
    return values.dim() > 2 and (values.shape[1] == current.shape[1] or len(values) != len(current))


def _along(axis: int, values: Tensor, current: Tensor) -> bool:
    """Return whether values depend on the current before them along an axis, not on that behind."""
    count = current.shape[axis] if current.dim() > axis + 1 else 0
    if count < 2 or values.dim() <= axis or values.shape[axis] != count:
        return False
    for middle in {count // 2, min(count // 2 + 1, count - 1)}:  # one may be where a trial begins
        later, sooner = values.narrow(axis, middle, count - middle), values.narrow(axis, 0, middle)
        (by_later,), (by_sooner,) = (_gradients(v.sum(), [current]) for v in (later, sooner))
        past = by_later is not None and bool(by_later.narrow(axis, 0, middle).any())
        future = by_sooner is not None and bool(
            by_sooner.narrow(axis, middle, count - middle).any()
        )
        if past and not future:
            return True
    return False


def _leads(values: Tensor, tensors: Sequence[Tensor]) -> bool:
    return any(g is not None and bool(g.any()) for g in _gradients(values.sum(), tensors))


def _alike(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Return whether gradients are the same, and not zero."""
    pairs = [
        (one, other)
        for one, other in zip(ones, others, strict=True)
        if one is not None and other is not None
    ]
    live = any(bool(one.any()) for one, _ in pairs)
    return live and all(torch.equal(one, other) for one, other in pairs)


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(tensors)
    return torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)


def smooth(
    run: Callable[[Plan], Trace], first: Trace, names: Iterable[str], stream: torch.Generator
) -> bool:
    """Return whether the losses follow these sites' currents as their derivative says.

    Central differences, ``L(z + e) - L(z - e) = 2 <dL/dz, e>``, tell: a threshold with a surrogate
    derivative does not follow, nor does a simulator that has none.

    Args:
        run: runs a plan on a batch.
        first: a trace of the same batch.
        stream: of the noise.
    """
    noise = {name: _small(first.sites[name], stream) for name in names}
    if not noise:
        return True
    both = {name: torch.cat((0 * one[:1], one, -one)) for name, one in noise.items()}
    trace = run(Plan(noise=both))
    silent, losses = trace.losses[1], trace.losses[2:]
    if not trace.loss.requires_grad or not torch.allclose(silent, trace.losses[0], 1e-3, 1e-4):
        return True  # nothing to follow, or chance that noise cannot be told from
    try:
        slopes = {name: gathered(trace.sites[name], trace.loss, None) for name in noise}
    except CapabilityError:  # a simulator says so
        return False
    products = [(slopes[name] * one).flatten(2).sum(2) for name, one in noise.items()]
    expected = len(trace.outputs) * torch.stack(products).sum(0)
    plus, minus = losses.unflatten(0, (2, -1))
    error = ((plus - minus) / 2 - expected).norm()
    return bool(error <= 0.3 * expected.norm() + 1e-5 * trace.losses.abs().max())


def _small(site: SiteTrace, stream: torch.Generator) -> Tensor:
    """Return noise ``[m, B, 1, *U]``, small against the site's current."""
    mean = site.trial_mean()
    shape = (DRAWS, len(mean), 1, *mean.shape[1:])
    draw = torch.randn(shape, generator=stream, device=stream.device).to(mean)
    coarse = torch.finfo(site.visits[0].outputs[0].dtype).eps > 1e-4  # rounding must be less
    return draw * ((10 * SIZE if coarse else SIZE) * mean.square().mean().sqrt())
