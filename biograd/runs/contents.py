"""Find a run and read what it says of itself, from its finished file or its parts folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biograd.errors import RunFileError, natural
from biograd.runs import storage
from biograd.runs.layout import (
    FORMAT,
    SET,
    VERSION,
    Array,
    LayerInfo,
    Probe,
    Raster,
    plain_attributes,
)
from biograd.runs.parts.segments import Segment, Sources, open_file
from biograd.runs.storage import RunPaths


@dataclasses.dataclass(frozen=True)
class Commit:
    """One commit: what is on disk once its line is.

    Attributes:
        rows: rows of every table up to and with this commit.
        checkpoint: name and digest of the checkpoint that belongs to it.
    """

    segment: int
    step: int
    rank: int
    unix_ns: int
    file: str = ""
    sha256: str = ""
    size: int = 0
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None

    def line(self) -> str:
        """Return the line of ``commits.jsonl``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_line(cls, line: bytes) -> Commit:
        """Return the commit of a line; keys that a newer version added are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in json.loads(line).items() if key in known})

    @property
    def numbers(self) -> list[int]:
        """The row of ``/progress/commits``."""
        return [self.segment, self.step, self.rank, self.unix_ns]


@dataclasses.dataclass
class Contents:
    """What a run says of itself, and where its rows are.

    Attributes:
        history: commits that an earlier finished file held, without segments of their own.
        commits: commits whose segments or checkpoints are here.
    """

    place: RunPaths
    packed: bool
    parts_id: str
    status: str
    attributes: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    hyperparameters: dict[str, Any]
    summary: dict[str, Any]
    credit: dict[str, Any]
    layers: dict[str, LayerInfo]
    probe: Probe | None
    history: list[list[int]]
    commits: list[Commit]
    sources: Sources

    @property
    def raster(self) -> Raster | None:
        """The times of the trials, None if nothing spikes."""
        return Raster.of(self.layers, self.probe)

    @property
    def numbers(self) -> Array:
        """The rows of ``/progress/commits``, int64 ``[commit, 4]``."""
        rows = self.history + ([] if self.packed else [c.numbers for c in self.commits])
        return np.array(rows, np.int64).reshape(-1, 4)

    def close(self) -> None:
        """Close the finished file."""
        if self.sources.file is not None:
            self.sources.file.close()


def find(place: RunPaths) -> Contents:
    """Return the contents of the run at ``place``; a parts folder goes before a finished file.

    Raises:
        RunFileError: there is no run, or it cannot be read.
    """
    settle(place)
    for _ in range(2):  # the run may be packed between the look and the reading
        if place.parts.is_dir():
            with contextlib.suppress(FileNotFoundError):
                return read_parts(place)
        else:
            break
    if place.parts.is_dir():
        raise RunFileError(f"{place.parts}: is not a run (it lacks header.json or commits.jsonl)")
    return read_packed(place)


def settle(place: RunPaths) -> None:
    """Finish or undo what a process that was killed left between two steps."""
    if place.aside.is_dir():
        if place.parts.is_dir() or not _worth(place.aside, place.file):
            storage.remove(place.aside)
        else:
            with contextlib.suppress(OSError):
                os.rename(place.aside, place.parts)
    if place.parts.is_dir() and place.file.exists() and not _worth(place.parts, place.file):
        with contextlib.suppress(OSError):  # a folder that only this user cannot write
            storage.discard(place)


def _worth(parts: Path, file: Path) -> bool:
    """Return whether a parts folder holds more than the finished file made of it."""
    try:
        identity = json.loads((parts / "header.json").read_bytes())["parts_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return parts.suffix == ".parts"
    try:
        with open_file(file) as packed:
            return bool(packed.attrs.get("parts_id") != identity)
    except (OSError, RunFileError):
        return True


def check_version(where: Path, form: object, version: object) -> None:
    """Check that this program can read the run.

    Raises:
        RunFileError: it is not a run, or a newer major version wrote it.
    """
    if form == SET:
        raise RunFileError(f"{where}: is a set of runs: open it with biograd.load_set")
    if form != FORMAT:
        raise RunFileError(f"{where}: is HDF5 but not a run of biograd (no format={FORMAT!r})")
    major = str(version).split(".")[0]
    if not major.isdigit():
        raise RunFileError(f"{where}: has no valid format_version ({version!r})")
    if int(major) > int(VERSION.split(".")[0]):
        raise RunFileError(f"{where}: has format version {version}, newer than {VERSION}: update")


def read_parts(place: RunPaths) -> Contents:
    """Return the contents of a parts folder.

    Raises:
        RunFileError: a file of it is damaged.
        FileNotFoundError: it was packed meanwhile.
    """
    header = _json(place.parts / "header.json")
    check_version(place.parts / "header.json", header.get("format"), header.get("format_version"))
    try:
        layers = {name: LayerInfo.from_json(v) for name, v in header["layers"].items()}
        commits = read_commits(place.parts / "commits.jsonl")
        segments = [Segment(segment_path(place, c.segment), c.sha256, c.size) for c in commits]
        return Contents(
            place=place,
            packed=False,
            parts_id=header["parts_id"],
            status=_status(place),
            attributes=header["attributes"],
            config=header["config"],
            environment=header["environment"],
            hyperparameters=header["hyperparameters"],
            summary=header["summary"],
            credit=header.get("credit", {}),
            layers=layers,
            probe=_parts_probe(place, header),
            history=header["history"],
            commits=commits,
            sources=Sources(segments),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFileError(f"{place.parts}: header.json is damaged ({error!r})") from error


def segment_path(place: RunPaths, number: int) -> Path:
    """Return where a segment lies."""
    return place.parts / "segments" / f"{number:06d}.h5"


def _status(place: RunPaths) -> str:
    with contextlib.suppress(FileNotFoundError):
        return str(_json(place.parts / "status.json")["status"])
    return "crashed" if storage.is_held(place.parts / "lock") is False else "running"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunFileError(f"{path}: is damaged ({error})") from error
    except (PermissionError, IsADirectoryError) as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(value, dict):
        raise RunFileError(f"{path}: is damaged (not a JSON object)")
    return value


def read_commits(path: Path) -> list[Commit]:
    """Return the commits of a parts folder; a last line that is torn does not count.

    Raises:
        RunFileError: a line before the last cannot be read.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    commits = []
    for number, line in enumerate(lines, 1):
        try:
            commits.append(Commit.from_line(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise RunFileError(f"{path}: line {number} is damaged ({error})") from error
    return commits


def _parts_probe(place: RunPaths, header: dict[str, Any]) -> Probe | None:
    if header["gap_ms"] is None:
        return None
    with open_file(place.parts / "probe.h5") as file:
        return read_probe(file["probe"], header["gap_ms"])


def read_probe(group: h5py.Group, gap_ms: float) -> Probe:
    """Return the probe that ``/probe`` holds."""
    words = [word.decode() for word in group["split"][()]]
    return Probe(
        index=group["index"][()],
        label=group["label"][()],
        split=words[0] if len(set(words)) == 1 else words,
        input=group["input"][()] if "input" in group else None,
        gap_ms=float(gap_ms),
    )


def read_packed(place: RunPaths) -> Contents:
    """Return the contents of a finished file, which stays open.

    Raises:
        RunFileError: it is missing, damaged or not a run.
    """
    path = place.file
    try:
        file = open_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        why = "is a folder, not a run" if path.is_dir() else "there is no such run"
        raise RunFileError(f"{path}: {why}") from error
    try:
        check_version(path, file.attrs.get("format"), file.attrs.get("format_version"))
        return _packed_contents(place, file)
    except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError) as error:
        file.close()
        text = " ".join(str(error).split())
        raise RunFileError(f"{path}: is a run file with damaged parts ({text})") from error
    except RunFileError:
        file.close()
        raise


def _packed_contents(place: RunPaths, file: h5py.File) -> Contents:
    marks = ("magic", "version")
    attributes = {n: _scalar(value) for n, value in file.attrs.items() if n not in marks}
    layers = {n: _layer(file["layers"][n]) for n in sorted(file["layers"], key=natural)}
    group = file.get("probe")
    return Contents(
        place=place,
        packed=True,
        parts_id=attributes["parts_id"],
        status=attributes["status"],
        attributes=attributes,
        config=json.loads(file["config"][()]),
        environment=json.loads(file["environment"][()]),
        hyperparameters=json.loads(file["hyperparameters"][()]),
        summary=json.loads(file["summary"][()]),
        credit=json.loads(file["credit"][()]) if "credit" in file else {},
        layers=layers,
        probe=None if group is None else read_probe(group, group.attrs["gap_ms"]),
        history=file["progress/commits"][()].tolist(),
        commits=[_checkpoint(name, item) for name, item in file["checkpoints"].items()],
        sources=Sources(file=file),
    )


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _layer(group: h5py.Group) -> LayerInfo:
    values = {name: _scalar(value) for name, value in group.attrs.items()}
    values["shape"] = [int(n) for n in group.attrs["shape"]]
    values["neuron_params"] = json.loads(values["neuron_params"])
    values["unit"] = group["unit"][()].tolist()
    if len(values["unit"]) == values["n_units"]:
        values["unit"] = None
    return LayerInfo.from_json(values)


def _checkpoint(name: str, group: h5py.Group) -> Commit:
    segment, step, rank, unix_ns = (int(value) for value in group.attrs["commit"])
    return Commit(
        segment=segment,
        step=step,
        rank=rank,
        unix_ns=unix_ns,
        rows=json.loads(group.attrs["rows"]),
        checkpoint=name,
        checkpoint_sha256=str(group.attrs["sha256"]),
    )


def described(contents: Contents) -> dict[str, Any]:
    """Return the attributes that both forms of a run show."""
    own = {"format": FORMAT, "format_version": VERSION, "status": contents.status}
    return plain_attributes({**contents.attributes, **own, "parts_id": contents.parts_id})
