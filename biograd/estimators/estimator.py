"""The contract of an estimator: plans, and the credit that follows from their traces."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from biograd.contracts import Capability, Plan, Round, Trace
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.ranks.parallel import Division

Reach = Literal["parameters", "blocks", "normalisations", "currents", "readout"]


def arriving(above: Sequence[Tensor], messages: Sequence[Tensor], leaf: Tensor) -> Tensor:
    """Return the gradient at a leaf, zero if nothing above depends on it.

    Args:
        above: the loss, and what lies between it and the leaf with credit of its own.
        messages: their cotangents.
    """
    (found,) = torch.autograd.grad(above, leaf, messages, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def check_chunk(rule: Estimator) -> None:
    """Refuse the length of a part for a rule that runs whole trials.

    Raises:
        RecipeError: with both settings.
    """
    if rule.chunk is not None and not (rule.online or rule.recompute):
        name = "recompute" if rule.exact else "online"
        raise RecipeError(
            f"{type(rule).__name__}: chunk = {rule.chunk}: acts with {name} = true alone"
        )


class Estimator(nn.Module):
    """Decides how the forward passes are run and what credit every layer gets.

    An estimator knows neither what the layers are nor who simulates them.  What it learns itself
    lives in its buffers and parameters, so that it is saved with every checkpoint.

    Attributes:
        needs: what a substrate must be able to do.
        exact: whether the gradient is that of back-propagation, as far as there is one.
        reach: whose gradient follows from the rule's credit: every one of the "parameters"; what
            acts unit by unit in the "blocks" behind the sites' currents, too; of that the
            "normalisations" alone; the layers whose outputs are the sites' "currents", nothing
            else; or the "readout".  What lies outside is refused, frozen or told (``attach``).
        exact_readout: whether the readout has its exact gradient, so that there must be one.
        at_readout: what gradient that is, in words.
        blockwise: whether credit is stopped behind the blocks' activities.
        divides_steps: whether it credits within steps, so that a module which runs through time by
            itself is divided by step from outside (``Round.unrolled``).
        coincides: where the rule is back-propagation itself, in words; "": nowhere.
        unbiased: whether the mean of its gradients is that of back-propagation, where there is a
            derivative, but for terms of second order in the size of its noise.
        may_equal: True if what the rule keeps or learns itself (feedback weights, synthesisers,
            targets) can make its credit that of back-propagation, so that the first step may not
            be refused for it.
        learns_hidden: False if only the readout is trained.
        objective: what hidden layers descend, in words, if it is not the loss of the outputs;
            ``followed`` is then its value.
        passes: forward passes per example and step, in words.
        bias: of the estimate, in words.
        reference: where the rule comes from.
        caveat: where it was measured to learn less than a readout on frozen layers, in words.
        builds: True if ``build`` makes parameters or buffers.
        batch_norm: False if the rule cannot work with batch normalisation in training.
        graphless: True if the rule can learn from losses without a graph, a reward for instance;
            it then perturbs the readout, too.
        closed_loop: why it cannot learn where outputs act on an environment, which gives the next
            inputs, in words; "": it can.
        unbounded: why the cost of bounds of hidden activity would reach no hidden layer, in words.
        one_to_one: True if every hidden unit must have an activity of its own.
        divides: what several processes divide among them and still equal one (``parallel``):
            "examples", if the gradient of a batch is the mean of its examples' gradients, with
            whatever is drawn for them by ``parallel.rows`` and summed over them by
            ``parallel.total``; "copies", if of the copies with perturbed parameters nothing but
            their mean losses is needed; "": nothing, several processes are refused.
        steady: whether it keeps a state for each example, so that what the first layer receives of
            it must stay as it is.
        online: whether it takes its credit while the trial runs, in parts of ``chunk`` steps.
        recompute: whether it stores the states between such parts and runs each part again; its
            credit must be autograd's alone.
        in_time, in_neurons, recurrent: settings that only act where a current has steps, where
            there are neurons of biograd's over time, or recurrent weights.
    """

    needs: frozenset[Capability] = frozenset()
    exact: ClassVar[bool] = False
    reach: ClassVar[Reach] = "currents"
    blockwise: ClassVar[bool] = False
    divides_steps: ClassVar[bool] = False
    coincides: ClassVar[str] = ""
    unbiased: bool = False
    may_equal: ClassVar[bool] = False
    exact_readout: bool = True
    at_readout: str = "the exact gradient of the readout"
    learns_hidden: ClassVar[bool] = True
    objective: ClassVar[str] = ""
    passes: ClassVar[str] = ""
    bias: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    caveat: ClassVar[str] = ""
    builds: bool = False
    batch_norm: ClassVar[bool] = True
    one_to_one: ClassVar[bool] = False
    graphless: bool = False
    closed_loop: ClassVar[str] = ""
    unbounded: ClassVar[str] = ""
    divides: ClassVar[Division] = ""
    in_time: ClassVar[tuple[str, ...]] = ("time_bin",)
    in_neurons: ClassVar[tuple[str, ...]] = ("window",)
    recurrent: ClassVar[tuple[str, ...]] = ("through_time",)
    steady: ClassVar[bool] = False
    online: bool = False
    recompute: bool = False
    chunk: int | None = None

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others, each with the reason.

        Args:
            given: all settings.
        """
        return {}

    def check(self, sites: Sequence[str]) -> None:
        """Refuse, when attached, settings that these sites cannot serve: a name of none of them.

        Raises:
            CapabilityError: with the nearest name.
        """
        asked = getattr(self, "sites", None)
        for name in () if asked is None or isinstance(asked, str) else asked:
            if name not in sites:
                raise CapabilityError(f"no site {name!r}: {nearest(name, sites)}")

    def check_trace(self, trace: Trace) -> None:
        """Refuse, when prepared, what a first clean pass shows not to fit."""

    def build(self, trace: Trace, round: Round) -> None:
        """Make what the estimator itself learns or keeps, once, from the shapes of a clean pass.

        The trace carries its graph; ``round.generator`` is a stream of its own.  Parameters that
        require a gradient are trained by the user's optimiser, by pairs of ``credit``.
        """

    def plans(self, round: Round) -> Iterable[Plan]:
        """Return the plans of one step; a generator may look at ``round.traces`` in between."""
        raise NotImplementedError

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs ``(tensor, cotangent)``; the gradient of the mean loss, 1/B included.

        The engine adds the gradient of the clean loss itself, as far as the plan's cuts let it.
        """
        yield from ()

    @property
    def weighted(self) -> bool:
        """Whether each step of a trial with one loss gets the credit that the readout weighs."""
        return False

    @property
    def part_steps(self) -> int:
        """The number of steps of a part, where a trial is run in parts."""
        return self.chunk or 25

    def late(self, name: str, error: Tensor, trace: Trace, round: Round) -> Tensor:
        """Return the credit of what the readout's filter held of a block before a part.

        Args:
            name: of the block's site.
            error: derivative of the mean loss by the readout's current of then, ``[B, K]``.

        Returns:
            the derivative by the filtered activity of each unit, ``[B, *U]``.
        """
        raise NotImplementedError

    def after(self, traces: Sequence[Trace], round: Round) -> None:
        """Learn what the estimator itself learns; called after the optimiser's step."""

    def followed(self, traces: Sequence[Trace], round: Round) -> Tensor | None:
        """Return the value of ``objective`` in a step, which hidden layers lower; None: none."""
        return None

    def measures(self) -> dict[str, float]:
        """Return what the last step found, by name; the run file keeps it once an epoch."""
        return {}

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        found = {
            name: getattr(self, name, self) for name in inspect.signature(type(self)).parameters
        }
        plain = (str, int, float, tuple, type(None))
        return ", ".join(f"{name}={v!r}" for name, v in found.items() if isinstance(v, plain))
