"""Formats of recordings: what other readers read in the same files, and damage in one line."""

from __future__ import annotations

import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_paths import shared_data
from pictures import message

from biograd.data.formats import FORMATS, AddressEvents
from biograd.data.formats.sonata_spikes import populations
from biograd.errors import DataError

HERE = Path(__file__).parent / "recordings"
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
KIND = {
    "nmnist": "atis",
    "nmnist_overflow": "atis",
    "ncars": "prophesee",
    "ncars_wide": "prophesee",
    "stmnist": "taxels",
    "dvsgesture": "aedat",
    "dvsgesture_edge": "aedat",
    "dvsgesture_npy": "event_arrays",
    "events_npz": "event_arrays",
    "cifar10dvs": "aedat",
    "slayer": "slayer",
}
CASES = [name for name in EXPECTED if name.split("/")[0] in KIND]


def read(name: str, path: Path) -> AddressEvents:
    found = FORMATS[name].read(path)
    assert isinstance(found, AddressEvents)
    return found


def test_there_are_cases_of_every_kind() -> None:
    assert {name.split("/")[0] for name in CASES} == set(KIND)


@pytest.mark.parametrize("name", CASES)
def test_events_are_those_of_other_readers(name: str) -> None:
    events = read(KIND[name.split("/")[0]], HERE / name)
    due = EXPECTED[name].get("events") or EXPECTED[name]["raw_events"]
    assert events.times.tolist() == due["t"]
    for letter, column in zip("pyx" if "x" in due else "n", events.places.T, strict=True):
        assert column.tolist() == due[letter]


def test_a_camera_that_was_turned() -> None:
    name = "cifar10dvs/airplane/cifar10_airplane_0.aedat"
    raw, events = EXPECTED[name]["raw_events"], read("cifar10_dvs", HERE / name)
    polarity, y, x = events.places.T
    assert x.tolist() == [127 - each for each in raw["y"]]
    assert y.tolist() == [127 - each for each in raw["x"]]
    assert polarity.tolist() == [1 - each for each in raw["p"]]


def test_sonata_as_libsonata_reads_it() -> None:
    libsonata = pytest.importorskip("libsonata")
    path = HERE / "sonata" / "spikes.h5"
    events = read("sonata_spikes", path)
    (population,) = libsonata.SpikeReader(str(path)).get_population_names()
    due = libsonata.SpikeReader(str(path))[population].get()
    assert events.places[:, 0].tolist() == [node for node, _ in due]
    assert events.times.tolist() == [round(time * 1000) for _, time in due]
    assert EXPECTED["sonata/spikes.h5"]["node_ids"] == events.places[:, 0].tolist()


def test_sonata_of_other_tools() -> None:
    folder = shared_data("sonata_fixtures")
    paths = sorted(folder.glob("*.h5"))
    assert len(paths) == 3
    for path in paths:
        with h5py.File(path) as file:
            for name, events in populations(path).items():
                group = file["spikes"][name]
                assert np.array_equal(events.places[:, 0], group["node_ids"][()])
                assert np.array_equal(events.times, np.round(group["timestamps"][()] * 1000))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sample_nmnist.bin", "atis"),
        ("sample_ncars.dat", "prophesee"),
        ("sample_stmnist.mat", "taxels"),
        ("oxford_input.bs1", "slayer"),
        ("oxford_output.bs1", "slayer"),
    ],
)
def test_real_samples(name: str, kind: str) -> None:
    root = shared_data("event_camera")
    due = json.loads((root / "samples_expected.json").read_text())[name]
    events = read(kind, shared_data("event_samples") / name)
    sums, ends = events.places.sum(0).tolist(), [events.times.min(), events.times.max()]
    assert len(events) == due["n"] and ends == (due.get("t") or due["t_us"])
    if kind == "slayer":
        assert sums == [due["sum_units"]]
        return
    assert sums == [due["on"], due["sum_y"], due["sum_x"]]
    for row, place in ((0, "first"), (-1, "last")):
        polarity, y, x = events.places[row].tolist()
        assert [x, y, int(events.times[row]), polarity] == due[place]


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_sound_as_scipy_reads_it(tmp_path: Path, width: int, channels: int) -> None:
    from scipy.io import wavfile

    stream = np.random.default_rng(0)
    path, data = tmp_path / "a.wav", stream.integers(0, 256, 60 * width * channels, np.uint8)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels), file.setsampwidth(width), file.setframerate(8000)
        file.writeframes(data.tobytes())
    samples, rate = FORMATS["waveform"].read(path)
    _, due = wavfile.read(path)
    due = (
        (due.astype(np.float64) - 128) / 128
        if width == 1
        else due / (-float(np.iinfo(due.dtype).min))
    )
    due = due.reshape(60, channels).mean(1)
    assert rate == 8000 and np.allclose(samples, due, atol=1e-6)


def packet(kind: int, number: int, capacity: int, size: int = 8, events: bytes = b"") -> bytes:
    return struct.pack("<HHIIIIII", kind, 0, size, 4, 0, capacity, number, number) + events


