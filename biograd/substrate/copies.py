"""Copies of a batch must differ in nothing but the perturbation, not by chance of their own.

Dropout draws one mask for the clean batch (that of whole trials however often it is called) and
repeats it in every copy, as noisy neurons do with their noise; batch normalisation takes its
statistics from the clean batch, updates its running statistics with them once, and applies them to
every copy.  Otherwise the difference of two copies' losses measures chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from biograd.errors import CapabilityError
from biograd.randomness import generator
from biograd.ranks import parallel
from biograd.substrate.normalisation import Dropout, trial

Hook = torch.utils.hooks.RemovableHandle


@dataclasses.dataclass
class SharedRandomness:
    """The masks and statistics of the clean copy of the current round.

    Attributes:
        recording: True in the clean copy, False in the noisy ones, None outside a round.
    """

    module: nn.Module
    stream: torch.Generator | None = None
    recording: bool | None = None
    alone: bool = False
    handles: list[Hook] = dataclasses.field(default_factory=list)
    masks: dict[nn.Module, list[Tensor]] = dataclasses.field(default_factory=dict)
    calls: dict[nn.Module, int] = dataclasses.field(default_factory=dict)
    statistics: dict[nn.Module, list[tuple[Tensor, Tensor]]] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        for name, layer in self.module.named_modules():
            if isinstance(layer, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
                raise CapabilityError(
                    f"{name} ({type(layer).__name__}): copies cannot share its masks; use Dropout"
                )
        for layer in self.module.modules():
            if isinstance(layer, _DropoutNd):
                self.handles.append(layer.register_forward_pre_hook(self._before_drop))
                self.handles.append(layer.register_forward_hook(self._after_drop, always_call=True))
            elif isinstance(layer, _BatchNorm):
                self.handles.append(layer.register_forward_pre_hook(self._before_norm))
                self.handles.append(layer.register_forward_hook(self._after_norm, always_call=True))
            elif getattr(layer, "draws_noise", False):
                layer.__dict__["shared"] = self

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        for layer in self.module.modules():
            layer.__dict__.pop("shared", None)

    def draw(self, layer: nn.Module, rows: int, shape: tuple[int, ...]) -> Tensor:
        """Return normal noise ``[rows, *shape]`` for a layer that asks: one draw for all copies."""
        visit = self._visit(layer)
        if self.recording:
            stream = self.stream or generator(0, "noise")
            draws = parallel.rows(
                lambda count: torch.randn(count, *shape, generator=stream, device=stream.device),
                rows,
            )
            self.masks.setdefault(layer, []).append(draws)
        draws = self.masks[layer][visit]
        return draws.repeat(rows // len(draws), *[1] * len(shape))

    @contextmanager
    def clean(self, alone: bool = False) -> Iterator[None]:
        """Record masks and statistics.

        Args:
            alone: no other copy follows, and nobody needs the statistics.
        """
        self.masks, self.statistics, self.alone = {}, {}, alone
        with self._as(True):
            yield

    @contextmanager
    def noisy(self) -> Iterator[None]:
        """Repeat the recorded masks and statistics."""
        with self._as(False):
            yield

    @contextmanager
    def _as(self, recording: bool) -> Iterator[None]:
        self.recording, self.calls = recording, {}
        try:
            yield
        finally:
            self.recording = None

    def _visit(self, layer: nn.Module) -> int:
        self.calls[layer] = self.calls.get(layer, -1) + 1
        return self.calls[layer]

    def _before_drop(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Apply the shared mask to the input and let the layer itself pass it on.

        Before and not after the layer: one that works in place has then lost its input.
        """
        if self.recording is None or not layer.training:
            return None
        assert isinstance(layer, _DropoutNd)
        values, whole = inputs[0], isinstance(layer, Dropout)
        visit = 0 if whole else self._visit(layer)
        layer.training = False
        layer.__dict__["biograd_dropped"] = True
        masks = self.masks.setdefault(layer, [])
        if self.recording and not (whole and masks):
            masks.append(self._mask(layer, values))
        mask = masks[-1 if self.recording else visit]
        copies = values.shape[0] // mask.shape[0]
        return (values * mask.repeat(copies, *[1] * (mask.dim() - 1)),)

    def _mask(self, layer: _DropoutNd, values: Tensor) -> Tensor:
        if self.stream is None or self.stream.device != values.device:
            raise RuntimeError("no random stream for dropout on this device")
        stream, shape = self.stream, _mask_shape(layer, values)
        keep = parallel.rows(
            lambda count: (
                torch.rand((count, *shape[1:]), generator=stream, device=values.device) >= layer.p
            ),
            shape[0],
        )
        return keep.to(values.dtype) / max(1 - layer.p, 1e-12)

    def _after_drop(self, layer: nn.Module, inputs: object, output: object) -> None:
        if layer.__dict__.pop("biograd_dropped", False):
            layer.training = True

    def _before_norm(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if self.recording is None or not layer.training:
            return
        assert isinstance(layer, _BatchNorm)
        if self.recording and self.alone:
            return
        if self.recording:
            values = inputs[0].detach()
            axes = [axis for axis in range(values.dim()) if axis != 1]
            found = (values.mean(axes), values.var(axes, correction=0))
            self.statistics.setdefault(layer, []).append(found)
            return
        mean, variance = self.statistics[layer][self._visit(layer)]
        layer.__dict__["biograd_kept"] = (layer.running_mean, layer.running_var)
        layer.running_mean, layer.running_var, layer.training = mean, variance, False

    def _after_norm(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        kept = layer.__dict__.pop("biograd_kept", None)
        if kept is not None:
            layer.running_mean, layer.running_var = kept
            layer.training = True


def _mask_shape(layer: _DropoutNd, values: Tensor) -> tuple[int, ...]:
    """Channel dropout (``Dropout2d`` and its kind) drops whole channels, ours whole trials."""
    if isinstance(layer, Dropout):
        return tuple(trial(values).shape)
    if isinstance(layer, (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return (*values.shape[:2], *[1] * (values.dim() - 2))
    return tuple(values.shape)
