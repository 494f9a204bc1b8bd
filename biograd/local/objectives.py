"""Local losses: each is a module that turns a block's activity and the targets into losses.

Activities are ``[rows, *units]`` or, in time, ``[rows, steps, *units]``; losses ``[rows, *cells]``.
To add one: write a class with the arguments of ``LocalHead``, and name it in ``LOCAL_LOSSES``.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.local.aggregator import replicated_cross_entropy
from biograd.local.partition import Cells, by_patches, channel_count
from biograd.ranks import parallel
from biograd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a head is made for.

    Attributes:
        units: shape of the activity, without rows and time.
        temporal: whether the activity has a time axis.
        normalise: whether each group of channels is layer-normalised first.
        beta: weight of the similarity loss beside the prediction.
        stream: of its initial weights.
        like: a tensor of the device and type of the activity.
    """

    units: tuple[int, ...]
    temporal: bool
    classes: int
    cells: Cells
    normalise: bool
    beta: float
    stream: torch.Generator
    like: Tensor

    def draw(self, *shape: int) -> Tensor:
        """Return a weight ``[out, in]``: normal, standard deviation ``1 / sqrt(in)``."""
        values = torch.randn(
            shape, generator=self.stream, device=self.stream.device, dtype=torch.float64
        )
        return (values / math.sqrt(shape[-1])).to(self.like)


class LocalHead(nn.Module):
    """Prepares an activity: averages it over time, normalises its groups."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.temporal, self.normalise = setting.temporal, setting.normalise
        self.groups, self.beta = setting.cells.groups, setting.beta

    def prepared(self, activity: Tensor) -> Tensor:
        """Return the activity ``[rows, P, C]``."""
        values = by_patches(activity.mean(1) if self.temporal else activity)
        if not self.normalise:
            return values
        grouped = values.unflatten(-1, (self.groups, -1))
        return functional.layer_norm(grouped, grouped.shape[-1:]).flatten(-2)


class CrossEntropy(LocalHead):
    """``-log softmax(W h + b)[target]``, with ``h`` the activity averaged over patches."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.cells = setting.cells
        self.weight = nn.Parameter(setting.draw(setting.classes, channel_count(setting.units)))
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))

    def forward(self, activity: Tensor, targets: Tensor) -> Tensor:
        """Return the losses ``[rows, *cells]``."""
        grouped = self.cells.arrange(self.prepared(activity))
        return self.cells.pick(replicated_cross_entropy(grouped, self.weight, self.bias, targets))


class Similarity(LocalHead):
    """Similarity matching: rows of one class alike, rows of different classes not.

    ``L_i = mean over j of (S(A h)_ij - S(y)_ij)^2`` with ``S`` the cosine of centred rows, ``y``
    one-hot targets and a trained map ``A`` of each patch's channels; for several patches ``S`` is
    that of the channels' standard deviations over the patches.

    Why only row ``i`` is live in ``L_i``, doubled: every pair is in two rows' losses, so that the
    gradient of the mean is that of the plain mean over pairs, while a row's loss depends on none
    but its own activity, as directional derivatives of single rows need.  So that noise at row
    ``i`` finds the same, the value is ``2 L_i`` minus the mean over rows, whose mean is that of
    ``L_i``.

    Source: Nokland & Eidnes 2019, arXiv 1901.06656; there ``A`` is a 3x3 convolution for maps.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        channels = channel_count(setting.units)
        self.classes = setting.classes
        self.map = nn.Parameter(setting.draw(channels, channels))

    def forward(self, activity: Tensor, targets: Tensor) -> Tensor:
        """Return the losses ``[rows]``."""
        mapped = functional.linear(self.prepared(activity), self.map)
        if mapped.shape[1] == 1:
            rows = mapped[:, 0]
        else:  # a small constant: the root has no derivative at zero
            rows = (mapped.var(1, correction=0) + 1e-12).sqrt()
        found = _directions(rows)
        wanted = _directions(functional.one_hot(targets, self.classes).to(rows.dtype))
        others = parallel.gather(found), parallel.gather(wanted)  # the rows of all ranks
        error = found @ others[0].detach().T - wanted @ others[1].T
        losses = error.square().mean(1)
        return 2 * losses - parallel.average(losses.detach().mean())


class PredSim(LocalHead):
    """Prediction and similarity: ``(1 - beta) L_prediction + beta L_similarity``.

    Source: Nokland & Eidnes 2019, arXiv 1901.06656.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.prediction, self.similarity = CrossEntropy(setting), Similarity(setting)

    def forward(self, activity: Tensor, targets: Tensor) -> Tensor:
        """Return the losses ``[rows]``."""
        prediction = self.prediction(activity, targets)
        return (1 - self.beta) * prediction + self.beta * self.similarity(activity, targets)


class FixedReadout(LocalHead):
    """Cross-entropy of a fixed random readout in every time step, averaged over the steps.

    ``L = mean over t of -log softmax(G h[t])[target]``; only the units learn, ``G`` does not.

    Source: Kaiser, Mostafa & Neftci 2020 (DECOLLE), with the cross-entropy as the step's loss.
    """

    readout: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.register_buffer("readout", setting.draw(setting.classes, math.prod(setting.units)))

    def forward(self, activity: Tensor, targets: Tensor) -> Tensor:
        """Return the losses ``[rows]``."""
        steps = activity if self.temporal else activity.unsqueeze(1)
        logits = functional.linear(steps.flatten(2), self.readout)
        targets = targets.unsqueeze(1).expand(-1, logits.shape[1])
        return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def _directions(rows: Tensor) -> Tensor:
    """Return the rows, centred and of length 1; a row of equal values stays zero."""
    return functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)


LOCAL_LOSSES: Registry[type[LocalHead]] = Registry(
    "biograd.local_losses",
    {
        "cross_entropy": CrossEntropy,
        "predsim": PredSim,
        "similarity": Similarity,
        "fixed_readout": FixedReadout,
    },
)