AEDAT = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
HEADER = b"\0" * 126 + b"IM"
PACKED = zlib.compress(struct.pack("<II", 14, 2**31), 0)
DAMAGED = {
    "atis": ("a.bin", b"123456", "truncated: 6 bytes of events are no multiple of 5"),
    "slayer": ("a.bs1", b"1234", "no multiple of 5"),
    "prophesee": ("a.dat", b"\0\x08" + b"\0" * 8, "its header begins with %"),
    "prophesee line": ("a.dat", b"% Version 2", "a line of the header does not end"),
    "prophesee bytes": ("a.dat", b"% a\n\0", "no type and size"),
    "prophesee type": ("a.dat", b"% a\n\x0e\x08", "events of type 14, 8 bytes"),
    "prophesee rest": ("a.dat", b"% a\n\0\x08" + b"\0" * 9, "no multiple of 8"),
    "aedat": ("a.aedat", b"#!AER-DAT4.0\r\n", "must be #!AER-DAT2.0 or #!AER-DAT3.1"),
    "aedat head": ("a.aedat", AEDAT + b"\1\0", "the header of the packet at byte 28"),
    "aedat room": ("a.aedat", AEDAT + packet(1, 2, 2**32 - 1), "the file ends after 0"),
    "aedat number": ("a.aedat", AEDAT + packet(1, 2, 0), "2 events of 8 bytes in the room of 0"),
    "aedat end": ("a.aedat", AEDAT[:16], "no line #!END-HEADER"),
    "aedat 2": ("a.aedat", b"#!AER-DAT2.0\r\n123", "no multiple of 8"),
    "taxels": ("a.mat", b"nonsense", "cannot be read as MATLAB 5"),
    "taxels short": ("a.mat", HEADER + struct.pack("<II", 15, 99), "an element of 99 bytes"),
    "taxels bomb": (
        "a.mat",
        HEADER + struct.pack("<II", 15, 99) + PACKED.ljust(99),
        "no data are packed so well",
    ),
    "event_arrays": ("a.npz", b"PK", "cannot be read as npz"),
    "event_arrays npy": ("a.npy", b"\x93NUMPY", "cannot be read as npy"),
    "sonata_spikes": ("a.h5", b"\x89HDF", "cannot be read as HDF5"),
    "waveform": ("a.wav", b"RIFF\0\0\0\0WAVE", "cannot be read as WAV"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_line(tmp_path: Path, name: str) -> None:
    file, content, expected = DAMAGED[name]
    path = tmp_path / file
    path.write_bytes(content)
    said = message(DataError, lambda: FORMATS[name.split()[0]].read(path))
    assert str(path) in said and expected in said


def test_a_sound_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(b"\0" * 100)
    path.write_bytes(path.read_bytes()[:-10])
    assert "100 bytes of samples are due, found 90" in message(
        DataError, lambda: FORMATS["waveform"].read(path)
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"t": [1, 2], "x": [1], "y": [1], "p": [0]}, "events differ in number"),
        ({"t": [1], "x": [1], "y": [1]}, "must be t, x, y, p"),
        ({"t": [0.5], "x": [1], "y": [1], "p": [0]}, "t: a value is not a whole number"),
        ({"t": [np.nan], "x": [1], "y": [1], "p": [0]}, "t: a value is not a whole number"),
        ({"t": ["a"], "x": [1], "y": [1], "p": [0]}, "t: is [1] of <U1"),
    ],
)
def test_arrays_that_are_no_events(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "a.npz", **change)
    assert expected in message(DataError, lambda: read("event_arrays", tmp_path / "a.npz"))


def test_events_whose_compressed_bytes_are_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **{name: np.arange(500) for name in "txyp"})
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(content)
    assert "cannot be read as np" in message(DataError, lambda: read("event_arrays", path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"units": "min"}, "units = 'min': must be ms or s"),
        ({"times": [-1.0]}, "a time is negative"),
        ({"times": [1.0, 2.0]}, "2 timestamps, 1 node_ids"),
        ({"second": True}, "several populations: a, b"),
    ],
)
def test_sonata_that_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("a", "b") if change.get("second") else ("a",):
            group = file.create_group(f"spikes/{name}")
            group["timestamps"] = np.array(change.get("times", [1.0]))
            group["timestamps"].attrs["units"] = change.get("units", "ms")
            group["node_ids"] = np.array([0])
    assert expected in message(DataError, lambda: read("sonata_spikes", tmp_path / "a.h5"))


def test_events_outside_of_the_sensor() -> None:
    events = AddressEvents(np.array([0, 1]), np.array([[0, 3, 4], [1, 4, 0]]))
    assert events.numbers((2, 5, 5), "a").tolist() == [19, 45]
    said = message(DataError, lambda: events.numbers((2, 4, 5), "a"))
    assert said == "a: event 1: 4 on axis 1 is outside 0..3 of shape [2, 4, 5]"
    assert "have 3 axes" in message(DataError, lambda: events.numbers((5,), "a"))
