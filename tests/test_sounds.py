"""Sound: filters against their impulse responses, spikes against their rates, files and lists."""

from __future__ import annotations

import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import message

from biograd import data
from biograd.data.recordings.sounds import SoundSettings, centres, levels, responses, spikes
from biograd.errors import DataError, RecipeError
from biograd.recipes import DatasetRecipe, load_dataset
from biograd.testing import check_source

RATE = 16_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache and folder out of every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BIOGRAD_DATA", raising=False)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def tone(hertz: float, seconds: float = 0.25) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE)


def test_gammatone_is_the_transform_of_its_impulse_response() -> None:
    settings = SoundSettings(bands=5, highest_hz=4000.0)
    middle = centres(settings, RATE, "a")
    frequencies = np.linspace(0, RATE / 2, 400)
    time = np.arange(0, 0.4, 1 / (8 * RATE))
    for centre, found in zip(middle, responses(settings, RATE, frequencies, "a"), strict=True):
        width = 1.019 * (24.7 + 0.108 * centre)
        envelope = (2 * np.pi * width) ** 4 * time**3 * np.exp(-2 * np.pi * width * time) / 6
        impulse = envelope * np.exp(2j * np.pi * centre * time)
        kernel = np.exp(-2j * np.pi * frequencies[::40, None] * time)
        due = (kernel @ impulse) / (8 * RATE)
        assert np.abs(due - found[::40]).max() < 1e-3


def test_centres_are_equally_far_apart_on_the_scale_of_the_ear() -> None:
    middle = centres(SoundSettings(bands=70), RATE, "a")
    assert middle[[0, -1]].tolist() == pytest.approx([100, 0.45 * RATE])
    scale = 21.4 * np.log10(1 + 0.00437 * middle)
    assert np.allclose(np.diff(scale), np.diff(scale)[0], rtol=1e-6)
    mel = centres(SoundSettings(bands=40, filters="mel"), RATE, "a")
    assert np.allclose(np.diff(2595 * np.log10(1 + mel / 700), 2), 0, atol=1e-6)


def test_mel_triangles_add_up_to_one_between_their_centres() -> None:
    settings = SoundSettings(bands=12, filters="mel")
    middle = centres(settings, RATE, "a")
    frequencies = np.linspace(middle[0], middle[-1], 300)
    power = np.abs(responses(settings, RATE, frequencies, "a")) ** 2
    assert np.allclose(power.sum(0), 1)


@pytest.mark.parametrize("filters", ["gammatone", "mel"])
@pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_its_band(filters: Any, hertz: float) -> None:
    settings = SoundSettings(bands=40, filters=filters)
    found = levels(settings, tone(hertz), RATE, "a")
    middle = centres(settings, RATE, "a")
    assert found.shape == (250, 40) and found.min() >= 0 and found.max() == 1
    nearest = np.abs(middle - hertz).argsort()[:2]  # the next one is wider
    assert found[100:150].mean(0).argmax() in nearest


def test_levels_are_decibels_below_the_loudest() -> None:
    settings = SoundSettings(bands=20)
    loud, soft = tone(1000.0, 0.5), tone(1000.0, 0.5) * 0.1
    found = levels(settings, np.concatenate([loud, soft]), RATE, "a")
    band = found[200].argmax()
    assert found[300, band] - found[800, band] == pytest.approx(20 / 40, abs=0.01)
    assert not levels(settings, np.zeros(100), RATE, "a").any()


def test_spikes_are_whole_numbers_of_the_integrated_rate() -> None:
    settings = SoundSettings(bands=3, peak_hz=250.0)
    found = np.tile([1.0, 0.5, 0.0], (1000, 1))
    events = spikes(settings, found)
    for band, rate in enumerate((250, 125, 0)):
        times = events.times[events.places[:, 0] == band] * 1e-6
        due = (np.arange(rate) + 0.5) / rate if rate else np.zeros(0)
        assert len(times) == rate and np.allclose(times, due, atol=2e-6)
    assert (np.diff(events.times) >= 0).all()


def test_several_spikes_in_a_step_of_a_millisecond() -> None:
    events = spikes(SoundSettings(bands=1, peak_hz=3500.0), np.ones((10, 1)))
    assert len(events) == 35 and np.allclose(np.diff(events.times), 1e6 / 3500, atol=2)


