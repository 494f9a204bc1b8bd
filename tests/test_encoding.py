"""Encodings: closed forms, statistics within their own errors, and refusals of one line."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from pictures import message
from torch import Tensor

from biograd.encoding import ENCODINGS, Delta, Encoding, Latency, build
from biograd.errors import DataError, RecipeError
from biograd.recipes import EncodingRecipe

STATIC = [kind for kind in ENCODINGS if not ENCODINGS[kind].timed]
IMAGE = (2, 4, 3)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def recipe(kind: str, **settings: Any) -> EncodingRecipe:
    return EncodingRecipe(kind=kind, **settings)  # type: ignore[arg-type]


def stream(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def images(batch: int = 5, shape: tuple[int, ...] = IMAGE) -> Tensor:
    return torch.rand(batch, *shape, generator=stream(9))


# What every encoding keeps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", STATIC)
def test_contract(kind: str, dtype: torch.dtype) -> None:
    encoding = build(recipe(kind, duration_ms=10, dt_ms=0.5), IMAGE)
    assert (encoding.steps, encoding.dt_ms, encoding.duration_ms) == (20, 0.5, 10)
    encoded = encoding(images().to(dtype), stream())
    assert encoded.dtype == dtype and encoded.shape[0] == 5
    assert encoded.shape[1] in (1, 20) and encoded.shape[2] == encoding.units
    assert encoded.abs().sum() > 0
    assert torch.equal(encoded, encoding(images(), stream()).to(dtype))


@pytest.mark.parametrize("kind", STATIC)
def test_only_the_given_generator_is_drawn_from(kind: str) -> None:
    encoding = build(recipe(kind), IMAGE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = encoding(images(), stream())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(encoding(images(), stream()), first)


@pytest.mark.parametrize("kind", STATIC)
def test_inputs_are_left_alone(kind: str) -> None:
    inputs = images()
    encoded = build(recipe(kind), IMAGE)(inputs, stream())
    encoded.zero_()
    assert torch.equal(inputs, images())


@pytest.mark.parametrize("kind", STATIC)
def test_rows_of_a_batch_do_not_mix(kind: str) -> None:
    inputs, changed = images(), images()
    changed[2] = 1 - changed[2]
    encoding = build(recipe(kind), IMAGE)
    same = (encoding(inputs, stream()) == encoding(changed, stream())).flatten(1).all(1)
    assert same.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("generator_device", DEVICES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", STATIC)
def test_devices(kind: str, device: str, generator_device: str) -> None:
    encoding = build(recipe(kind), IMAGE)
    encoded = encoding(images().to(device), stream(0, generator_device))
    assert encoded.device.type == device
    if generator_device == "cpu":
        on_cpu = encoding(images(), stream())
        assert torch.allclose(encoded.cpu(), on_cpu, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["current", "poisson", "latency"])
def test_flat_data(kind: str) -> None:
    encoding = build(recipe(kind), (7,))
    assert encoding.units == 7
    assert encoding(images(shape=(7,)), stream()).shape[2] == 7


@pytest.mark.parametrize(
    "inputs", [torch.rand(5, 4, 3), torch.rand(2, 4, 3), torch.zeros(5, *IMAGE, dtype=torch.int64)]
)
@pytest.mark.parametrize("kind", STATIC)
def test_inputs_that_do_not_fit(kind: str, inputs: Tensor) -> None:
    encoding = build(recipe(kind), IMAGE)
    text = message(DataError, lambda: encoding(inputs, stream()))
    assert kind in text and "['B', 2, 4, 3]" in text


@pytest.mark.parametrize(
    ("duration", "dt", "steps"), [(20, 1, 20), (0.3, 0.1, 3), (1, 1, 1), (100, 1 / 3, 300)]
)
@pytest.mark.parametrize("kind", ["current", "poisson", "latency"])
def test_steps(kind: str, duration: float, dt: float, steps: int) -> None:
    assert build(recipe(kind, duration_ms=duration, dt_ms=dt), (3,)).steps == steps


@pytest.mark.parametrize(("duration", "dt"), [(20, 0.3), (1, 2), (20.0001, 1), (1, 1e9)])
@pytest.mark.parametrize("kind", STATIC)
def test_trial_that_is_not_whole_steps(kind: str, duration: float, dt: float) -> None:
    text = message(RecipeError, lambda: build(recipe(kind, duration_ms=duration, dt_ms=dt), IMAGE))
    assert "encoding.duration_ms" in text and "multiple of encoding.dt_ms" in text


def test_unknown_kind() -> None:
    text = message(RecipeError, lambda: build(recipe("poison"), (3,)))
    assert "did you mean 'poisson'?" in text


# Current


def test_current() -> None:
    encoding = build(recipe("current", gain=2.5), IMAGE)
    encoded = encoding(images(), stream())
    assert encoded.shape == (5, 1, 24)
    assert torch.equal(encoded, 2.5 * images().reshape(5, 1, 24))


# Poisson


def count(encoding: Encoding, inputs: Tensor, seed: int = 0) -> Tensor:
    return encoding(inputs, stream(seed)).sum(1)


@pytest.mark.parametrize("x", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("rate", [50.0, 200.0, 1000.0])
def test_poisson_rate(x: float, rate: float) -> None:
    """The mean count is n p, within four standard errors; so is the variance n p (1 - p)."""
    units, steps = 4000, 50
    encoding = build(recipe("poisson", max_rate_hz=rate, duration_ms=steps), (units,))
    counts = count(encoding, torch.full((1, units), x)).double()
    p = x * rate / 1000
    variance = steps * p * (1 - p)
    error = math.sqrt(variance / units)
    assert abs(counts.mean().item() - steps * p) <= 4 * error
    fourth = variance * (1 + 3 * (steps - 2) * p * (1 - p))
    spread = math.sqrt(max(fourth - variance**2, 0) / units)
    assert abs(counts.var().item() - variance) <= 4 * spread + variance / units
    if 0 < p < 1:  # a rate of half as much again would be told apart
        assert abs(counts.mean().item() - 1.5 * steps * p) > 4 * error


def test_poisson_counts_follow_time_not_steps() -> None:
    inputs = torch.full((1, 4000), 0.5)
    for dt in (0.1, 1.0):
        encoding = build(recipe("poisson", dt_ms=dt, duration_ms=40), (4000,))
        mean = count(encoding, inputs).mean().item()
        assert abs(mean - 0.5 * 200 * 0.04) <= 4 * math.sqrt(4 / 4000)


def test_poisson_clips_to_zero_and_one() -> None:
    encoding = build(recipe("poisson", max_rate_hz=1000), (3,))
    counts = count(encoding, torch.tensor([[-1.0, 1.0, 7.0]]))
    assert counts.tolist() == [[0, 20, 20]]


def test_poisson_is_binary_and_follows_its_seed() -> None:
    encoding = build(recipe("poisson"), IMAGE)
    first, second = encoding(images(), stream(0)), encoding(images(), stream(1))
    assert set(first.flatten().tolist()) == {0, 1} and not torch.equal(first, second)
    one = stream()
    assert not torch.equal(encoding(images(), one), encoding(images(), one))


@pytest.mark.parametrize(("rate", "dt"), [(1001.0, 1.0), (600.0, 2.0)])
def test_poisson_refuses_more_than_a_spike_a_step(rate: float, dt: float) -> None:
    text = message(RecipeError, lambda: build(recipe("poisson", max_rate_hz=rate, dt_ms=dt), (3,)))
    assert "encoding.max_rate_hz" in text and "encoding.dt_ms" in text


@pytest.mark.parametrize("dt", [0.1, 0.7, 1.0])
def test_poisson_reaches_one_spike_a_step(dt: float) -> None:
    build(recipe("poisson", max_rate_hz=1000 / dt, dt_ms=dt, duration_ms=7), (3,))


# Latency


@pytest.mark.parametrize("dt", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(("tau", "threshold"), [(5.0, 0.1), (12.0, 0.3)])
def test_latency_is_the_closed_form(dt: float, tau: float, threshold: float) -> None:
    settings = {"time_constant_ms": tau, "threshold": threshold, "dt_ms": dt, "duration_ms": 20}
    encoding = build(recipe("latency", **settings), (500,))
    x = torch.linspace(-0.2, 1.5, 500, dtype=torch.float64).unsqueeze(0)
    spikes = encoding(x, stream())[0]
    seen = 0
    for unit, value in enumerate(x[0].tolist()):
        time = tau * math.log(value / (value - threshold)) if value > threshold else math.inf
        fires = time < 20
        assert spikes[:, unit].sum() == fires
        if fires:
            assert spikes[int(time / dt), unit] == 1
            seen += 1
    assert 100 < seen < 500


def test_latency_of_a_simulated_membrane() -> None:
    """Euler steps of ``tau dv/dt = x - v`` reach the threshold when the closed form says so."""
    encoding = build(recipe("latency", time_constant_ms=5.0, threshold=0.2), (4,))
    assert isinstance(encoding, Latency)
    inputs = torch.tensor([[0.25, 0.4, 0.7, 1.0]], dtype=torch.float64)
    voltage, reached, dt = torch.zeros(4, dtype=torch.float64), torch.full((4,), math.inf), 1e-3
    for step in range(1, 20_001):
        voltage += dt / 5.0 * (inputs[0] - voltage)
        reached = torch.where((voltage > 0.2) & reached.isinf(), step * dt, reached)
    assert torch.allclose(encoding.times(inputs)[0], reached.double(), atol=5 * dt)


def test_latency_never_fires_at_the_threshold() -> None:
    encoding = build(recipe("latency", threshold=0.5, duration_ms=1000), (3,))
    spikes = encoding(torch.tensor([[0.0, 0.5, 0.5001]]), stream()).sum(1)
    assert spikes.tolist() == [[0, 0, 1]]


def test_stronger_inputs_fire_sooner() -> None:
    encoding = build(recipe("latency", dt_ms=0.1), (3,))
    first = encoding(torch.tensor([[0.2, 0.5, 1.0]]), stream())[0].argmax(0)
    assert first.tolist() == sorted(set(first.tolist()), reverse=True)


# Rows and delta


@pytest.mark.parametrize("steps", [4, 5, 11, 12])
def test_rows_hold_each_row(steps: int) -> None:
    encoding = build(recipe("rows", gain=3.0, duration_ms=steps), IMAGE)
    encoded = encoding(images(), stream())
    assert encoded.shape == (5, steps, 6)
    for step in range(steps):
        row = images()[:, :, step * 4 // steps].flatten(1)
        assert torch.equal(encoded[:, step], 3 * row)


def test_rows_last_alike() -> None:
    """Every row of an image is held, for the same number of steps give or take one."""
    inputs = torch.arange(28.0).view(1, 1, 28, 1)
    encoded = build(recipe("rows", duration_ms=50), (1, 28, 1))(inputs, stream())
    held = encoded.flatten().long().bincount()
    assert len(held) == 28 and set(held.tolist()) == {1, 2}


@pytest.mark.parametrize("steps", [4, 6, 12])
def test_delta_against_a_loop(steps: int) -> None:
    encoding = build(recipe("delta", duration_ms=steps, threshold=0.2), IMAGE)
    assert encoding.units == 12
    expected = torch.zeros(5, steps, 12)
    for example, channel, row, column in torch.cartesian_prod(
        torch.arange(5), torch.arange(2), torch.arange(1, 4), torch.arange(3)
    ).tolist():
        change = images()[example, channel, row] - images()[example, channel, row - 1]
        unit, step = channel * 3 + column, math.ceil(row * steps / 4)
        expected[example, step, unit] = float(change[column] > 0.2)
        expected[example, step, unit + 6] = float(change[column] < -0.2)
    found = encoding(images(), stream())
    assert torch.equal(found, expected)
    assert found[..., :6].any() and found[..., 6:].any()


def test_delta_of_the_negative_swaps_on_and_off() -> None:
    encoding = build(recipe("delta"), IMAGE)
    one, other = encoding(images(), stream()), encoding(1 - images(), stream())
    assert torch.equal(one[..., :6], other[..., 6:]) and not torch.equal(one, other)


def test_delta_threshold_must_be_exceeded() -> None:
    inputs = torch.tensor([0.0, 0.5, 1.25, 0.75, 0.0]).view(1, 5, 1)
    encoding = build(recipe("delta", threshold=0.5, duration_ms=5), (5, 1))
    spikes = encoding(inputs, stream())[0]
    assert spikes.tolist() == [[0, 0], [0, 0], [1, 0], [0, 0], [0, 1]]


def test_delta_events_fall_in_the_first_step_of_rows() -> None:
    """Both encodings by rows agree on when a row begins."""
    shape = (1, 28, 1)
    inputs = torch.arange(28.0).view(1, *shape)
    shown = build(recipe("rows", duration_ms=50), shape)(inputs, stream()).flatten()
    delta = build(recipe("delta", duration_ms=50, threshold=0.5), shape)
    assert isinstance(delta, Delta)
    events = delta(inputs, stream())[0, :, 0].nonzero().flatten()
    assert torch.equal(events, (shown.diff().nonzero() + 1).flatten())


@pytest.mark.parametrize("kind", ["delta", "rows"])
def test_series_of_features(kind: str) -> None:
    """Data of shape (time, features) count as an image of one channel."""
    inputs = images(shape=(4, 6))
    flat = build(recipe(kind), (4, 6))(inputs, stream())
    assert torch.equal(flat, build(recipe(kind), (1, 4, 6))(inputs.unsqueeze(1), stream()))


@pytest.mark.parametrize("kind", ["delta", "rows"])
def test_rows_need_an_image(kind: str) -> None:
    assert "needs images" in message(RecipeError, lambda: build(recipe(kind), (64,)))


@pytest.mark.parametrize("kind", ["delta", "rows"])
def test_rows_need_a_step_each(kind: str) -> None:
    short = recipe(kind, duration_ms=27, dt_ms=1)
    text = message(RecipeError, lambda: build(short, (1, 28, 28)))
    assert "27 steps for 28 rows" in text and "at least 28" in text
    build(dataclasses.replace(short, duration_ms=28), (1, 28, 28))


def given(steps: int = 9, gain: float = 1.0) -> Encoding:
    return build(EncodingRecipe(kind="given", duration_ms=float(steps), gain=gain), (3,))


def test_given_passes_time_on_and_adds_silence() -> None:
    inputs = torch.rand(4, 7, 3)
    found = given(9, 2.0)(inputs, stream())
    assert torch.equal(found[:, :7], 2 * inputs) and found.shape == (4, 9, 3)
    assert not found[:, 7:].any()


def test_given_refuses_longer_data_and_says_how_long_they_are() -> None:
    text = message(DataError, lambda: given(9)(torch.rand(4, 11, 3), stream()))
    assert "encoding.duration_ms = 9" in text and "set encoding.duration_ms = 11" in text


@pytest.mark.parametrize("kind", ["current", "poisson", "latency"])
def test_data_with_a_time_axis_are_never_flattened(kind: str) -> None:
    static = build(EncodingRecipe(kind=kind), (3,))
    text = message(DataError, lambda: static(torch.rand(4, 7, 3), stream()))
    assert kind in text and "'given'" in text


def test_an_encoding_without_settings_refuses_them() -> None:
    recipe = EncodingRecipe(settings={"width": 3})
    assert "encoding: unknown key settings.width" in message(
        RecipeError, lambda: build(recipe, (3,))
    )
