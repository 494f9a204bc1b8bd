"""Find a run and read what it says of itself, from its finished file or its parts folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from biograd import disk
from biograd.errors import RunFileError
from biograd.runs.checked import CheckedFile, open_file
from biograd.runs.json_text import parse, parse_object, read_object
from biograd.runs.layout import (
    COMMIT_COLUMNS,
    FORMAT,
    SET,
    VERSION,
    Array,
    LayerInfo,
    Probe,
    Raster,
    plain_attributes,
)
from biograd.runs.parts.seal import AT_ONCE, is_sealed
from biograd.runs.parts.segments import Segment, Sources
from biograd.runs.parts.settling import located
from biograd.runs.said import LATER, TEXTS, described_by, integers
from biograd.runs.schema.row_info import RowInfo, rows_of
from biograd.runs.schema.run_tables import row_shape
from biograd.runs.storage import RunPaths

log = logging.getLogger(__name__)
CHECKPOINT = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
"""Names of checkpoints: a step, and the segment if another of that step was there."""
DIGESTS = ("file", "sha256", "checkpoint_sha256")
MARKS = ("magic", "version")  # attributes of the file, not of the run
LOST_SEAL = (
    "was changed by another program since it was written (its digest is gone): what it holds may "
    "not be what was recorded; use a copy from before"
)
OPTIONAL = ("input", "source_row", "target")
GROUPS = ("layers", "scalars", "snapshots", "params", "learning", "checkpoints")  # all have them


@dataclasses.dataclass(frozen=True)
class Commit:
    """One commit: what is on disk once its line is.

    Attributes:
        rows: rows of every table up to and with this commit.
        checkpoint: name and digest of the checkpoint that belongs to it.
        lasting: whether that stays when there are later ones.
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
    lasting: bool = False

    def line(self) -> str:
        """Return the line of ``commits.jsonl``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_line(cls, line: bytes, where: str) -> Commit:
        """Return the commit of a line; keys that a newer version added are ignored.

        Raises:
            RunFileError: it is damaged, or names what is no run's own.
        """
        return cls.of(parse_object(line, where), where)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Commit:
        """Return the commit of a table; see :meth:`from_line`."""
        known = {field.name for field in dataclasses.fields(cls)}
        own = {key: value for key, value in values.items() if key in known}
        numbers = [*map(own.get, COMMIT_COLUMNS), own.get("size", 0)]
        rows, name = own.get("rows", {}), own.get("checkpoint")
        sound = (
            all(type(number) is int and 0 <= number < 2**63 for number in numbers)
            and isinstance(rows, dict)
            and all(type(count) is int and 0 <= count < 2**63 for count in rows.values())
            and (name is None or (isinstance(name, str) and CHECKPOINT.fullmatch(name)))
            and all(isinstance(own.get(key) or "", str) for key in DIGESTS)
            and isinstance(own.get("lasting", False), bool)
        )
        if not sound:
            raise RunFileError(f"{where}: is damaged (not a commit of a run)")
        return cls(**own)

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
        sealed: whether a digest says that the rows are those that were written.
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
    code: dict[str, Any]
    recording: dict[str, Any]
    layers: dict[str, LayerInfo]
    probe: Probe | None
    history: list[list[int]]
    commits: list[Commit]
    sources: Sources
    sealed: bool

    @property
    def raster(self) -> Raster | None:
        """The times of the trials, None if nothing spikes."""
        return Raster.of(self.layers, self.probe)

    @property
    def rows(self) -> dict[str, RowInfo]:
        """The data sets that only some runs have."""
        return rows_of(self.recording)

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

    Nothing on the disk is changed.

    Raises:
        RunFileError: there is no run, or it cannot be read.
    """
    for _ in range(2):  # the run may be packed between the look and the reading
        parts = located(place)
        if parts is None:
            break
        with contextlib.suppress(FileNotFoundError):
            return read_parts(parts)
    if place.parts.is_dir() and not place.file.exists():
        raise RunFileError(f"{place.parts}: is not a run (it lacks header.json or commits.jsonl)")
    return read_packed(place)


