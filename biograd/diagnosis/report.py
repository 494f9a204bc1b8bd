"""What a probe found, as numbers, as a table and as advice."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from biograd.diagnosis import advice
from biograd.diagnosis.findings import Findings, Layer
from biograd.diagnosis.quality import Measure
from biograd.errors import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


class Diagnosis(Findings):
    """What a probe found; ``print`` it, or ask for its ``advice()``."""

    def advice(self) -> list[str]:
        """Return, line by line, what keeps the network from learning and what to change."""
        return advice.of(self)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it; None for what is not a number."""
        record: dict[str, Any] = _plain(dataclasses.asdict(self))
        return record | {"advice": self.advice()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = self.advice() or ["nothing stands out"]
        marked = [Text.assemble(("→ ", "bold"), line) for line in lines]
        title = Text(self._title(), style="bold")
        credit = [Text(f"credit: {line}", style="dim") for line in self.credit]
        legend = Text(LEGEND, style="dim")
        return Group(title, "", self.table(), "", legend, *credit, self._facts(), *marked)

    def __str__(self) -> str:
        from rich.console import Console

        page = io.StringIO()
        Console(file=page, width=100, no_color=True, highlight=False).print(self)
        return "\n".join(visible(line.rstrip()) for line in page.getvalue().rstrip().split("\n"))

    def _title(self) -> str:
        return f"{self.estimator} on {self.substrate}, against {self.reference}"

    def _facts(self) -> str:
        copies = (
            f", {self.informative:.0%} of the noisy copies change it" if self.copies > 1 else ""
        )
        return (
            f"step {self.step}, {self.examples} examples, {self.draws} draws; loss "
            f"{self.loss:.4g}{copies}{self._noise()}"
        )

    def _noise(self) -> str:
        """Return how long noise stays constant, which layers share it, and a rule's caveat."""
        lines = []
        if self.steps > 1:
            width = self.steps if self.time_bin is None else min(self.time_bin, self.steps)
            whole = "the whole trial, " if width == self.steps else ""
            lines.append(f"noise is constant over {whole}{width} of {self.steps} steps")
        lines += [f"{', '.join(ls)} feed one current: one noise" for ls in self.shared.values()]
        lines += [self.caveat] if self.caveat else []
        return "".join(f"\n{line}" for line in lines)

    def table(self) -> Table:
        """Return the layers as a table for rich."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column(
            "layer", overflow="fold", min_width=max(map(len, [*map(visible, self.layers), *POOLS]))
        )
        shown = {name: write for name, write in COLUMNS.items() if self._has(name)}
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
        for name, layer in self.layers.items():
            table.add_row(visible(name), *(write(layer) for write in shown.values()))
        table.add_section()
        for name, quality in zip(POOLS, (self.hidden, self.overall), strict=True):
            if quality is not None and len(self.layers) > 1:
                pool = Layer("other", quality, math.nan)
                table.add_row(name, *(write(pool) for write in shown.values()), style="bold")
        return table

    def _has(self, column: str) -> bool:
        return column != "step" or any(layer.update is not None for layer in self.layers.values())


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


COLUMNS: dict[str, Callable[[Layer], str]] = {
    "cosine": lambda layer: str(layer.quality.cosine),
    "mean": lambda layer: str(Measure(layer.quality.cosine_of_mean.value)),
    "norm": lambda layer: str(Measure(layer.quality.norm_ratio.value)),
    "sign": lambda layer: _percent(_known(layer.quality.sign_agreement.value)),
    "bias²": lambda layer: str(_positive(layer.quality.squared_bias)),
    "variance": lambda layer: str(layer.quality.variance),
    "|g|": lambda layer: f"{layer.quality.gradient:.2g}",
    "silent": lambda layer: _percent(layer.silent),
    "sat.": lambda layer: _percent(layer.saturated),
    "step": lambda layer: "" if layer.update is None else f"{100 * layer.update:.1g}%",
}
"""Columns of the table: norms as ratios, bias and variance by the squared norm of the gradient."""
LEGEND = (
    "cosine of one draw, of the mean of all; norm, bias² and variance by those of the gradient g"
)
POOLS = ("hidden layers", "all layers")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _positive(measure: Measure) -> Measure:
    return dataclasses.replace(measure, value=max(measure.value, 0.0))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