def commands(folder: Path, words: int = 3) -> None:
    """Write a folder in the layout of Speech Commands."""
    for number, word in enumerate(["no", "up", "yes"][:words]):
        for speaker in ("0a", "1b", "2c", "3d"):
            write(folder / word / f"{speaker}_nohash_0.wav", tone(400.0 * (number + 1)))
    write(folder / "_background_noise_" / "hum.wav", tone(60.0, 1.0))
    (folder / "validation_list.txt").write_text("no/2c_nohash_0.wav\nyes/2c_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("no/3d_nohash_0.wav\n")


def load(folder: Path, **keys: Any) -> data.Dataset:
    recipe = load_dataset("speech_commands")
    table = {**{k: getattr(recipe, k) for k in recipe.__dataclass_fields__}, **keys}
    return data.load(
        DatasetRecipe(**table), name="speech_commands", data_dir=folder, offline=True, timed=True,
        dt_ms=10.0,
    )  # fmt: skip


SMALL: dict[str, Any] = {"classes": 3, "shape": (16,), "binning": {}}


def test_speech_commands_follow_their_lists(tmp_path: Path) -> None:
    commands(tmp_path)
    loaded = load(tmp_path, settings={"bands": 16}, **SMALL)
    assert loaded.validation is not None and loaded.test is not None
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (9, 2, 1)
    assert loaded.test.targets is not None and loaded.test.targets.tolist() == [0]
    inputs = loaded.train.take(torch.arange(9)).inputs
    middle = inputs.sum(1).argmax(1)
    assert middle[0] < middle[3] < middle[6]  # words are tones
    check_source(loaded.train)


def test_levels_are_currents(tmp_path: Path) -> None:
    commands(tmp_path)
    settings = {"bands": 16, "code": "levels"}
    loaded = load(tmp_path, settings=settings, **SMALL)
    inputs = loaded.train.take(torch.arange(2)).inputs
    found = levels(SoundSettings(bands=16), _heard(tmp_path / "no" / "0a_nohash_0.wav"), RATE, "a")
    due = found.reshape(25, 10, 16).mean(1)
    assert inputs.shape == (2, 25, 16) and np.allclose(inputs[0], due, atol=1e-6)
    check_source(loaded.train)


def _heard(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(10**6), "<i2") / 2**15


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"settings": {"bands": 16, "code": "levels"}, "augmentation": {"drop": 0.1}},
            "is of spikes",
        ),
        ({"settings": {"bands": 16, "lowest_hz": 9000.0}}, "the sampling rate is 16000 Hz"),
        ({"settings": {"bands": 16, "filter": "mel"}}, "did you mean 'filters'"),
        ({"settings": {"bands": 16, "filters": "bark"}}, "filters"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    commands(tmp_path)
    with pytest.raises((DataError, RecipeError), match=expected):
        load(tmp_path, **{**SMALL, **change})


def test_a_list_that_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    commands(tmp_path)
    (tmp_path / "testing_list.txt").write_text("no/4e_nohash_0.wav\n")
    said = message(DataError, lambda: load(tmp_path, **SMALL))
    assert "4e_nohash_0.wav: is in testing_list.txt, but not there" in said


def test_own_folders_of_sounds_and_their_speakers(tmp_path: Path) -> None:
    for label, hertz in (("high", 2000.0), ("low", 300.0)):
        for speaker in ("ann", "bob", "eve"):
            for take in range(2):
                write(tmp_path / "sounds" / label / f"{take}_{speaker}.wav", tone(hertz, 0.1))
    recipe = DatasetRecipe(
        "folder",
        path=str(tmp_path / "sounds"),
        split=(1, 1, 1),
        settings={"bands": 8, "group_part": 1},
    )
    loaded = data.load(recipe, name="mine", timed=True, dt_ms=5.0)
    assert len(loaded.train) == 4 and any("by group" in note for note in loaded.notes)
    assert loaded.shape == (8,) and loaded.steps <= math.ceil(100 / 5)
    wrong = DatasetRecipe("folder", path=str(tmp_path / "sounds"), settings={"group_part": 2})
    assert "group_part = 2: 2 parts" in message(
        DataError, lambda: data.load(wrong, name="mine", timed=True)
    )
