"""Formats of recordings: what turns one file into events.

To add one: write ``read(path) -> AddressEvents`` in a file of its own, and name it in ``FORMATS``,
or in the entry points ``biograd.formats`` of another package.
"""

from __future__ import annotations

from biograd.data.formats import (
    aedat,
    atis,
    bin_spikes,
    event_arrays,
    prophesee,
    sonata_spikes,
    taxels,
    waveform,
)
from biograd.data.formats.address_events import AddressEvents, FileFormat
from biograd.registry import Registry

__all__ = ["FORMATS", "AddressEvents", "FileFormat"]

FORMATS: Registry[FileFormat] = Registry(
    "biograd.formats",
    {
        "atis": FileFormat(atis.read, (".bin",)),
        "prophesee": FileFormat(prophesee.read, (".dat",)),
        "aedat": FileFormat(aedat.read, (".aedat",)),
        "cifar10_dvs": FileFormat(aedat.read_turned, (".aedat",)),
        "taxels": FileFormat(taxels.read, (".mat",)),
        "slayer": FileFormat(bin_spikes.read, (".bs1",)),
        "event_arrays": FileFormat(event_arrays.read, (".npz", ".npy")),
        "sonata_spikes": FileFormat(sonata_spikes.read, (".h5",)),
        "waveform": FileFormat(waveform.read, (".wav",), sound=True),
    },
)
