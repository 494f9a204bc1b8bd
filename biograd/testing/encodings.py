"""What an encoding promises, as a check that also the encodings of other packages pass."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from biograd.encoding import Encoding
from biograd.errors import CheckFailed, RecipeError
from biograd.randomness import generator

ROWS = 5


def check_encoding(encoding: Encoding) -> None:
    """See whether an encoding does what biograd needs of it.

    Inputs from 0 to 1 become ``[B, steps or 1, units]``, finite, in their type, and 0 or 1 where
    they are spikes; they are left as they were, and tell, each row by itself; whatever is drawn
    comes from the generator that is given; a copy in another process encodes the same; every number
    of its own settings changes the code, or is refused by its name.

    Raises:
        CheckFailed: the first promise that is broken, in a line.
    """
    inputs = drawn(encoding, torch.float64)
    for found in itertools.chain(
        _code(encoding, inputs), _chance(encoding, inputs), _settings(encoding, inputs)
    ):
        raise CheckFailed(f"{type(encoding).__name__}: {found}")


def drawn(encoding: Encoding, dtype: torch.dtype, name: str = "inputs") -> Tensor:
    """Return inputs from 0 to 1, ``[B, (T,) *shape]``."""
    shape = (ROWS, *[encoding.steps] * encoding.timed, *encoding.shape)
    return torch.rand(shape, generator=generator(0, name), dtype=dtype)


def _encoded(encoding: Encoding, inputs: Tensor, seed: int = 0) -> Tensor:
    return encoding(inputs, generator(seed, "forward"))


def _code(encoding: Encoding, inputs: Tensor) -> Iterator[str]:
    before = inputs.clone()
    code = _encoded(encoding, inputs)
    if not torch.equal(inputs, before):
        yield "it changes its inputs"
    owed = [[ROWS, steps, encoding.units] for steps in (1, encoding.steps)]
    if list(code.shape) not in owed:
        yield f"the code is {list(code.shape)}, not {owed[1]}, nor with one step"
    elif not code.isfinite().all():
        yield "the code is not finite"
    for dtype in (torch.float32, torch.float64):
        found = _encoded(encoding, inputs.to(dtype)).dtype
        if found != dtype:
            yield f"inputs in {dtype} become {found}"
    if encoding.spikes and not ((code == 0) | (code == 1)).all():
        yield "spikes = True, but values are neither 0 nor 1"
    rows = [_encoded(encoding, row) for row in inputs.split(1)]
    if torch.equal(code, _encoded(encoding, inputs, 1)) and not torch.equal(code, torch.cat(rows)):
        yield "the code of a row depends on the rows beside it"
    if torch.equal(code, _encoded(encoding, drawn(encoding, inputs.dtype, "others"))):
        yield "other inputs have the same code"


def _chance(encoding: Encoding, inputs: Tensor) -> Iterator[str]:
    state = torch.get_rng_state()
    code = _encoded(encoding, inputs)
    if not torch.equal(state, torch.get_rng_state()):
        yield "torch's global generator is drawn from: take the one that is given"
    if not torch.equal(code, _encoded(encoding, inputs)):
        yield "the same inputs and seed have another code the second time"
    if not torch.equal(code, _encoded(pickle.loads(pickle.dumps(encoding)), inputs)):
        yield "a copy in another process encodes something else"


def _settings(encoding: Encoding, inputs: Tensor) -> Iterator[str]:
    code = _encoded(encoding, inputs)
    for field in dataclasses.fields(encoding.settings):
        now: Any = getattr(encoding.settings, field.name)
        if not isinstance(now, int | float):
            continue
        other = _other(encoding, field.name, not now if isinstance(now, bool) else 2 * now or 1)
        if isinstance(other, str):
            if field.name not in other:
                yield f"settings.{field.name} is refused without its name: {other}"
        elif torch.equal(code, _encoded(other, inputs)):
            yield f"settings.{field.name} is ignored"


def _other(encoding: Encoding, name: str, value: Any) -> Encoding | str:
    """Return the encoding with another setting, or the line with which it is refused."""
    settings = {**encoding.recipe.settings, name: value}
    try:
        return type(encoding)(
            dataclasses.replace(encoding.recipe, settings=settings), encoding.shape
        )
    except RecipeError as error:
        return str(error)