def check_version(where: object, form: object, version: object) -> None:
    """Check that this program can read the run.

    Raises:
        RunFileError: it is not a run, or a newer major version wrote it.
    """
    if form == SET:
        raise RunFileError(f"{where}: is a set of runs: open it with biograd.load_set")
    if form != FORMAT:
        raise RunFileError(f"{where}: is HDF5 but not a run of biograd (no format={FORMAT!r})")
    major = str(version).split(".")[0]
    if not major.isdecimal() or len(major) > 9:
        raise RunFileError(f"{where}: has no valid format_version ({version!r})")
    if int(major) > int(VERSION.split(".")[0]):
        raise RunFileError(f"{where}: has format version {version}, newer than {VERSION}: update")


def seal_is_due(attributes: Mapping[str, Any]) -> bool:
    """Return whether a finished file was written with a digest: all are, of format 1.1 on."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", str(attributes.get("format_version")))
    return found is not None and (int(found[1]), int(found[2])) >= (1, 1)


def read_parts(place: RunPaths, header: Mapping[str, Any] | None = None) -> Contents:
    """Return the contents of a parts folder, whose header may be known.

    Raises:
        RunFileError: a file of it is damaged.
        FileNotFoundError: it was packed meanwhile.
    """
    where = place.parts / "header.json"
    header = read_object(where) if header is None else header
    check_version(where, header.get("format"), header.get("format_version"))
    commits = read_commits(place.parts / "commits.jsonl")
    segments = [Segment(segment_path(place, c.segment), c.sha256, c.size) for c in commits]
    said, probe = described_by(header, where), _parts_probe(place, header)
    return Contents(
        place=place,
        packed=False,
        status=_status(place),
        probe=probe,
        commits=commits,
        sources=Sources(_shapes(said, probe), segments),
        sealed=True,
        **said,
    )


def _shapes(
    said: Mapping[str, Any], probe: Probe | None
) -> Callable[[str], tuple[int, ...] | None]:
    """Return what tells the shape of a row of a data set."""
    rows = rows_of(said["recording"])
    return partial(row_shape, layers=said["layers"], probe=probe, rows=rows)


def segment_path(place: RunPaths, number: int) -> Path:
    """Return where a segment lies."""
    return place.parts / "segments" / f"{number:06d}.h5"


def _status(place: RunPaths) -> str:
    with contextlib.suppress(FileNotFoundError):
        return str(read_object(place.parts / "status.json").get("status"))
    return "crashed" if disk.is_held(place.parts / "lock") is False else "running"


def read_commits(path: Path) -> list[Commit]:
    """Return the commits of a parts folder; a last line that is torn does not count.

    Raises:
        RunFileError: a line before the last cannot be read.
        FileNotFoundError: there is no such file.
    """
    try:
        *lines, _torn = disk.read_bytes(path).split(b"\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror})") from error
    return [Commit.from_line(line, f"{path}: line {n}") for n, line in enumerate(lines, 1)]


def _parts_probe(place: RunPaths, header: Mapping[str, Any]) -> Probe | None:
    gap = header.get("gap_ms")
    if gap is None:
        return None
    with open_file(place.parts / "probe.h5") as file:
        return read_probe(file, gap)


def read_probe(file: CheckedFile, gap_ms: object) -> Probe:
    """Return the probe that ``/probe`` holds.

    Raises:
        RunFileError: it is damaged.
    """
    words = [word.decode(errors="replace") for word in file.array("probe/split", "S", 1).tolist()]
    own = {name: file.array(f"probe/{name}", "iu", 1) for name in ("index", "label")}
    own |= {name: file.array(f"probe/{name}") for name in OPTIONAL if file.holds(f"probe/{name}")}
    if not words or any(item.shape[:1] != (len(words),) for item in own.values()):
        raise file.damaged("probe", "its parts differ in length")
    if isinstance(gap_ms, bool) or not isinstance(gap_ms, int | float) or not 0 <= gap_ms < 1e9:
        raise file.damaged("probe", f"gap_ms is {gap_ms!r}")
    return Probe(split=words[0] if len(set(words)) == 1 else words, gap_ms=float(gap_ms), **own)


def read_packed(place: RunPaths) -> Contents:
    """Return the contents of a finished file, which stays open.

    Raises:
        RunFileError: it is missing, damaged or not a run.
    """
    path = place.file
    try:
        sealed = path.is_file() and is_sealed(path, AT_ONCE)
        file = open_file(path)
    except FileNotFoundError as error:
        raise RunFileError(f"{path}: there is no such run") from error
    except OSError as error:  # permissions, a failing disk
        raise RunFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        return _packed_contents(place, file, sealed)
    except BaseException:
        file.close()
        raise


def _packed_contents(place: RunPaths, file: CheckedFile, sealed: bool) -> Contents:
    attributes = {n: value for n, value in file.attributes("").items() if n not in MARKS}
    for name, value in attributes.items():
        if isinstance(value, np.ndarray):
            raise file.damaged("", f"attribute {name} is an array")
    check_version(file.path, attributes.get("format"), attributes.get("format_version"))
    if not sealed and seal_is_due(attributes):
        log.warning("%s: %s", file.path, LOST_SEAL)
    values = {
        "attributes": attributes,
        "parts_id": attributes.get("parts_id"),
        "layers": {name: _layer(file, f"layers/{name}") for name in file.members("layers")},
        "history": file.array("progress/commits", "iu", 2).tolist(),
        **{name: file.object(name) for name in TEXTS if name not in LATER or file.holds(name)},
    }
    for name in GROUPS:
        if not file.holds(name):
            raise file.damaged(name, "it is missing")
        file.members(name)
    probed, said = file.holds("probe"), described_by(values, file.path)
    probe = read_probe(file, file.attributes("probe").get("gap_ms")) if probed else None
    return Contents(
        place=place,
        packed=True,
        status=str(attributes.get("status")),
        probe=probe,
        commits=[_checkpoint(file, name) for name in file.members("checkpoints")],
        sources=Sources(_shapes(said, probe), file=file),
        sealed=sealed,
        **said,
    )


def _layer(file: CheckedFile, name: str) -> dict[str, Any]:
    """Return what a finished file says of a layer, as a header does."""
    values = file.attributes(name)
    shape = values.get("shape")
    values["shape"] = shape.tolist() if isinstance(shape, np.ndarray) else shape
    values["neuron_params"] = parse(str(values.get("neuron_params")), f"{file.path}: /{name}")
    unit = file.array(f"{name}/unit", "iu", 1)
    values["unit"] = None if len(unit) == values.get("n_units") else unit.tolist()
    return values


def _checkpoint(file: CheckedFile, name: str) -> Commit:
    group = f"checkpoints/{name}"
    values = file.attributes(group)
    numbers = values.get("commit")
    row = numbers.tolist() if isinstance(numbers, np.ndarray) else None
    if not integers(row, 4):
        raise file.damaged(group, "commit is not four integers")
    table = {
        **dict(zip(COMMIT_COLUMNS, row or (), strict=True)),
        "rows": parse(str(values.get("rows")), f"{file.path}: /{group}"),
        "checkpoint": name,
        "checkpoint_sha256": values.get("sha256"),
        "lasting": bool(values.get("lasting", False)),
    }
    return Commit.of(table, f"{file.path}: /{group}")


def described(contents: Contents) -> dict[str, Any]:
    """Return the attributes that both forms of a run show."""
    own = {"format": FORMAT, "status": contents.status}
    first = {"format_version": VERSION}  # of parts; a finished file says its own
    return plain_attributes({**first, **contents.attributes, **own, "parts_id": contents.parts_id})
