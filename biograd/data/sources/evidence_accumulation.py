"""Evidence accumulation: cues to the left and right, a delay, and the question which were more."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from torch import Tensor

from biograd.checking import Checked, Count, Fraction, NotNegative, Positive, Range
from biograd.data.request import Parts, Request, Rows, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.errors import RecipeError
from biograd.randomness import generator
from biograd.tasks import MISSING

NAME = "evidence_accumulation"
RECALL, BACKGROUND = 2, 3


@dataclasses.dataclass(frozen=True)
class EvidenceSettings(Checked):
    """Of the trials; ``shape`` of the recipe says how many inputs there are, a quarter a group.

    Attributes:
        cues: in a trial; an odd number, so that one side has more.
        pause_ms, cue_ms: silence before each cue, and its length.
        delay_ms, recall_ms: silence behind the cues, and how long the answer is asked for.
        rate_hz, background_hz: of a cue or the recall, and of the background.
        fidelity: probability that a cue lies on the side that was drawn for the trial.
        train_rows, test_rows: numbers of trials.
        seed: of all trials; each has a stream of its own, so that numbers change none of them.
    """

    cues: Count = 7
    pause_ms: NotNegative = 20.0
    cue_ms: Positive = 40.0
    delay_ms: NotNegative = 180.0
    recall_ms: Positive = 60.0
    rate_hz: Positive = 40.0
    background_hz: NotNegative = 10.0
    fidelity: Fraction = 0.7
    train_rows: Rows = 1280
    test_rows: Rows = 320
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cues % 2:
            raise ValueError(f"cues = {self.cues}: must be odd, so that one side has more")


@with_settings(EvidenceSettings)
def read(request: Request, settings: EvidenceSettings) -> Parts:
    """Return trials of spikes, 0 or 1, ``[N, T, units]``; targets ``[N, T]``: 0 left, 1 right.

    The answer is the side of most cues, asked for during the recall and not known before.  Groups
    of inputs, a quarter each: left and right cues, recall, background.  Chance is 0.5.

    Raises:
        RecipeError: a setting is not valid, or a part is not a whole number of steps.

    Source: G. Bellec et al., Nature Communications 11:3625 (2020), whose trials take 2250 ms: 7
    cues of 100 ms 50 ms apart, a delay of 1050 ms and a recall of 150 ms.
    """
    request.without_files()
    if request.units() % 4:
        raise RecipeError(f"dataset {request.name}: shape = [{request.units()}]: must be 4 groups")
    counts = {"train": settings.train_rows, "test": settings.test_rows}
    return Parts({split: _split(request, settings, split, n) for split, n in counts.items()})


def _split(request: Request, settings: EvidenceSettings, split: str, rows: int) -> Arrays:
    """Return the trials of a split."""
    sides = torch.stack([draw_sides(settings, split, row) for row in range(rows)])
    rates = chances(request, settings, sides)
    inputs = torch.empty(*rates.shape[:2], request.units())
    for row, rate in enumerate(rates):
        stream = generator(settings.seed, NAME, split, row, "spikes")
        drawn = torch.rand(inputs.shape[1:], generator=stream)
        inputs[row] = drawn < rate.repeat_interleave(request.units() // 4, 1)
    answer = (2 * sides.sum(1) > settings.cues).long()
    targets = answer[:, None].repeat(1, inputs.shape[1])
    targets[:, : -request.steps("recall_ms", settings.recall_ms)] = MISSING
    return Arrays(inputs, targets, timed=True)


def draw_sides(settings: EvidenceSettings, split: str, row: int) -> Tensor:
    """Return the side of each cue of a trial, ``[cues]``."""
    stream = generator(settings.seed, NAME, split, row, "sides")
    side = torch.randint(2, (1,), generator=stream)
    same = torch.rand(settings.cues, generator=stream) < settings.fidelity
    return torch.where(same, side, 1 - side)


def chances(request: Request, settings: EvidenceSettings, sides: Tensor) -> Tensor:
    """Return the probability of a spike of each group in each step, ``[N, T, 4]``."""
    pause, cue, delay, recall = (
        request.steps(key, getattr(settings, key))
        for key in ("pause_ms", "cue_ms", "delay_ms", "recall_ms")
    )
    active = request.chance("rate_hz", settings.rate_hz)
    cued = torch.zeros(len(sides), settings.cues, pause + cue, 4)
    cued[:, :, pause:, :2] = active * torch.nn.functional.one_hot(sides, 2)[:, :, None]
    found = torch.nn.functional.pad(cued.flatten(1, 2), (0, 0, 0, delay + recall))
    found[:, -recall:, RECALL] = active
    found[..., BACKGROUND] = request.chance("background_hz", settings.background_hz)
    return found
